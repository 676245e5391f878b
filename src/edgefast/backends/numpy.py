"""The numpy backend: always there, the reference the others are compared with."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.backends import streams
from edgefast.backends.table import Array

# --- sketch -----------------------------------------------------------------------------------------------------

_CHUNK = 8192  # features planned at a time


def philox_words(k0: int, k1: int, c0: int, c1: int, c2: int, c3: int, out: NDArray[np.uint64]) -> None:
    out[...] = streams.philox_words(k0, k1, (c0, c1, c2, c3), out.shape[0])


def stack_table(seed: int, n_components: int, first: int, out: NDArray[np.uint32]) -> None:
    out[...] = streams.stack_table(seed, n_components, out.shape[1], first, out.shape[0])


@functools.lru_cache(maxsize=16)
def _stack_rounds(
    seed: int, k: int, nnz: int, first: int, count: int
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """The entries of some features as rounds (outputs, sources), at most one term for an output in each.

    Round m holds the m-th entry of every output, in ascending order of features: adding round after round gives each
    output its terms in the order the compiled loops have. Source j is feature j, source count + j its negative.
    """
    entries = streams.stack_table(seed, k, nnz, first, count).ravel()
    buckets = (entries & np.uint32(0x7FFFFFFF)).astype(np.intp)
    sources = np.repeat(np.arange(count), nnz) + count * (entries >> np.uint32(31)).astype(np.intp)
    order = np.argsort(buckets, kind="stable")  # by output, features still ascending
    buckets, sources = buckets[order], sources[order]
    starts = np.flatnonzero(np.r_[True, buckets[1:] != buckets[:-1]])
    rank = np.arange(buckets.size) - np.repeat(starts, np.diff(np.r_[starts, buckets.size]))
    order = np.argsort(rank, kind="stable")
    ends = np.cumsum(np.bincount(rank))[:-1]
    return list(zip(np.split(buckets[order], ends), np.split(sources[order], ends), strict=True))


def _finish(acc: NDArray[Any], scale: float, out: NDArray[Any]) -> None:
    np.multiply(acc, acc.dtype.type(scale), out=out)
    out[np.isnan(out)] = np.nan


def stack_transform(
    x: NDArray[Any],
    table: NDArray[np.uint32] | None,
    seed: int,
    nnz: int,
    scale: float,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    n, d = x.shape
    k = out.shape[1]
    rows = max(1, min(128, (1 << 22) // k))
    with np.errstate(all="ignore"):
        for begin in range(0, n, rows):
            part = x[begin : begin + rows].T
            acc = np.zeros((k, part.shape[1]), x.dtype)
            for first in range(0, d, _CHUNK):
                block = part[first : first + _CHUNK]
                signed = np.concatenate([block, -block])
                for outputs, sources in _stack_rounds(seed, k, nnz, first, block.shape[0]):
                    acc[outputs] += signed[sources]
            _finish(acc.T, scale, out[begin : begin + rows])


def srht_transform(
    x: NDArray[Any],
    signs: NDArray[np.uint64],
    index: NDArray[np.int64],
    length: int,
    scale: float,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    n, d = x.shape
    negative = np.unpackbits(signs.astype("<u8", copy=False).view(np.uint8), bitorder="little")[:d].astype(bool)
    rows = max(1, (1 << 16) // length)
    with np.errstate(all="ignore"):
        for begin in range(0, n, rows):
            part = x[begin : begin + rows]
            work = np.zeros((part.shape[0], length), x.dtype)
            work[:, :d] = np.where(negative, -part, part)
            fwht(work, 1.0, work, 1)
            _finish(work[:, index], scale, out[begin : begin + rows])


def rademacher_transform(x: NDArray[Any], seed: int, scale: float, out: NDArray[Any], num_threads: int) -> None:
    n, d = x.shape
    k = out.shape[1]
    chunk = max(1, min(d, (1 << 21) // k))  # features whose entries are held at a time
    acc = np.zeros((n, k), x.dtype)
    with np.errstate(all="ignore"):
        for first in range(0, d, chunk):
            count = min(chunk, d - first)
            entries = 1 - 2 * streams.rademacher_bits(seed, k, first, count).astype(x.dtype)
            acc += x[:, first : first + count] @ entries
        _finish(acc, scale, out)


def fwht(x: NDArray[Any], scale: float, out: NDArray[Any], num_threads: int) -> None:
    n, length = x.shape
    block = max(1, (1 << 15) // length)
    with np.errstate(all="ignore"):
        for begin in range(0, n, block):
            work = x[begin : begin + block].copy()
            spare = np.empty_like(work)
            h = 1
            while h < length:
                pairs = work.reshape(-1, 2, h)
                to = spare.reshape(-1, 2, h)
                np.add(pairs[:, 0], pairs[:, 1], out=to[:, 0])
                np.subtract(pairs[:, 0], pairs[:, 1], out=to[:, 1])
                work, spare = spare, work
                h *= 2
            np.multiply(work, work.dtype.type(scale), out=out[begin : begin + block])


# --- aggregate --------------------------------------------------------------------------------------------------

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
