"""weighted_mean: federated averaging in one pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from edgefast import backends
from edgefast.aggregate import _policy
from edgefast.aggregate._policy import Ints, Nonfinite
from edgefast.aggregate._template import Template
from edgefast.aggregate.errors import NonFiniteUpdate, ZeroWeightError
from edgefast.backends.table import Array

__all__ = ["weighted_mean"]

_log = logging.getLogger("edgefast")


def weighted_mean(
    updates: Sequence[Any] | Array,
    weights: Sequence[float] | Array | None = None,
    *,
    out: Any = None,
    accumulate: Literal["float64"] = "float64",
    ints: Ints = "round",
    nonfinite: Nonfinite = "raise",
    num_threads: int | None = None,
) -> Any:
    """Weighted mean of model updates: sum(w_k x_k) / sum(w_k), each update read once and in place.

    Sums are kept in float64, in the order of the updates, and divided and rounded to the tensor's dtype once. The
    bits do not depend on backend, SIMD level or number of threads.

    Args:
        updates: K updates, or a (K, ...) array whose rows are the updates. An update is an array, or a (nested)
            dict, list or tuple of arrays; all have the structure, shapes and dtypes of the first. Dtypes: float16,
            float32, float64, (u)int8 to (u)int64, bool. A bare list of arrays is K one-array updates. Updates are
            never changed; strided arrays are copied one at a time.
        weights: K finite weights, each 0 or from 2**-900 to 2**900, not all zero; None for equal ones. An update of
            weight 0 is not read.
        out: containers of arrays like an update, for the result; an array may also be part of one update, at the
            same place. After an error its contents are undefined.
        accumulate: "float64".
        ints: what happens to integer and bool tensors. "round": the mean, rounded to nearest even (bool: more than
            half the weight), values within +-2**53. "max": the largest value, for counters. "first": the first
            update's value. "skip": the template's value, that of updates[0]. "error": DtypeMismatch.
        nonfinite: NaN and infinities: "raise", "drop" the whole update and its weight, or "propagate".
        num_threads: threads to use; None for the default (see edgefast.using).

    Returns:
        New arrays in the first update's containers, with its dtypes; `out` when given.

    Raises:
        StructureMismatch, ShapeMismatch, DtypeMismatch: an update differs from the first. These and the next four
            are ValueErrors that name the client (index), the key, what was expected and what came.
        NonFiniteUpdate: NaN or infinity with nonfinite="raise", or in every update with "drop".
        IntegerRange: an integer beyond 2**53 with ints="round".
        ZeroWeightError: all weights are 0.
        ValueError: no updates, a wrong number of weights, a negative, non-finite or extreme weight, an unknown
            option.
        TypeError: updates or weights are no sequences, or a weight is no number.

    References:
        McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import weighted_mean
        >>> weighted_mean([{"w": np.array([1.0, 2.0])}, {"w": np.array([3.0, 6.0])}], weights=[3, 1])
        {'w': array([1.5, 3. ])}
    """
    _policy.check_accumulate(accumulate)
    _policy.check_choice(ints, "ints", _policy.INTS)
    _policy.check_choice(nonfinite, "nonfinite", _policy.NONFINITE)
    threads = backends.num_threads(num_threads)
    if (
        isinstance(updates, (dict, str, bytes))
        or not hasattr(updates, "__len__")
        or not hasattr(updates, "__getitem__")
    ):
        raise TypeError(f"updates: expected a sequence of updates, got {type(updates).__name__}")
    if isinstance(updates, np.ndarray) and updates.ndim == 0:
        raise TypeError("updates: expected a sequence of updates, got a 0-d array")
    count = len(updates)
    if count == 0:
        raise ValueError("updates: expected at least one update, got none")
    all_weights = _policy.weights_of(weights, count)
    template = Template(updates[0])
    clients = [k for k in range(count) if all_weights[k] > 0]
    if not clients:
        raise ZeroWeightError(f"weights: expected at least one weight above 0, got {count} zeros")
    averaged = _policy.averaged(template.arrays, template.keys, ints)
    models = [template.flatten(updates[k], k) for k in clients]
    if ints == "round" and any(a.dtype.kind in "iu" and a.dtype.itemsize == 8 for a in template.arrays):
        for k, arrays in zip(clients, models, strict=True):
            _policy.check_integers(arrays, template.keys, k)
    targets, copies = template.outputs(out, models)

    kernels = backends.kernels()
    everything = len(averaged) == len(template.arrays)
    rows = models if everything else [[m[t] for t in averaged] for m in models]
    kept = list(range(len(clients)))
    while True:
        used = [all_weights[clients[i]] for i in kept]
        total = 0.0
        for w in used:
            total += w
        selected = targets if everything else [targets[t] for t in averaged]
        suspicious = kernels.weighted_mean([rows[i] for i in kept], used, total, selected, threads)
        if not suspicious or nonfinite == "propagate":
            break
        # Rare: find out which update it is. Finite inputs can still overflow the sum; then the infinity stands.
        bad = [i for i in kept if not kernels.all_finite(rows[i], threads)]
        if not bad:
            break
        if nonfinite == "raise" or len(bad) == len(kept):
            raise nonfinite_error(rows[bad[0]], [template.keys[t] for t in averaged], clients[bad[0]])
        _log.warning("weighted_mean: dropped updates with NaN or infinity: %s", [clients[i] for i in bad])
        kept = [i for i in kept if i not in bad]

    for t in sorted(set(range(len(template.arrays))) - set(averaged)):
        if ints == "max":
            _policy.maximum([models[i][t] for i in kept], targets[t])
        else:
            np.copyto(targets[t], template.arrays[t] if ints == "skip" else models[kept[0]][t])
    for source, target in copies:
        np.copyto(target, source)
    return template.build(targets) if out is None else out


def nonfinite_error(arrays: list[Array], keys: list[str], client: object) -> NonFiniteUpdate:
    for key, a in zip(keys, arrays, strict=True):
        if a.dtype.kind == "f":
            bad = ~np.isfinite(a)
            if bad.any():
                value = a[bad][0]
                return NonFiniteUpdate.of(
                    client, key or None, "finite values", f"{value} ({int(bad.sum())} non-finite)"
                )
    raise AssertionError("no non-finite value found")  # pragma: no cover
