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

}  // namespace ef

// The body of a lookup `const Table& f(Isa isa)`: the table `name` of that level.
#if defined(__x86_64__)
#define EF_PICK(isa, name)             \
    switch (isa) {                     \
        case ::ef::Isa::avx512:        \
            return ::ef::avx512::name; \
        case ::ef::Isa::avx2:          \
            return ::ef::avx2::name;   \
        default:                       \
            return ::ef::scalar::name; \
    }
#elif defined(__aarch64__)
#define EF_PICK(isa, name) return (isa) == ::ef::Isa::neon ? ::ef::neon::name : ::ef::scalar::name;
#else
#define EF_PICK(isa, name)  \
    (void)(isa);            \
    return ::ef::scalar::name;
#endif
