// Geometry of K model updates, each read once: squared distances, the Gram matrix around the coordinate-wise median,
// and squared norms; and many means of subsets in one pass.
//
// Numerics, all in binary64 without FMA. Squared distance: sum of (x_i - x_j)^2 over the coordinates, differences first,
// so close updates far from zero lose nothing (the expansion |x|^2 + |y|^2 - 2xy does). Gram: sum of
// (x_i - c)(x_j - c), c the median of aggregate/order.hpp before its rounding: updates that agree stay small numbers
// whatever a minority sends. Norm: sum of (x - c)^2, c a given model or zero.
// Order of the sums, the same for every SIMD level, backend and number of threads: a tensor is cut into chunks of 32768
// coordinates and those into segments of 512. In a segment lane l of 8 adds the terms l, l + 8, ... in order, then
// ((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7)). Segments are added in order to their chunk's sum, from 0, and
// chunks in order to the total, from 0. Error at most (64 + 64 + chunks + 4) 2^-53 of the sum of absolute terms.
// Entries do not depend on where in the list the updates stand.
#pragma once

#include <cstdint>

#include "aggregate/order.hpp"

namespace ef {

constexpr int64_t kSegment = 512;
constexpr int64_t kPairChunk = 1 << 15;

struct GramKernels {
    // rows: clients x kSegment doubles. Adds the sums over the first n (a multiple of 8) coordinates to the upper
    // triangles of distances and products (clients x clients each, or null).
    // next: for every client where `next_bytes` lie that will be read soon; they are fetched meanwhile.
    void (*pairs)(const double* rows, int64_t clients, int64_t n, double* distances, double* products,
                  const char* const* next, int64_t next_bytes) noexcept;
    // row[i] = x[i] - center[i] (or x[i]) for kSegment float32 values of any alignment.
    void (*widen_f32)(const void* x, const double* center, double* row) noexcept;
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
