"""Aggregation without rounds: FedBuff on a server, gossip between devices; and FedProx's term for slow devices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgefast.aggregate import _policy
from edgefast.aggregate._batch import check_count
from edgefast.aggregate._template import Template
from edgefast.aggregate.accumulator import MeanAccumulator
from edgefast.aggregate.mean import weighted_mean
from edgefast.backends.numpy.elements import round_into, tiles, widen
from edgefast.backends.table import Array

__all__ = ["FedBuff", "fedprox_gradient", "gossip", "metropolis_mixing"]


def polynomial_staleness(staleness: int) -> float:
    """(1 + staleness) ** -0.5, the weight of FedBuff's paper."""
    return (1.0 + staleness) ** -0.5


class FedBuff:
    """Asynchronous federated learning: a step whenever `buffer_size` updates have come, whoever sent them.

    Devices train at their own pace from the model they were last given and send the difference. The server weighs it by
    how many steps the model has made meanwhile, buffers it in O(model) memory, and steps when the buffer is full:
    x' = x + lr * sum(s(tau_k) w_k d_k) / n, n being the number of updates, or the sum of s(tau_k) w_k.

    Args:
        model: the global model, arrays in containers; it is copied.
        buffer_size: updates a step, at least 1.
        lr: server learning rate, above 0.
        staleness: weight of an update by the steps made since the model it began from; None for (1 + tau) ** -0.5.
        normalize: n: "count" as in the paper, or "weight".
        num_threads: threads of the kernels; None for the default (see edgefast.using).

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range; a model that cannot be averaged.

    References:
        J. Nguyen et al., "Federated learning with buffered asynchronous aggregation", AISTATS 2022.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import FedBuff
        >>> server = FedBuff(np.zeros(2), buffer_size=2)
        >>> server.add(np.array([1.0, 0.0]), version=0), server.add(np.array([0.0, 1.0]), version=0)
        (False, True)
        >>> server.version, server.model
        (1, array([0.5, 0.5]))
    """

    def __init__(
        self,
        model: Any,
        buffer_size: int,
        *,
        lr: float = 1.0,
        staleness: Callable[[int], float] | None = None,
        normalize: Literal["count", "weight"] = "count",
        num_threads: int | None = None,
    ) -> None:
        size = check_count(buffer_size, "buffer_size", 1)
        _policy.check_choice(normalize, "normalize", ("count", "weight"))
        if staleness is not None and not callable(staleness):
            raise TypeError(f"staleness: expected a callable or None, got {type(staleness).__name__}")
        self._lr = _policy.one_weight(lr, "lr")
        if self._lr == 0:
            raise ValueError("lr: expected a number above 0, got 0.0")
        self._buffer_size = size
        self._staleness = polynomial_staleness if staleness is None else staleness
        self._normalize = normalize
        self._template = Template(model, client="model")
        self._model = [a.copy() for a in self._template.arrays]
        self._buffer = MeanAccumulator(model, num_threads=num_threads)
        self._spent = False  # the updates in the buffer are part of the model already
        self._version = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<FedBuff of {self._buffer_size} updates a step: version {self._version}, {self.pending} pending>"

    @property
    def version(self) -> int:
        """Steps made; a device that fetches the model notes it."""
        return self._version

    @property
    def pending(self) -> int:
        """Updates in the buffer."""
        return 0 if self._spent else self._buffer.count

    @property
    def model(self) -> Any:
        """The global model, as copies in the containers it came in."""
        with self._lock:
            return self._template.build([a.copy() for a in self._model])

    def add(self, delta: Any, version: int, weight: float = 1.0, *, client: object = None) -> bool:
        """Take the difference between a device's model and the model it began from. On an error nothing has changed.

        Args:
            delta: of the model's structure; integer tensors (counters) are differences, too.
            version: that of the model the device began from, 0 to the present one.
            weight: the device's weight, above 0.
            client: name for error messages.

        Returns:
            True when this update completed the buffer and the model made a step.

        Raises:
            StructureMismatch, ShapeMismatch, DtypeMismatch, NonFiniteUpdate: as `weighted_mean`.
            TypeError, ValueError: a version that has not been, or a weight or staleness that is no number above 0.
        """
        if isinstance(version, bool) or not hasattr(version, "__index__"):
            raise TypeError(f"version: expected an integer, got {type(version).__name__}")
        with self._lock:
            if not 0 <= version <= self._version:
                raise ValueError(f"version: expected 0 to {self._version}, got {version}")
            factor = _policy.one_weight(self._staleness(self._version - int(version)), "staleness")
            total = factor * _policy.one_weight(weight, "weight")
            if total == 0:
                raise ValueError("weight: expected a weight and a staleness above 0, got 0.0")
            if self._spent:
                self._empty()
            self._buffer.add(delta, total, client=client)
            if self._buffer.count < self._buffer_size:
                return False
            mean = self._template.flatten(self._buffer.result(), "mean")
            scale = self._lr * (self._buffer.weight / self._buffer.count if self._normalize == "count" else 1.0)
            model = [x.copy() for x in self._model]
            for x, d in zip(model, mean, strict=True):
                _add_scaled(x, d, scale)
            # In one step: after Ctrl-C it was made, or the updates are still in the buffer.
            self._model, self._version, self._spent = model, self._version + 1, True
            self._empty()
            return True

    def _empty(self) -> None:
        self._buffer.reset()
        self._spent = False


def _add_scaled(x: Array, d: Array, scale: float) -> None:
    """x += scale * d, in float64 with one rounding to x's dtype."""
    flat, other = x.reshape(-1), np.asarray(d).reshape(-1)
    for part in tiles(flat.size):
        round_into(flat[part], widen(flat[part]) + scale * widen(other[part]))


def gossip(
    models: Sequence[Any],
    mixing: NDArray[np.floating] | Sequence[Sequence[float]],
    *,
    num_threads: int | None = None,
) -> list[Any]:
    """One round of device-to-device averaging: model i becomes sum_j mixing[i][j] * model j. No server takes part.

    Args:
        models: K models of one structure, one per device.
        mixing: (K, K), no entry negative, every row summing to 1: what device i gives on the models it hears of
            (mixing[i][j] = 0 where i does not hear j). With columns summing to 1 as well, as metropolis_mixing makes
            it, repeated rounds lead every device to the mean of all.
        num_threads: threads to use; None for the default (see edgefast.using).

    Returns:
        K new models; the given ones are not changed.

    Raises:
        TypeError: models is no sequence of updates.
        ValueError: there are no models, or mixing has another shape, negative or non-finite entries, or a row that does
            not sum to 1.
        StructureMismatch, ShapeMismatch, DtypeMismatch, NonFiniteUpdate: as `weighted_mean`.

    References:
        S. Boyd, A. Ghosh, B. Prabhakar and D. Shah, "Randomized gossip algorithms", IEEE Trans. Inf. Theory 52, 2006.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import gossip
        >>> gossip([np.array([0.0]), np.array([4.0])], [[0.75, 0.25], [0.25, 0.75]])
        [array([1.]), array([3.])]
    """
    matrix = np.asarray(mixing, np.float64)
    count = _policy.count_of(models)
    if matrix.shape != (count, count):
        raise ValueError(f"mixing: expected shape ({count}, {count}), one row per model, got {matrix.shape}")
    if not np.isfinite(matrix).all() or (matrix < 0).any():
        raise ValueError("mixing: expected finite entries >= 0")
    sums = matrix.sum(axis=1)
    if (np.abs(sums - 1) > 1e-9).any():
        i = int(np.argmax(np.abs(sums - 1)))
        raise ValueError(f"mixing: expected rows that sum to 1, row {i} sums to {sums[i]}")
    return [weighted_mean(models, row.tolist(), num_threads=num_threads) for row in matrix]


def metropolis_mixing(neighbours: NDArray[Any] | Sequence[Sequence[Any]]) -> NDArray[np.float64]:
    """The Metropolis weights of an undirected graph: symmetric, every row and column summing to 1.

    Devices i and j that hear each other give on 1 / (1 + max(degree i, degree j)) of each other's model and keep the
    rest of their own. Each needs to know only its neighbours' degrees.

    Args:
        neighbours: (K, K), true where devices hear each other; symmetric, the diagonal does not count.

    Raises:
        ValueError: no square matrix, or not symmetric.

    References:
        L. Xiao and S. Boyd, "Fast linear iterations for distributed averaging", Systems & Control Letters 53, 2004.

    Examples:
        >>> from edgefast.aggregate import metropolis_mixing
        >>> metropolis_mixing([[0, 1], [1, 0]]).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    linked = np.asarray(neighbours).astype(bool)
    if linked.ndim != 2 or linked.shape[0] != linked.shape[1]:
        raise ValueError(f"neighbours: expected a square matrix, got shape {linked.shape}")
    if (linked != linked.T).any():
        raise ValueError("neighbours: expected a symmetric matrix: who hears a device is heard by it")
    linked = linked & ~np.eye(len(linked), dtype=bool)
    degree = linked.sum(axis=1)
    mixing = np.where(linked, 1.0 / (1 + np.maximum(degree[:, None], degree[None, :])), 0.0)
    np.fill_diagonal(mixing, 1 - mixing.sum(axis=1))
    return mixing


def fedprox_gradient(gradient: Any, x: Any, center: Any, mu: float, *, out: Any = None) -> Any:
    """FedProx on a device: gradient + mu (x - center), the gradient of the loss plus mu/2 |x - center|^2.

    Keeps a device that takes many steps, or strange ones, near the global model it began from.

    Args:
        gradient: of the loss at x, floating-point arrays in containers.
        x: the device's model.
        center: the global model the device began from.
        mu: strength, 0 or above.
        out: containers of arrays like gradient, for the result; gradient itself is fine.

    Returns:
        New arrays in the gradient's containers, computed in float64 and rounded once; `out` when given.

    Raises:
        StructureMismatch, ShapeMismatch, DtypeMismatch: the three do not fit together.
        TypeError, ValueError: mu is no number >= 0.

    References:
        T. Li et al., "Federated optimization in heterogeneous networks", MLSys 2020.
    """
    strength = _policy.one_weight(mu, "mu")
    template = Template(gradient, client="gradient")
    parts = [template.flatten(given, name) for given, name in ((gradient, "gradient"), (x, "x"), (center, "center"))]
    targets, copies = template.outputs(out, [])
    with np.errstate(all="ignore"):
        for target, g, a, b in zip(targets, *parts, strict=True):
            flat = [array.reshape(-1) for array in (target, g, a, b)]
            for part in tiles(target.size):
                to, slope, here, there = (array[part] for array in flat)
                round_into(to, widen(slope) + strength * (widen(here) - widen(there)))
    for source, target in copies:
        np.copyto(target, source)
    return template.build(targets) if out is None else out
