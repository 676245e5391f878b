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

// sums += w_c code scale_c for `count` <= 16 inputs, all inside one block. Exact: w * scale and its product with a code are
// exact in binary64, so that one fused multiply-add rounds as the product and the sum of mean.hpp do.
constexpr int kInputs = 16;
template <int Bits, bool Exact>
static void add_run(const ef::QuantInput* in, int count, int64_t block, int64_t at, int64_t n, bool fresh, double* sums) {
    const uint8_t* codes[kInputs];
    double scale[kInputs], weight[kInputs];
    for (int c = 0; c < count; ++c) {
        codes[c] = in[c].codes + at * Bits / 8;
        scale[c] = static_cast<double>(scale_of(in[c].scales, block));
        weight[c] = in[c].weight;
        if (Exact) scale[c] *= weight[c];
    }
    constexpr int kStep = 4 * kLanes;
    int64_t i = 0;
    for (; i + kStep <= n; i += kStep) {
        V sum[4] = {};
        if (!fresh) {
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) sum[v] = load_as<V>(sums + i + v * kLanes);
        }
        const auto step = [&](int c) __attribute__((always_inline)) {
            const uint8_t* p = codes[c] + i * Bits / 8;
            const V s = V{} + scale[c], w = V{} + weight[c];
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) {
                const V code = read_codes<Bits>(p + v * kLanes * Bits / 8);
                if (Exact) sum[v] = multiply_add_exact(code, s, sum[v]);
                else sum[v] += code * s * w;
            }
        };
        EF_EACH_OF(count, step)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) store_as(sums + i + v * kLanes, sum[v]);
    }
    for (; i < n; ++i) {
        double sum = fresh ? 0 : sums[i];
        for (int c = 0; c < count; ++c) {
            const double product = one_code<Bits>(codes[c], i) * scale[c];
            sum += Exact ? product : product * weight[c];
        }
        sums[i] = sum;
    }
}

// w has at most 29 significant bits, and w * scale does not overflow: with 16 bits of scale and 7 of code, all is exact.
static bool exact_products(const ef::QuantInput* in, int count, int64_t block) {
    bool exact = true;
    for (int c = 0; c < count; ++c) {
        uint64_t bits;
        __builtin_memcpy(&bits, &in[c].weight, sizeof(bits));
        exact &= (bits & 0xffffff) == 0;
        exact &= in[c].weight * static_cast<double>(scale_of(in[c].scales, block)) <= 1.7976931348623157e308;
    }
    return exact;
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
            const bool exact = exact_products(in + k, count, block), start = fresh && k == 0;
            if (spec.bits == 8 && exact) add_run<8, true>(in + k, count, block, first, run, start, sums + i);
            else if (spec.bits == 8) add_run<8, false>(in + k, count, block, first, run, start, sums + i);
            else if (exact) add_run<4, true>(in + k, count, block, first, run, start, sums + i);
            else add_run<4, false>(in + k, count, block, first, run, start, sums + i);
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
        alignas(64) double sums[kQ];
        add_tile(spec, inputs, clients, dtype, offset, n, true, sums);
        bool found = false;
#define EF_FINISH(T) found = finish_tile<T>(sums, total, n, static_cast<T*>(out) + offset, large)
        EF_FOR_FLOATS(dtype, EF_FINISH)
#undef EF_FINISH
        if (found) __atomic_store_n(&bad, true, __ATOMIC_RELAXED);
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
