// CountSketch of a long vector: a table of depth x width counters, and the median of depth estimates back.
//
// Row r of the table holds counter bucket - r * width of entry r of index i, where (bucket, sign) are the entries of
// feature i of sparse_stack with depth * width components and nnz = depth (sketch/hash.hpp).
//
// Numerics: a counter takes its terms +-value one at a time in the order of the call, one rounding each, in the type of
// the table (float32 values are widened exactly to a float64 table, int64 wraps). Threads own rows, so the bytes depend
// neither on them nor on the SIMD level nor on how a vector is cut. An estimate is the middle one of the depth signed
// counters, or half of each of the middle two added up; zeros are +0.
// Aliasing: none between table, values and out. Alignment: element alignment. Thread-safety: calls on different tables.
#pragma once

#include <cstdint>

#include "common/isa.hpp"

namespace ef {

struct CountTable {
    void* counters;  // depth * width, contiguous
    uint64_t seed;
    int depth;
    int64_t width;
};

enum class CountTypes : int { f32 = 0, f32_to_f64 = 1, f64 = 2, i64 = 3 };  // of values and table

// Adds values[i] to index indices[i], or first + i without indices. False when scratch memory could not be had.
bool count_sketch_add(Isa isa, const CountTable& table, CountTypes types, const void* values, const int64_t* indices,
                      int64_t first, int64_t count, int num_threads) noexcept;

// out[i] = estimate of indices[i], or of first + i: float for f32 tables, double otherwise.
bool count_sketch_estimate(Isa isa, const CountTable& table, CountTypes types, const int64_t* indices, int64_t first,
                           int64_t count, void* out, int num_threads) noexcept;

}  // namespace ef
