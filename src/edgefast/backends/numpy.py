"""The numpy backend: always there, the reference the others are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgefast.backends import entries
from edgefast.backends.table import Array

# --- sketch -----------------------------------------------------------------------------------------------------
# The loops add feature by feature because the order of the sum is part of the contract: a matrix product would
# be faster and give other bits.

_ROWS = 4096  # rows at a time: bounds the transposed copies
_FEATURES = 2048  # features at a time: bounds the tables


def sparse_stack_transform(x: Array, out: Array, seed: int, nnz: int, scale: float, num_threads: int, /) -> None:
    n, d = x.shape
    k = out.shape[1]
    one = out.dtype.type
    for r0 in range(0, n, _ROWS):
        rows = x[r0 : r0 + _ROWS]
        m = len(rows)
        sums = np.zeros((k, m), out.dtype)
        for j0 in range(0, d, _FEATURES):
            block = np.ascontiguousarray(rows[:, j0 : j0 + _FEATURES].T)
            buckets, signs = entries.sparse_stack_table(seed, k, nnz, j0, j0 + len(block))
            if m < 16:
                # add.at adds in the order of its indices: feature by feature for each output.
                terms = block[:, None, :] * signs[:, :, None].astype(out.dtype)
                index = buckets[:, :, None] * m + np.arange(m)
                np.add.at(sums.reshape(-1), index.reshape(-1), terms.reshape(-1))
            else:
                positive = signs > 0
                for j in range(len(block)):
                    for bucket, plus in zip(buckets[j], positive[j], strict=True):
                        if plus:
                            sums[bucket] += block[j]
                        else:
                            sums[bucket] -= block[j]
        np.multiply(sums.T, one(scale), out=out[r0 : r0 + m])


def srht_transform(x: Array, out: Array, seed: int, rows: Array, scale: float, num_threads: int, /) -> None:
    n, d = x.shape
    padded = 1 << max(0, d - 1).bit_length()
    signs = entries.srht_signs(seed, 0, d).astype(out.dtype)
    step = max(1, (1 << 22) // padded)
    for r0 in range(0, n, step):
        block = np.zeros((min(step, n - r0), padded), out.dtype)
        np.multiply(x[r0 : r0 + step], signs, out=block[:, :d])
        fwht_rows(block, 1.0, num_threads)
        np.multiply(block[:, rows], out.dtype.type(scale), out=out[r0 : r0 + len(block)])


def rademacher_transform(x: Array, out: Array, seed: int, scale: float, num_threads: int, /) -> None:
    n, d = x.shape
    k = out.shape[1]
    step = max(1, (1 << 18) // max(1, k))
    for r0 in range(0, n, step):
        rows = x[r0 : r0 + step]
        sums = np.zeros((len(rows), k), out.dtype)
        term = np.empty_like(sums)
        for j0 in range(0, d, _FEATURES):
            signs = entries.rademacher_signs(seed, k, j0, min(d, j0 + _FEATURES)).astype(out.dtype)
            for j in range(len(signs)):
                np.multiply(rows[:, j0 + j, None], signs[j], out=term)
                sums += term
        np.multiply(sums, out.dtype.type(scale), out=out[r0 : r0 + len(rows)])


def fwht_rows(a: Array, scale: float, num_threads: int, /) -> None:
    m, n = a.shape
    h = 1
    while h < n:
        pairs = a.reshape(m, n // (2 * h), 2, h)
        low, high = pairs[:, :, 0, :], pairs[:, :, 1, :]
        difference = low - high
        low += high
        high[...] = difference
        h *= 2
    if scale != 1.0:
        a *= a.dtype.type(scale)


# --- aggregate --------------------------------------------------------------------------------------------------

_TILE = 1 << 15  # coordinates at a time: the float64 temporaries stay in cache


def first_mismatch(arrays: list[Any], model: list[Array], /) -> int:
    for t, (a, m) in enumerate(zip(arrays, model, strict=True)):
        if not (isinstance(a, np.ndarray) and a.dtype is m.dtype and a.shape == m.shape and a.flags.c_contiguous):
            return t
    return -1


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
