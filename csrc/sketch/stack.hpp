// SparseStack: nnz CountSketches stacked on top of each other, applied to the rows of a matrix.
//
// Entry e of feature j (e < nnz) hits output `bucket` with sign +-1. Both come from 32-bit lane e % 8 of Philox block
// counter = (j + 1, e / 8, 0, 0), key = (seed, 2): sign = -1 when the lane is odd, bucket = offset[e] +
// ((lane >> 1) * height[e] >> 31), where the heights split n_components as evenly as possible, larger ones first.
// Packed form: bucket | (sign < 0) << 31.
//
// Numerics: out[i][c] = scale * (sum of +-x[i][j] over the entries of output c). The sum starts at +0, takes its terms
// in ascending order of j, in the element type, one rounding an addition; the scale is one multiplication at the end.
// Rows never mix, so the bytes do not depend on threads, SIMD level or how rows are batched. NaN results are the one
// quiet NaN with a clear sign bit. Error: at most (m - 1) * eps * sum |x| for an output of m terms.
// Aliasing: out must not overlap x. Alignment: none needed. Thread-safety: pure functions of their arguments.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/isa.hpp"
#include "sketch/matrix.hpp"

namespace ef {

struct StackJob {
    StridedMatrix x;
    const uint32_t* table;  // columns * nnz packed entries, or null: generated tile by tile
    uint64_t seed;
    int64_t components;
    int nnz;
    double scale;
    char* out;  // rows * components, contiguous
    // Filled in by stack_transform: the entries by tile and output.
    const uint16_t* plan = nullptr;
    const int64_t* plan_start = nullptr;
};

// Packed entries of features [first, first + count) into out[count][nnz].
void stack_table(uint64_t seed, int64_t components, int nnz, int64_t first, int64_t count, uint32_t* out) noexcept;

// False when scratch memory could not be had; nothing has been written then.
template <class T>
bool stack_transform(Isa isa, const StackJob& job, int num_threads) noexcept;

}  // namespace ef
