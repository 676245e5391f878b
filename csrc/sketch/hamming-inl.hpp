namespace ef {
namespace EF_ISA {
namespace {
#include "common/simd-inl.hpp"
#include "common/lanes-inl.hpp"

// Ones in a word without the instruction, which the x86-64 baseline lacks.
EF_INLINE uint64_t ones(uint64_t x) {
#if defined(EF_TARGET_AVX2)
    return static_cast<uint64_t>(_mm_popcnt_u64(x));
#else
    x = x - ((x >> 1) & 0x5555555555555555ull);
    x = (x & 0x3333333333333333ull) + ((x >> 2) & 0x3333333333333333ull);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0full;
    return (x * 0x0101010101010101ull) >> 56;
#endif
}

EF_INLINE uint64_t word_at(const uint8_t* p) {
    uint64_t w;
    __builtin_memcpy(&w, p, 8);
    return w;
}
EF_INLINE uint64_t tail_word(const uint8_t* p, int64_t bytes) {
    uint64_t w = 0;
    for (int64_t i = 0; i < bytes; ++i) w |= static_cast<uint64_t>(p[i]) << (8 * i);
    return w;
}

EF_INLINE uint16_t distance_of(const uint8_t* a, const uint8_t* b, int64_t bytes) {
    uint64_t sum = 0;
    int64_t i = 0;
#if defined(EF_TARGET_NEON)
    uint16x8_t counts = vdupq_n_u16(0);
    for (; i + 16 <= bytes; i += 16)
        counts = vpadalq_u8(counts, vcntq_u8(veorq_u8(vld1q_u8(a + i), vld1q_u8(b + i))));
    sum = vaddlvq_u16(counts);
#endif
    for (; i + 8 <= bytes; i += 8) sum += ones(word_at(a + i) ^ word_at(b + i));
    if (i < bytes) sum += ones(tail_word(a + i, bytes - i) ^ tail_word(b + i, bytes - i));
    return static_cast<uint16_t>(sum);
}

#if defined(EF_TARGET_AVX512)
// The whole list: clang lets an attribute replace the region's.
#define EF_POPCNT512 \
    __attribute__((target("avx2,fma,f16c,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")))
// 32-byte codes, eight at a time: counts of the words, then a tree of two additions.
EF_POPCNT512 void distances32_vpopcnt(const uint8_t* query, const uint8_t* codes, int64_t count, uint16_t* out) {
    uint8_t twice[64];
    __builtin_memcpy(twice, query, 32);
    __builtin_memcpy(twice + 32, query, 32);
    const __m512i q = _mm512_loadu_si512(twice);
    const __m512i order = _mm512_setr_epi64(0, 2, 1, 3, 4, 6, 5, 7);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const uint8_t* p = codes + i * 32;
        __m512i v[4];
        for (int r = 0; r < 4; ++r) v[r] = _mm512_popcnt_epi64(_mm512_xor_si512(q, _mm512_loadu_si512(p + r * 64)));
        // chunk c of s01: (words 0+1 or 2+3 of code c/2 of v0, the same of v1)
        const __m512i s01 = _mm512_add_epi64(_mm512_unpacklo_epi64(v[0], v[1]), _mm512_unpackhi_epi64(v[0], v[1]));
        const __m512i s23 = _mm512_add_epi64(_mm512_unpacklo_epi64(v[2], v[3]), _mm512_unpackhi_epi64(v[2], v[3]));
        // chunks 0, 2 of both plus chunks 1, 3 of both: codes (0, 2), (1, 3), (4, 6), (5, 7)
        const __m512i sum = _mm512_add_epi64(_mm512_shuffle_i64x2(s01, s23, 0x88), _mm512_shuffle_i64x2(s01, s23, 0xdd));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtepi64_epi16(_mm512_permutexvar_epi64(order, sum)));
    }
    for (; i < count; ++i) out[i] = distance_of(query, codes + i * 32, 32);
}
EF_POPCNT512 uint16_t distance_vpopcnt(const uint8_t* a, const uint8_t* b, int64_t bytes) {
    __m512i sum = _mm512_setzero_si512();
    int64_t i = 0;
    for (; i + 64 <= bytes; i += 64)
        sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_xor_si512(_mm512_loadu_si512(a + i), _mm512_loadu_si512(b + i))));
    if (i < bytes) {
        const __mmask64 some = (uint64_t{1} << (bytes - i)) - 1;
        sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_xor_si512(_mm512_maskz_loadu_epi8(some, a + i),
                                                                         _mm512_maskz_loadu_epi8(some, b + i))));
    }
    return static_cast<uint16_t>(_mm512_reduce_add_epi64(sum));
}
EF_POPCNT512 void distances_vpopcnt(const uint8_t* query, const uint8_t* codes, int64_t stride, int64_t bytes,
                                    int64_t count, uint16_t* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = distance_vpopcnt(query, codes + i * stride, bytes);
}
// Distances of `code` to slots s .. s + 7 of the ring.
EF_POPCNT512 inline __attribute__((always_inline)) __m512i ring_distances(const uint64_t* code, const Ring& ring,
                                                                          int64_t words, int64_t s) {
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int64_t w = 0; w < words; ++w)
        sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_xor_si512(
                                        _mm512_set1_epi64(static_cast<long long>(code[w])),
                                        _mm512_loadu_si512(ring.words + w * ring.capacity + s))));
    return sum;
}
EF_POPCNT512 bool any_within_vpopcnt(const uint64_t* code, const Ring& ring, int radius) {
    const __m512i limit = _mm512_set1_epi64(radius);
    int64_t s = 0;
    if (ring.word_count == 4) {
        const uint64_t own[4] = {code[0], code[1], code[2], code[3]};
        for (; s + 32 <= ring.filled; s += 32) {
            const __m512i a = _mm512_min_epu64(ring_distances(own, ring, 4, s), ring_distances(own, ring, 4, s + 8));
            const __m512i b = _mm512_min_epu64(ring_distances(own, ring, 4, s + 16), ring_distances(own, ring, 4, s + 24));
            if (_mm512_cmple_epu64_mask(_mm512_min_epu64(a, b), limit)) return true;
        }
    }
    for (; s < ring.filled; s += 8) {
        const int64_t left = ring.filled - s;
        const __mmask8 some = static_cast<__mmask8>(left < 8 ? (1 << left) - 1 : 0xff);
        if (_mm512_mask_cmple_epu64_mask(some, ring_distances(code, ring, ring.word_count, s), limit)) return true;
    }
    return false;
}
static bool has_vpopcnt() { return __builtin_cpu_supports("avx512vpopcntdq"); }
#endif

#if defined(EF_TARGET_AVX2)
// Ones in each byte by two table look-ups.
EF_INLINE __m256i byte_ones(__m256i v) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2,
                                           2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_set1_epi8(15);
    return _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(v, low)),
                           _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), low)));
}
EF_INLINE __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
#endif

EF_INLINE void distances(const uint8_t* query, const uint8_t* codes, int64_t stride, int64_t bytes, int64_t count,
                         uint16_t* out) {
#if defined(EF_TARGET_AVX512)
    if (has_vpopcnt()) {
        if (bytes == 32 && stride == 32) return distances32_vpopcnt(query, codes, count, out);
        return distances_vpopcnt(query, codes, stride, bytes, count, out);
    }
#endif
    if (bytes == 32) {
        for (int64_t i = 0; i < count; ++i) out[i] = distance_of(query, codes + i * stride, 32);
        return;
    }
    for (int64_t i = 0; i < count; ++i) out[i] = distance_of(query, codes + i * stride, bytes);
}

bool any_within(const uint64_t* code, const Ring& ring, int radius) {
#if defined(EF_TARGET_AVX512)
    if (has_vpopcnt()) return any_within_vpopcnt(code, ring, radius);
#endif
    int64_t s = 0;
#if defined(EF_TARGET_AVX2)
    const __m256i zero = _mm256_setzero_si256(), limit = _mm256_set1_epi64x(radius);
    for (; s + 4 <= ring.filled; s += 4) {
        __m256i sum = zero;
        for (int64_t w = 0; w < ring.word_count;) {
            // Byte counts of up to 31 words fit a byte.
            const int64_t end = w + 31 < ring.word_count ? w + 31 : ring.word_count;
            __m256i counts = zero;
            for (; w < end; ++w)
                counts = _mm256_add_epi8(counts, byte_ones(_mm256_xor_si256(_mm256_set1_epi64x(static_cast<long long>(code[w])),
                                                                            load256(ring.words + w * ring.capacity + s))));
            sum = _mm256_add_epi64(sum, _mm256_sad_epu8(counts, zero));
        }
        if (_mm256_movemask_epi8(_mm256_cmpgt_epi64(sum, limit)) != -1) return true;
    }
#elif defined(EF_TARGET_NEON)
    for (; s + 2 <= ring.filled; s += 2) {
        uint64x2_t sum = vdupq_n_u64(0);
        for (int64_t w = 0; w < ring.word_count; ++w) {
            const uint64x2_t x = veorq_u64(vdupq_n_u64(code[w]), vld1q_u64(ring.words + w * ring.capacity + s));
            sum = vaddq_u64(sum, vpaddlq_u32(vpaddlq_u16(vpaddlq_u8(vcntq_u8(vreinterpretq_u8_u64(x))))));
        }
        if (vgetq_lane_u64(sum, 0) <= static_cast<uint64_t>(radius) || vgetq_lane_u64(sum, 1) <= static_cast<uint64_t>(radius))
            return true;
    }
#endif
    for (; s < ring.filled; ++s) {
        uint64_t sum = 0;
        for (int64_t w = 0; w < ring.word_count; ++w) sum += ones(code[w] ^ ring.words[w * ring.capacity + s]);
        if (sum <= static_cast<uint64_t>(radius)) return true;
    }
    return false;
}

// Eight bits of eight numbers. x + 0 is +0 for both zeros, so that the sign bit alone decides; NaN is excluded.
EF_INLINE uint8_t byte_of(const float* x) {
#if defined(EF_TARGET_AVX2)
    return static_cast<uint8_t>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x), _mm256_setzero_ps(), _CMP_GE_OQ)));
#else
    uint8_t byte = 0;
    for (int i = 0; i < 8; ++i) byte = static_cast<uint8_t>(byte | (x[i] >= 0 ? 1 : 0) << i);
    return byte;
#endif
}
EF_INLINE uint8_t byte_of(const double* x) {
#if defined(EF_TARGET_AVX2)
    const int low = _mm256_movemask_pd(_mm256_cmp_pd(_mm256_loadu_pd(x), _mm256_setzero_pd(), _CMP_GE_OQ));
    const int high = _mm256_movemask_pd(_mm256_cmp_pd(_mm256_loadu_pd(x + 4), _mm256_setzero_pd(), _CMP_GE_OQ));
    return static_cast<uint8_t>(low | high << 4);
#else
    uint8_t byte = 0;
    for (int i = 0; i < 8; ++i) byte = static_cast<uint8_t>(byte | (x[i] >= 0 ? 1 : 0) << i);
    return byte;
#endif
}

template <class T>
void sign_bits_of(const T* x, int64_t rows, int64_t columns, uint8_t* out, int64_t out_stride) {
    for (int64_t r = 0; r < rows; ++r, x += columns, out += out_stride) {
        int64_t c = 0;
        for (; c + 8 <= columns; c += 8) out[c / 8] = byte_of(x + c);
        if (c < columns) {
            uint8_t byte = 0;
            for (int64_t i = c; i < columns; ++i) byte = static_cast<uint8_t>(byte | (x[i] >= 0 ? 1 : 0) << (i - c));
            out[c / 8] = byte;
        }
    }
}

}  // namespace

static void sign_bits_f32(const float* x, int64_t rows, int64_t columns, uint8_t* out, int64_t out_stride) noexcept {
    sign_bits_of<float>(x, rows, columns, out, out_stride);
}
static void sign_bits_f64(const double* x, int64_t rows, int64_t columns, uint8_t* out, int64_t out_stride) noexcept {
    sign_bits_of<double>(x, rows, columns, out, out_stride);
}

static void hamming_distances(const uint8_t* query, const uint8_t* codes, int64_t stride, int64_t bytes, int64_t count,
                              uint16_t* out) noexcept {
    distances(query, codes, stride, bytes, count, out);
}

// The least of `count` numbers; vectorised by the compiler.
static uint16_t hamming_least(const uint16_t* d, int64_t count) noexcept {
    uint16_t least = 65535;
    for (int64_t i = 0; i < count; ++i) least = d[i] < least ? d[i] : least;
    return least;
}

static void hamming_filter_codes(const Codes& codes, int64_t bytes, int radius, Ring* ring, uint8_t* keep) noexcept {
    uint64_t code[1024];
    for (int64_t i = 0; i < codes.count; ++i) {
        const uint8_t* source = codes.data + i * codes.stride;
        for (int64_t w = 0; w < ring->word_count; ++w)
            code[w] = 8 * w + 8 <= bytes ? word_at(source + 8 * w) : tail_word(source + 8 * w, bytes - 8 * w);
        keep[i] = any_within(code, *ring, radius) ? 0 : 1;
        if (!keep[i]) continue;
        for (int64_t w = 0; w < ring->word_count; ++w) ring->words[w * ring->capacity + ring->next] = code[w];
        if (ring->filled < ring->window) ++ring->filled;
        ring->next = ring->next + 1 < ring->window ? ring->next + 1 : 0;
    }
}

}  // namespace EF_ISA
}  // namespace ef
