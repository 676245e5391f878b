// Fast Walsh-Hadamard transform (Sylvester order, unnormalised) and the subsampled randomised one (SRHT).
//
// Numerics: stages in ascending stride h = 1, 2, 4, ...; each replaces (a, b) at distance h by (a + b, a - b), one
// rounding each, in the element type; one multiplication by `scale` at the end. Butterflies of a stage are disjoint,
// so the bits depend on neither threads nor SIMD level nor blocking. Error: at most log2(n) * eps * sum |x|.
// SRHT of a row: x zero-padded to n, signs applied, transformed, then out[c] = scale * H(sign x)[index[c]]; NaN results
// are the one quiet NaN with a clear sign bit. In fwht the payload of a NaN result is unspecified.
// Aliasing: fwht in == out is allowed, any other overlap is not. Alignment: none needed. Thread-safety: pure functions.
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

// `rows` contiguous vectors of `length` (a power of two) each.
template <class T>
void fwht(Isa isa, const T* in, T* out, int64_t rows, int64_t length, double scale, int num_threads) noexcept;

// False when scratch memory could not be had; nothing has been written then.
template <class T>
bool srht_transform(Isa isa, const SrhtJob& job, int num_threads) noexcept;

}  // namespace ef
