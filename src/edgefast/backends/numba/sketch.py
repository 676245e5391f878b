"""edgefast.sketch in numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.backends import streams
from edgefast.backends.numba.jit import jit

# Nothing to win in a loop: drawing integers is C code in numpy already, and the Gaussian kind is a BLAS product.
from edgefast.backends.numpy.sketch import (
    countsketch_table,
    gaussian_transform,
    philox_words,
    sparse_starts,
    sparse_table,
    stack_table,
)

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

_LANES = 16  # rows accumulated side by side
_ROWS = 256  # rows copied out of the caller's array at a time: one layout, one compilation
_FEATURES = 1 << 14  # features copied at a time


@jit
def _hash_add(
    part: NDArray[Any], entries: NDArray[np.uint32], starts: NDArray[np.int64], acc: NDArray[Any], tile: NDArray[Any]
) -> None:
    for group in range(acc.shape[0]):
        rows = min(_LANES, part.shape[0] - group * _LANES)
        for j in range(part.shape[1]):
            for r in range(rows):
                tile[r] = part[group * _LANES + r, j]
            for e in range(starts[j], starts[j + 1]):
                entry = entries[e]
                bucket = entry & 0x7FFFFFFF
                if entry >> 31:
                    for r in range(_LANES):
                        acc[group, bucket, r] -= tile[r]
                else:
                    for r in range(_LANES):
                        acc[group, bucket, r] += tile[r]


@jit
def _hash_load(out: NDArray[Any], acc: NDArray[Any]) -> None:
    for i in range(out.shape[0]):
        for c in range(out.shape[1]):
            acc[i // _LANES, c, i % _LANES] = out[i, c]


@jit
def _hash_finish(acc: NDArray[Any], scale: Any, nan: Any, last: bool, out: NDArray[Any]) -> None:
    for i in range(out.shape[0]):
        for c in range(out.shape[1]):
            y = acc[i // _LANES, c, i % _LANES]
            if last:
                y *= scale
                out[i, c] = y if y == y else nan
            else:
                out[i, c] = y


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
def _rotate_rows(
    work: NDArray[Any], negative: NDArray[np.bool_], inverse: bool, length: int, scale: Any, root: Any, nan: Any
) -> None:
    d = work.shape[1]
    half = d // 2
    steps = negative.shape[0]
    for row in range(work.shape[0]):
        x = work[row]
        for i in range(steps):
            step = steps - 1 - i if inverse else i
            begin = d - length if step % 2 == 1 else 0
            mixes = length < d and step % 2 == 0
            for stage in range(3):
                # Signs, mixing, transform; backwards in the inverse.
                what = 2 - stage if inverse else stage
                if what == 0:
                    for j in range(d):
                        if negative[step, j]:
                            x[j] = -x[j]
                elif what == 1:
                    if mixes:
                        for j in range(half):
                            a = x[j]
                            b = x[d - half + j]
                            x[j] = (a + b) * root
                            x[d - half + j] = (a - b) * root
                else:
                    h = 1
                    while h < length:
                        for k in range(begin, begin + length, 2 * h):
                            for j in range(k, k + h):
                                a = x[j]
                                b = x[j + h]
                                x[j] = a + b
                                x[j + h] = a - b
                        h *= 2
                    for j in range(begin, begin + length):
                        x[j] *= scale
        for j in range(d):
            if x[j] != x[j]:
                x[j] = nan


@jit
def _rademacher_add(part: NDArray[Any], entries: NDArray[Any], acc: NDArray[Any]) -> None:
    for i in range(part.shape[0]):
        for j in range(part.shape[1]):
            value = part[i, j]
            for c in range(entries.shape[1]):
                acc[i, c] += value * entries[j, c]


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
    (n, d), k, real = x.shape, out.shape[1], x.dtype.type
    rows = max(_LANES, min(_ROWS, (1 << 22) // k // _LANES * _LANES))
    tile = np.zeros(_LANES, x.dtype)
    begins = np.arange(d + 1) * entries.shape[1] if starts is None else starts.copy()
    packed = entries.ravel().copy()  # writeable, whatever came: one compilation
    for begin in range(0, n, rows):
        part = x[begin : begin + rows]
        acc = np.zeros((-(-part.shape[0] // _LANES), k, _LANES), x.dtype)
        to = out[begin : begin + rows]
        if more:
            _hash_load(to, acc)
        for first in range(0, d, _FEATURES):
            end = min(first + _FEATURES, d)
            _hash_add(np.array(part[:, first:end], order="C"), packed, begins[first : end + 1], acc, tile)
        _hash_finish(acc, real(scale), real(np.nan), last, to)


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


def rotate(x: NDArray[Any], signs: NDArray[np.uint64], inverse: bool, out: NDArray[Any], num_threads: int) -> None:
    d, real = x.shape[1], x.dtype.type
    length = 1 << (d.bit_length() - 1)
    negative = np.unpackbits(signs.astype("<u8", copy=False).view(np.uint8), axis=1, bitorder="little")[:, :d] != 0
    if out is not x:
        np.copyto(out, x)
    scale = real(1 / math.sqrt(length))
    _rotate_rows(out, np.ascontiguousarray(negative), inverse, length, scale, real(math.sqrt(0.5)), real(np.nan))


def fwht(x: NDArray[Any], scale: float, out: NDArray[Any], num_threads: int) -> None:
    if out is not x:
        np.copyto(out, x)
    _fwht_rows(out, x.dtype.type(scale))
