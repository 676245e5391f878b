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
    # A model is a list of C-contiguous arrays; every update has the dtypes and shapes of the first. csrc/aggregate/
    # mean.hpp fixes the arithmetic: binary64, clients in order, one rounding per product and sum, one division.

    def first_mismatch(self, arrays: list[Any], model: list[Array], /) -> int:
        """Index of the first entry that is not a C-contiguous array of the model's dtype object and shape, or -1."""
        ...

    def weighted_mean(
        self, rows: list[list[Array]], weights: list[float], total: float, out: list[Array], num_threads: int, /
    ) -> bool:
        """Writes the means; True when a sum was not finite."""
        ...

    def add_weighted(self, update: list[Array], weight: float, sums: list[Array], num_threads: int, /) -> None: ...

    def finish_mean(self, sums: list[Array], total: float, out: list[Array], num_threads: int, /) -> None: ...

    def all_finite(self, update: list[Array], num_threads: int, /) -> bool: ...
