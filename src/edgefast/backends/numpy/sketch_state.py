"""The stateful half of edgefast.sketch in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.backends import streams

__all__ = ["row_entries", "row_sketch_add"]

_ROWS = 4096  # rows whose entries are held at a time
_ENTRIES = 1 << 20


def row_entries(kind: int, seed: int, k: int, nnz: int, first: int, count: int) -> NDArray[np.uint32]:
    """Packed entries (bucket | negative << 31) of columns [first, first + count) of S, shape (count, nnz)."""
    if kind == streams.KIND_NUMBERS["rademacher"]:
        negative = streams.rademacher_bits(seed, k, first, count).astype(np.uint32)
        return negative << np.uint32(31) | np.arange(k, dtype=np.uint32)
    return streams.stack_table(seed, k, nnz, first, count)


def row_sketch_add(
    x: NDArray[Any], kind: int, seed: int, nnz: int, first_row: int, acc: NDArray[Any], num_threads: int
) -> None:
    k = acc.shape[0]
    step = max(1, min(_ROWS, _ENTRIES // nnz))
    with np.errstate(all="ignore"):
        for begin in range(0, x.shape[0], step):
            part = x[begin : begin + step]
            entries = row_entries(kind, seed, k, nnz, first_row + begin, part.shape[0])
            signed = np.concatenate([part, -part])
            rows = np.arange(part.shape[0])
            # Round m holds the m-th term of every output, in ascending order of rows: one addition an output at a time.
            buckets = (entries & np.uint32(0x7FFFFFFF)).astype(np.intp).ravel()
            sources = (rows[:, None] + part.shape[0] * (entries >> np.uint32(31)).astype(np.intp)).ravel()
            order = np.argsort(buckets, kind="stable")
            buckets, sources = buckets[order], sources[order]
            starts = np.flatnonzero(np.r_[True, buckets[1:] != buckets[:-1]])
            rank = np.arange(buckets.size) - np.repeat(starts, np.diff(np.r_[starts, buckets.size]))
            order = np.argsort(rank, kind="stable")
            ends = np.cumsum(np.bincount(rank))[:-1]
            for outputs, terms in zip(np.split(buckets[order], ends), np.split(sources[order], ends), strict=True):
                acc[outputs] += signed[terms]
