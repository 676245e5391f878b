// Includes one kernel body once per SIMD level the compiler can target. No include guard on purpose.
//
//     #include ...                                    // every header FIRST, the STL included
//     #define EF_BODY "sketch/hadamard-inl.hpp"
//     #include "common/foreach_isa.hpp"
//
// The body opens `namespace ef { namespace EF_ISA { ... } }` and may use EF_ISA (scalar, avx2, avx512, neon) and
// EF_VECTOR_BYTES (16, 32, 64). Nothing from a header may be *first instantiated* inside the body: a template that
// is compiled inside a target region can be the copy the linker keeps for everybody, and then crashes an older CPU.
// Bodies therefore call no STL. The build sets -ffp-contract=off, so a*b+c rounds twice at every level.
#ifndef EF_BODY
#error "define EF_BODY before including common/foreach_isa.hpp"
#endif

#define EF_ISA scalar
#define EF_VECTOR_BYTES 16
#include EF_BODY
#undef EF_ISA
#undef EF_VECTOR_BYTES

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,popcnt")
#endif
#define EF_ISA avx2
#define EF_VECTOR_BYTES 32
#define EF_TARGET_AVX2 1
#include EF_BODY
#undef EF_ISA
#undef EF_VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,f16c,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define EF_ISA avx512
#define EF_VECTOR_BYTES 64
#define EF_TARGET_AVX512 1
#include EF_BODY
#undef EF_ISA
#undef EF_VECTOR_BYTES
#undef EF_TARGET_AVX512
#undef EF_TARGET_AVX2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#elif defined(__aarch64__)

#define EF_ISA neon
#define EF_VECTOR_BYTES 16
#define EF_TARGET_NEON 1
#include EF_BODY
#undef EF_ISA
#undef EF_VECTOR_BYTES
#undef EF_TARGET_NEON

#endif

#undef EF_BODY
