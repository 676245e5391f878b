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

// Transposition by 16-byte chunks: rows are loaded into the chunks of a vector straight from memory, and what is left
// stays inside the chunks. Shuffles across chunks, which x86 does on one port and slowly, are not needed.
typedef float vf32_chunk __attribute__((vector_size(16)));
typedef double vf64_chunk __attribute__((vector_size(16)));

// low32: (a0 b0 a1 b1) of every chunk, high32: (a2 b2 a3 b3); low64 and high64 the same with pairs of floats.
#if EF_VECTOR_BYTES == 16
EF_INLINE vf32 low32(vf32 a, vf32 b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
EF_INLINE vf32 high32(vf32 a, vf32 b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
EF_INLINE vf32 low64(vf32 a, vf32 b) { return __builtin_shufflevector(a, b, 0, 1, 4, 5); }
EF_INLINE vf32 high64(vf32 a, vf32 b) { return __builtin_shufflevector(a, b, 2, 3, 6, 7); }
EF_INLINE vf64 low64(vf64 a, vf64 b) { return __builtin_shufflevector(a, b, 0, 2); }
EF_INLINE vf64 high64(vf64 a, vf64 b) { return __builtin_shufflevector(a, b, 1, 3); }
EF_INLINE vf32 join_chunks(const char* const* rows, int64_t offset, const float*) {
    return load_as<vf32>(rows[0] + offset);
}
EF_INLINE vf64 join_chunks(const char* const* rows, int64_t offset, const double*) {
    return load_as<vf64>(rows[0] + offset);
}
#elif EF_VECTOR_BYTES == 32
EF_INLINE vf32 low32(vf32 a, vf32 b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13); }
EF_INLINE vf32 high32(vf32 a, vf32 b) { return __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15); }
EF_INLINE vf32 low64(vf32 a, vf32 b) { return __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13); }
EF_INLINE vf32 high64(vf32 a, vf32 b) { return __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15); }
EF_INLINE vf64 low64(vf64 a, vf64 b) { return __builtin_shufflevector(a, b, 0, 4, 2, 6); }
EF_INLINE vf64 high64(vf64 a, vf64 b) { return __builtin_shufflevector(a, b, 1, 5, 3, 7); }
EF_INLINE vf32 join_chunks(const char* const* rows, int64_t offset, const float*) {
    return __builtin_shufflevector(load_as<vf32_chunk>(rows[0] + offset), load_as<vf32_chunk>(rows[4] + offset), 0, 1, 2,
                                   3, 4, 5, 6, 7);
}
EF_INLINE vf64 join_chunks(const char* const* rows, int64_t offset, const double*) {
    return __builtin_shufflevector(load_as<vf64_chunk>(rows[0] + offset), load_as<vf64_chunk>(rows[2] + offset), 0, 1, 2,
                                   3);
}
#else
EF_INLINE vf32 low32(vf32 a, vf32 b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
EF_INLINE vf32 high32(vf32 a, vf32 b) {
    return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
EF_INLINE vf32 low64(vf32 a, vf32 b) {
    return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
}
EF_INLINE vf32 high64(vf32 a, vf32 b) {
    return __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
EF_INLINE vf64 low64(vf64 a, vf64 b) { return __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14); }
EF_INLINE vf64 high64(vf64 a, vf64 b) { return __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15); }
typedef double vf64_half __attribute__((vector_size(32)));
EF_INLINE vf64_half join_two(const char* a, const char* b, const double*) {
    return __builtin_shufflevector(load_as<vf64_chunk>(a), load_as<vf64_chunk>(b), 0, 1, 2, 3);
}
// Chunks A and B of a, then of b.
template <int A, int B>
EF_INLINE vf32 chunks(vf32 a, vf32 b) {
    return __builtin_shufflevector(a, b, 4 * A, 4 * A + 1, 4 * A + 2, 4 * A + 3, 4 * B, 4 * B + 1, 4 * B + 2, 4 * B + 3,
                                   16 + 4 * A, 17 + 4 * A, 18 + 4 * A, 19 + 4 * A, 16 + 4 * B, 17 + 4 * B, 18 + 4 * B,
                                   19 + 4 * B);
}
EF_INLINE vf64 join_chunks(const char* const* rows, int64_t offset, const double* tag) {
    return __builtin_shufflevector(join_two(rows[0] + offset, rows[2] + offset, tag),
                                   join_two(rows[4] + offset, rows[6] + offset, tag), 0, 1, 2, 3, 4, 5, 6, 7);
}
#endif

// v[j] = element j of every row, j < L: rows are L pointers, `offset` bytes are added to each.
#if EF_VECTOR_BYTES == 64
// Whole lines: sixteen rows a power of two apart fall into one set of an L1 cache with fewer ways, so a line must not be
// needed twice.
EF_INLINE void load_transposed(const char* const* rows, int64_t offset, vf32* v) {
    vf32 t[4][4];  // t[q][i]: chunk c holds rows 4 q .. 4 q + 3 of element 4 c + i
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
        const vf32 a = load_as<vf32>(rows[4 * q] + offset), b = load_as<vf32>(rows[4 * q + 1] + offset);
        const vf32 c = load_as<vf32>(rows[4 * q + 2] + offset), d = load_as<vf32>(rows[4 * q + 3] + offset);
        const vf32 ab_low = low32(a, b), ab_high = high32(a, b), cd_low = low32(c, d), cd_high = high32(c, d);
        t[q][0] = low64(ab_low, cd_low);
        t[q][1] = high64(ab_low, cd_low);
        t[q][2] = low64(ab_high, cd_high);
        t[q][3] = high64(ab_high, cd_high);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const vf32 low01 = chunks<0, 1>(t[0][i], t[1][i]), high01 = chunks<2, 3>(t[0][i], t[1][i]);
        const vf32 low23 = chunks<0, 1>(t[2][i], t[3][i]), high23 = chunks<2, 3>(t[2][i], t[3][i]);
        v[i] = chunks<0, 2>(low01, low23);
        v[4 + i] = chunks<1, 3>(low01, low23);
        v[8 + i] = chunks<0, 2>(high01, high23);
        v[12 + i] = chunks<1, 3>(high01, high23);
    }
}
#else
EF_INLINE void load_transposed(const char* const* rows, int64_t offset, vf32* v) {
#pragma GCC unroll 4
    for (int g = 0; g < kLanesF32; g += 4) {
        const float* tag = nullptr;
        const vf32 a = join_chunks(rows + 0, offset + g * 4, tag), b = join_chunks(rows + 1, offset + g * 4, tag);
        const vf32 c = join_chunks(rows + 2, offset + g * 4, tag), d = join_chunks(rows + 3, offset + g * 4, tag);
        const vf32 ab_low = low32(a, b), ab_high = high32(a, b), cd_low = low32(c, d), cd_high = high32(c, d);
        v[g + 0] = low64(ab_low, cd_low);
        v[g + 1] = high64(ab_low, cd_low);
        v[g + 2] = low64(ab_high, cd_high);
        v[g + 3] = high64(ab_high, cd_high);
    }
}
#endif
EF_INLINE void load_transposed(const char* const* rows, int64_t offset, vf64* v) {
#pragma GCC unroll 4
    for (int g = 0; g < kLanesF64; g += 2) {
        const double* tag = nullptr;
        const vf64 a = join_chunks(rows + 0, offset + g * 8, tag), b = join_chunks(rows + 1, offset + g * 8, tag);
        v[g + 0] = low64(a, b);
        v[g + 1] = high64(a, b);
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

// Intrinsics where GCC 12 would split the conversion into halves and put them together again.
EF_INLINE vf64 to_doubles(vf32_half v) {
#if defined(EF_TARGET_AVX512)
    return (vf64)_mm512_cvtps_pd((__m256)v);
#elif defined(EF_TARGET_AVX2)
    return (vf64)_mm256_cvtps_pd((__m128)v);
#else
    return __builtin_convertvector(v, vf64);
#endif
}
EF_INLINE vf32_half to_floats(vf64 v) {
#if defined(EF_TARGET_AVX512)
    return (vf32_half)_mm512_cvtpd_ps((__m512d)v);
#elif defined(EF_TARGET_AVX2)
    return (vf32_half)_mm256_cvtpd_ps((__m256d)v);
#else
    return __builtin_convertvector(v, vf32_half);
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
