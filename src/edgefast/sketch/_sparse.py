"""Sketches of compressed sparse matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.sketch._inputs import Compressed

__all__ = ["sketch_compressed"]

#: Entries turned from columns to rows at a time: 12 to 16 bytes each.
_BLOCK = 1 << 17

#: (data, indices, indptr, columns, out) of sparse rows to their sketches.
RowKernel = Callable[[NDArray[Any], NDArray[Any], NDArray[np.int64], int, NDArray[Any]], None]


def sketch_compressed(x: Compressed, kernel: RowKernel, out: NDArray[Any]) -> None:
    """The sketch of every row of `x` into `out`.

    A matrix stored by columns is turned to rows block by block of rows, never as a whole: beyond the block this takes
    two numbers a column and two a row.
    """
    if x.by_rows:
        kernel(x.data, x.indices, x.indptr, x.columns, out)
        return
    table = backends.kernels()
    counts = np.zeros(x.rows, np.int64)
    table.count_columns(x.indices, x.indptr, counts)
    ends = np.cumsum(counts)
    cursors = x.indptr[:-1].copy()
    room = max(_BLOCK, int(counts.max(initial=0)))
    room = min(room, x.entries)
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
