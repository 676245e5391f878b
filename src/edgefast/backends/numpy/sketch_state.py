"""The stateful half of edgefast.sketch in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.backends import streams

__all__ = [
    "count_sketch_add",
    "count_sketch_estimate",
    "fwht_axis",
    "hamming_filter",
    "hamming_nearest",
    "hamming_pairs",
    "hamming_within",
    "row_sketch_add",
    "sign_bits",
]

_ROWS = 4096  # rows whose entries are held at a time
_ENTRIES = 1 << 20
_CELLS = 1 << 20  # distances, in words, held at a time
_BUCKET = np.uint32(0x7FFFFFFF)
_SIGN = np.uint32(31)


def row_entries(kind: int, seed: int, k: int, nnz: int, first: int, count: int) -> NDArray[np.uint32]:
    """Packed entries (bucket | negative << 31) of columns [first, first + count) of S, shape (count, nnz)."""
    if kind == streams.KIND_NUMBERS["rademacher"]:
        negative = streams.rademacher_bits(seed, k, first, count).astype(np.uint32)
        return negative << _SIGN | np.arange(k, dtype=np.uint32)
    if kind == streams.KIND_NUMBERS["countsketch"]:
        return streams.countsketch_table(seed, k, first, count)
    return streams.stack_table(seed, k, nnz, first, count)


def _add_in_rounds(acc: NDArray[Any], buckets: NDArray[np.intp], signed: NDArray[Any], sources: NDArray[np.intp]) -> None:
    """acc[buckets] += signed[sources], each cell taking its terms one at a time in the order given.

    Round m adds the m-th term of every cell: no cell occurs twice in a round.
    """
    order = np.argsort(buckets, kind="stable")
    buckets, sources = buckets[order], sources[order]
    starts = np.flatnonzero(np.r_[True, buckets[1:] != buckets[:-1]])
    rank = np.arange(buckets.size) - np.repeat(starts, np.diff(np.r_[starts, buckets.size]))
    order = np.argsort(rank, kind="stable")
    ends = np.cumsum(np.bincount(rank))[:-1]
    for cells, terms in zip(np.split(buckets[order], ends), np.split(sources[order], ends), strict=True):
        acc[cells] += signed[terms]


def row_sketch_add(
    x: NDArray[Any], kind: int, seed: int, nnz: int, first_row: int, acc: NDArray[Any], num_threads: int
) -> None:
    k = acc.shape[0]
    step = max(1, min(_ROWS, _ENTRIES // nnz))
    with np.errstate(all="ignore"):
        for begin in range(0, x.shape[0], step):
            part = x[begin : begin + step]
            n = part.shape[0]
            entries = row_entries(kind, seed, k, nnz, first_row + begin, n)
            sources = np.arange(n)[:, None] + n * (entries >> _SIGN).astype(np.intp)
            signed = np.concatenate([part, -part])
            _add_in_rounds(acc, (entries & _BUCKET).astype(np.intp).ravel(), signed, sources.ravel())


def count_entries(
    indices: NDArray[np.int64] | None, first: int, count: int, seed: int, depth: int, width: int
) -> NDArray[np.uint32]:
    """Packed entries of indices, or of [first, first + count), in the flattened table; shape (count, depth)."""
    if indices is None:
        return streams.stack_table(seed, depth * width, depth, first, count)
    entries = np.empty((count, depth), np.uint32)
    # Runs of consecutive indices are drawn together.
    cuts = np.flatnonzero(np.diff(indices) != 1) + 1
    begins = np.r_[0, cuts] if count else cuts
    for begin, end in zip(begins.tolist(), [*cuts.tolist(), count], strict=False):
        entries[begin:end] = streams.stack_table(seed, depth * width, depth, int(indices[begin]), end - begin)
    return entries


def count_sketch_add(
    values: NDArray[Any],
    indices: NDArray[np.int64] | None,
    first: int,
    seed: int,
    table: NDArray[Any],
    num_threads: int,
) -> None:
    depth, width = table.shape
    cells = table.reshape(-1)
    step = max(1, _ENTRIES // depth)
    with np.errstate(all="ignore"):
        for begin in range(0, values.size, step):
            part = values[begin : begin + step]
            n = part.size
            where = None if indices is None else indices[begin : begin + n]
            entries = count_entries(where, first + begin, n, seed, depth, width)
            sources = np.arange(n)[:, None] + n * (entries >> _SIGN).astype(np.intp)
            signed = np.concatenate([part, -part])
            _add_in_rounds(cells, (entries & _BUCKET).astype(np.intp).ravel(), signed, sources.ravel())


def count_sketch_estimate(
    table: NDArray[Any],
    indices: NDArray[np.int64] | None,
    first: int,
    seed: int,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    depth, width = table.shape
    cells = table.reshape(-1)
    step = max(1, _ENTRIES // depth)
    half = out.dtype.type(0.5)
    for begin in range(0, out.size, step):
        target = out[begin : begin + step]
        where = None if indices is None else indices[begin : begin + target.size]
        entries = count_entries(where, first + begin, target.size, seed, depth, width)
        found = cells[entries & _BUCKET]
        found = np.sort(np.where(entries >> _SIGN, -found, found).astype(out.dtype, copy=False), axis=1)
        low, high = found[:, (depth - 1) // 2], found[:, depth // 2]
        target[...] = (low if depth % 2 else low * half + high * half) + out.dtype.type(0)


def sign_bits(x: NDArray[Any], out: NDArray[np.uint8]) -> None:
    out[...] = np.packbits(x >= 0, axis=1, bitorder="little")


def _words(codes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Codes as 64-bit words, spare bytes 0; shape (n, ceil(bytes / 8))."""
    n, size = codes.shape
    padded = np.zeros((n, -(-size // 8) * 8), np.uint8)
    padded[:, :size] = codes
    return padded.view("<u8").astype(np.uint64, copy=False)


def _distances(query: NDArray[np.uint64], words: NDArray[np.uint64]) -> NDArray[np.uint16]:
    return np.bitwise_count(words ^ query).sum(axis=-1, dtype=np.uint16)


def hamming_pairs(a: NDArray[np.uint8], b: NDArray[np.uint8], out: NDArray[np.uint16], num_threads: int) -> None:
    left, right = _words(a), _words(b)
    step = max(1, _CELLS // max(1, right.size))
    for begin in range(0, len(left), step):
        out[begin : begin + step] = _distances(left[begin : begin + step, None], right)


def hamming_nearest(
    queries: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    index: NDArray[np.int64],
    distance: NDArray[np.uint16],
    num_threads: int,
) -> None:
    index[...], distance[...] = -1, 65535
    left = _words(queries)
    step = max(1, _CELLS // max(1, left.shape[1]))
    for begin in range(0, len(codes), step):
        words = _words(codes[begin : begin + step])
        for q in range(len(left)):
            found = _distances(left[q], words)
            best = int(found.argmin())
            if index[q] < 0 or found[best] < distance[q]:
                index[q], distance[q] = begin + best, found[best]


def hamming_within(
    query: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    radius: int,
    begin: int,
    index: NDArray[np.int64],
    distance: NDArray[np.uint16],
) -> tuple[int, int]:
    own, count, room = _words(query[None])[0], 0, index.size
    step = max(1, _CELLS // max(1, own.size))
    while begin < len(codes):
        found = _distances(own, _words(codes[begin : begin + step]))
        near = np.flatnonzero(found <= radius)
        taken = near[: room - count]
        index[count : count + taken.size] = begin + taken
        distance[count : count + taken.size] = found[taken]
        count += taken.size
        if taken.size < near.size:
            return count, begin + int(near[taken.size])
        begin += found.size
    return count, len(codes)


def hamming_filter(
    codes: NDArray[np.uint8],
    radius: int,
    window: int,
    filled: int,
    next: int,
    ring: NDArray[np.uint64],
    keep: NDArray[np.bool_],
) -> tuple[int, int]:
    for i, code in enumerate(_words(codes)):
        keep[i] = not np.any(_distances(code, ring[:, :filled].T) <= radius)
        if keep[i]:
            ring[:, next] = code
            filled = min(filled + 1, window)
            next = next + 1 if next + 1 < window else 0
    return filled, next


def fwht_axis(x: NDArray[Any], scale: float, out: NDArray[Any], num_threads: int) -> None:
    outer, length, inner = x.shape
    width = max(1, min(inner, (1 << 15) // length))
    with np.errstate(all="ignore"):
        for block in range(outer):
            for begin in range(0, inner, width):
                work = x[block, :, begin : begin + width].copy()
                spare = np.empty_like(work)
                h = 1
                while h < length:
                    pairs, to = (a.reshape(length // (2 * h), 2, h, -1) for a in (work, spare))
                    np.add(pairs[:, 0], pairs[:, 1], out=to[:, 0])
                    np.subtract(pairs[:, 0], pairs[:, 1], out=to[:, 1])
                    work, spare = spare, work
                    h *= 2
                np.multiply(work, work.dtype.type(scale), out=out[block, :, begin : begin + width])
