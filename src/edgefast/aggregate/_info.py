"""Distances of a batch, and how a rule came to its result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgefast import backends
from edgefast.aggregate._batch import Batch

__all__ = ["RuleInfo", "distances_of", "info_of", "spread"]


@dataclass(frozen=True, slots=True, eq=False)
class RuleInfo:
    """How a robust rule came to its result.

    Attributes:
        selected: indices of the updates the result is made of, best first where the rule ranks them.
        weights: share of every update in the result, one per update given, in [0, 1]; NaN where a rule does not take
            whole updates (Bulyan's last step works coordinate by coordinate).
        scores: what the rule ranked the updates by, one per update given (NaN: not looked at), or None.
        dropped: indices of the updates left out by nonfinite="drop".
    """

    selected: tuple[int, ...]
    weights: NDArray[np.float64]
    scores: NDArray[np.float64] | None
    dropped: tuple[int, ...]


def distances_of(batch: Batch) -> tuple[NDArray[np.float64], bool]:
    """Squared distances of the updates that are in, and whether one of them is not finite."""
    count = len(batch.clients)
    distances = np.zeros((count, count))
    backends.kernels().pair_sums(batch.rows, distances, None, batch.threads)
    return distances, not bool(np.isfinite(distances).all())


def spread(batch: Batch, values: ArrayLike, fill: float) -> NDArray[np.float64]:
    """Values of the updates that are in, at their places among all updates given."""
    full = np.full(batch.count, fill)
    full[batch.clients] = values
    return full


def info_of(batch: Batch, members: list[int], weights: list[float], scores: ArrayLike | None) -> RuleInfo:
    shares = np.zeros(batch.count)
    total = sum(weights)
    for i, w in zip(members, weights, strict=True):
        shares[batch.clients[i]] = w / total
    return RuleInfo(
        tuple(batch.clients[i] for i in members),
        shares,
        None if scores is None else spread(batch, scores, np.nan),
        tuple(batch.dropped),
    )
