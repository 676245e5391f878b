// Fast Walsh-Hadamard transform (Sylvester order, unnormalised) and the subsampled randomised one (SRHT).
//
// Numerics: stages in ascending stride h = 1, 2, 4, ...; each replaces (a, b) at distance h by (a + b, a - b), one
// rounding each, in the element type; one multiplication by `scale` at the end. Butterflies of a stage are disjoint,
// so the bits depend on neither threads nor SIMD level nor blocking. Error: at most log2(n) * eps * sum |x|.
// SRHT of a row: x zero-padded to n, signs applied, transformed, then out[c] = scale * H(sign x)[index[c]]; NaN results
// are the one quiet NaN with a clear sign bit. In fwht the payload of a NaN result is unspecified.
// Rotation of a row: steps s = 0, 1, ... each negate the features whose bit is set, then transform a window of `length`
// elements, the largest power of two up to d, with one multiplication by 1/sqrt(length) at its end. A d that is a power
// of two has 3 steps; others have 6, windows alternate between the first and the last `length` elements, and even steps
// first mix halves: (a, b) at distance d - d / 2 become ((a + b) r, (a - b) r), r = sqrt(1/2), one rounding an
// operation. The inverse undoes the steps backwards; each transform and each mixing is its own inverse. NaN as in SRHT.
// Error: at most steps * (log2(length) + 3) * eps * |x|, Euclidean norms.
// Aliasing: fwht and rotation allow in == out, no other overlap. Alignment: none needed. Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "common/isa.hpp"
#include "sketch/matrix.hpp"

namespace ef {

struct SrhtJob {
    StridedMatrix x;
    const uint64_t* signs;  // bit j % 64 of word j / 64: feature j is negated
    const int64_t* index;   // components rows of H, each in [0, length)
    int64_t components;
    int64_t length;  // power of two >= columns
    double scale;
    char* out;  // rows * components, contiguous
};

struct RotationJob {
    StridedMatrix x;
    const uint64_t* signs;  // of every step: bit j % 64 of word j / 64 of its (columns + 255) / 256 * 4 words
    bool inverse;
    char* out;  // rows * columns, contiguous; may be x
};

// `rows` contiguous vectors of `length` (a power of two) each.
template <class T>
void fwht(Isa isa, const T* in, T* out, int64_t rows, int64_t length, double scale, int num_threads) noexcept;

template <class T>
void rotate(Isa isa, const RotationJob& job, int num_threads) noexcept;

// False when scratch memory could not be had; nothing has been written then.
template <class T>
bool srht_transform(Isa isa, const SrhtJob& job, int num_threads) noexcept;

}  // namespace ef
