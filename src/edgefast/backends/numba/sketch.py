"""edgefast.sketch in numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.backends import streams
from edgefast.backends.numba.jit import jit

# Nothing to win in a loop: drawing integers is C code in numpy already.
from edgefast.backends.numpy.sketch import philox_words, stack_table

__all__ = [
    "fwht",
    "philox_words",
    "rademacher_transform",
    "srht_transform",
    "stack_table",
    "stack_transform",
]

_LANES = 16  # rows accumulated side by side
_ROWS = 256  # rows copied out of the caller's array at a time: one layout, one compilation
_FEATURES = 1 << 14  # features drawn at a time when there is no table


@jit
def _stack_add(part: NDArray[Any], table: NDArray[np.uint32], acc: NDArray[Any], tile: NDArray[Any]) -> None:
    for group in range(acc.shape[0]):
        rows = min(_LANES, part.shape[0] - group * _LANES)
        for j in range(table.shape[0]):
            for r in range(rows):
                tile[r] = part[group * _LANES + r, j]
            for e in range(table.shape[1]):
                entry = table[j, e]
                bucket = entry & 0x7FFFFFFF
                if entry >> 31:
                    for r in range(_LANES):
                        acc[group, bucket, r] -= tile[r]
                else:
                    for r in range(_LANES):
                        acc[group, bucket, r] += tile[r]


@jit
def _stack_finish(acc: NDArray[Any], scale: Any, nan: Any, out: NDArray[Any]) -> None:
    for i in range(out.shape[0]):
        for c in range(out.shape[1]):
            y = acc[i // _LANES, c, i % _LANES] * scale
            out[i, c] = y if y == y else nan


@jit
def _fwht_rows(work: NDArray[Any], scale: Any) -> None:
    n = work.shape[1]
    for row in range(work.shape[0]):
        h = 1
        while h < n:
            for i in range(0, n, 2 * h):
                for j in range(i, i + h):
                    a = work[row, j]
                    b = work[row, j + h]
                    work[row, j] = a + b
                    work[row, j + h] = a - b
            h *= 2
        for j in range(n):
            work[row, j] *= scale


@jit
def _take_finish(work: NDArray[Any], index: NDArray[np.int64], scale: Any, nan: Any, out: NDArray[Any]) -> None:
    for i in range(out.shape[0]):
        for c in range(out.shape[1]):
            y = work[i, index[c]] * scale
            out[i, c] = y if y == y else nan


@jit
def _rademacher_add(part: NDArray[Any], entries: NDArray[Any], acc: NDArray[Any]) -> None:
    for i in range(part.shape[0]):
        for j in range(part.shape[1]):
            value = part[i, j]
            for c in range(entries.shape[1]):
                acc[i, c] += value * entries[j, c]


def stack_transform(
    x: NDArray[Any],
    table: NDArray[np.uint32] | None,
    seed: int,
    nnz: int,
    scale: float,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    (n, d), k, real = x.shape, out.shape[1], x.dtype.type
    rows = max(_LANES, min(_ROWS, (1 << 22) // k // _LANES * _LANES))
    tile = np.zeros(_LANES, x.dtype)
    for begin in range(0, n, rows):
        part = x[begin : begin + rows]
        acc = np.zeros((-(-part.shape[0] // _LANES), k, _LANES), x.dtype)
        for first in range(0, d, _FEATURES):
            count = min(_FEATURES, d - first)
            if table is None:
                entries = streams.stack_table(seed, k, nnz, first, count)
            else:
                entries = table[first : first + count].copy()
            _stack_add(np.array(part[:, first : first + count], order="C"), entries, acc, tile)
        _stack_finish(acc, real(scale), real(np.nan), out[begin : begin + rows])


def srht_transform(
    x: NDArray[Any],
    signs: NDArray[np.uint64],
    index: NDArray[np.int64],
    length: int,
    scale: float,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    (n, d), real = x.shape, x.dtype.type
    negative = np.unpackbits(signs.astype("<u8", copy=False).view(np.uint8), bitorder="little")[:d].astype(bool)
    rows = max(1, (1 << 18) // length)
    for begin in range(0, n, rows):
        part = x[begin : begin + rows]
        work = np.zeros((part.shape[0], length), x.dtype)
        work[:, :d] = np.where(negative, -part, part)
        _fwht_rows(work, real(1))
        _take_finish(work, index, real(scale), real(np.nan), out[begin : begin + rows])


def rademacher_transform(x: NDArray[Any], seed: int, scale: float, out: NDArray[Any], num_threads: int) -> None:
    (n, d), k, real = x.shape, out.shape[1], x.dtype.type
    acc = np.zeros((n, k), x.dtype)
    chunk = max(1, min(d, (1 << 19) // k))  # features whose entries are held at a time
    for first in range(0, d, chunk):
        count = min(chunk, d - first)
        entries = 1 - 2 * streams.rademacher_bits(seed, k, first, count).astype(x.dtype)
        _rademacher_add(np.array(x[:, first : first + count], order="C"), entries, acc)
    _take_finish(acc, np.arange(k), real(scale), real(np.nan), out)


def fwht(x: NDArray[Any], scale: float, out: NDArray[Any], num_threads: int) -> None:
    if out is not x:
        np.copyto(out, x)
    _fwht_rows(out, x.dtype.type(scale))
