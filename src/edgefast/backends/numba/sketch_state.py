"""The stateful half of edgefast.sketch in numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.backends.numba.jit import jit

# Packing bits is C code in numpy already.
from edgefast.backends.numpy.sketch_state import _words, count_entries, row_entries, sign_bits

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

_ENTRIES = 1 << 18  # entries drawn at a time
_CODES = 1 << 14  # codes copied into words at a time


@jit
def _row_sketch(x: NDArray[Any], entries: NDArray[np.uint32], acc: NDArray[Any]) -> None:
    for i in range(x.shape[0]):
        for e in range(entries.shape[1]):
            entry = entries[i, e]
            bucket = entry & 0x7FFFFFFF
            if entry >> 31:
                for c in range(x.shape[1]):
                    acc[bucket, c] -= x[i, c]
            else:
                for c in range(x.shape[1]):
                    acc[bucket, c] += x[i, c]


@jit
def _count_add(values: NDArray[Any], entries: NDArray[np.uint32], cells: NDArray[Any]) -> None:
    for i in range(entries.shape[0]):
        for r in range(entries.shape[1]):
            entry = entries[i, r]
            if entry >> 31:
                cells[entry & 0x7FFFFFFF] -= values[i]
            else:
                cells[entry & 0x7FFFFFFF] += values[i]


@jit
def _count_estimate(cells: NDArray[Any], entries: NDArray[np.uint32], half: Any, found: Any, out: NDArray[Any]) -> None:
    depth = entries.shape[1]
    for i in range(entries.shape[0]):
        for r in range(depth):
            entry = entries[i, r]
            value = cells[entry & 0x7FFFFFFF]
            # Insertion: the smaller ones before it.
            found[r] = -value if entry >> 31 else value
            value = found[r]
            at = r
            while at > 0 and found[at - 1] > value:
                found[at] = found[at - 1]
                at -= 1
            found[at] = value
        low = found[(depth - 1) // 2]
        high = found[depth // 2]
        if depth % 2 == 1:
            out[i] = low + 0 * half
        else:
            out[i] = low * half + high * half + 0 * half


# Ones in a word: pairs, nibbles, bytes, and one multiplication adds the bytes up.
_PAIRS, _NIBBLES = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
_BYTES, _SUM = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)
_1, _2, _4, _56 = np.uint64(1), np.uint64(2), np.uint64(4), np.uint64(56)


@jit
def _distances(query: NDArray[np.uint64], words: NDArray[np.uint64], out: NDArray[np.uint16]) -> None:
    for i in range(words.shape[0]):
        total = np.uint64(0)
        for w in range(words.shape[1]):
            x = words[i, w] ^ query[w]
            x = x - ((x >> _1) & _PAIRS)
            x = (x & _NIBBLES) + ((x >> _2) & _NIBBLES)
            total += (((x + (x >> _4)) & _BYTES) * _SUM) >> _56
        out[i] = total


@jit
def _filter(
    words: NDArray[np.uint64],
    radius: Any,
    window: Any,
    filled: Any,
    slot: Any,
    ring: NDArray[np.uint64],
    keep: NDArray[np.bool_],
) -> Any:
    for i in range(words.shape[0]):
        near = False
        for s in range(filled):
            total = np.uint64(0)
            for w in range(words.shape[1]):
                x = words[i, w] ^ ring[w, s]
                x = x - ((x >> _1) & _PAIRS)
                x = (x & _NIBBLES) + ((x >> _2) & _NIBBLES)
                total += (((x + (x >> _4)) & _BYTES) * _SUM) >> _56
            if total <= radius:
                near = True
                break
        keep[i] = not near
        if not near:
            for w in range(words.shape[1]):
                ring[w, slot] = words[i, w]
            filled = min(filled + 1, window)
            slot = slot + 1 if slot + 1 < window else 0
    return filled, slot


@jit
def _fwht_middle(x: NDArray[Any], scale: Any) -> None:
    n = x.shape[1]
    for outer in range(x.shape[0]):
        h = 1
        while h < n:
            for i in range(0, n, 2 * h):
                for j in range(i, i + h):
                    for c in range(x.shape[2]):
                        a = x[outer, j, c]
                        b = x[outer, j + h, c]
                        x[outer, j, c] = a + b
                        x[outer, j + h, c] = a - b
            h *= 2
        for j in range(n):
            for c in range(x.shape[2]):
                x[outer, j, c] *= scale


def row_sketch_add(
    x: NDArray[Any], kind: int, seed: int, nnz: int, first_row: int, acc: NDArray[Any], num_threads: int
) -> None:
    step = max(1, _ENTRIES // nnz)
    for begin in range(0, x.shape[0], step):
        part = np.array(x[begin : begin + step], order="C")  # one layout, one compilation
        _row_sketch(part, row_entries(kind, seed, acc.shape[0], nnz, first_row + begin, part.shape[0]), acc)


def count_sketch_add(
    values: NDArray[Any],
    indices: NDArray[np.int64] | None,
    first: int,
    seed: int,
    table: NDArray[Any],
    num_threads: int,
) -> None:
    depth, width = table.shape
    step = max(1, _ENTRIES // depth)
    for begin in range(0, values.size, step):
        part = values[begin : begin + step].copy()
        where = None if indices is None else indices[begin : begin + step]
        _count_add(part, count_entries(where, first + begin, part.size, seed, depth, width), table.reshape(-1))


def count_sketch_estimate(
    table: NDArray[Any],
    indices: NDArray[np.int64] | None,
    first: int,
    seed: int,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    depth, width = table.shape
    step = max(1, _ENTRIES // depth)
    cells = table.reshape(-1).copy()  # one mutability, one compilation
    found = np.empty(depth, out.dtype)
    for begin in range(0, out.size, step):
        target = out[begin : begin + step]
        where = None if indices is None else indices[begin : begin + step]
        entries = count_entries(where, first + begin, target.size, seed, depth, width)
        _count_estimate(cells, entries, out.dtype.type(0.5), found, target)


def hamming_pairs(a: NDArray[np.uint8], b: NDArray[np.uint8], out: NDArray[np.uint16], num_threads: int) -> None:
    left, right = _words(a), _words(b)
    for i in range(len(left)):
        _distances(left[i], right, out[i])


def hamming_nearest(
    queries: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    index: NDArray[np.int64],
    distance: NDArray[np.uint16],
    num_threads: int,
) -> None:
    index[...], distance[...] = -1, 65535
    left = _words(queries)
    found = np.empty(_CODES, np.uint16)
    for begin in range(0, len(codes), _CODES):
        words = _words(codes[begin : begin + _CODES])
        part = found[: len(words)]
        for q in range(len(left)):
            _distances(left[q], words, part)
            best = int(part.argmin())
            if index[q] < 0 or part[best] < distance[q]:
                index[q], distance[q] = begin + best, part[best]


def hamming_within(
    query: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    radius: int,
    begin: int,
    index: NDArray[np.int64],
    distance: NDArray[np.uint16],
) -> tuple[int, int]:
    own, count, room = _words(query[None])[0], 0, index.size
    found = np.empty(_CODES, np.uint16)
    while begin < len(codes):
        words = _words(codes[begin : begin + _CODES])
        part = found[: len(words)]
        _distances(own, words, part)
        near = np.flatnonzero(part <= radius)
        taken = near[: room - count]
        index[count : count + taken.size] = begin + taken
        distance[count : count + taken.size] = part[taken]
        count += taken.size
        if taken.size < near.size:
            return count, begin + int(near[taken.size])
        begin += part.size
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
    filled, slot = _filter(_words(codes), np.uint64(radius), window, filled, next, ring, keep)
    return int(filled), int(slot)


def fwht_axis(x: NDArray[Any], scale: float, out: NDArray[Any], num_threads: int) -> None:
    if out is not x:
        np.copyto(out, x)
    _fwht_middle(out, x.dtype.type(scale))
