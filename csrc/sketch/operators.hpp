// Random projection of rows: Y = X S^T for operators that are generated, never stored.
//
// X is (n, d) with any byte strides and any alignment; Y is (n, k), C-contiguous, not overlapping X. Entries of S
// are +-1 from Philox4x64-10 with key (seed, kind); docs/sketch.md defines them exactly.
//
// Numerics: arithmetic in T. Each output is the sum of its +-x_j in ascending order of j, starting from +0, and one
// multiply by `scale` at the end. x and -x are exact, so the sum has one rounding per addition and FMA could not
// change it. Bits are therefore the same for every SIMD level, thread count and split of the rows into calls.
// Error of an output with m terms, before scaling: at most (m - 1) * eps * sum |x_j|.
// srht sums by butterflies (see hadamard.hpp) instead.
// Scratch: bounded, allocated once per call and thread, freed before return. False is returned when it cannot be had.
// Thread-safety: no shared state.
#pragma once

#include <cstdint>

#include "common/isa.hpp"

namespace ef {

enum : uint64_t { kKindSparseStack = 2, kKindRademacher = 3, kKindSrht = 5 };

struct MatrixView {
    const char* data;
    int64_t rows, columns;
    int64_t row_stride, column_stride;  // bytes
};

template <class T>
struct OperatorKernels {
    // nnz stacked CountSketches: 1 <= nnz <= k < 2^31.
    bool (*sparse_stack)(const MatrixView& x, T* y, int64_t k, int nnz, uint64_t seed, T scale, int threads) noexcept;
    // Sign flips, zero-padding to padded = 2^m >= columns, Hadamard, then the given k rows of the result.
    bool (*srht)(const MatrixView& x, T* y, const int64_t* rows, int64_t k, int64_t padded, uint64_t seed, T scale,
                 int threads) noexcept;
    bool (*rademacher)(const MatrixView& x, T* y, int64_t k, uint64_t seed, T scale, int threads) noexcept;
};

const OperatorKernels<float>& operator_kernels_f32(Isa isa) noexcept;
const OperatorKernels<double>& operator_kernels_f64(Isa isa) noexcept;

}  // namespace ef
