"""Sparse inputs and the adjoint of edgefast.sketch in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.backends import streams
from edgefast.backends.numpy.sketch import fwht

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

_ENTRIES = 1 << 14  # entries expanded at a time
_FEATURES = 1 << 13  # features drawn at a time


def check_compressed(
    indices: NDArray[Any], indptr: NDArray[np.int64], columns: int, num_threads: int
) -> tuple[int, int]:
    if indptr[0] != 0:
        return 2, 0
    bad = (indptr[1:] < indptr[:-1]) | (indptr[1:] > indices.size)
    if bad.any():
        return 2, int(bad.argmax())
    index = indices[: indptr[-1]]
    outside = (index < 0) | (index >= columns)
    if outside.any():
        return 3, int(np.searchsorted(indptr, outside.argmax(), "right")) - 1
    descends = index[1:] <= index[:-1]
    starts = indptr[1:-1]
    descends[starts[(starts > 0) & (starts < index.size)] - 1] = False  # the first entry of a row has no predecessor
    return int(descends.any()), 0


def count_columns(indices: NDArray[Any], indptr: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    counts += np.bincount(indices[: indptr[-1]], minlength=counts.size)


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
    index = indices[: indptr[-1]]
    taken = np.flatnonzero((index >= begin) & (index < end))
    taken = taken[np.argsort(index[taken], kind="stable")]  # by column, rows still ascending
    to = slice(int(places[0]), int(places[0]) + taken.size)
    out_rows[to] = np.searchsorted(indptr, taken, "right") - 1
    out_data[to] = data[taken]


def row_blocks(indptr: NDArray[np.int64], width: int) -> Iterator[tuple[int, int, slice]]:
    """(first row, past the last, their entries) with at most _ENTRIES entries and outputs, or a single row."""
    rows, begin = indptr.size - 1, 0
    most = max(1, _ENTRIES * 64 // max(1, width))
    while begin < rows:
        end = int(np.searchsorted(indptr, indptr[begin] + _ENTRIES, "right")) - 1
        end = min(max(end, begin + 1), begin + most, rows)
        yield begin, end, slice(int(indptr[begin]), int(indptr[end]))
        begin = end


def rows_of(indptr: NDArray[np.int64], begin: int, end: int) -> NDArray[np.int64]:
    """Row number, from 0, of every entry of rows [begin, end)."""
    return np.repeat(np.arange(end - begin), np.diff(indptr[begin : end + 1]))


def stack_entries(
    table: NDArray[np.uint32] | None, seed: int, k: int, nnz: int, first: int, features: NDArray[Any]
) -> NDArray[np.uint32]:
    """Packed entries of some features, shape (len(features), nnz)."""
    if table is not None:
        return table[features]
    return streams.stack_entries(seed, k, nnz, features.astype(np.int64) + first)


def finish(acc: NDArray[Any], scale: float, out: NDArray[Any]) -> None:
    np.multiply(acc, acc.dtype.type(scale), out=out)
    out[np.isnan(out)] = np.nan


def flipped(x: NDArray[Any], signs: NDArray[np.uint64], features: Any) -> NDArray[Any]:
    """x negated where the bit of its feature is set."""
    features = np.asarray(features, np.int64)
    bits = signs[features >> 6] >> (features & 63).astype(np.uint64) & np.uint64(1)
    return np.where(bits.astype(bool), -x, x)


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
    k = out.shape[1]
    with np.errstate(all="ignore"):
        for begin, end, part in row_blocks(indptr, k):
            acc = out[begin:end].flatten() if accumulate else np.zeros((end - begin) * k, out.dtype)
            entries = stack_entries(table, seed, k, nnz, first, indices[part])
            value = data[part].astype(out.dtype)[:, None]
            terms = np.where(entries >> np.uint32(31), -value, value)
            places = rows_of(indptr, begin, end)[:, None] * k + (entries & np.uint32(0x7FFFFFFF)).astype(np.int64)
            np.add.at(acc, places.ravel(), terms.ravel())  # one term after the other, in order
            finish(acc.reshape(-1, k), scale, out[begin:end])


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
    with np.errstate(all="ignore"):
        for begin, end, part in row_blocks(indptr, length):
            work = np.zeros((end - begin, length), out.dtype)
            features = indices[part].astype(np.int64) + first
            work[rows_of(indptr, begin, end), features] = flipped(data[part].astype(out.dtype), signs, features)
            fwht(work, 1.0, work, 1)
            finish(work[:, index], scale, out[begin:end])


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
    k = out.shape[1]
    step = max(1, (1 << 20) // k)
    with np.errstate(all="ignore"):
        acc = out.copy() if accumulate else np.zeros(out.shape, out.dtype)
        for begin in range(0, int(indptr[-1]), step):
            part = slice(begin, min(begin + step, int(indptr[-1])))
            rows = np.searchsorted(indptr, np.arange(part.start, part.stop), "right") - 1
            bits = streams.rademacher_rows(seed, k, indices[part].astype(np.int64) + first)
            terms = data[part].astype(out.dtype)[:, None] * (1 - 2 * bits.astype(out.dtype))
            heads = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]])
            acc[rows[heads]] += np.add.reduceat(terms, heads, axis=0)
        finish(acc, scale, out)


def stack_adjoint(
    y: NDArray[Any],
    table: NDArray[np.uint32] | None,
    seed: int,
    nnz: int,
    scale: float,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    (n, k), d = y.shape, out.shape[1]
    rows = max(1, (1 << 21) // max(k, _FEATURES))
    with np.errstate(all="ignore"):
        for begin in range(0, n, rows):
            part = np.ascontiguousarray(y[begin : begin + rows].T, out.dtype)
            signed = np.concatenate([part, -part])
            for first in range(0, d, _FEATURES):
                count = min(_FEATURES, d - first)
                if table is None:
                    entries = streams.stack_table(seed, k, nnz, first, count)
                else:
                    entries = table[first : first + count]
                source = (entries & np.uint32(0x7FFFFFFF)).astype(np.intp) + k * (entries >> np.uint32(31))
                acc = np.zeros((count, part.shape[1]), out.dtype)
                for e in range(nnz):
                    acc += signed[source[:, e]]
                finish(acc.T, scale, out[begin : begin + rows, first : first + count])


def srht_adjoint(
    y: NDArray[Any],
    signs: NDArray[np.uint64],
    index: NDArray[np.int64],
    length: int,
    scale: float,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    n, d = out.shape
    rows = max(1, (1 << 16) // length)
    with np.errstate(all="ignore"):
        for begin in range(0, n, rows):
            part = y[begin : begin + rows]
            work = np.zeros((part.shape[0], length), out.dtype)
            work[:, index] = part
            fwht(work, 1.0, work, 1)
            finish(flipped(work[:, :d], signs, np.arange(d)), scale, out[begin : begin + rows])


def rademacher_adjoint(y: NDArray[Any], seed: int, scale: float, out: NDArray[Any], num_threads: int) -> None:
    (n, k), d = y.shape, out.shape[1]
    rows = max(1, (1 << 21) // k)
    chunk = max(1, min(d, (1 << 21) // k))  # features whose entries are held at a time
    with np.errstate(all="ignore"):
        for first in range(0, d, chunk):
            count = min(chunk, d - first)
            entries = 1 - 2 * streams.rademacher_bits(seed, k, first, count).astype(out.dtype)
            for begin in range(0, n, rows):
                part = y[begin : begin + rows].astype(out.dtype, copy=False)
                finish(part @ entries.T, scale, out[begin : begin + rows, first : first + count])
