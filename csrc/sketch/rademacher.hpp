// Dense Rademacher projection: every entry is +-1, generated where it is needed, never stored.
//
// Entry (output c, feature j) is negative when bit c % 64 of word c / 64 % 4 of Philox block
// counter = (j + 1, c / 256, 0, 0), key = (seed, 3) is set.
//
// Numerics: out[i][c] = scale * sum_j +-x[i][j], started at +0, j ascending, in the element type, one rounding an
// addition (the +-1 products are exact, so fused and unfused multiply-add agree): the same bits on every SIMD level.
// NaN results are the one quiet NaN with a clear sign bit. Error: at most (d - 1) * eps * sum |x|.
// Aliasing: out must not overlap x. Alignment: none needed. Thread-safety: pure function.
#pragma once

#include <cstdint>

#include "common/isa.hpp"
#include "sketch/matrix.hpp"

namespace ef {

struct RademacherJob {
    StridedMatrix x;
    uint64_t seed;
    int64_t components;
    double scale;
    char* out;  // rows * components, contiguous
    bool gaussian = false;  // entries of gaussian.hpp instead; products are fused where the level has it
};

// False when scratch memory could not be had; nothing has been written then.
template <class T>
bool rademacher_transform(Isa isa, const RademacherJob& job, int num_threads) noexcept;

}  // namespace ef
