"""edgefast.sketch in numpy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.backends import streams

__all__ = [
    "fwht",
    "philox_words",
    "rademacher_transform",
    "srht_transform",
    "stack_table",
    "stack_transform",
]

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
