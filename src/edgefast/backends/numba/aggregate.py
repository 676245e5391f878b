"""edgefast.aggregate in numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgefast.backends.numba.jit import jit

# Nothing to win in a loop: dividing sums and merging states is one pass.
from edgefast.backends.numpy.aggregate import finish_mean, first_mismatch, overlapping
from edgefast.backends.numpy.binned import binned_finish, binned_merge
from edgefast.backends.numpy.elements import widen
from edgefast.backends.table import BF16, Array, binned_folds, holds_single

__all__ = [
    "add_weighted",
    "all_finite",
    "binned_add",
    "binned_finish",
    "binned_mean",
    "binned_merge",
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
def _axpy_single(x: Any, weight: Any, sums: Any) -> None:
    for i in range(sums.size):
        sums[i] += np.float32(x[i]) * weight


@jit
def _finite(x: Any) -> bool:
    for i in range(x.size):  # noqa: SIM110 - numba compiles the loop
        if not np.isfinite(x[i]):
            return False
    return True


@jit
def _binned(x: Any, weight: float, bins: Any, index: Any) -> bool:
    """Deposits of csrc/aggregate/binned.hpp, one coordinate after the other; whether any of them has a flag."""
    folds = bins.shape[0]
    number = np.zeros(1)
    bits = number.view(np.int64)
    magic = np.zeros(1)
    magic_bits = magic.view(np.int64)
    flagged = False
    for i in range(x.size):
        t = np.float64(x[i]) * weight
        top = np.int64(index[i])
        if not abs(t) < 2.0**993:
            flag = 255 if t != t else (253 if t > 0 else 254)
            index[i] = flag if top <= 46 or top == flag else 255
            for f in range(folds):
                bins[f, i] = 0
            flagged = True
            continue
        if top > 46:
            flagged = True
            continue
        number[0] = abs(t)
        j = ((bits[0] >> 52) + 52) // 44
        if j > top:
            steps = j - top
            for f in range(folds - 1, -1, -1):
                bins[f, i] = bins[f - steps, i] if f >= steps else 0
            top = j
            index[i] = j
        for f in range(folds):
            magic_bits[0] = ((44 * (top - f) + 1) << 52) | (1 << 51)
            number[0] = t + magic[0]
            bins[f, i] += bits[0] - magic_bits[0]
            t -= number[0] - magic[0]
    return flagged


def _readable(x: Array) -> Array:
    """Flat, and of a type numba compiles: it has no halves, and read-only or unaligned arrays are other types."""
    flat = x.reshape(-1)
    if x.dtype == np.float16 or x.dtype == BF16:
        return widen(flat, np.float32)
    return np.require(flat, requirements=["A", "W"])


def weighted_mean(
    rows: list[list[Array]],
    weights: list[float],
    total: float,
    single: bool,
    out: list[Array],
    num_threads: int,
    /,
) -> bool:
    suspicious = False
    for t, target in enumerate(out):
        narrow = single and holds_single(target.dtype)
        sums = np.empty(target.size, np.float32 if narrow else np.float64)
        add_weighted([[row[t]] for row in rows], weights, narrow, True, [sums], num_threads)
        suspicious = suspicious or not _finite(sums)
        finish_mean([sums], total, narrow, [target], num_threads)
    return suspicious


def add_weighted(
    rows: list[list[Array]],
    weights: list[float],
    single: bool,
    fresh: bool,
    sums: list[Array],
    num_threads: int,
    /,
) -> None:
    if fresh:
        for total in sums:
            total.fill(0)
    for row, weight in zip(rows, weights, strict=True):
        for x, total in zip(row, sums, strict=True):
            if single and holds_single(x.dtype):
                _axpy_single(_readable(x), np.float32(weight), total.reshape(-1))
            else:
                _axpy(_readable(x), weight, total.reshape(-1))


def all_finite(update: list[Array], num_threads: int, /) -> bool:
    return all(_finite(_readable(a)) for a in update if a.dtype.kind in "fV")


def binned_mean(
    rows: list[list[Array]], weights: list[float], total: float, out: list[Array], num_threads: int, /
) -> bool:
    flagged = False
    for t, target in enumerate(out):
        folds = binned_folds(target.dtype)
        bins = np.zeros((folds, target.size), np.int64)
        index = np.full(target.size, folds - 1, np.uint8)
        for row, weight in zip(rows, weights, strict=True):
            flagged = _binned(_readable(row[t]), weight, bins, index) or flagged
        binned_finish([bins], [index], total, [target], num_threads)
    return flagged


def binned_add(update: list[Array], weight: float, bins: list[Array], index: list[Array], num_threads: int, /) -> None:
    for x, b, e in zip(update, bins, index, strict=True):
        _binned(_readable(x), weight, b.reshape(len(b), -1), e.reshape(-1))
