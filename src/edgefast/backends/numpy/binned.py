"""Reproducible sums in numpy: the scheme of csrc/aggregate/binned.hpp, tile by tile."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgefast.backends.numpy.elements import TILE, round_into, tiles, widen
from edgefast.backends.table import Array, binned_folds

__all__ = ["binned_add", "binned_finish", "binned_mean", "binned_merge"]

Bins = NDArray[np.int64]
Index = NDArray[np.uint8]

_BITS = 44
_TOP = 46
_PLUS, _MINUS, _NAN = 253, 254, 255
_LIMIT = 2.0**993


def _magic(j: NDArray[np.int64]) -> NDArray[np.float64]:
    return ((_BITS * j + 1) << 52 | 1 << 51).view(np.float64)


def _shift(bins: Bins, steps: NDArray[np.int64]) -> Bins:
    """Columns of (F, n) moved down by `steps` rows."""
    folds = len(bins)
    rows = np.arange(folds)[:, None] - steps
    moved = np.take_along_axis(bins, np.clip(rows, 0, folds - 1), axis=0)
    return np.where(rows >= 0, moved, 0)


def _flags(t: NDArray[np.float64]) -> NDArray[np.int64]:
    """0, or the flag of a term that counts as non-finite."""
    flags = np.where(t > 0, _PLUS, _MINUS)
    flags[np.isnan(t)] = _NAN
    flags[np.abs(t) < _LIMIT] = 0
    return flags


def _join(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Flags of two states (indices where neither has one stay with a)."""
    joined = np.where(a > _TOP, a, np.where(b > _TOP, b, a))
    return np.where((a > _TOP) & (b > _TOP) & (a != b), _NAN, joined)


def _deposit(t: NDArray[np.float64], bins: Bins, index: NDArray[np.int64]) -> tuple[Bins, NDArray[np.int64]]:
    """The state after one more term per column; index is int64 here."""
    flags = _flags(t)
    finite = (flags == 0) & (index <= _TOP)
    t = np.where(finite, t, 0.0)
    top = np.where(finite, index, len(bins) - 1)
    j = ((np.abs(t).view(np.int64) >> 52) + 52) // _BITS
    raised = np.maximum(top, j)
    if (raised != top).any():
        bins = _shift(bins, raised - top)
    for f in range(len(bins)):
        magic = _magic(raised - f)
        s = t + magic
        bins[f] += s.view(np.int64) - magic.view(np.int64)
        t = t - (s - magic)
    if finite.all():
        return bins, raised
    bins[:, ~finite] = 0
    flagged = np.where(flags > 0, _join(index, flags), index)
    return bins, np.where(finite, raised, flagged)


def _value(bins: Bins, index: NDArray[np.int64]) -> NDArray[np.float64]:
    folds = len(bins)
    limbs = bins.copy()
    for f in range(folds - 1, 0, -1):
        carry = (limbs[f] + (1 << (_BITS - 1))) >> _BITS
        limbs[f] -= carry << _BITS
        limbs[f - 1] += carry
    low, unit = limbs[-1].astype(np.float64), 2.0**_BITS
    for f in range(folds - 2, -1, -1):
        low = limbs[f].astype(np.float64) * unit + low
        unit *= 2.0**_BITS
    flagged = index > _TOP
    lowest = np.where(flagged, 0, index - folds + 1)
    half = ((22 * lowest + 486) << 52).view(np.float64)
    total = low * half * half
    if flagged.any():
        total[index == _PLUS] = np.inf
        total[index == _MINUS] = -np.inf
        total[index == _NAN] = np.nan
    return total


def binned_mean(
    rows: list[list[Array]], weights: list[float], total: float, out: list[Array], num_threads: int, /
) -> bool:
    flagged = False
    with np.errstate(all="ignore"):
        for t, target in enumerate(out):
            flat = [row[t].reshape(-1) for row in rows]
            result = target.reshape(-1)
            folds = binned_folds(target.dtype)
            for tile in tiles(result.size, TILE // 4):
                n = len(result[tile])
                terms = [widen(x[tile]) * w for x, w in zip(flat, weights, strict=True)]
                bins, index = np.zeros((folds, n), np.int64), np.full(n, folds - 1, np.int64)
                # The largest term first: the bins then never move.
                largest = terms[0]
                for term in terms[1:]:
                    largest = np.where(np.abs(term) > np.abs(largest), term, largest)
                zero = np.isfinite(largest) & (np.abs(largest) < _LIMIT)
                j = ((np.abs(np.where(zero, largest, 0.0)).view(np.int64) >> 52) + 52) // _BITS
                index = np.maximum(index, j)
                for term in terms:
                    bins, index = _deposit(term, bins, index)
                flagged = flagged or bool((index > _TOP).any())
                round_into(result[tile], _value(bins, index) / total)
    return flagged


def binned_add(update: list[Array], weight: float, bins: list[Array], index: list[Array], num_threads: int, /) -> None:
    with np.errstate(all="ignore"):
        for x, b, e in zip(update, bins, index, strict=True):
            x, b, e = x.reshape(-1), b.reshape(len(b), -1), e.reshape(-1)
            for tile in tiles(x.size, TILE // 4):
                b[:, tile], e[tile] = _deposit(widen(x[tile]) * weight, b[:, tile].copy(), e[tile].astype(np.int64))


def binned_merge(
    other_bins: list[Array],
    other_index: list[Array],
    bins: list[Array],
    index: list[Array],
    model: list[Array],
    num_threads: int,
    /,
) -> None:
    for b2, e2, b1, e1 in zip(other_bins, other_index, bins, index, strict=True):
        a, b = e1.reshape(-1).astype(np.int64), e2.reshape(-1).astype(np.int64)
        mine, theirs = b1.reshape(len(b1), -1), b2.reshape(len(b2), -1)
        flagged = (a > _TOP) | (b > _TOP)
        top = np.maximum(a, b)
        still = np.where(flagged, 0, top - a), np.where(flagged, 0, top - b)
        merged = _shift(mine, still[0]) + _shift(theirs, still[1])
        merged[:, flagged] = 0
        mine[...] = merged
        e1.reshape(-1)[...] = np.where(flagged, _join(a, b), top)


def binned_finish(bins: list[Array], index: list[Array], total: float, out: list[Array], num_threads: int, /) -> None:
    with np.errstate(all="ignore"):
        for b, e, target in zip(bins, index, out, strict=True):
            b, e, target = b.reshape(len(b), -1), e.reshape(-1), target.reshape(-1)
            for tile in tiles(target.size, TILE):
                round_into(target[tile], _value(b[:, tile], e[tile].astype(np.int64)) / total)
