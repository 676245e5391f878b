"""edgefast.aggregate in numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgefast.backends.numba.jit import jit

# Nothing to win in a loop: dividing sums is one pass.
from edgefast.backends.numpy.aggregate import finish_mean, first_mismatch, overlapping
from edgefast.backends.table import Array

__all__ = [
    "add_weighted",
    "all_finite",
    "finish_mean",
    "first_mismatch",
    "overlapping",
    "weighted_mean",
]


@jit
def _axpy(x: Any, weight: float, sums: Any) -> None:
    for i in range(sums.size):
        sums[i] += x[i] * weight


@jit
def _finite(x: Any) -> bool:
    for i in range(x.size):  # noqa: SIM110 - numba compiles the loop
        if not np.isfinite(x[i]):
            return False
    return True


def _readable(x: Array) -> Array:
    """Flat, and of a type numba compiles: it has no float16, and read-only or unaligned arrays are other types."""
    flat = x.reshape(-1)
    if x.dtype == np.float16:
        return flat.astype(np.float64)
    return np.require(flat, requirements=["A", "W"])


def weighted_mean(
    rows: list[list[Array]], weights: list[float], total: float, out: list[Array], num_threads: int, /
) -> bool:
    suspicious = False
    for t, target in enumerate(out):
        sums = np.zeros(target.size)
        for row, weight in zip(rows, weights, strict=True):
            _axpy(_readable(row[t]), weight, sums)
        suspicious = suspicious or not _finite(sums)
        finish_mean([sums], total, [target], num_threads)
    return suspicious


def add_weighted(update: list[Array], weight: float, sums: list[Array], num_threads: int, /) -> None:
    for x, total in zip(update, sums, strict=True):
        _axpy(_readable(x), weight, total.reshape(-1))


def all_finite(update: list[Array], num_threads: int, /) -> bool:
    return all(_finite(_readable(a)) for a in update if a.dtype.kind == "f")
