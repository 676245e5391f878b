"""Sketches of compressed sparse matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.backends import streams
from edgefast.sketch._inputs import Compressed
from edgefast.sketch._kinds import KINDS, padded

if TYPE_CHECKING:
    from edgefast.sketch._operator import SketchOperator

__all__ = ["HASH_KINDS", "EntryChunks", "sketch_compressed"]

#: Kinds with few entries +-1 per feature.
HASH_KINDS = ("sparse_stack", "countsketch", "sparse")
#: Numbers turned from columns to rows at a time: 12 to 16 bytes each.
_BLOCK = 1 << 17
#: Entries of features drawn at a time: 4 MiB.
_CHUNK = 1 << 20

#: (data, indices, indptr, columns, out) of sparse rows to their sketches.
RowKernel = Callable[[NDArray[Any], NDArray[Any], NDArray[np.int64], int, NDArray[Any]], None]


class EntryChunks:
    """Entries of features [first, first + count) of a hash kind, in chunks; a single one is drawn once and kept."""

    def __init__(self, op: SketchOperator, first: int, count: int) -> None:
        self._op, self._first, self._count = op, first, count
        self._kind: Any = KINDS[op.kind]
        self.step = max(1, min(count, int(_CHUNK / (self._kind.expected_entries(op) + 1 / 16))))
        self._only: tuple[NDArray[np.uint32], NDArray[np.int64] | None] | None = None

    @property
    def single(self) -> bool:
        return self.step == self._count

    def __iter__(self) -> Iterator[tuple[int, int, NDArray[np.uint32], NDArray[np.int64] | None]]:
        """(begin, end, entries, starts) with begin and end counted from the first feature."""
        table = backends.kernels()
        if self.single:
            if self._only is None:
                self._only = self._kind.entries(self._op, table, self._first, self._count)
            yield 0, self._count, *self._only
            return
        for begin in range(0, self._count, self.step):
            end = min(begin + self.step, self._count)
            yield begin, end, *self._kind.entries(self._op, table, self._first + begin, end - begin)


def sketch_compressed(
    op: SketchOperator, x: Compressed, first: int, scale: float, more: bool, out: NDArray[Any], num_threads: int
) -> None:
    """The sketch of every row of `x` into `out` (rows, k), C-contiguous; column j of x is feature first + j.

    `more` adds to what is in `out`. A matrix stored by columns is turned to rows block by block of rows, never as a
    whole: beyond the block this takes a number a column and two a row.
    """
    kernel = _row_kernel(op, x, first, scale, more, num_threads)
    if x.by_rows:
        kernel(x.data, x.indices, x.indptr, x.columns, out)
        return
    table = backends.kernels()
    counts = np.zeros(x.rows, np.int64)
    table.count_columns(x.indices, x.indptr, counts)
    ends = np.cumsum(counts)
    cursors = x.indptr[:-1].copy()
    room = min(max(_BLOCK, int(counts.max(initial=0))), x.entries)
    block_rows = np.empty(room, np.int32 if x.columns < 2**31 else np.int64)
    block_data = np.empty(room, x.data.dtype)
    begin = 0
    while begin < x.rows:
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + room, "right")))
        starts = np.concatenate([[0], ends[begin:end] - before])
        places = starts[:-1].copy()
        table.take_columns(x.data, x.indices, x.indptr, begin, end, cursors, places, block_rows, block_data)
        kernel(block_data, block_rows, starts, x.columns, out[begin:end])
        begin = end


def _row_kernel(
    op: SketchOperator, x: Compressed, first: int, scale: float, more: bool, num_threads: int
) -> RowKernel:
    table, kind = backends.kernels(), op.kind
    if kind in HASH_KINDS:
        number, nnz = streams.KIND_NUMBERS[kind], 0 if kind == "sparse" else op.nnz
        chunks = EntryChunks(op, first, x.columns)
        # Fewer numbers than features, or a table for every block: cheaper to draw what the numbers need.
        drawn = kind != "sparse" and (x.entries < x.columns or not (x.by_rows or chunks.single))

        def hashed(
            data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[np.int64], columns: int, out: NDArray[Any]
        ) -> None:
            fixed = (data, indices, indptr, columns)
            if drawn:
                table.csr_hash_transform(
                    *fixed, 0, columns, None, None, number, op.seed, nnz, first, scale, more, True, out, num_threads
                )
                return
            for begin, end, entries, starts in chunks:
                again, last = more or begin > 0, end == columns
                table.csr_hash_transform(
                    *fixed, begin, end, entries, starts, number, op.seed, nnz, first, scale, again, last, out, num_threads
                )

        return hashed
    if kind == "rademacher":
        return lambda data, indices, indptr, columns, out: table.csr_rademacher_transform(
            data, indices, indptr, columns, first, op.seed, scale, more, out, num_threads
        )
    if kind == "gaussian":
        normal = streams.gaussian_table()
        return lambda data, indices, indptr, columns, out: table.csr_gaussian_transform(
            data, indices, indptr, columns, first, normal, op.seed, scale, more, out, num_threads
        )
    return lambda data, indices, indptr, columns, out: _mixed(
        op, data, indices, indptr, columns, first, scale, more, out, num_threads
    )


def _mixed(
    op: SketchOperator,
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    columns: int,
    first: int,
    scale: float,
    more: bool,
    out: NDArray[Any],
    num_threads: int,
) -> None:
    """srht and rotation mix all features of a row: `more` adds whole results."""
    table, family = backends.kernels(), KINDS[op.kind]
    target = np.empty_like(out) if more else out
    if op.kind == "srht":
        signs, index = family.integers(op)  # type: ignore[attr-defined]
        table.csr_srht_transform(
            data, indices, indptr, columns, first, signs, index, padded(op.n_features), scale, target, num_threads
        )
    else:
        # The result has room for the rows themselves.
        target[...] = 0
        entries = int(indptr[-1])
        for begin in range(0, entries, _BLOCK):
            part = slice(begin, min(begin + _BLOCK, entries))
            rows = np.searchsorted(indptr, np.arange(part.start, part.stop), "right") - 1
            target[rows, indices[part].astype(np.int64) + first] = data[part]
        table.rotate(target, family.signs(op), False, target, num_threads)  # type: ignore[attr-defined]
    if more:
        out += target


def sketch_dense_window(
    op: SketchOperator, x: NDArray[Any], first: int, scale: float, more: bool, out: NDArray[Any], num_threads: int
) -> None:
    """The sketch of every column of the dense x (m, columns) into out (columns, k); row i is feature first + i.

    Some columns at a time as sparse rows without gaps: the kernels of sparse rows take any range of features.
    """
    m, columns = x.shape
    step = max(1, _BLOCK // max(1, m))
    indices = np.tile(np.arange(m, dtype=np.int32 if m < 2**31 else np.int64), min(step, columns))
    for begin in range(0, columns, step):
        end = min(begin + step, columns)
        data = np.ascontiguousarray(x[:, begin:end].T, out.dtype).ravel()
        indptr = np.arange(end - begin + 1, dtype=np.int64) * m
        block = Compressed(data, indices[: data.size], indptr, end - begin, m, True, out.dtype, 2)
        sketch_compressed(op, block, first, scale, more, out[begin:end], num_threads)
