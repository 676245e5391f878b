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
    "AggregateKernels",
    "Array",
    "Kernels",
    "QuantInput",
    "QuantSpec",
    "QuantizeKernels",
    "SketchKernels",
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


class Kernels(SketchKernels, AggregateKernels, QuantizeKernels, Protocol):
    """The whole table."""
