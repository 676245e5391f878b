// One array of pointers per kernel, indexed by Isa; a level this build does not contain is null.
#pragma once

#include "common/isa.hpp"

#if defined(__x86_64__)
#define EF_PER_ISA(function) {scalar::function, avx2::function, avx512::function, nullptr}
#elif defined(__aarch64__)
#define EF_PER_ISA(function) {scalar::function, nullptr, nullptr, neon::function}
#else
#define EF_PER_ISA(function) {scalar::function, nullptr, nullptr, nullptr}
#endif
