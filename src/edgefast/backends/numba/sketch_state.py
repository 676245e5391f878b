"""The stateful half of edgefast.sketch in numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.backends.numba.jit import jit
from edgefast.backends.numpy.sketch_state import row_entries

__all__ = ["row_sketch_add"]

_ENTRIES = 1 << 18  # entries drawn at a time


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


def row_sketch_add(
    x: NDArray[Any], kind: int, seed: int, nnz: int, first_row: int, acc: NDArray[Any], num_threads: int
) -> None:
    step = max(1, _ENTRIES // nnz)
    for begin in range(0, x.shape[0], step):
        part = np.array(x[begin : begin + step], order="C")  # one layout, one compilation
        _row_sketch(part, row_entries(kind, seed, acc.shape[0], nnz, first_row + begin, part.shape[0]), acc)
