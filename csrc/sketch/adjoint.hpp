// The transposed map: rows of k components to rows of d features, out[i][j] = scale * sum_c S[c][j] y[i][c].
//
// Numerics: the hash kinds and rademacher sum +-y[i][c] from +0 in ascending order of c, in the element type, one rounding
// an addition; the scale is one multiplication at the end. srht puts y at the sampled places of a zero vector,
// transforms it (hadamard.hpp), applies the signs and the scale. gaussian multiplies and adds in ascending order of c,
// fused or not as the SIMD level has it: within (k + 1) * eps * sum |y * entry|, not the same bits everywhere. Rows never mix: the bytes do not depend on threads,
// SIMD level or batching. NaN results are the one quiet NaN with a clear sign bit.
// Error: at most (m - 1) * eps * sum |y| for a feature of m terms. Aliasing: out must not overlap y. Alignment: none
// needed. Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "common/isa.hpp"
#include "sketch/csr.hpp"
#include "sketch/element.hpp"
#include "sketch/matrix.hpp"

namespace ef {

struct AdjointJob {
    StridedMatrix y;  // columns: the components
    ElementType type;
    int64_t features;
    double scale;
    char* out;  // rows * features, contiguous
};

struct HashAdjointJob : AdjointJob {
    HashEntries entries;  // of features [begin, end); the other features of `out` are left alone
    int64_t begin, end;
};

struct SrhtAdjointJob : AdjointJob {
    const uint64_t* signs;
    const int64_t* index;
    int64_t length;
};

struct DenseAdjointJob : AdjointJob {
    uint64_t seed;
    const int32_t* gaussian;  // the entry of every 16-bit draw in units of 2^-16; null for rademacher
};

// False when scratch memory could not be had; nothing has been written then.
template <class T>
bool hash_adjoint(Isa isa, const HashAdjointJob& job, int num_threads) noexcept;
template <class T>
bool srht_adjoint(Isa isa, const SrhtAdjointJob& job, int num_threads) noexcept;
template <class T>
bool dense_adjoint(Isa isa, const DenseAdjointJob& job, int num_threads) noexcept;

}  // namespace ef
