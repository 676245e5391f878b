// Dense projections: a matrix product whose second factor is drawn where it is needed and never stored.
//
// Rademacher. Entry (output c, feature j) is negative when bit c % 64 of word c / 64 % 4 of Philox block
// counter = (j + 1, c / 256, 0, 0), key = (seed, 3) is set.
//
// Numerics: out[i][c] = scale * sum_j +-x[i][j], started at +0, j ascending, in the element type, one rounding an
// addition (the +-1 products are exact, so fused and unfused multiply-add agree): the same bits on every SIMD level.
// NaN results are the one quiet NaN with a clear sign bit. Error: at most (d - 1) * eps * sum |x|.
//
// Gaussian. Entries of gaussian.hpp, exact in the element type.
//
// Numerics: out[i][c] = scale * sum_j x[i][j] g[j][c], started at +0, j ascending, in the element type. A term is one
// fused multiply-add with AVX2, AVX-512 and NEON and rounds twice at the scalar level: two sets of bits. Error: at most
// d * eps * sum |x g| to first order.
//
// Neither depends on the number of threads or on how rows are batched.
// Memory beyond input and output: panels of the operator, 384 KiB a thread whatever the sizes, and 60 rows of a
// panel of x where x has no contiguous rows. Partial sums wait in `out`.
// Aliasing: out must not overlap x. Alignment: none needed. Thread-safety: pure function.
#pragma once

#include <cstdint>

#include "common/isa.hpp"
#include "sketch/matrix.hpp"

namespace ef {

struct DenseJob {
    StridedMatrix x;
    uint64_t seed;
    int64_t components;
    double scale;
    char* out;  // rows * components, contiguous
};

// False when scratch memory could not be had; nothing has been written then.
template <class T>
bool rademacher_transform(Isa isa, const DenseJob& job, int num_threads) noexcept;
template <class T>
bool gaussian_transform(Isa isa, const DenseJob& job, int num_threads) noexcept;

}  // namespace ef
