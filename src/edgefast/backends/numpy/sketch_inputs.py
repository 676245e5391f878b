"""Sparse inputs and the adjoint of edgefast.sketch in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.backends import streams
from edgefast.backends.numpy.sketch import fwht

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


Entries = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]


def hash_entries(
    features: NDArray[np.int64],
    entries: NDArray[np.uint32] | None,
    starts: NDArray[np.int64] | None,
    kind: int,
    seed: int,
    nnz: int,
    first: int,
    k: int,
) -> Entries:
    """Of some columns in turn: which of them each entry belongs to, its bucket, whether it is negative."""
    if starts is not None and entries is not None:
        counts = starts[features + 1] - starts[features]
        source = np.repeat(np.arange(features.size), counts)
        within = np.arange(source.size) - np.repeat(np.cumsum(counts) - counts, counts)
        packed = entries[starts[features][source] + within]
    else:
        if entries is not None:
            packed = entries[features]
        elif kind == streams.KIND_NUMBERS["countsketch"]:
            packed = streams.countsketch_entries(seed, k, features + first)
        else:
            packed = streams.stack_entries(seed, k, nnz, features + first)
        source = np.repeat(np.arange(features.size), packed.shape[1])
        packed = packed.ravel()
    return source, (packed & np.uint32(0x7FFFFFFF)).astype(np.intp), packed >> np.uint32(31) != 0


def finish(acc: NDArray[Any], scale: float, out: NDArray[Any]) -> None:
    np.multiply(acc, acc.dtype.type(scale), out=out)
    out[np.isnan(out)] = np.nan


def flipped(x: NDArray[Any], signs: NDArray[np.uint64], features: Any) -> NDArray[Any]:
    """x negated where the bit of its feature is set."""
    features = np.asarray(features, np.int64)
    bits = signs[features >> 6] >> (features & 63).astype(np.uint64) & np.uint64(1)
    return np.where(bits.astype(bool), -x, x)


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
    k = out.shape[1]
    with np.errstate(all="ignore"):
        for row, past, part in row_blocks(indptr, k):
            to = out[row:past]
            acc = to.flatten() if more else np.zeros(to.size, out.dtype)
            rows, column, value = rows_of(indptr, row, past), indices[part].astype(np.int64), data[part]
            if begin > 0 or end < columns:
                inside = (column >= begin) & (column < end)
                rows, column, value = rows[inside], column[inside], value[inside]
            source, bucket, negative = hash_entries(column - begin, entries, starts, kind, seed, nnz, first + begin, k)
            terms = value.astype(out.dtype)[source]
            np.negative(terms, out=terms, where=negative)
            np.add.at(acc, rows[source] * k + bucket, terms)  # one term after the other, in order
            if last:
                finish(acc.reshape(to.shape), scale, to)
            else:
                to[...] = acc.reshape(to.shape)


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
    step = max(1, (1 << 18) // out.shape[1])
    with np.errstate(all="ignore"):
        acc = out.copy() if more else np.zeros(out.shape, out.dtype)
        for begin in range(0, int(indptr[-1]), step):
            part = slice(begin, min(begin + step, int(indptr[-1])))
            rows = np.searchsorted(indptr, np.arange(part.start, part.stop), "right") - 1
            terms = data[part].astype(out.dtype)[:, None] * entries(indices[part].astype(np.int64))
            np.add.at(acc, rows, terms)
        finish(acc, scale, out)


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
    n, k = y.shape
    rows = max(1, (1 << 21) // max(k, _FEATURES))
    with np.errstate(all="ignore"):
        for row in range(0, n, rows):
            part = np.ascontiguousarray(y[row : row + rows].T, out.dtype)
            signed = np.concatenate([part, -part])
            for first in range(0, end - begin, _FEATURES):
                last = min(first + _FEATURES, end - begin)
                acc = np.zeros((last - first, part.shape[1]), out.dtype)
                if starts is None:
                    packed = entries[first:last]
                    source = (packed & np.uint32(0x7FFFFFFF)).astype(np.intp) + k * (packed >> np.uint32(31))
                    for e in range(nnz):
                        acc += signed[source[:, e]]
                else:
                    counts = np.diff(starts[first : last + 1])
                    packed = entries[starts[first] : starts[last]]
                    source = (packed & np.uint32(0x7FFFFFFF)).astype(np.intp) + k * (packed >> np.uint32(31))
                    for e in range(int(counts.max(initial=0))):  # the e-th entry of every feature that has one
                        have = np.flatnonzero(counts > e)
                        acc[have] += signed[source[starts[first + have] - starts[first] + e]]
                finish(acc.T, scale, out[row : row + rows, begin + first : begin + last])


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


def dense_adjoint(
    y: NDArray[Any],
    seed: int,
    gaussian: NDArray[np.int32] | None,
    scale: float,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    (n, k), d = y.shape, out.shape[1]
    rows = max(1, (1 << 21) // k)
    chunk = max(1, min(d, (1 << 18) // k))  # features whose entries are held at a time
    with np.errstate(all="ignore"):
        for first in range(0, d, chunk):
            count = min(chunk, d - first)
            entries = dense_entries(seed, k, first, count, gaussian is not None, out.dtype)
            for begin in range(0, n, rows):
                part = y[begin : begin + rows].astype(out.dtype, copy=False)
                finish(part @ entries.T, scale, out[begin : begin + rows, first : first + count])


def dense_entries(seed: int, k: int, first: int, count: int, gaussian: bool, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Entries of features [first, first + count), shape (count, k)."""
    if gaussian:
        return streams.gaussian_entries(seed, k, first, count).astype(dtype) * dtype.type(streams.GAUSSIAN_UNIT)
    return 1 - 2 * streams.rademacher_bits(seed, k, first, count).astype(dtype)
