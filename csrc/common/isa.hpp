// SIMD levels and the choice between them at run time.
//
// Kernels are compiled once per level from one body (see foreach_isa.hpp) and collected in one table of function
// pointers per level; bindings pick the table, kernels never test the CPU.
#pragma once

#include <cstddef>

namespace ef {

// `scalar` is portable C++ at the platform's ABI floor (SSE2 on x86-64, NEON on AArch64): the oracle of the others.
enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2, neon = 3 };
constexpr int kIsaCount = 4;

const char* isa_name(Isa isa) noexcept;
// False for an unknown name; *out is then untouched.
bool isa_from_name(const char* name, Isa* out) noexcept;
// True when this build has kernels for the level and this CPU and operating system run them.
bool isa_supported(Isa isa) noexcept;
// The fastest supported level.
Isa isa_best() noexcept;
// True on CPUs measured to read many parallel streams faster with software prefetches (Intel, not AMD).
bool prefers_prefetch() noexcept;

}  // namespace ef
