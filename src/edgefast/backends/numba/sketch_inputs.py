"""Sparse inputs and the adjoint of edgefast.sketch in numba."""

from __future__ import annotations

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
    flipped,
    row_blocks,
    rows_of,
    stack_entries,
)

__all__ = [
    "check_compressed",
    "count_columns",
    "csr_rademacher_transform",
    "csr_srht_transform",
    "csr_stack_transform",
    "rademacher_adjoint",
    "srht_adjoint",
    "stack_adjoint",
    "take_columns",
]

_ROWS = 256
_FEATURES = 1 << 13


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
def _stack_rows(value: NDArray[Any], starts: NDArray[np.int64], entries: NDArray[np.uint32], acc: NDArray[Any]) -> None:
    for row in range(acc.shape[0]):
        for p in range(starts[row], starts[row + 1]):
            x = value[p]
            for e in range(entries.shape[1]):
                entry = entries[p, e]
                if entry >> 31:
                    acc[row, entry & 0x7FFFFFFF] -= x
                else:
                    acc[row, entry & 0x7FFFFFFF] += x


@jit
def _sign_rows(value: NDArray[Any], rows: NDArray[np.int64], entries: NDArray[Any], acc: NDArray[Any]) -> None:
    for p in range(value.size):
        for c in range(acc.shape[1]):
            acc[rows[p], c] += value[p] * entries[p, c]


@jit
def _gather(
    y: NDArray[Any], entries: NDArray[np.uint32], first: int, scale: Any, nan: Any, out: NDArray[Any]
) -> None:
    for i in range(y.shape[0]):
        for j in range(entries.shape[0]):
            total = scale - scale  # zero of the right type
            for e in range(entries.shape[1]):
                entry = entries[j, e]
                if entry >> 31:
                    total -= y[i, entry & 0x7FFFFFFF]
                else:
                    total += y[i, entry & 0x7FFFFFFF]
            total *= scale
            out[i, first + j] = total if total == total else nan


@jit
def _sign_columns(y: NDArray[Any], entries: NDArray[Any], acc: NDArray[Any]) -> None:
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


def csr_stack_transform(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    columns: int,
    first: int,
    table: NDArray[np.uint32] | None,
    seed: int,
    nnz: int,
    scale: float,
    out: NDArray[Any],
    accumulate: bool,
    num_threads: int,
) -> None:
    k, real = out.shape[1], out.dtype.type
    index = np.arange(k)
    for begin, end, part in row_blocks(indptr, k):
        acc = out[begin:end].copy() if accumulate else np.zeros((end - begin, k), out.dtype)
        starts = indptr[begin : end + 1] - indptr[begin]
        _stack_rows(
            data[part].astype(out.dtype), starts, stack_entries(table, seed, k, nnz, first, indices[part]).copy(), acc
        )
        _take_finish(acc, index, real(scale), real(np.nan), out[begin:end])


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
    out: NDArray[Any],
    accumulate: bool,
    num_threads: int,
) -> None:
    k, real, entries = out.shape[1], out.dtype.type, int(indptr[-1])
    acc = out.copy() if accumulate else np.zeros(out.shape, out.dtype)
    step = max(1, (1 << 19) // k)
    for begin in range(0, entries, step):
        part = slice(begin, min(begin + step, entries))
        rows = np.searchsorted(indptr, np.arange(part.start, part.stop), "right") - 1
        signs = 1 - 2 * streams.rademacher_rows(seed, k, indices[part].astype(np.int64) + first).astype(out.dtype)
        _sign_rows(data[part].astype(out.dtype), rows.astype(np.int64), signs, acc)
    _take_finish(acc, np.arange(k), real(scale), real(np.nan), out)


def stack_adjoint(
    y: NDArray[Any],
    table: NDArray[np.uint32] | None,
    seed: int,
    nnz: int,
    scale: float,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    (n, k), d, real = y.shape, out.shape[1], out.dtype.type
    for first in range(0, d, _FEATURES):
        count = min(_FEATURES, d - first)
        if table is None:
            entries = streams.stack_table(seed, k, nnz, first, count)
        else:
            entries = table[first : first + count].copy()
        for begin in range(0, n, _ROWS):
            part = np.array(y[begin : begin + _ROWS], out.dtype, order="C")
            _gather(part, entries, first, real(scale), real(np.nan), out[begin : begin + _ROWS])


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


def rademacher_adjoint(y: NDArray[Any], seed: int, scale: float, out: NDArray[Any], num_threads: int) -> None:
    (n, k), d, real = y.shape, out.shape[1], out.dtype.type
    chunk = max(1, min(d, (1 << 19) // k))  # features whose entries are held at a time
    values = np.array(y, out.dtype, order="C")
    for first in range(0, d, chunk):
        count = min(chunk, d - first)
        bits = streams.rademacher_bits(seed, k, first, count).T
        entries = np.ascontiguousarray(1 - 2 * bits.astype(out.dtype))
        acc = np.zeros((n, count), out.dtype)
        _sign_columns(values, entries, acc)
        np.multiply(acc, real(scale), out=acc)
        acc[np.isnan(acc)] = np.nan
        out[:, first : first + count] = acc
