// Fast Walsh-Hadamard transform (Sylvester order) over contiguous rows, in place.
//
// Numerics: arithmetic in T. Stages run with strides 1, 2, 4, ... as butterflies (a + b, a - b); every output is
// computed by the same tree of additions whatever the SIMD level, radix or cache blocking, so the bits are the same
// everywhere. The optional scale is one multiply per element at the very end.
// Error: at most log2(n) * eps * ||x||_2 * sqrt(n) per entry (T's eps), before scaling.
// Alignment: element alignment is not required. Aliasing: in place only. Thread-safety: no shared state.
#pragma once

#include <cstdint>

#include "common/isa.hpp"

namespace ef {

// Transforms `rows` vectors of length n (a power of two, >= 1), `data` holding them one after the other.
template <class T>
using FwhtRows = void (*)(T* data, int64_t rows, int64_t n, T scale, int num_threads) noexcept;

struct HadamardKernels {
    FwhtRows<float> f32;
    FwhtRows<double> f64;
};

const HadamardKernels& hadamard_kernels(Isa isa) noexcept;

}  // namespace ef
