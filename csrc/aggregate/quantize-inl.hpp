// Body of aggregate/quantize.hpp; see there for formats and numerics.
namespace ef {
namespace EF_ISA {
namespace quantize {

#include "aggregate/element-inl.hpp"

constexpr int64_t kQ = ef::kQuantTile;
constexpr int kPad = kLanesF32;
constexpr uint64_t kSigns = 0x71, kRounding = 0x72;
typedef int8_t bytes __attribute__((vector_size(kLanesF32)));

constexpr ef::Isa kIsa =
#if defined(EF_TARGET_AVX512)
    ef::Isa::avx512;
#elif defined(EF_TARGET_AVX2)
    ef::Isa::avx2;
#elif defined(EF_TARGET_NEON)
    ef::Isa::neon;
#else
    ef::Isa::scalar;
#endif

// ---- tiles of a tensor as binary32 and back ----------------------------------------------------------------------

template <class T>
static void read_tile(const T* x, int64_t n, float* to) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store_as(to + i, __builtin_convertvector(Element<T>::read(x + i), floats));
    for (; i < n; ++i) to[i] = static_cast<float>(Element<T>::read_one(x + i));
}
template <>
void read_tile<float>(const float* x, int64_t n, float* to) {
    __builtin_memcpy(to, x, static_cast<size_t>(n) * sizeof(float));
}

template <class T>
static void write_tile(const float* from, int64_t n, T* out) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        V v = __builtin_convertvector(load_as<floats>(from + i), V);
        if constexpr (dtype_of<T>() == ef::DType::f16) {
            const V most = V{} + 65504.0;
            v = v > most ? most : v;
            v = v < -most ? -most : v;
        }
        Element<T>::write(out + i, v);
    }
    for (; i < n; ++i) {
        double v = static_cast<double>(from[i]);
        if constexpr (dtype_of<T>() == ef::DType::f16) v = v > 65504.0 ? 65504.0 : v < -65504.0 ? -65504.0 : v;
        Element<T>::write_one(out + i, v);
    }
}
template <>
void write_tile<float>(const float* from, int64_t n, float* out) {
    __builtin_memcpy(out, from, static_cast<size_t>(n) * sizeof(float));
}

#define EF_FOR_FLOATS(dtype, CALL)                 \
    switch (dtype) {                               \
        case ef::DType::f16: CALL(Half); break;    \
        case ef::DType::bf16: CALL(Brain); break;  \
        case ef::DType::f64: CALL(double); break;  \
        default: CALL(float); break;               \
    }

// Bits of the largest magnitude; x is padded with zeros to whole vectors. NaN lies above infinity.
static uint32_t largest(const float* x, int64_t n) {
    vu32 most = {};
    for (int64_t i = 0; i < n; i += kLanesF32) {
        const vu32 m = (vu32)load_as<vf32>(x + i) & 0x7fffffffu;
        most = m > most ? m : most;
    }
    uint32_t found = 0;
    for (int i = 0; i < kLanesF32; ++i) found = most[i] > found ? most[i] : found;
    return found;
}

EF_INLINE float float_of(uint32_t bits) {
    float f;
    __builtin_memcpy(&f, &bits, sizeof(f));
    return f;
}
EF_INLINE uint32_t bits_of(float f) {
    uint32_t bits;
    __builtin_memcpy(&bits, &f, sizeof(f));
    return bits;
}

// ---- blocks of integers ------------------------------------------------------------------------------------------

static float integer_scale(uint32_t most, int limit) {
    if (most == 0) return 0;
    uint32_t bits = bits_of(float_of(most) / static_cast<float>(limit));
    bits = bits < 0x10000u ? bits + 1 : (bits + 0xffu) & ~0xffu;
    if (static_cast<double>(float_of(bits)) * limit > 3.4028234663852886e38) bits -= 0x100u;
    return float_of(bits);
}

// Uniform numbers in [0, 1) of coordinates first ... first + 8 * blocks; first is a multiple of 8.
static void uniform(uint64_t seed, uint64_t nonce, uint64_t tensor, int64_t first, int64_t blocks, float* to) {
    for (int64_t b = 0; b < blocks; ++b) {
        const ef::PhiloxBlock random =
            ef::philox4x64(1 + static_cast<uint64_t>(first / 8 + b), tensor, nonce, 0, seed, kRounding);
        for (int i = 0; i < 8; ++i) {
            const auto lane = static_cast<uint32_t>(random.word[i / 2] >> (32 * (i % 2)));
            to[8 * b + i] = static_cast<float>(lane >> 8) * 5.9604644775390625e-8f;
        }
    }
}

// x and u are padded to whole vectors, q as well.
static void round_block(const float* x, const float* u, int64_t n, float scale, int limit, int8_t* q) {
    if (scale == 0) {
        __builtin_memset(q, 0, static_cast<size_t>(n));
        return;
    }
    const vf32 most = vf32{} + static_cast<float>(limit);
    for (int64_t i = 0; i < n; i += kLanesF32) {
        vf32 r = load_as<vf32>(x + i) / scale;
        r = r > most ? most : r;
        r = r < -most ? -most : r;
        if (u) {
            vf32 floor = __builtin_convertvector(__builtin_convertvector(r, vi32), vf32);
            floor += __builtin_convertvector(floor > r, vf32);  // a true lane is -1
            r = floor - __builtin_convertvector(load_as<vf32>(u + i) < r - floor, vf32);
        } else {
            const vf32 magic = vf32{} + 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
            r = (r + magic) - magic;
        }
        store_as(q + i, __builtin_convertvector(__builtin_convertvector(r, vi32), bytes));
    }
}

static void pack_nibbles(const int8_t* q, int64_t n, uint8_t* codes) {
    for (int64_t i = 0; i < n / 2; ++i)
        codes[i] = static_cast<uint8_t>((q[2 * i] + 8) | ((q[2 * i + 1] + 8) << 4));
    if (n % 2) codes[n / 2] = static_cast<uint8_t>((q[n - 1] + 8) | (8 << 4));
}

template <int Bits>
EF_INLINE V read_codes(const uint8_t* p) {
    if constexpr (Bits == 8) {
#if defined(EF_TARGET_AVX512)
        return (V)_mm512_cvtepi32_pd(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i_u*>(p))));
#elif defined(EF_TARGET_AVX2)
        return (V)_mm256_cvtepi32_pd(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(load_as<int32_t>(p))));
#else
        typedef int8_t small __attribute__((vector_size(kLanes)));
        return __builtin_convertvector(load_as<small>(p), V);
#endif
    } else {
        uint32_t packed = 0;
        __builtin_memcpy(&packed, p, kLanes / 2);
        ints shift;
        for (int i = 0; i < kLanes; ++i) shift[i] = 4 * i;
        const ints code = (((ints{} + static_cast<int32_t>(packed)) >> shift) & 15) - 8;
        return __builtin_convertvector(code, V);
    }
}
template <int Bits>
EF_INLINE int one_code(const uint8_t* codes, int64_t i) {
    if constexpr (Bits == 8) return static_cast<int8_t>(codes[i]);
    else return ((codes[i / 2] >> (4 * (i % 2))) & 15) - 8;
}

template <int Bits>
static void integers_to_floats(const uint8_t* codes, int64_t n, float scale, float* to) {
    const double s = static_cast<double>(scale);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        store_as(to + i, __builtin_convertvector(read_codes<Bits>(codes + i * Bits / 8) * s, floats));
    for (; i < n; ++i) to[i] = static_cast<float>(one_code<Bits>(codes, i)) * scale;
}

// ---- rotated blocks ----------------------------------------------------------------------------------------------

// Flips the signs of coordinates first ... first + n of the tensor; first is a multiple of 64. x is padded to 64.
static void flip_signs(uint64_t seed, uint64_t nonce, uint64_t tensor, int64_t first, int64_t n, float* x) {
    ef::PhiloxBlock random = {};
    for (int64_t j = 0; j < n; j += 64) {
        const int64_t at = first + j;
        if (j == 0 || at % 256 == 0)
            random = ef::philox4x64(1 + static_cast<uint64_t>(at / 256), tensor, nonce, 0, seed, kSigns);
        const uint64_t word = random.word[at / 64 % 4];
        vu32 shift;
        for (int i = 0; i < kLanesF32; ++i) shift[i] = static_cast<uint32_t>(31 - i);
        for (int64_t i = 0; i < 64; i += kLanesF32) {
            const vu32 sign = ((vu32{} + static_cast<uint32_t>(word >> i)) << shift) & 0x80000000u;
            store_as(x + j + i, (vu32)load_as<vf32>(x + j + i) ^ sign);
        }
    }
}

// sum of a[i] b[i] for i < d, a multiple of 8, in 8 partial sums.
static double dot(const float* a, const float* b, int64_t d) {
    V part[8 / kLanes] = {};
    for (int64_t i = 0; i < d; i += 8) {
#pragma GCC unroll 4
        for (int v = 0; v < 8 / kLanes; ++v)
            part[v] = multiply_add_exact(Element<float>::read(a + i + v * kLanes), Element<float>::read(b + i + v * kLanes),
                                         part[v]);
    }
    double s[8];
    __builtin_memcpy(s, part, sizeof(s));
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

// 8 bytes of at most 2^bits - 1 each to and from 8 * bits bits.
EF_INLINE uint64_t pack8(uint64_t x, int bits) {
    x = (x | x >> (8 - bits)) & (0x0001000100010001ull * ((1u << 2 * bits) - 1));
    x = (x | x >> (16 - 2 * bits)) & (0x0000000100000001ull * ((1u << 4 * bits) - 1));
    return (x | x >> (32 - 4 * bits)) & ((uint64_t{1} << (8 * bits)) - 1);
}
EF_INLINE uint64_t unpack8(uint64_t x, int bits) {
    const uint64_t four = (uint64_t{1} << 4 * bits) - 1, two = (uint64_t{1} << 2 * bits) - 1, one = (1u << bits) - 1;
    x = (x & four) | (x >> (4 * bits)) << 32;
    x = (x & 0x0000000100000001ull * two) | ((x >> (2 * bits)) & 0x0000000100000001ull * two) << 16;
    return (x & 0x0001000100010001ull * one) | ((x >> bits) & 0x0001000100010001ull * one) << 8;
}

// x holds d = eden_length(n) floats, zeros from n on, room for 64, and is destroyed.
static void eden_encode(const ef::QuantSpec& spec, uint64_t seed, uint64_t nonce, int64_t first, int64_t n, uint32_t most,
                        float* x, uint8_t* codes, float* scale) {
    const int64_t d = ef::eden_length(n);
    const int bits = spec.bits, levels = 1 << (bits - 1);
    int exponent = static_cast<int>(most >> 23) - 127;
    if (exponent < -126) exponent = -126;
    const float shrink = float_of(static_cast<uint32_t>(127 - exponent) << 23);
    const vf32 factor = vf32{} + shrink;
    for (int64_t i = 0; i < d; i += kLanesF32) store_as(x + i, load_as<vf32>(x + i) * factor);
    flip_signs(seed, nonce, spec.tensor, first, d, x);
    ef::fwht<float>(kIsa, x, x, 1, d, 1.0, 1);
    const double square = dot(x, x, d);
    const double rms = __builtin_sqrt(square / static_cast<double>(d));
    float threshold[8] = {};
    for (int m = 0; m + 1 < levels; ++m) {
        const double middle =
            (static_cast<double>(kCentroids[bits - 1][m]) + static_cast<double>(kCentroids[bits - 1][m + 1])) / 2;
        threshold[m] = static_cast<float>(middle * rms);
    }
    alignas(64) int8_t code[kQ + kPad];
    alignas(64) float centre[kQ + kPad];
    for (int64_t i = 0; i < d; i += kLanesF32) {
        const vf32 y = load_as<vf32>(x + i);
        const vf32 magnitude = (vf32)((vu32)y & 0x7fffffffu);
        vi32 m = {};
        vf32 c = vf32{} + kCentroids[bits - 1][0];
        for (int t = 0; t + 1 < levels; ++t) {
            const vi32 above = magnitude > vf32{} + threshold[t];
            m -= above;
            c = above ? vf32{} + kCentroids[bits - 1][t + 1] : c;
        }
        const vi32 negative = y < vf32{};
        store_as(centre + i, negative ? -c : c);
        store_as(code + i, __builtin_convertvector(m + (negative & levels), bytes));
    }
    for (int64_t i = 0; i < d; i += 8) {
        const uint64_t packed = pack8(load_as<uint64_t>(code + i), bits);
        __builtin_memcpy(codes + i / 8 * bits, &packed, static_cast<size_t>(bits));
    }
    const double along = dot(centre, x, d) * static_cast<double>(d);
    *scale = square > 0 ? static_cast<float>(square / along / static_cast<double>(shrink)) : 0.0f;
}

// d = eden_length(n) floats to `to`, of which the first n are the block.
static void eden_decode(const ef::QuantSpec& spec, uint64_t seed, uint64_t nonce, int64_t first, int64_t n, float scale,
                        const uint8_t* codes, float* to) {
    const int64_t d = ef::eden_length(n);
    const int bits = spec.bits, levels = 1 << (bits - 1);
    if (scale == 0) {
        __builtin_memset(to, 0, static_cast<size_t>(n) * sizeof(float));
        return;
    }
    float table[16];
    for (int m = 0; m < levels; ++m) {
        table[m] = kCentroids[bits - 1][m];
        table[m + levels] = -kCentroids[bits - 1][m];
    }
    for (int64_t i = 0; i < d; i += 8) {
        uint64_t packed = 0;
        __builtin_memcpy(&packed, codes + i / 8 * bits, static_cast<size_t>(bits));
        const uint64_t code = unpack8(packed, bits);
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) to[i + j] = table[(code >> (8 * j)) & 15];
    }
    ef::fwht<float>(kIsa, to, to, 1, d, static_cast<double>(scale), 1);
    flip_signs(seed, nonce, spec.tensor, first, n, to);
}

// ---- tiles -------------------------------------------------------------------------------------------------------

EF_INLINE float scale_of(const char* scales, int64_t block) { return load_as<float>(scales + 4 * block); }

static void decode_tile(const ef::QuantSpec& spec, const ef::QuantInput& in, int64_t offset, int64_t n, float* to) {
    for (int64_t i = 0; i < n; i += spec.block) {
        const int64_t first = offset + i, block = first / spec.block, count = n - i < spec.block ? n - i : spec.block;
        const uint8_t* codes = in.codes + block * (spec.block * spec.bits / 8);
        const float scale = scale_of(in.scales, block);
        if (spec.rotated) eden_decode(spec, in.seed, in.nonce, first, count, scale, codes, to + i);
        else if (spec.bits == 8) integers_to_floats<8>(codes, count, scale, to + i);
        else integers_to_floats<4>(codes, count, scale, to + i);
    }
}

static bool encode_tile(const ef::QuantSpec& spec, bool stochastic, uint64_t seed, uint64_t nonce, int64_t offset,
                        int64_t n, float* x, uint8_t* codes, float* scales) {
    const int limit = spec.bits == 8 ? 127 : 7;
    __builtin_memset(x + n, 0, (static_cast<size_t>(kQ - n) + kPad) * sizeof(float));
    alignas(64) float u[kQ + kPad];
    alignas(64) int8_t q[kQ + kPad];
    if (stochastic) {
        uniform(seed, nonce, spec.tensor, offset, (n + 7) / 8, u);
        __builtin_memset(u + (n + 7) / 8 * 8, 0, kPad * sizeof(float));
    }
    for (int64_t i = 0; i < n; i += spec.block) {
        const int64_t first = offset + i, block = first / spec.block, count = n - i < spec.block ? n - i : spec.block;
        uint8_t* to = codes + block * (spec.block * spec.bits / 8);
        const uint32_t most = largest(x + i, count);
        if (most >= (spec.rotated ? 0x75800000u : 0x7f800000u)) return false;  // 2^108, infinity
        if (spec.rotated) {
            eden_encode(spec, seed, nonce, first, count, most, x + i, to, scales + block);
            continue;
        }
        scales[block] = integer_scale(most, limit);
        round_block(x + i, stochastic ? u + i : nullptr, count, scales[block], limit, q);
        if (spec.bits == 8) __builtin_memcpy(to, q, static_cast<size_t>(count));
        else pack_nibbles(q, count, to);
    }
    return true;
}

constexpr int kInputs = 16;

// Blocks at one place of up to kInputs inputs. Exact: w * scale and its products with codes are exact in binary64, so
// that one fused multiply-add rounds as the product and the sum of mean.hpp do; `scale` then holds w * scale.
struct Blocks {
    const uint8_t* codes[kInputs];
    double scale[kInputs], weight[kInputs];  // 0 from `count` on
    int count;
    bool exact;
};

static Blocks blocks_of(const ef::QuantInput* in, int count, int bits, int64_t block, int64_t at) {
    Blocks b = {};
    b.count = count;
    b.exact = true;
    double product[kInputs];
    for (int c = 0; c < count; ++c) {
        b.codes[c] = in[c].codes + at * bits / 8;
        b.scale[c] = static_cast<double>(scale_of(in[c].scales, block));
        b.weight[c] = in[c].weight;
        product[c] = b.scale[c] * b.weight[c];
        // w has at most 29 significant bits, and w * scale does not overflow: 16 bits of scale and 7 of code fit.
        uint64_t weight;
        __builtin_memcpy(&weight, &in[c].weight, sizeof(weight));
        b.exact &= (weight & 0xffffff) == 0 && product[c] <= 1.7976931348623157e308;
    }
    if (b.exact) __builtin_memcpy(b.scale, product, static_cast<size_t>(count) * sizeof(double));
    if (count % 2) b.codes[count] = b.codes[count - 1];  // read in a pair, times 0
    return b;
}

// sums[0, n) += w_c scale_c code; codes from coordinate `skip` of the blocks on.
template <int Bits, bool Exact>
static void add_run(const Blocks& b, int64_t skip, int64_t n, bool fresh, double* sums) {
    constexpr int kStep = 4 * kLanes;
    int64_t i = 0;
    for (; i + kStep <= n; i += kStep) {
        V sum[4] = {};
        if (!fresh) {
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) sum[v] = load_as<V>(sums + i + v * kLanes);
        }
        const auto step = [&](int c) __attribute__((always_inline)) {
            const uint8_t* p = b.codes[c] + (skip + i) * Bits / 8;
            const V s = V{} + b.scale[c], w = V{} + b.weight[c];
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) {
                const V code = read_codes<Bits>(p + v * kLanes * Bits / 8);
                if (Exact) sum[v] = multiply_add_exact(code, s, sum[v]);
                else sum[v] += code * s * w;
            }
        };
        EF_EACH_OF(b.count, step)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) store_as(sums + i + v * kLanes, sum[v]);
    }
    for (; i < n; ++i) {
        double sum = fresh ? 0 : sums[i];
        for (int c = 0; c < b.count; ++c) {
            const double product = one_code<Bits>(b.codes[c], skip + i) * b.scale[c];
            sum += Exact ? product : product * b.weight[c];
        }
        sums[i] = sum;
    }
}

// ---- sums of integers ----------------------------------------------------------------------------------------------
// Where every w_c scale_c is a whole number S_c < 2^30 of one power of two, so is every sum of them times codes, and
// binary64 holds it in any order: no rounding, the bits of add_run. S_c is split into two digits of 15 bits; a multiply-
// add of 16-bit integers then takes two clients at once, and sums of 16 clients stay within 32 bits.

#if defined(EF_TARGET_AVX2)
#if defined(EF_TARGET_AVX512)
typedef __m512i B;
EF_INLINE B low8(B a, B b) { return _mm512_unpacklo_epi8(a, b); }
EF_INLINE B high8(B a, B b) { return _mm512_unpackhi_epi8(a, b); }
EF_INLINE vi32 multiply_pairs(B a, B b) { return (vi32)_mm512_madd_epi16(a, b); }
EF_INLINE B bytes_of(const uint8_t* p) { return load_as<B>(p); }
EF_INLINE B nibbles_of(const uint8_t* p) { return _mm512_cvtepu8_epi16(load_as<__m256i>(p)); }
EF_INLINE V to_doubles(ints v) { return (V)_mm512_cvtepi32_pd((__m256i)v); }
EF_INLINE bool near_tie(VI bits) {
    const __m512i above = _mm512_sub_epi32((__m512i)(bits & 0x1fffffff), _mm512_set1_epi32(0x0ffffffc));
    return _mm512_mask_cmp_epu32_mask(0x5555, above, _mm512_set1_epi32(8), _MM_CMPINT_LE) != 0;
}
#else
typedef __m256i B;
EF_INLINE B low8(B a, B b) { return _mm256_unpacklo_epi8(a, b); }
EF_INLINE B high8(B a, B b) { return _mm256_unpackhi_epi8(a, b); }
EF_INLINE vi32 multiply_pairs(B a, B b) { return (vi32)_mm256_madd_epi16(a, b); }
EF_INLINE B bytes_of(const uint8_t* p) { return load_as<B>(p); }
EF_INLINE B nibbles_of(const uint8_t* p) { return _mm256_cvtepu8_epi16(load_as<__m128i>(p)); }
EF_INLINE V to_doubles(ints v) { return (V)_mm256_cvtepi32_pd((__m128i)v); }
EF_INLINE bool near_tie(VI bits) {
    const __m256i above = (__m256i)((bits & 0x1fffffff) - 0x0ffffffc);  // 64 bits: negative below
    const VI near = ((VI)above >= 0) & ((VI)above <= 8);
    return !_mm256_testz_si256((__m256i)near, (__m256i)near);
}
#endif

struct Digits {
    int32_t high[kInputs / 2], low[kInputs / 2];  // of clients 2 p, in the lower half, and 2 p + 1
    int32_t high_start, low_start;                // what the bias of the codes adds, negative
    double unit;
    bool zero;  // one of the products is 0: times a code it may be -0
};

// False where the products of these blocks are no whole numbers of one unit.
static bool digits_of(const Blocks& b, int bits, Digits* d) {
    double most = 0;
    d->zero = false;
    for (int c = 0; c < b.count; ++c) {
        most = b.scale[c] > most ? b.scale[c] : most;
        d->zero |= b.scale[c] == 0;
    }
    if (!b.exact || !(most >= 1e-100 && most <= 1e100)) return false;
    uint64_t exponent;
    __builtin_memcpy(&exponent, &most, sizeof(exponent));
    exponent &= 0x7ff0000000000000u;
    const uint64_t unit = exponent - (uint64_t{29} << 52), up = (uint64_t{2075} << 52) - exponent;
    double factor;
    __builtin_memcpy(&d->unit, &unit, sizeof(unit));
    __builtin_memcpy(&factor, &up, sizeof(up));
    int32_t whole[kInputs];
    VI inexact = {};
    for (int c = 0; c < kInputs; c += kLanes) {
        const V v = load_as<V>(b.scale + c) * factor;
        const ints i = __builtin_convertvector(v, ints);
        inexact |= to_doubles(i) != v;
        store_as(whole + c, i);
    }
    if (any(inexact)) return false;
    const int bias = bits == 8 ? 128 : 8;
    int32_t high = 0, low = 0;
    for (int p = 0; p < kInputs / 2; ++p) {
        const int32_t first = whole[2 * p], second = whole[2 * p + 1];
        d->high[p] = first >> 15 | second >> 15 << 16;
        d->low[p] = (first & 0x7fff) | (second & 0x7fff) << 16;
        high += (first >> 15) + (second >> 15);
        low += (first & 0x7fff) + (second & 0x7fff);
    }
    d->high_start = -bias * high;
    d->low_start = -bias * low;
    return true;
}

// Whether sums are whole numbers of the unit, small enough that adding those of the blocks rounds nothing.
static bool whole(const double* sums, int64_t n, double unit) {
    const double up = 1 / unit, magic = 6755399441055744.0;  // 1.5 * 2^52: what is added to it becomes an integer
    VI fine = ~VI{};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const V sum = load_as<V>(sums + i), v = sum * up;
        fine &= (((v + magic) - magic) * unit == sum) & (v < 0x1p51) & (v > -0x1p51);
    }
    for (; i < n; ++i) {
        const double v = sums[i] * up;
        if (!(((v + magic) - magic) * unit == sums[i] && v < 0x1p51 && v > -0x1p51)) return false;
    }
    return !any(~fine);
}

// Codes of EF_VECTOR_BYTES coordinates plus 128, or 8.
template <int Bits>
EF_INLINE B biased_codes(const uint8_t* p) {
    typedef uint8_t VB __attribute__((vector_size(EF_VECTOR_BYTES)));
    if constexpr (Bits == 8) {
        return (B)((VB)bytes_of(p) ^ 0x80);
    } else {
        typedef uint16_t VW __attribute__((vector_size(EF_VECTOR_BYTES)));
        const VW w = (VW)nibbles_of(p);
        return (B)((w | w << 4) & 0x0f0f);
    }
}

// emit(i, sums) for the exact sums, in units, of coordinates [i, i + 4), [i + 16, i + 20), ... in one vector; returns how many
// coordinates of the n that took in: whole vectors of bytes.
constexpr int64_t kCodesAhead = 1024;  // bytes fetched ahead of each client: the prefetchers lose so many short streams
template <int Bits, class Emit>
EF_INLINE int64_t each_sum(const Blocks& b, const Digits& d, int64_t n, Emit emit) {
    constexpr int kStep = EF_VECTOR_BYTES;
    int64_t i = 0;
    for (; i + kStep <= n; i += kStep) {
        vi32 high[4], low[4];
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
            high[q] = vi32{} + d.high_start;
            low[q] = vi32{} + d.low_start;
        }
        const auto step = [&](int p) __attribute__((always_inline)) {
            const uint8_t* const one = b.codes[2 * p] + i * Bits / 8;
            const uint8_t* const other = b.codes[2 * p + 1] + i * Bits / 8;
            __builtin_prefetch(one + kCodesAhead, 0, 3);
            __builtin_prefetch(other + kCodesAhead, 0, 3);
            const B x = biased_codes<Bits>(one), y = biased_codes<Bits>(other);
            const B h = (B)(vi32{} + d.high[p]), l = (B)(vi32{} + d.low[p]);
            const B both[2] = {low8(x, y), high8(x, y)};
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) {
                const B words = q % 2 ? high8(both[q / 2], B{}) : low8(both[q / 2], B{});
                high[q] += multiply_pairs(words, h);
                low[q] += multiply_pairs(words, l);
            }
        };
        EF_EACH_OF((b.count + 1) / 2, step)
        // Unpacking has put four of every sixteen coordinates into each of the four vectors.
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
            ints parts[2][2];
            __builtin_memcpy(parts[0], &high[q], sizeof(high[q]));
            __builtin_memcpy(parts[1], &low[q], sizeof(low[q]));
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half)
                emit(i + q * 4 + half * (kStep / 2),
                     multiply_add_exact(to_doubles(parts[0][half]), V{} + 32768.0, to_doubles(parts[1][half])));
        }
    }
    return i;
}

// Groups of four lanes to p, p + 16, ...
template <class Group, class Vector, class T, class Store>
EF_INLINE void scatter(Vector v, T* p, Store store) {
#pragma GCC unroll 2
    for (int g = 0; g < kLanes / 4; ++g) {
        Group part;
        __builtin_memcpy(&part, reinterpret_cast<const char*>(&v) + g * sizeof(part), sizeof(part));
        store(p + g * 16, part);
    }
}

template <int Bits>
static int64_t add_digits(const Blocks& b, const Digits& d, int64_t n, bool fresh, double* sums) {
    typedef double four __attribute__((vector_size(32)));
    return each_sum<Bits>(b, d, n, [&](int64_t i, V v) __attribute__((always_inline)) {
        scatter<four>(v * d.unit, sums + i, [&](double* p, four part) __attribute__((always_inline)) {
            store_as(p, fresh ? part : load_as<four>(p) + part);
        });
    });
}

// Their mean: sum / total rounded to binary64, and that to binary32. The product with 1 / total is within two units of
// the last place of the quotient; only where a tie between two binary32 numbers is nearer than that is it divided.
// unit / total is at least 2^-126: no result is subnormal.
template <int Bits>
static int64_t mean_digits(const Blocks& b, const Digits& d, double total, int64_t n, bool streaming, float* out) {
    const double inverse = 1 / total * d.unit;
    return each_sum<Bits>(b, d, n, [&](int64_t i, V v) __attribute__((always_inline)) {
        V q = v * inverse;
        if (__builtin_expect(near_tie((VI)q), false)) q = v * d.unit / total;
        scatter<__m128>(to_floats(q), out + i, [&](float* p, __m128 part) __attribute__((always_inline)) {
            if (streaming) _mm_stream_ps(p, part);
            else _mm_storeu_ps(p, part);
        });
    });
}
#endif

template <int Bits>
static void add_blocks(const Blocks& b, int64_t n, bool fresh, double* sums) {
    int64_t done = 0;
#if defined(EF_TARGET_AVX2)
    // The sums of fewer clients wait for memory either way.
    Digits d;
    if (b.count > 2 && digits_of(b, Bits, &d) && (fresh || (!d.zero && whole(sums, n, d.unit))))
        done = add_digits<Bits>(b, d, n, fresh, sums);
#endif
    if (b.exact) add_run<Bits, true>(b, done, n - done, fresh, sums + done);
    else add_run<Bits, false>(b, done, n - done, fresh, sums + done);
}

// The mean of blocks of n coordinates of float32, as far as it can be had without sums in memory: for how many.
template <int Bits>
static int64_t mean_blocks([[maybe_unused]] const Blocks& b, [[maybe_unused]] double total, [[maybe_unused]] int64_t n,
                           [[maybe_unused]] bool streaming, [[maybe_unused]] float* out) {
#if defined(EF_TARGET_AVX2)
    Digits d;
    if (digits_of(b, Bits, &d) && total >= 1e-100 && d.unit >= 0x1p-126 * total)
        return mean_digits<Bits>(b, d, total, n, streaming, out);
#endif
    return 0;
}

template <class T>
static void add_decoded(const float* x, double w, int64_t n, bool fresh, double* sums) {
    alignas(64) T rounded[kQ];
    write_tile<T>(x, n, rounded);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        V sum = {};
        if (!fresh) sum = load_as<V>(sums + i);
        store_as(sums + i, sum + Element<T>::read(rounded + i) * w);
    }
    for (; i < n; ++i) sums[i] = (fresh ? 0 : sums[i]) + Element<T>::read_one(rounded + i) * w;
}

static void add_tile(const ef::QuantSpec& spec, const ef::QuantInput* in, int64_t clients, ef::DType dtype,
                     int64_t offset, int64_t n, bool fresh, double* sums) {
    if (spec.rotated || dtype == ef::DType::f16 || dtype == ef::DType::bf16) {
        alignas(64) float x[kQ + 64];
        for (int64_t k = 0; k < clients; ++k) {
            decode_tile(spec, in[k], offset, n, x);
#define EF_ADD(T) add_decoded<T>(x, in[k].weight, n, fresh && k == 0, sums)
            EF_FOR_FLOATS(dtype, EF_ADD)
#undef EF_ADD
        }
        return;
    }
    for (int64_t i = 0; i < n; i += spec.block) {
        const int64_t first = offset + i, block = first / spec.block, run = n - i < spec.block ? n - i : spec.block;
        for (int64_t k = 0; k < clients; k += kInputs) {
            const int count = clients - k < kInputs ? static_cast<int>(clients - k) : kInputs;
            const Blocks b = blocks_of(in + k, count, spec.bits, block, first);
            if (spec.bits == 8) add_blocks<8>(b, run, fresh && k == 0, sums + i);
            else add_blocks<4>(b, run, fresh && k == 0, sums + i);
        }
    }
}

template <class T>
static bool finish_tile(const double* sums, double total, int64_t n, T* out, bool large) {
    const bool streaming = kCanStream && large && reinterpret_cast<uintptr_t>(out) % 16 == 0;
    VI bad = {};
    const VI exponent = VI{} + 0x7ff0000000000000ll;
    int64_t i = 0;
    constexpr int kStep = 4 * kLanes;
    for (; i + kStep <= n; i += kStep) {
        T rounded[kStep];
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
            const V sum = load_as<V>(sums + i + v * kLanes);
            bad |= ((VI)sum & exponent) == exponent;
            Element<T>::write(streaming ? rounded + v * kLanes : out + i + v * kLanes, sum / total);
        }
        if (streaming) stream<16>(reinterpret_cast<char*>(out + i), rounded, sizeof(rounded));
    }
    for (; i < n; ++i) {
        if (!(__builtin_fabs(sums[i]) <= 1.7976931348623157e308)) bad[0] = -1;
        Element<T>::write_one(out + i, sums[i] / total);
    }
    return any(bad);
}

// ---- whole tensors -----------------------------------------------------------------------------------------------

// body(offset, n) for tiles of kQ coordinates, several a chunk; `cost` scales the work a coordinate is.
template <class Body>
static void tiles(int64_t n, int64_t cost, int threads, Body& body) {
    struct Job {
        int64_t n;
        Body& body;
    } job = {n, body};
    constexpr int64_t kTiles = 8;
    ef::parallel_for(
        (n + kTiles * kQ - 1) / (kTiles * kQ), ef::threads_for(n * cost, int64_t(1) << 18, threads),
        [](void* context, int64_t chunk) {
            Job& j = *static_cast<Job*>(context);
            const int64_t begin = chunk * kTiles * kQ, end = begin + kTiles * kQ < j.n ? begin + kTiles * kQ : j.n;
            for (int64_t o = begin; o < end; o += kQ) j.body(o, end - o < kQ ? end - o : kQ);
            stream_done();
        },
        &job);
}

struct EncodeBody {
    const ef::QuantSpec& spec;
    bool stochastic;
    uint64_t seed, nonce;
    const void* x;
    ef::DType dtype;
    uint8_t* codes;
    float* scales;
    bool bad;  // set by any thread, read after they were joined
    void operator()(int64_t offset, int64_t n) {
        alignas(64) float work[kQ + 64];
#define EF_READ(T) read_tile<T>(static_cast<const T*>(x) + offset, n, work)
        EF_FOR_FLOATS(dtype, EF_READ)
#undef EF_READ
        if (!encode_tile(spec, stochastic, seed, nonce, offset, n, work, codes, scales))
            __atomic_store_n(&bad, true, __ATOMIC_RELAXED);
    }
};

static bool encode(const ef::QuantSpec& spec, bool stochastic, uint64_t seed, uint64_t nonce, const void* x,
                   ef::DType dtype, int64_t n, uint8_t* codes, float* scales, int threads) noexcept {
    EncodeBody body = {spec, stochastic, seed, nonce, x, dtype, codes, scales, false};
    tiles(n, spec.rotated ? 8 : 2, threads, body);
    return !body.bad;
}

struct DecodeBody {
    const ef::QuantSpec& spec;
    const ef::QuantInput& input;
    ef::DType dtype;
    void* out;
    void operator()(int64_t offset, int64_t n) {
        alignas(64) float work[kQ + 64];
        decode_tile(spec, input, offset, n, work);
#define EF_WRITE(T) write_tile<T>(work, n, static_cast<T*>(out) + offset)
        EF_FOR_FLOATS(dtype, EF_WRITE)
#undef EF_WRITE
    }
};

static void decode(const ef::QuantSpec& spec, const ef::QuantInput& input, ef::DType dtype, int64_t n, void* out,
                   int threads) noexcept {
    DecodeBody body = {spec, input, dtype, out};
    tiles(n, spec.rotated ? 8 : 2, threads, body);
}

struct QuantAddBody {
    const ef::QuantSpec& spec;
    const ef::QuantInput* inputs;
    int64_t clients;
    ef::DType dtype;
    bool fresh;
    double* sums;
    void operator()(int64_t offset, int64_t n) {
        add_tile(spec, inputs, clients, dtype, offset, n, fresh, sums + offset);
    }
};

static void add(const ef::QuantSpec& spec, const ef::QuantInput* inputs, int64_t clients, ef::DType dtype, int64_t n,
                bool fresh, double* sums, int threads) noexcept {
    QuantAddBody body = {spec, inputs, clients, dtype, fresh, sums};
    tiles(n, (spec.rotated ? 8 : 1) * clients + 2, threads, body);
}

struct QuantMeanBody {
    const ef::QuantSpec& spec;
    const ef::QuantInput* inputs;
    int64_t clients;
    double total;
    ef::DType dtype;
    bool large;
    void* out;
    bool bad;  // set by any thread, read after they were joined
    void operator()(int64_t offset, int64_t n) {
        const bool blocks = !spec.rotated && dtype == ef::DType::f32 && clients <= kInputs;
        const bool streaming = kCanStream && large && reinterpret_cast<uintptr_t>(out) % 16 == 0;
        for (int64_t i = 0; i < n;) {
            // The rest of a block of which a part is done, or all.
            const int64_t left = blocks && n - i > spec.block ? spec.block : n - i;
            int64_t done = 0;
            if (blocks) {
                const Blocks b = blocks_of(inputs, static_cast<int>(clients), spec.bits, (offset + i) / spec.block, offset + i);
                float* const to = static_cast<float*>(out) + offset + i;
                done = spec.bits == 8 ? mean_blocks<8>(b, total, left, streaming, to)
                                      : mean_blocks<4>(b, total, left, streaming, to);
            }
            if (done < left) {
                alignas(64) double sums[kQ];
                add_tile(spec, inputs, clients, dtype, offset + i + done, left - done, true, sums);
                bool found = false;
#define EF_FINISH(T) found = finish_tile<T>(sums, total, left - done, static_cast<T*>(out) + offset + i + done, large)
                EF_FOR_FLOATS(dtype, EF_FINISH)
#undef EF_FINISH
                if (found) __atomic_store_n(&bad, true, __ATOMIC_RELAXED);
            }
            i += left;
        }
    }
};

static bool mean(const ef::QuantSpec& spec, const ef::QuantInput* inputs, int64_t clients, double total,
                 ef::DType dtype, int64_t n, void* out, int threads) noexcept {
    QuantMeanBody body = {spec, inputs, clients, total, dtype, n >= (int64_t{1} << 20), out, false};
    tiles(n, (spec.rotated ? 8 : 1) * clients + 2, threads, body);
    return body.bad;
}

#undef EF_FOR_FLOATS

}  // namespace quantize

static const ef::QuantKernels kQuant = {quantize::encode, quantize::decode, quantize::add, quantize::mean};
static const ef::QuantKernels* const kQuantTable = &kQuant;

}  // namespace EF_ISA
}  // namespace ef
