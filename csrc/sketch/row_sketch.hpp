// Left sketches: acc += S x, where row i of x is column first_row + i of S.
//
// Column r of S has `nnz` entries +-1 in distinct rows, those of feature r of the operator (sketch/hash.hpp for
// sparse_stack and countsketch, sketch/rademacher.hpp for rademacher). S is not scaled here.
//
// Numerics: acc[b][c] takes its terms +-x[i][c] one at a time in ascending order of i, one rounding each, in the type of
// acc; float32 terms are widened exactly to a float64 acc; int64 wraps. acc is continued, not overwritten, so that the
// bytes depend neither on how rows are cut into calls nor on threads (which own columns) nor on the SIMD level. The
// payload of a NaN is unspecified.
// Aliasing: acc must not overlap x. Alignment: none needed for x; acc is aligned for its type. Thread-safety: calls on
// different acc are independent.
#pragma once

#include <cstdint>

#include "common/isa.hpp"
#include "sketch/matrix.hpp"

namespace ef {

struct RowSketchJob {
    StridedMatrix x;
    int kind;  // the operator's kind number
    uint64_t seed;
    int nnz;  // entries of a column of S; `components` for rademacher
    int64_t components;
    int64_t first_row;
    void* acc;  // components * x.columns, contiguous
};

enum class RowSketchTypes : int { f32 = 0, f32_to_f64 = 1, f64 = 2, i64 = 3 };  // of x and acc

// Packed entries (bucket | negative << 31) of columns [first, first + count) of S into out[count][nnz].
void row_entries(int kind, uint64_t seed, int64_t components, int nnz, int64_t first, int64_t count,
                 uint32_t* out) noexcept;

// False when scratch memory could not be had; nothing has been written then.
bool row_sketch_add(Isa isa, const RowSketchJob& job, RowSketchTypes types, int num_threads) noexcept;

}  // namespace ef
