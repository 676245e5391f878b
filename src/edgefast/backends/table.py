"""The function table every backend implements.

Arguments arrive validated: dtypes, shapes, contiguity and bounds are the public layer's business. Kernels write into
the arrays they are given, never keep them, and raise nothing.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["AggregateKernels", "Array", "Kernels", "SketchInputKernels", "SketchKernels", "SketchStateKernels"]

Array = NDArray[Any]


class SketchKernels(Protocol):
    def philox_words(self, k0: int, k1: int, c0: int, c1: int, c2: int, c3: int, out: NDArray[np.uint64], /) -> None:
        """Consecutive Philox4x64-10 blocks, the first at counter (c0, c1, c2, c3), into out (blocks, 4)."""

    def stack_table(self, seed: int, n_components: int, first: int, out: NDArray[np.uint32], /) -> None:
        """Entries of sparse_stack's features first, first + 1, ...: bucket | negative << 31 into out (count, nnz)."""

    def stack_transform(
        self,
        x: NDArray[Any],
        table: NDArray[np.uint32] | None,
        seed: int,
        nnz: int,
        scale: float,
        out: NDArray[Any],
        num_threads: int,
        /,
    ) -> None:
        """Rows of x (any strides) into out (n, k), C-contiguous. Without a table the entries are drawn on the fly."""

    def srht_transform(
        self,
        x: NDArray[Any],
        signs: NDArray[np.uint64],
        index: NDArray[np.int64],
        length: int,
        scale: float,
        out: NDArray[Any],
        num_threads: int,
        /,
    ) -> None:
        """Rows of x (any strides): signs, zero padding to `length`, Hadamard transform, outputs `index`."""

    def rademacher_transform(
        self, x: NDArray[Any], seed: int, scale: float, out: NDArray[Any], num_threads: int, /
    ) -> None:
        """Rows of x (any strides) times +-1 entries drawn on the fly."""

    def fwht(self, x: NDArray[Any], scale: float, out: NDArray[Any], num_threads: int, /) -> None:
        """Walsh-Hadamard transform of the rows of x; both arrays C-contiguous, the same memory or none in common."""


class SketchInputKernels(Protocol):
    # A compressed matrix is data, indices (int32 or int64) and indptr (int64), contiguous; rows are those of the
    # sketch's input. After check_compressed every kernel trusts the indices. Feature j of the operator is column
    # j - first. Elements convert exactly to out's type.

    def check_compressed(
        self, indices: Array, indptr: NDArray[np.int64], columns: int, num_threads: int, /
    ) -> tuple[int, int]:
        """(0, _) canonical, (1, _) unsorted or with duplicates, (2, row) bad indptr, (3, row) an index outside."""
        ...

    def count_columns(self, indices: Array, indptr: NDArray[np.int64], counts: NDArray[np.int64], /) -> None:
        """counts[c] += entries of column c."""

    def take_columns(
        self,
        data: Array,
        indices: Array,
        indptr: NDArray[np.int64],
        begin: int,
        end: int,
        cursors: NDArray[np.int64],
        places: NDArray[np.int64],
        out_rows: Array,
        out_data: Array,
        /,
    ) -> None:
        """Columns [begin, end) as compressed rows; cursors and places move on (csrc/sketch/compressed.hpp)."""

    def csr_stack_transform(
        self,
        data: Array,
        indices: Array,
        indptr: NDArray[np.int64],
        columns: int,
        first: int,
        table: NDArray[np.uint32] | None,
        seed: int,
        nnz: int,
        scale: float,
        out: Array,
        accumulate: bool,
        num_threads: int,
        /,
    ) -> None:
        """Sparse rows into out (n, k), continuing its sums or not. The table, if any, begins at feature `first`."""

    def csr_srht_transform(
        self,
        data: Array,
        indices: Array,
        indptr: NDArray[np.int64],
        columns: int,
        first: int,
        signs: NDArray[np.uint64],
        index: NDArray[np.int64],
        length: int,
        scale: float,
        out: Array,
        num_threads: int,
        /,
    ) -> None: ...

    def csr_rademacher_transform(
        self,
        data: Array,
        indices: Array,
        indptr: NDArray[np.int64],
        columns: int,
        first: int,
        seed: int,
        scale: float,
        out: Array,
        accumulate: bool,
        num_threads: int,
        /,
    ) -> None: ...

    # The transposed map: y (n, k), any strides, into out (n, d), C-contiguous.

    def stack_adjoint(
        self,
        y: Array,
        table: NDArray[np.uint32] | None,
        seed: int,
        nnz: int,
        scale: float,
        out: Array,
        num_threads: int,
        /,
    ) -> None: ...

    def srht_adjoint(
        self,
        y: Array,
        signs: NDArray[np.uint64],
        index: NDArray[np.int64],
        length: int,
        scale: float,
        out: Array,
        num_threads: int,
        /,
    ) -> None: ...

    def rademacher_adjoint(self, y: Array, seed: int, scale: float, out: Array, num_threads: int, /) -> None: ...
class SketchStateKernels(Protocol):
    def row_sketch_add(
        self, x: NDArray[Any], kind: int, seed: int, nnz: int, first_row: int, acc: NDArray[Any], num_threads: int, /
    ) -> None:
        """acc (k, columns) += S x, unscaled; row i of x (any strides) is column first_row + i of S.

        x and acc: float32 and float32, float32 or float64 and float64, int64 and int64. `kind` is the operator's kind
        number, `nnz` the entries of a column of S.
        """


class AggregateKernels(Protocol):
    # A model is a list of C-contiguous arrays; every update has the dtypes and shapes of the first. csrc/aggregate/
    # mean.hpp fixes the arithmetic: binary64, clients in order, one rounding per product and sum, one division.

    def first_mismatch(self, arrays: list[Any], model: list[Array], /) -> int:
        """Index of the first entry that is not a C-contiguous array of the model's dtype object and shape, or -1."""
        ...

    def overlapping(self, targets: list[Array], rows: list[list[Array]], /) -> list[int]:
        """Indices of the C-contiguous targets that share bytes with some array of the rows."""
        ...

    def weighted_mean(
        self, rows: list[list[Array]], weights: list[float], total: float, out: list[Array], num_threads: int, /
    ) -> bool:
        """Writes the means; True when a sum was not finite."""
        ...

    def add_weighted(self, update: list[Array], weight: float, sums: list[Array], num_threads: int, /) -> None: ...

    def finish_mean(self, sums: list[Array], total: float, out: list[Array], num_threads: int, /) -> None: ...

    def all_finite(self, update: list[Array], num_threads: int, /) -> bool: ...


class Kernels(SketchKernels, SketchInputKernels, SketchStateKernels, AggregateKernels, Protocol):
    """The whole table."""
