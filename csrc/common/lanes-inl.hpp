// Vectors by element type, transposition of L x L tiles, exact multiply-add. Included inside a body after simd-inl.hpp.

typedef uint64_t vu64 __attribute__((vector_size(EF_VECTOR_BYTES)));

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
    typedef vf32 V;
    typedef vu32 U;
    typedef uint32_t Bits;
    static constexpr int count = kLanesF32;
};
template <>
struct Lanes<double> {
    typedef vf64 V;
    typedef vu64 U;
    typedef uint64_t Bits;
    static constexpr int count = kLanesF64;
};

#define EF_INLINE static inline __attribute__((always_inline))

// (a0 b0 a1 b1 ...) and the upper halves likewise.
#if EF_VECTOR_BYTES == 16
EF_INLINE vf32 interleave_low(vf32 a, vf32 b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
EF_INLINE vf32 interleave_high(vf32 a, vf32 b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
EF_INLINE vf64 interleave_low(vf64 a, vf64 b) { return __builtin_shufflevector(a, b, 0, 2); }
EF_INLINE vf64 interleave_high(vf64 a, vf64 b) { return __builtin_shufflevector(a, b, 1, 3); }
#elif EF_VECTOR_BYTES == 32
EF_INLINE vf32 interleave_low(vf32 a, vf32 b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
EF_INLINE vf32 interleave_high(vf32 a, vf32 b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
EF_INLINE vf64 interleave_low(vf64 a, vf64 b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
EF_INLINE vf64 interleave_high(vf64 a, vf64 b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#else
EF_INLINE vf32 interleave_low(vf32 a, vf32 b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
EF_INLINE vf32 interleave_high(vf32 a, vf32 b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
EF_INLINE vf64 interleave_low(vf64 a, vf64 b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
EF_INLINE vf64 interleave_high(vf64 a, vf64 b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#endif

// Transposes L vectors of L lanes in place: log2(L) perfect shuffles rotate the index bits by half their number.
template <int L, class V>
EF_INLINE void transpose(V* v) {
#pragma GCC unroll 8
    for (int stage = 1; stage < L; stage *= 2) {
        V t[L];
#pragma GCC unroll 16
        for (int i = 0; i < L / 2; ++i) {
            t[2 * i] = interleave_low(v[i], v[i + L / 2]);
            t[2 * i + 1] = interleave_high(v[i], v[i + L / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) v[i] = t[i];
    }
}

// a * b + c where a * b is exact (one factor is +-1): fused or not, the bits are the same.
EF_INLINE vf32 multiply_add_exact(vf32 a, vf32 b, vf32 c) {
#if defined(EF_TARGET_AVX512)
    return (vf32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(EF_TARGET_AVX2)
    return (vf32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(EF_TARGET_NEON)
    return (vf32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}
EF_INLINE vf64 multiply_add_exact(vf64 a, vf64 b, vf64 c) {
#if defined(EF_TARGET_AVX512)
    return (vf64)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(EF_TARGET_AVX2)
    return (vf64)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(EF_TARGET_NEON)
    return (vf64)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
}

template <class V, class T>
EF_INLINE V broadcast(T x) {
    return x - V{};  // x - 0 is x, signed zeros and NaN included
}

// Every NaN becomes the quiet one with a clear sign: which operand's payload survives an addition is the CPU's choice.
template <class T>
EF_INLINE T canonical(T x) {
    return x == x ? x : static_cast<T>(__builtin_nan(""));
}
template <class T>
EF_INLINE typename Lanes<T>::V canonical_lanes(typename Lanes<T>::V v) {
    return v == v ? v : broadcast<typename Lanes<T>::V>(static_cast<T>(__builtin_nan("")));
}

// x with its sign flipped where bit 31 of `packed` is set.
EF_INLINE float flip(float x, uint32_t packed) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    bits ^= packed & 0x80000000u;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}
EF_INLINE double flip(double x, uint32_t packed) {
    uint64_t bits;
    __builtin_memcpy(&bits, &x, 8);
    bits ^= static_cast<uint64_t>(packed & 0x80000000u) << 32;
    __builtin_memcpy(&x, &bits, 8);
    return x;
}
EF_INLINE vf32 flip(vf32 x, uint32_t packed) {
    return (vf32)((vu32)x ^ ((vu32{} + packed) & 0x80000000u));
}
EF_INLINE vf64 flip(vf64 x, uint32_t packed) {
    return (vf64)((vu64)x ^ (vu64{} + (static_cast<uint64_t>(packed & 0x80000000u) << 32)));
}

template <class T>
EF_INLINE T element(const char* p) {
    T x;
    __builtin_memcpy(&x, p, sizeof(T));
    return x;
}
