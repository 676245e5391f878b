"""Sparse inputs and the adjoint of edgefast.sketch in numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.backends import streams
from edgefast.backends.numba.jit import jit
from edgefast.backends.numba.sketch import _fwht_rows, _take_finish

# One pass of C code in numpy already.
from edgefast.backends.numpy.sketch_inputs import (
    check_compressed,
    count_columns,
    dense_entries,
    flipped,
    hash_entries,
    row_blocks,
    rows_of,
)

__all__ = [
    "check_compressed",
    "count_columns",
    "csr_gaussian_transform",
    "csr_hash_transform",
    "csr_rademacher_transform",
    "csr_srht_transform",
    "dense_adjoint",
    "hash_adjoint",
    "srht_adjoint",
    "take_columns",
]

_ROWS = 256


@jit
def _take(
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    begin: int,
    end: int,
    cursors: NDArray[np.int64],
    places: NDArray[np.int64],
    out_rows: NDArray[Any],
    source: NDArray[np.int64],
) -> None:
    for r in range(indptr.size - 1):
        p = cursors[r]
        while p < indptr[r + 1] and indices[p] < end:
            to = places[indices[p] - begin]
            places[indices[p] - begin] = to + 1
            out_rows[to] = r
            source[to] = p
            p += 1
        cursors[r] = p


@jit
def _hash_rows(
    value: NDArray[Any],
    column: NDArray[np.int64],
    starts: NDArray[np.int64],
    packed: NDArray[np.uint32],
    begins: NDArray[np.int64],
    acc: NDArray[Any],
) -> None:
    for row in range(acc.shape[0]):
        for p in range(starts[row], starts[row + 1]):
            x = value[p]
            if column[p] < 0:
                continue
            for e in range(begins[column[p]], begins[column[p] + 1]):
                entry = packed[e]
                if entry >> 31:
                    acc[row, entry & 0x7FFFFFFF] -= x
                else:
                    acc[row, entry & 0x7FFFFFFF] += x


@jit
def _dense_rows(value: NDArray[Any], rows: NDArray[np.int64], entries: NDArray[Any], acc: NDArray[Any]) -> None:
    for p in range(value.size):
        for c in range(acc.shape[1]):
            acc[rows[p], c] += value[p] * entries[p, c]


@jit
def _gather(
    y: NDArray[Any],
    packed: NDArray[np.uint32],
    begins: NDArray[np.int64],
    scale: Any,
    nan: Any,
    out: NDArray[Any],
) -> None:
    for i in range(y.shape[0]):
        for j in range(out.shape[1]):
            total = scale - scale  # zero of the right type
            for e in range(begins[j], begins[j + 1]):
                entry = packed[e]
                if entry >> 31:
                    total -= y[i, entry & 0x7FFFFFFF]
                else:
                    total += y[i, entry & 0x7FFFFFFF]
            total *= scale
            out[i, j] = total if total == total else nan


@jit
def _dense_columns(y: NDArray[Any], entries: NDArray[Any], acc: NDArray[Any]) -> None:
    for i in range(y.shape[0]):
        for c in range(y.shape[1]):
            value = y[i, c]
            for j in range(entries.shape[1]):
                acc[i, j] += value * entries[c, j]


def take_columns(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    begin: int,
    end: int,
    cursors: NDArray[np.int64],
    places: NDArray[np.int64],
    out_rows: NDArray[Any],
    out_data: NDArray[Any],
) -> None:
    source = np.empty(out_rows.size, np.int64)
    _take(np.array(indices), np.array(indptr), begin, end, cursors, places, out_rows, source)
    count = int(places[-1])
    out_data[:count] = data[source[:count]]


def csr_hash_transform(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    columns: int,
    begin: int,
    end: int,
    entries: NDArray[np.uint32] | None,
    starts: NDArray[np.int64] | None,
    kind: int,
    seed: int,
    nnz: int,
    first: int,
    scale: float,
    more: bool,
    last: bool,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    k, real = out.shape[1], out.dtype.type
    index = np.arange(k)
    begins = None
    if entries is not None:
        begins = starts.copy() if starts is not None else np.arange(0, entries.size + 1, nnz)
        entries = entries.ravel().copy()
    for row, past, part in row_blocks(indptr, k):
        to = out[row:past]
        acc = to.copy() if more else np.zeros(to.shape, out.dtype)
        column = indices[part].astype(np.int64)
        if entries is None:
            _, bucket, negative = hash_entries(column, None, None, kind, seed, nnz, first, k)
            packed = bucket.astype(np.uint32) | negative.astype(np.uint32) << np.uint32(31)
            column, local = np.arange(column.size), np.arange(0, packed.size + 1, nnz)
        else:
            column = np.where((column >= begin) & (column < end), column - begin, -1)
            packed, local = entries, begins
        _hash_rows(data[part].astype(out.dtype), column, indptr[row : past + 1] - indptr[row], packed, local, acc)
        if last:
            _take_finish(acc, index, real(scale), real(np.nan), to)
        else:
            to[...] = acc


def csr_srht_transform(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    columns: int,
    first: int,
    signs: NDArray[np.uint64],
    index: NDArray[np.int64],
    length: int,
    scale: float,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    real = out.dtype.type
    index = index.copy()
    for begin, end, part in row_blocks(indptr, length):
        work = np.zeros((end - begin, length), out.dtype)
        features = indices[part].astype(np.int64) + first
        work[rows_of(indptr, begin, end), features] = flipped(data[part].astype(out.dtype), signs, features)
        _fwht_rows(work, real(1))
        _take_finish(work, index, real(scale), real(np.nan), out[begin:end])


def csr_rademacher_transform(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    columns: int,
    first: int,
    seed: int,
    scale: float,
    more: bool,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    def entries(features: NDArray[np.int64]) -> NDArray[Any]:
        return 1 - 2 * streams.rademacher_rows(seed, out.shape[1], features + first).astype(out.dtype)

    _csr_dense(data, indices, indptr, entries, scale, more, out)


def csr_gaussian_transform(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    columns: int,
    first: int,
    table: NDArray[np.int32],
    seed: int,
    scale: float,
    more: bool,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    def entries(features: NDArray[np.int64]) -> NDArray[Any]:
        unit = out.dtype.type(streams.GAUSSIAN_UNIT)
        return streams.gaussian_rows(seed, out.shape[1], features + first).astype(out.dtype) * unit

    _csr_dense(data, indices, indptr, entries, scale, more, out)


def _csr_dense(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    entries: Callable[[NDArray[np.int64]], NDArray[Any]],
    scale: float,
    more: bool,
    out: NDArray[Any],
) -> None:
    k, real, stored = out.shape[1], out.dtype.type, int(indptr[-1])
    acc = out.copy() if more else np.zeros(out.shape, out.dtype)
    step = max(1, (1 << 18) // k)
    for begin in range(0, stored, step):
        part = slice(begin, min(begin + step, stored))
        rows = np.searchsorted(indptr, np.arange(part.start, part.stop), "right") - 1
        drawn = np.ascontiguousarray(entries(indices[part].astype(np.int64)))
        _dense_rows(data[part].astype(out.dtype), rows.astype(np.int64), drawn, acc)
    _take_finish(acc, np.arange(k), real(scale), real(np.nan), out)


def hash_adjoint(
    y: NDArray[Any],
    begin: int,
    end: int,
    entries: NDArray[np.uint32],
    starts: NDArray[np.int64] | None,
    nnz: int,
    scale: float,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    real = out.dtype.type
    begins = starts.copy() if starts is not None else np.arange(0, entries.size + 1, nnz)
    packed = entries.ravel().copy()
    for row in range(0, y.shape[0], _ROWS):
        part = np.array(y[row : row + _ROWS], out.dtype, order="C")
        _gather(part, packed, begins, real(scale), real(np.nan), out[row : row + _ROWS, begin:end])


def srht_adjoint(
    y: NDArray[Any],
    signs: NDArray[np.uint64],
    index: NDArray[np.int64],
    length: int,
    scale: float,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    (n, d), real = out.shape, out.dtype.type
    rows = max(1, (1 << 18) // length)
    features = np.arange(d)
    for begin in range(0, n, rows):
        part = y[begin : begin + rows]
        work = np.zeros((part.shape[0], length), out.dtype)
        work[:, index] = part
        _fwht_rows(work, real(1))
        signed = np.ascontiguousarray(flipped(work[:, :d], signs, features))
        _take_finish(signed, features, real(scale), real(np.nan), out[begin : begin + rows])


def dense_adjoint(
    y: NDArray[Any],
    seed: int,
    gaussian: NDArray[np.int32] | None,
    scale: float,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    (n, k), d, real = y.shape, out.shape[1], out.dtype.type
    chunk = max(1, min(d, (1 << 18) // k))  # features whose entries are held at a time
    values = np.array(y, out.dtype, order="C")
    for first in range(0, d, chunk):
        count = min(chunk, d - first)
        entries = np.ascontiguousarray(dense_entries(seed, k, first, count, gaussian is not None, out.dtype).T)
        acc = np.zeros((n, count), out.dtype)
        _dense_columns(values, entries, acc)
        with np.errstate(all="ignore"):
            np.multiply(acc, real(scale), out=acc)
        acc[np.isnan(acc)] = np.nan
        out[:, first : first + count] = acc
