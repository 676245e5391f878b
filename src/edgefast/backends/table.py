"""The function table every backend implements.

Arguments arrive validated: dtypes, shapes, contiguity and bounds are the public layer's business. Kernels write into
the arrays they are given, never keep them, and raise nothing.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BF16",
    "FINITE",
    "NEAR_MEDIAN",
    "PROPAGATE",
    "RANK",
    "RANKS",
    "AggregateKernels",
    "Array",
    "Kernels",
    "QuantInput",
    "QuantSpec",
    "QuantizeKernels",
    "RobustKernels",
    "SketchInputKernels",
    "SketchKernels",
    "SketchStateKernels",
    "binned_folds",
    "holds_single",
]

Array = NDArray[Any]

#: bfloat16 to the kernels: numpy has no such dtype, so two bytes that no other dtype is made of.
BF16: np.dtype[Any] = np.dtype([("bfloat16", "<u2")])

#: What a compressed tensor's bytes mean: rotated (EDEN), bits, block, number of the tensor.
QuantSpec = tuple[bool, int, int, int]
#: One of them: code bytes, scales of the blocks, seed, nonce.
QuantInput = tuple[NDArray[np.uint8], NDArray[np.float32], int, int]


def holds_single(dtype: np.dtype[Any]) -> bool:
    """Whether every value of the dtype is a float32."""
    return dtype == BF16 or (dtype.kind == "f" and dtype.itemsize <= 4) or (dtype.kind in "iub" and dtype.itemsize <= 2)


def binned_folds(dtype: np.dtype[Any]) -> int:
    """Bins a coordinate of this dtype keeps in reproducible sums; see csrc/aggregate/binned.hpp."""
    return 2 if holds_single(dtype) else 3


class SketchKernels(Protocol):
    def philox_words(self, k0: int, k1: int, c0: int, c1: int, c2: int, c3: int, out: NDArray[np.uint64], /) -> None:
        """Consecutive Philox4x64-10 blocks, the first at counter (c0, c1, c2, c3), into out (blocks, 4)."""

    def stack_table(self, seed: int, n_components: int, first: int, out: NDArray[np.uint32], /) -> None:
        """Entries of sparse_stack's features first, first + 1, ...: bucket | negative << 31 into out (count, nnz)."""

    def countsketch_table(self, seed: int, n_components: int, first: int, out: NDArray[np.uint32], /) -> None:
        """Entries of countsketch's features first, first + 1, ...: bucket | negative << 31 into out (count, 1)."""

    def sparse_starts(
        self, seed: int, n_components: int, thresholds: NDArray[np.uint64], first: int, out: NDArray[np.int64], /
    ) -> None:
        """Where the entries of sparse's features first, first + 1, ... start; out has one number more than features."""

    def sparse_table(
        self,
        seed: int,
        n_components: int,
        thresholds: NDArray[np.uint64],
        first: int,
        starts: NDArray[np.int64],
        out: NDArray[np.uint32],
        /,
    ) -> None:
        """The entries themselves: bucket | negative << 31, buckets of a feature ascending, into out (starts[-1],)."""

    def hash_transform(
        self,
        x: NDArray[Any],
        entries: NDArray[np.uint32],
        starts: NDArray[np.int64] | None,
        scale: float,
        more: bool,
        last: bool,
        out: NDArray[Any],
        num_threads: int,
        /,
    ) -> None:
        """Rows of x (any strides, any type that converts to out's) times a matrix of +-1 by the entries of its columns.

        Entries are bucket | negative << 31: (d, nnz), or with starts (d + 1,) one-dimensional. out (n, k) is
        C-contiguous. `more` adds to the unscaled sums in out instead of starting at zero; `last` scales.
        """

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
        """Rows of x (any strides and such types): signs, zeros up to `length`, Hadamard transform, outputs `index`."""

    def rademacher_transform(
        self, x: NDArray[Any], seed: int, scale: float, out: NDArray[Any], num_threads: int, /
    ) -> None:
        """Rows of x (any strides and such types) times +-1 entries drawn on the fly."""

    def gaussian_transform(
        self, x: NDArray[Any], seed: int, scale: float, out: NDArray[Any], num_threads: int, /
    ) -> None:
        """Rows of x (any strides and such types) times normal entries drawn on the fly."""

    def rotate(
        self, x: NDArray[Any], signs: NDArray[np.uint64], inverse: bool, out: NDArray[Any], num_threads: int, /
    ) -> None:
        """Rows of x (any strides and such types) rotated or rotated back; signs (steps, words).

        out (n, d) is C-contiguous: the memory of x, or none in common with it.
        """

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

    def csr_hash_transform(
        self,
        data: Array,
        indices: Array,
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
        out: Array,
        num_threads: int,
        /,
    ) -> None:
        """Columns [begin, end) of sparse rows; entries and the rest as in hash_transform.

        Without entries all columns count and those of sparse_stack or countsketch are drawn where they are needed.
        """

    def csr_srht_transform(
        self,
        data: Array,
        indices: Array,
        indptr: NDArray[np.int64],
        n_features: int,
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
        more: bool,
        out: Array,
        num_threads: int,
        /,
    ) -> None: ...

    def csr_gaussian_transform(
        self,
        data: Array,
        indices: Array,
        indptr: NDArray[np.int64],
        columns: int,
        first: int,
        table: NDArray[np.int32],
        seed: int,
        scale: float,
        more: bool,
        out: Array,
        num_threads: int,
        /,
    ) -> None:
        """`table` is streams.gaussian_table()."""

    # The transposed map: y (n, k), any strides, into out (n, d), C-contiguous.

    def hash_adjoint(
        self,
        y: Array,
        begin: int,
        end: int,
        entries: NDArray[np.uint32],
        starts: NDArray[np.int64] | None,
        nnz: int,
        scale: float,
        out: Array,
        num_threads: int,
        /,
    ) -> None:
        """Features [begin, end) of out, whose entries these are."""

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

    def dense_adjoint(
        self,
        y: Array,
        seed: int,
        gaussian: NDArray[np.int32] | None,
        scale: float,
        out: Array,
        num_threads: int,
        /,
    ) -> None:
        """rademacher, or gaussian when its table is given."""


class SketchStateKernels(Protocol):
    def row_sketch_add(
        self, x: NDArray[Any], kind: int, seed: int, nnz: int, first_row: int, acc: NDArray[Any], num_threads: int, /
    ) -> None:
        """acc (k, columns) += S x, unscaled; row i of x (any strides) is column first_row + i of S.

        x and acc: float32 and float32, float32 or float64 and float64, int64 and int64. `kind` is the operator's kind
        number, `nnz` the entries of a column of S.
        """

    def count_sketch_add(
        self,
        values: NDArray[Any],
        indices: NDArray[np.int64] | None,
        first: int,
        seed: int,
        table: NDArray[Any],
        num_threads: int,
        /,
    ) -> None:
        """Add values[i] to index indices[i] (first + i without) of a (depth, width) table; types as row_sketch_add."""

    def count_sketch_estimate(
        self,
        table: NDArray[Any],
        indices: NDArray[np.int64] | None,
        first: int,
        seed: int,
        out: NDArray[Any],
        num_threads: int,
        /,
    ) -> None:
        """Median estimates of indices[i] (first + i without): float32 for a float32 table, else float64."""

    def sign_bits(self, x: NDArray[Any], out: NDArray[np.uint8], /) -> None:
        """Bits x >= 0 of the rows of x (contiguous), LSB first, into out (rows, ceil(columns / 8)), spare bits 0."""

    # Codes: (n, bytes) uint8, rows contiguous, bytes <= 8191.

    def hamming_pairs(
        self, a: NDArray[np.uint8], b: NDArray[np.uint8], out: NDArray[np.uint16], num_threads: int, /
    ) -> None:
        """Distances of all pairs into out (len(a), len(b))."""

    def hamming_nearest(
        self,
        queries: NDArray[np.uint8],
        codes: NDArray[np.uint8],
        index: NDArray[np.int64],
        distance: NDArray[np.uint16],
        num_threads: int,
        /,
    ) -> None:
        """The nearest code of every query, the first on ties; -1 and 65535 without codes."""

    def hamming_within(
        self,
        query: NDArray[np.uint8],
        codes: NDArray[np.uint8],
        radius: int,
        begin: int,
        index: NDArray[np.int64],
        distance: NDArray[np.uint16],
        /,
    ) -> tuple[int, int]:
        """Codes from `begin` on within `radius` of one query (bytes,), ascending, until the outputs are full.

        Returns the number found and the code to go on from, len(codes) at the end.
        """
        ...

    def hamming_filter(
        self,
        codes: NDArray[np.uint8],
        radius: int,
        window: int,
        filled: int,
        next: int,
        ring: NDArray[np.uint64],
        keep: NDArray[np.bool_],
        /,
    ) -> tuple[int, int]:
        """keep[i] = no code in the ring is within `radius` of code i, which then enters the ring.

        ring (words, capacity) holds word w of slot s at [w, s]; `filled` slots of `window` are in use and the next code
        goes to slot `next`. Returns the new `filled` and `next`.
        """
        ...

    def fwht_axis(self, x: NDArray[Any], scale: float, out: NDArray[Any], num_threads: int, /) -> None:
        """Walsh-Hadamard transform along axis 1 of three; both C-contiguous, the same memory or none in common."""


class AggregateKernels(Protocol):
    # A model is a list of C-contiguous arrays; every update has the dtypes and shapes of the first. csrc/aggregate/
    # mean.hpp fixes the arithmetic: binary64, clients in order, one rounding per product and sum, one division.

    def first_mismatch(self, arrays: list[Any], model: list[Array], /) -> int:
        """Index of the first entry that is not a C-contiguous array of the model's dtype object and shape, or -1."""
        ...

    def overlapping(self, targets: list[Array], rows: list[list[Array]], /) -> list[int]:
        """Indices of the C-contiguous targets that share bytes with some array of the rows."""
        ...

    # With `single`, tensors whose dtype a float32 holds have float32 sums.

    def weighted_mean(
        self,
        rows: list[list[Array]],
        weights: list[float],
        total: float,
        single: bool,
        out: list[Array],
        num_threads: int,
        /,
    ) -> bool:
        """Writes the means; True when a sum was not finite."""
        ...

    def add_weighted(
        self,
        rows: list[list[Array]],
        weights: list[float],
        single: bool,
        fresh: bool,
        sums: list[Array],
        num_threads: int,
        /,
    ) -> None:
        """Adds the updates to the sums, one after the other at each coordinate; what `fresh` sums hold is not read."""
        ...

    def finish_mean(
        self, sums: list[Array], total: float, single: bool, out: list[Array], num_threads: int, /
    ) -> None: ...

    def all_finite(self, update: list[Array], num_threads: int, /) -> bool: ...

    def server_step(
        self,
        rule: int,
        numbers: list[float],
        tau_inside: bool,
        x: list[Array],
        source: list[Array],
        total: float,
        m: list[Array],
        v: list[Array],
        out: list[Array],
        num_threads: int,
        /,
    ) -> None:
        """One step of a server optimizer, csrc/aggregate/server.hpp: numbers are lr, beta1, 1 - beta1, beta2, 1 - beta2
        and tau; source holds float64 sums to divide by total where total > 0, else the means. Updates m and v."""
        ...

    # Reproducible sums, csrc/aggregate/binned.hpp: per tensor int64 bins (folds, ...) and uint8 index (...).

    def binned_mean(
        self, rows: list[list[Array]], weights: list[float], total: float, out: list[Array], num_threads: int, /
    ) -> bool:
        """Writes the means; True when a term was not finite."""
        ...

    def binned_add(
        self, update: list[Array], weight: float, bins: list[Array], index: list[Array], num_threads: int, /
    ) -> None: ...

    def binned_merge(
        self,
        other_bins: list[Array],
        other_index: list[Array],
        bins: list[Array],
        index: list[Array],
        model: list[Array],
        num_threads: int,
        /,
    ) -> None: ...

    def binned_finish(
        self, bins: list[Array], index: list[Array], total: float, out: list[Array], num_threads: int, /
    ) -> None: ...


#: order_mean's rules and what it makes of NaN; csrc/aggregate/order.hpp.
RANKS, NEAR_MEDIAN = 0, 1
FINITE, RANK, PROPAGATE = 0, 1, 2


class RobustKernels(Protocol):
    # csrc/aggregate/order.hpp and gram.hpp fix the arithmetic.

    def order_mean(
        self, rows: list[list[Array]], rule: int, low: int, high: int, nan: int, out: list[Array], num_threads: int, /
    ) -> bool:
        """RANKS: means of the sorted values [low, high); NEAR_MEDIAN: of the `high` values nearest to the median.

        True when nan is FINITE and something was not; out is then meaningless.
        """
        ...

    def pair_sums(
        self, rows: list[list[Array]], distances: Array | None, products: Array | None, num_threads: int, /
    ) -> None:
        """Adds squared distances, and products around the coordinate-wise median, to symmetric (K, K) float64."""

    def square_norms(
        self, rows: list[list[Array]], center: list[Array] | None, sums: Array, num_threads: int, /
    ) -> None:
        """Squared norms of the updates minus center, into sums (K,) float64."""

    def mix(
        self,
        rows: list[list[Array]],
        members: list[list[int]],
        weights: list[list[float]],
        totals: list[float],
        outs: list[list[Array]],
        num_threads: int,
        /,
    ) -> None:
        """outs[m]: the mean, as weighted_mean forms it, of the updates members[m]."""

    def trim_push(
        self,
        row: list[Array],
        from_images: bool,
        model: list[Array],
        low: list[Array],
        high: list[Array],
        sums: list[Array],
        trim: int,
        stage: int,
        num_threads: int,
        /,
    ) -> None:
        """One more row for streaming trimmed means; low and high are (trim, size) images of backends/images.py."""


class QuantizeKernels(Protocol):
    # One float tensor at a time, C-contiguous; csrc/aggregate/quantize.hpp has the formats.

    def quant_encode(
        self,
        x: Array,
        spec: QuantSpec,
        stochastic: bool,
        seed: int,
        nonce: int,
        codes: NDArray[np.uint8],
        scales: NDArray[np.float32],
        num_threads: int,
        /,
    ) -> bool:
        """False when a value is not finite, or beyond what the format holds."""
        ...

    def quant_decode(self, source: QuantInput, spec: QuantSpec, out: Array, num_threads: int, /) -> None: ...

    def quant_add(
        self,
        rows: list[QuantInput],
        weights: list[float],
        spec: QuantSpec,
        like: Array,
        fresh: bool,
        sums: NDArray[np.float64],
        num_threads: int,
        /,
    ) -> None:
        """add_weighted of the decoded rows, which have the dtype of `like`, without storing them."""
        ...

    def quant_mean(
        self,
        rows: list[QuantInput],
        weights: list[float],
        total: float,
        spec: QuantSpec,
        out: Array,
        num_threads: int,
        /,
    ) -> bool:
        """weighted_mean of the decoded rows, without storing them."""
        ...


class Kernels(
    SketchKernels, SketchInputKernels, SketchStateKernels, AggregateKernels, RobustKernels, QuantizeKernels, Protocol
):
    """The whole table."""
