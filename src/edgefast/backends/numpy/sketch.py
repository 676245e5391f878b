"""edgefast.sketch in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.backends import streams

__all__ = [
    "countsketch_table",
    "fwht",
    "gaussian_transform",
    "hash_transform",
    "philox_words",
    "rademacher_transform",
    "rotate",
    "sparse_starts",
    "sparse_table",
    "srht_transform",
    "stack_table",
]

_CHUNK = 8192  # features planned at a time


def philox_words(k0: int, k1: int, c0: int, c1: int, c2: int, c3: int, out: NDArray[np.uint64]) -> None:
    out[...] = streams.philox_words(k0, k1, (c0, c1, c2, c3), out.shape[0])


def stack_table(seed: int, n_components: int, first: int, out: NDArray[np.uint32]) -> None:
    out[...] = streams.stack_table(seed, n_components, out.shape[1], first, out.shape[0])


def countsketch_table(seed: int, n_components: int, first: int, out: NDArray[np.uint32]) -> None:
    out[...] = streams.countsketch_table(seed, n_components, first, out.shape[0])


def sparse_starts(
    seed: int, n_components: int, thresholds: NDArray[np.uint64], first: int, out: NDArray[np.int64]
) -> None:
    out[...] = streams.sparse_entries(seed, n_components, thresholds, first, out.size - 1)[0]


def sparse_table(
    seed: int,
    n_components: int,
    thresholds: NDArray[np.uint64],
    first: int,
    starts: NDArray[np.int64],
    out: NDArray[np.uint32],
) -> None:
    out[...] = streams.sparse_entries(seed, n_components, thresholds, first, starts.size - 1)[1]


def _rounds(
    entries: NDArray[np.uint32], starts: NDArray[np.int64] | None
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """The entries of some features as rounds (outputs, sources), at most one term for an output in each.

    Round m holds the m-th entry of every output, in ascending order of features: adding round after round gives each
    output its terms in the order the compiled loops have. Source j is feature j, source count + j its negative.
    """
    if starts is None:
        count = entries.shape[0]
        feature = np.repeat(np.arange(count), entries.shape[1])
    else:
        count = starts.size - 1
        feature = np.repeat(np.arange(count), np.diff(starts))
    packed = entries.ravel()
    if not packed.size:
        return []
    buckets = (packed & np.uint32(0x7FFFFFFF)).astype(np.intp)
    sources = feature + count * (packed >> np.uint32(31)).astype(np.intp)
    order = np.argsort(buckets, kind="stable")  # by output, features still ascending
    buckets, sources = buckets[order], sources[order]
    begins = np.flatnonzero(np.r_[True, buckets[1:] != buckets[:-1]])
    rank = np.arange(buckets.size) - np.repeat(begins, np.diff(np.r_[begins, buckets.size]))
    order = np.argsort(rank, kind="stable")
    ends = np.cumsum(np.bincount(rank))[:-1]
    return list(zip(np.split(buckets[order], ends), np.split(sources[order], ends), strict=True))


def _finish(acc: NDArray[Any], scale: float, out: NDArray[Any]) -> None:
    np.multiply(acc, acc.dtype.type(scale), out=out)
    out[np.isnan(out)] = np.nan


def hash_transform(
    x: NDArray[Any],
    entries: NDArray[np.uint32],
    starts: NDArray[np.int64] | None,
    scale: float,
    more: bool,
    last: bool,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    n, d = x.shape
    k = out.shape[1]
    rows = max(1, min(128, (1 << 22) // k))
    plan = []
    for first in range(0, d, _CHUNK):
        end = min(first + _CHUNK, d)
        if starts is None:
            plan.append((first, end, _rounds(entries[first:end], None)))
        else:
            part = entries[starts[first] : starts[end]]
            plan.append((first, end, _rounds(part, starts[first : end + 1] - starts[first])))
    with np.errstate(all="ignore"):
        for begin in range(0, n, rows):
            part = x[begin : begin + rows].T
            to = out[begin : begin + rows]
            acc = to.T.copy() if more else np.zeros((k, part.shape[1]), x.dtype)
            for first, end, rounds in plan:
                block = part[first:end]
                signed = np.concatenate([block, -block])
                for outputs, sources in rounds:
                    acc[outputs] += signed[sources]
            if last:
                _finish(acc.T, scale, to)
            else:
                to[...] = acc.T


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


def gaussian_transform(x: NDArray[Any], seed: int, scale: float, out: NDArray[Any], num_threads: int) -> None:
    n, d = x.shape
    k = out.shape[1]
    chunk = max(1, min(d, (1 << 18) // k))  # features whose entries are held at a time
    acc = np.zeros((n, k), x.dtype)
    with np.errstate(all="ignore"):
        for first in range(0, d, chunk):
            count = min(chunk, d - first)
            entries = streams.gaussian_entries(seed, k, first, count).astype(x.dtype)
            acc += x[:, first : first + count] @ (entries * x.dtype.type(streams.GAUSSIAN_UNIT))
        _finish(acc, scale, out)


def _fwht_window(work: NDArray[Any], scale: Any) -> None:
    """Transforms the rows of a view in place."""
    transformed = np.ascontiguousarray(work)
    fwht(transformed, scale, transformed, 1)
    work[...] = transformed


def _kac(work: NDArray[Any]) -> None:
    half = work.shape[1] // 2
    root = work.dtype.type(math.sqrt(0.5))
    low, high = work[:, :half].copy(), work[:, work.shape[1] - half :].copy()
    work[:, :half] = (low + high) * root
    work[:, work.shape[1] - half :] = (low - high) * root


def rotate(x: NDArray[Any], signs: NDArray[np.uint64], inverse: bool, out: NDArray[Any], num_threads: int) -> None:
    n, d = x.shape
    length = 1 << (d.bit_length() - 1)
    scale = 1 / math.sqrt(length)
    negative = np.unpackbits(signs.astype("<u8", copy=False).view(np.uint8), axis=1, bitorder="little")[:, :d] != 0
    rows = max(1, (1 << 16) // d)
    with np.errstate(all="ignore"):
        for begin in range(0, n, rows):
            work = x[begin : begin + rows].copy()
            for step in reversed(range(len(signs))) if inverse else range(len(signs)):
                window = work[:, :length] if step % 2 == 0 else work[:, d - length :]
                mixes = length < d and step % 2 == 0
                if inverse:
                    _fwht_window(window, scale)
                    if mixes:
                        _kac(work)
                np.negative(work, out=work, where=negative[step])
                if not inverse:
                    if mixes:
                        _kac(work)
                    _fwht_window(window, scale)
            work[np.isnan(work)] = np.nan
            out[begin : begin + rows] = work


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
