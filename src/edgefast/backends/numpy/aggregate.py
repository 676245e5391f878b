"""edgefast.aggregate in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgefast.backends.numpy.binned import binned_add, binned_finish, binned_mean, binned_merge
from edgefast.backends.numpy.elements import round_into, tiles, widen
from edgefast.backends.table import BF16, Array, holds_single

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


def _sum_type(dtype: np.dtype[Any], single: bool) -> type[np.floating]:
    return np.float32 if single and holds_single(dtype) else np.float64


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
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for t, target in enumerate(out):
            flat = [row[t].reshape(-1) for row in rows]
            result = target.reshape(-1)
            kind = _sum_type(target.dtype, single)
            for tile in tiles(result.size):
                sums = np.zeros(len(result[tile]), kind)
                for x, w in zip(flat, weights, strict=True):
                    sums += widen(x[tile], kind) * kind(w)
                suspicious = suspicious or not np.isfinite(sums).all()
                round_into(result[tile], sums / kind(total))
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
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for row, weight in zip(rows, weights, strict=True):
            for x, total in zip(row, sums, strict=True):
                x, total = x.reshape(-1), total.reshape(-1)
                kind = _sum_type(x.dtype, single)
                for tile in tiles(total.size):
                    total[tile] += widen(x[tile], kind) * kind(weight)


def finish_mean(sums: list[Array], total: float, single: bool, out: list[Array], num_threads: int, /) -> None:
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for s, target in zip(sums, out, strict=True):
            s, target = s.reshape(-1), target.reshape(-1)
            kind = _sum_type(target.dtype, single)
            for tile in tiles(target.size):
                round_into(target[tile], s[tile] / kind(total))


def all_finite(update: list[Array], num_threads: int, /) -> bool:
    for a in update:
        if a.dtype == BF16:
            if ((a.view(np.uint16) & 0x7F80) == 0x7F80).any():
                return False
        elif a.dtype.kind == "f" and not np.isfinite(a).all():
            return False
    return True
