// Geometry of K model updates, each read once: squared distances, the Gram matrix around the coordinate-wise median,
// and squared norms; and many means of subsets in one pass.
//
// Numerics, all in binary64 without FMA. Squared distance: sum of (x_i - x_j)^2 over the coordinates, differences first,
// so close updates far from zero lose nothing (the expansion |x|^2 + |y|^2 - 2xy does). Gram: sum of
// (x_i - c)(x_j - c), c the median of aggregate/order.hpp before its rounding: updates that agree stay small numbers
// whatever a minority sends. Norm: sum of (x - c)^2, c a given model or zero.
// Gram of float32, float16 and bfloat16 tensors: h = c / 2 rounded to binary32, the differences are x_i / 2 - h in binary32
// (they cannot overflow), and the sums of a chunk are multiplied by 4. This is the Gram matrix of updates that differ
// from the given ones, coordinate by coordinate, by at most 2^-24 |x_i - h| and 2^-147. Products of two binary32 values are
// exact in binary64, so levels with a fused multiply-add use it and get the same bits.
// Order of the sums, the same for every SIMD level, backend and number of threads: a tensor is cut into chunks of 32768
// coordinates and those into segments of 512. In a segment lane l of 8 adds the terms l, l + 8, ... in order, then
// ((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7)). Segments are added in order to their chunk's sum, from 0, and
// chunks in order to the total, from 0. Error at most (64 + 64 + chunks + 4) 2^-53 of the sum of absolute terms.
// Entries do not depend on where in the list the updates stand.
#pragma once

#include <cstdint>

#include "aggregate/order.hpp"

namespace ef {

constexpr int64_t kPairChunk = 1 << 15;

struct GramKernels {
    // rows: clients x kSegment. Adds the sums over the first n (a multiple of 8) coordinates to the upper triangle of out
    // (clients x clients): of squared differences, of products, of products of binary32 values.
    // next: for every client where `next_bytes` lie that will be read soon, or null; they are fetched meanwhile.
    void (*distances)(const double* rows, int64_t clients, int64_t n, double* out, const char* const* next,
                      int64_t next_bytes) noexcept;
    void (*products)(const double* rows, int64_t clients, int64_t n, double* out, const char* const* next,
                     int64_t next_bytes) noexcept;
    void (*products_f32)(const float* rows, int64_t clients, int64_t n, double* out, const char* const* next,
                         int64_t next_bytes) noexcept;
    // row[i] = x[i] for kSegment float32 values of any alignment.
    void (*widen_f32)(const void* x, double* row) noexcept;
    // row[i] = x[i] / 2 - half_center[i] in binary32, for n float32 values of any alignment.
    void (*half_difference)(const void* x, const float* half_center, int64_t n, float* row) noexcept;
    // row[i] -= center[i]
    void (*subtract)(double* row, const double* center, int64_t n) noexcept;
    // *sum += sum of squares
    void (*squares)(const double* row, int64_t n, double* sum) noexcept;
};
const GramKernels& gram_kernels(Isa isa) noexcept;

// Adds to distances and products (clients x clients, or null), both symmetric, those of the whole model. false: no memory.
bool pair_sums(Isa isa, const void* const* inputs, int64_t clients, const TensorSpec* specs, int64_t tensors,
               double* distances, double* products, int threads) noexcept;
// sums[k] = |x_k - center|^2; center (one array per tensor) may be null.
bool square_norms(Isa isa, const void* const* inputs, int64_t clients, const void* const* center,
                  const TensorSpec* specs, int64_t tensors, double* sums, int threads) noexcept;
// outputs[m * tensors + t] = mean as in mean.hpp of the updates members[starts[m]], ..., members[starts[m + 1] - 1] with
// the weights at the same places and the total totals[m], for every m < sets.
bool mix(Isa isa, const void* const* inputs, int64_t clients, const int64_t* members, const double* weights,
         const int64_t* starts, const double* totals, int64_t sets, const TensorSpec* specs, int64_t tensors,
         void* const* outputs, int threads) noexcept;

}  // namespace ef
