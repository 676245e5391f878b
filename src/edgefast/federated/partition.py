"""Which rows a device holds."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.errors import InputError

__all__ = ["dirichlet_partition", "stratified_split"]


def dirichlet_partition(
    labels: NDArray[Any], n_devices: int, *, alpha: float = 0.3, seed: int = 0
) -> list[NDArray[np.int64]]:
    """Split rows over devices, each class in proportions drawn from a Dirichlet distribution.

    Args:
        labels: shape (n,), the class of each row.
        n_devices: number of shards; at most n.
        alpha: concentration; small means that a device sees few of the classes.
        seed: of the proportions and of the order of the rows.

    Returns:
        n_devices arrays of row numbers, ascending, disjoint, together all rows; none is empty.

    Raises:
        TypeError: n_devices or seed is no integer, alpha no number.
        InputError: more devices than rows, no device, labels that are no vector, alpha not above 0 and finite, or a
            seed that is not from 0 to 2**64 - 1.

    References:
        T.-M. H. Hsu, H. Qi and M. Brown, "Measuring the effects of non-identical data distribution for federated
        visual classification", 2019.

    Examples:
        >>> import numpy as np
        >>> shards = dirichlet_partition(np.arange(100) % 4, 5, seed=1)
        >>> sorted(np.concatenate(shards)) == list(range(100))
        True
    """
    labels, n_devices, seed = np.asarray(labels), _integer(n_devices, "n_devices"), _integer(seed, "seed")
    if labels.ndim != 1:
        raise InputError(f"labels: expected one label a row, shape (n,), got shape {labels.shape}")
    if n_devices < 1:
        raise InputError(f"n_devices: expected at least 1, got {n_devices}")
    if isinstance(alpha, str) or np.ndim(alpha):
        raise TypeError(f"alpha: expected a number, got {type(alpha).__name__}")
    if not 0 < alpha < np.inf:
        raise InputError(f"alpha: expected a number above 0 and below inf, got {alpha}")
    if not 0 <= seed < 2**64:
        raise InputError(f"seed: expected an integer from 0 to {2**64 - 1}, got {seed}")
    n = len(labels)
    if n_devices > n:
        raise InputError(f"devices: expected at most one per training row ({n}), got {n_devices}; ask for fewer")
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    owner = np.empty(n, np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = np.cumsum(rng.dirichlet(np.full(n_devices, alpha)))
        cuts = np.round(shares[:-1] * len(rows)).astype(np.int64)
        owner[rows] = np.repeat(np.arange(n_devices), np.diff(cuts, prepend=0, append=len(rows)))
    counts = np.bincount(owner, minlength=n_devices)
    for device in np.flatnonzero(counts == 0):
        # A device with nothing to do would only distort the counts: it gets one row of the richest.
        richest = int(np.argmax(counts))
        owner[np.flatnonzero(owner == richest)[0]] = device
        counts[richest] -= 1
        counts[device] += 1
    return [np.flatnonzero(owner == device) for device in range(n_devices)]


def _integer(value: Any, name: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None


def stratified_split(
    labels: NDArray[Any], test_fraction: float, *, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(train, test) row numbers, ascending: `test_fraction` of every class, rounded, for scoring.

    A class keeps at least one row for training. At least one row is kept for scoring: when rounding leaves none, one
    row of the largest class.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 2]))
    test = []
    classes, counts = np.unique(labels, return_counts=True)
    for label, count in zip(classes, counts, strict=True):
        rows = rng.permutation(np.flatnonzero(labels == label))
        test.append(rows[: min(round(int(count) * test_fraction), int(count) - 1)])
    chosen = np.concatenate(test)
    if not len(chosen) and counts.max() > 1:
        chosen = np.flatnonzero(labels == classes[np.argmax(counts)])[:1]
    mask = np.zeros(len(labels), bool)
    mask[chosen] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)
