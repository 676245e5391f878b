// Walsh-Hadamard transform along the middle axis of a contiguous (outer, length, inner) array, without transposing it.
//
// Stage h of a vector along the axis is stage h * inner of memory: vectors run across `inner`, no lanes are shuffled.
// Numerics and aliasing as fwht in sketch/hadamard.hpp: the bytes are those of transforming each vector by itself.
// Memory: one strip of at most 512 KiB a thread when `inner` is long, so that rows a power of two apart do not evict
// each other; otherwise none.
#pragma once

#include <cstdint>

#include "common/isa.hpp"

namespace ef {

// `length` is a power of two. False when scratch memory could not be had; nothing has been written then.
template <class T>
bool fwht_axis(Isa isa, const T* in, T* out, int64_t outer, int64_t length, int64_t inner, double scale,
               int num_threads) noexcept;

}  // namespace ef
