"""The function table every backend implements.

Arguments arrive validated: dtypes, shapes, contiguity and bounds are the public layer's business. Kernels write into
the arrays they are given, never keep them, and raise nothing.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt

__all__ = ["Array", "Kernels"]

Array = npt.NDArray[Any]


class Kernels(Protocol):
    # --- sketch -------------------------------------------------------------------------------------------------
    # x is (n, d) with any strides, out is (n, k) C-contiguous, both float32 or both float64; out is overwritten.

    def sparse_stack_transform(
        self, x: Array, out: Array, seed: int, nnz: int, scale: float, num_threads: int, /
    ) -> None: ...

    def srht_transform(
        self, x: Array, out: Array, seed: int, rows: Array, scale: float, num_threads: int, /
    ) -> None: ...

    def rademacher_transform(self, x: Array, out: Array, seed: int, scale: float, num_threads: int, /) -> None: ...

    def fwht_rows(self, a: Array, scale: float, num_threads: int, /) -> None:
        """Transforms the rows of `a`, C-contiguous (m, 2**p), in place."""
        ...

    # --- aggregate ----------------------------------------------------------------------------------------------
