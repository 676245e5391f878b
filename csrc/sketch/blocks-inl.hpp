// Eight Philox blocks at a time. Included inside a body's `namespace ef { namespace EF_ISA {` after lanes-inl.hpp.

constexpr int kBlocks = 8;

#if defined(EF_TARGET_AVX512)
struct Product {
    __m512i high, low;
};
// All 128 bits of lane times constant, from four products of halves.
EF_INLINE Product multiply_wide(__m512i x, uint64_t constant) {
    const __m512i low = _mm512_set1_epi64(static_cast<int64_t>(constant & 0xffffffffu));
    const __m512i high = _mm512_set1_epi64(static_cast<int64_t>(constant >> 32));
    const __m512i half = _mm512_set1_epi64(0xffffffff), x_high = _mm512_srli_epi64(x, 32);
    const __m512i ll = _mm512_mul_epu32(x, low), hl = _mm512_mul_epu32(x_high, low);
    const __m512i lh = _mm512_mul_epu32(x, high), hh = _mm512_mul_epu32(x_high, high);
    const __m512i t = _mm512_add_epi64(hl, _mm512_srli_epi64(ll, 32));
    const __m512i u = _mm512_add_epi64(lh, _mm512_and_si512(t, half));
    const __m512i sum = _mm512_add_epi64(_mm512_srli_epi64(t, 32), _mm512_srli_epi64(u, 32));
    return {_mm512_add_epi64(hh, sum), _mm512_mask_blend_epi32(0xaaaa, ll, _mm512_slli_epi64(u, 32))};
}
#endif

// Blocks i of counters (c0 + i step0, c1 + i step1, 0, 0) into words[i], 0 <= i < kBlocks; sums that wrap are the
// caller's business. Vectors pay with AVX-512 only: others lack the lanes to make up for four products instead of one.
EF_INLINE void philox_blocks(uint64_t c0, uint64_t step0, uint64_t c1, uint64_t step1, uint64_t k0, uint64_t k1,
                             uint64_t (*words)[4]) {
#if defined(EF_TARGET_AVX512)
    const __m512i lane = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0), none = _mm512_setzero_si512();
    const __m512i counter0 = _mm512_set1_epi64(static_cast<int64_t>(c0)), counter1 = _mm512_set1_epi64(static_cast<int64_t>(c1));
    __m512i w0 = step0 ? _mm512_add_epi64(counter0, lane) : counter0, w1 = step1 ? _mm512_add_epi64(counter1, lane) : counter1;
    __m512i w2 = none, w3 = none;
    for (int round = 0; round < 10; ++round) {
        const Product a = multiply_wide(w0, 0xD2E7470EE14C6C93ULL), b = multiply_wide(w2, 0xCA5A826395121157ULL);
        w0 = _mm512_ternarylogic_epi64(b.high, w1, _mm512_set1_epi64(static_cast<int64_t>(k0)), 0x96);
        w2 = _mm512_ternarylogic_epi64(a.high, w3, _mm512_set1_epi64(static_cast<int64_t>(k1)), 0x96);
        w1 = b.low;
        w3 = a.low;
        k0 += 0x9E3779B97F4A7C15ULL;
        k1 += 0xBB67AE8584CAA73BULL;
    }
    const __m512i even01 = _mm512_unpacklo_epi64(w0, w1), odd01 = _mm512_unpackhi_epi64(w0, w1);
    const __m512i even23 = _mm512_unpacklo_epi64(w2, w3), odd23 = _mm512_unpackhi_epi64(w2, w3);
    const __m512i first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), second = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
    const __m512i pairs[4] = {
        _mm512_permutex2var_epi64(even01, first, even23), _mm512_permutex2var_epi64(odd01, first, odd23),
        _mm512_permutex2var_epi64(even01, second, even23), _mm512_permutex2var_epi64(odd01, second, odd23)};
    for (int i = 0; i < 4; ++i) {
        const int block = i / 2 * 4 + i % 2;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(words[block]), _mm512_castsi512_si256(pairs[i]));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(words[block + 2]), _mm512_extracti64x4_epi64(pairs[i], 1));
    }
#else
    for (uint64_t i = 0; i < kBlocks; ++i) {
        const PhiloxBlock block = philox4x64(c0 + i * step0, c1 + i * step1, 0, 0, k0, k1);
        for (int w = 0; w < 4; ++w) words[i][w] = block.word[w];
    }
#endif
}
