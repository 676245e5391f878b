"""edgefast.aggregate in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgefast.backends.table import Array

__all__ = [
    "add_weighted",
    "all_finite",
    "finish_mean",
    "first_mismatch",
    "overlapping",
    "weighted_mean",
]

_TILE = 1 << 15  # coordinates at a time: the float64 temporaries stay in cache


def first_mismatch(arrays: list[Any], model: list[Array], /) -> int:
    for t, (a, m) in enumerate(zip(arrays, model, strict=True)):
        if not (isinstance(a, np.ndarray) and a.dtype is m.dtype and a.shape == m.shape and a.flags.c_contiguous):
            return t
    return -1


def overlapping(targets: list[Array], rows: list[list[Array]], /) -> list[int]:
    inputs = [np.lib.array_utils.byte_bounds(a) for row in rows for a in row if a.size]
    starts, ends = np.array(inputs, np.uint64).reshape(-1, 2).T
    found = []
    for t, target in enumerate(targets):
        low, high = np.lib.array_utils.byte_bounds(target)
        if target.size and ((starts < high) & (low < ends)).any():
            found.append(t)
    return found


def _round_into(target: Array, mean: Array) -> None:
    """binary64 means to the target's dtype; see csrc/aggregate/mean.hpp."""
    kind = target.dtype.kind
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "b":
            np.greater(mean, 0.5, out=target)
        elif kind == "f":
            target[...] = mean
        else:
            target[...] = np.rint(mean)


def weighted_mean(
    rows: list[list[Array]], weights: list[float], total: float, out: list[Array], num_threads: int, /
) -> bool:
    suspicious = False
    with np.errstate(over="ignore", invalid="ignore"):
        for t, target in enumerate(out):
            flat = [row[t].reshape(-1) for row in rows]
            result = target.reshape(-1)
            for i in range(0, result.size, _TILE):
                tile = slice(i, i + _TILE)
                sums = np.zeros(len(result[tile]))
                for x, w in zip(flat, weights, strict=True):
                    sums += x[tile].astype(np.float64) * w
                suspicious = suspicious or not np.isfinite(sums).all()
                _round_into(result[tile], sums / total)
    return suspicious


def add_weighted(update: list[Array], weight: float, sums: list[Array], num_threads: int, /) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        for x, total in zip(update, sums, strict=True):
            x, total = x.reshape(-1), total.reshape(-1)
            for i in range(0, total.size, _TILE):
                total[i : i + _TILE] += x[i : i + _TILE].astype(np.float64) * weight


def finish_mean(sums: list[Array], total: float, out: list[Array], num_threads: int, /) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        for s, target in zip(sums, out, strict=True):
            s, target = s.reshape(-1), target.reshape(-1)
            for i in range(0, target.size, _TILE):
                _round_into(target[i : i + _TILE], s[i : i + _TILE] / total)


def all_finite(update: list[Array], num_threads: int, /) -> bool:
    return all(bool(np.isfinite(a).all()) for a in update if a.dtype.kind == "f")
