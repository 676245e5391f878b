// Sparse operators of +-1: each feature of a row is added to, or subtracted from, a few outputs.
//
// An entry is packed as output | (sign < 0) << 31. Where they come from (all words are Philox4x64-10, key (seed, kind)):
//   sparse_stack, kind 2   nnz CountSketches stacked on top of each other. Entry e of feature j comes from 32-bit lane
//                          u = e % 8 of block (j + 1, e / 8, 0, 0): output offset[e] + ((u >> 1) * height[e] >> 31),
//                          negative when u is odd; the heights split the outputs evenly, larger ones first.
//   countsketch, kind 1    lane u = j % 8 of block (j / 8 + 1, 0, 0, 0): output (u >> 1) * components >> 31.
//   sparse, kind 7         independent entries, found by skipping. Words w of blocks (j + 1, 0 | 1 | ..., 0, 0) in turn:
//                          the gap to the next entry is the number of thresholds above w >> 1, its sign is w & 1.
//
// Numerics: out[i][c] = scale * (sum of +-x[i][j] over the entries of output c). The sum starts at +0, takes its terms
// in ascending order of j, in the element type, one rounding an addition; the scale is one multiplication at the end.
// Rows never mix, so the bytes do not depend on threads, SIMD level or how rows are batched, nor on how features are
// cut into calls: unscaled sums wait in `out`. NaN results are the one quiet NaN with a clear sign bit. Error: at most
// (m - 1) * eps * sum |x| for an output of m terms.
// Aliasing: out must not overlap x. Alignment: none needed. Thread-safety: pure functions of their arguments.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/isa.hpp"
#include "sketch/matrix.hpp"

namespace ef {

struct HashJob {
    StridedMatrix x;
    const uint32_t* entries;  // packed, feature after feature
    const int64_t* starts;    // columns + 1 offsets into entries, or null: nnz entries a feature
    int nnz;
    int64_t components;
    double scale;
    bool more;  // out holds unscaled sums of earlier features
    bool last;  // scale and make NaN canonical
    char* out;  // rows * components, contiguous
};

// Packed entries of features [first, first + count) into out[count][nnz].
void stack_table(uint64_t seed, int64_t components, int nnz, int64_t first, int64_t count, uint32_t* out) noexcept;
// Packed entries of features [first, first + count) into out[count].
void countsketch_table(uint64_t seed, int64_t components, int64_t first, int64_t count, uint32_t* out) noexcept;
// Descending thresholds, in units of 2^-63; writes starts[0 .. count], and the entries unless they are null.
void sparse_table(uint64_t seed, int64_t components, const uint64_t* thresholds, int64_t threshold_count, int64_t first,
                  int64_t count, int64_t* starts, uint32_t* entries) noexcept;

// False when scratch memory could not be had; nothing has been written then.
template <class T>
bool hash_transform(Isa isa, const HashJob& job, int num_threads) noexcept;

}  // namespace ef
