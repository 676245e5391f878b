// Elements of every dtype to and from binary64, and the walk over the coordinates of a model. Included inside a body's
// namespace; no include guard on purpose. The body includes common/half.hpp, common/parallel.hpp, aggregate/mean.hpp.

#include "common/simd-inl.hpp"
#include "common/lanes-inl.hpp"

typedef vf64 V;
typedef int64_t VI __attribute__((vector_size(EF_VECTOR_BYTES)));
constexpr int kLanes = kLanesF64;

// ---- one dtype at a time: kLanes elements to and from binary64 ---------------------------------------------------

struct Half {
    uint16_t bits;
};
struct Brain {  // bfloat16
    uint16_t bits;
};
struct Bool {
    uint8_t byte;
};

// Integers; floats, halves and bools below.
template <class T>
struct Element {
    typedef T small __attribute__((vector_size(sizeof(T) * kLanes)));
    EF_INLINE V read(const T* p) { return __builtin_convertvector(load_as<small>(p), V); }
    EF_INLINE double read_one(const T* p) {
        T v;
        __builtin_memcpy(&v, p, sizeof(T));
        return static_cast<double>(v);
    }
    EF_INLINE void write_one(T* p, double mean) {
        const T v = static_cast<T>(__builtin_rint(mean));
        __builtin_memcpy(p, &v, sizeof(T));
    }
    EF_INLINE void write(T* p, V mean) {
        for (int i = 0; i < kLanes; ++i) write_one(p + i, mean[i]);
    }
};

template <>
struct Element<double> {
    EF_INLINE V read(const double* p) { return load_as<V>(p); }
    EF_INLINE double read_one(const double* p) {
        double v;
        __builtin_memcpy(&v, p, sizeof(v));
        return v;
    }
    EF_INLINE void write_one(double* p, double mean) { __builtin_memcpy(p, &mean, sizeof(mean)); }
    EF_INLINE void write(double* p, V mean) { store_as(p, mean); }
};

template <>
struct Element<float> {
    EF_INLINE V read(const float* p) { return to_doubles(load_as<vf32_half>(p)); }
    EF_INLINE double read_one(const float* p) {
        float v;
        __builtin_memcpy(&v, p, sizeof(v));
        return static_cast<double>(v);
    }
    EF_INLINE void write_one(float* p, double mean) {
        const float v = static_cast<float>(mean);
        __builtin_memcpy(p, &v, sizeof(v));
    }
    EF_INLINE void write(float* p, V mean) { store_as(p, to_floats(mean)); }
};

template <>
struct Element<Bool> {
    EF_INLINE V read(const Bool* p) {
        return Element<uint8_t>::read(reinterpret_cast<const uint8_t*>(p));
    }
    EF_INLINE double read_one(const Bool* p) { return p->byte; }
    EF_INLINE void write_one(Bool* p, double mean) { p->byte = mean > 0.5; }
    EF_INLINE void write(Bool* p, V mean) {
        for (int i = 0; i < kLanes; ++i) write_one(p + i, mean[i]);
    }
};

// The V narrowed to float32 rounded to odd: rounding that once more, to a type of at most 22 significant bits, gives
// what rounding the binary64 would.
typedef float floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t ints __attribute__((vector_size(4 * kLanes)));
EF_INLINE ints odd_floats(V v) {
    const floats f = __builtin_convertvector(v, floats);
    const V back = __builtin_convertvector(f, V);
    const vu64 magnitude = vu64{} + 0x7fffffffffffffffull;
    const VI inexact = (back != v) & (v == v);
    const VI above = inexact & ((V)((vu64)back & magnitude) > (V)((vu64)v & magnitude));
    const ints bits = (ints)f + __builtin_convertvector(above, ints);  // a true lane is -1
    return bits | (__builtin_convertvector(inexact, ints) & 1);
}

template <>
struct Element<Brain> {
    typedef uint16_t small __attribute__((vector_size(2 * kLanes)));
    EF_INLINE double read_one(const Brain* p) {
        uint16_t b;
        __builtin_memcpy(&b, p, sizeof(b));
        return ef::brain_to_double(b);
    }
    EF_INLINE void write_one(Brain* p, double mean) {
        const uint16_t b = ef::double_to_brain(mean);
        __builtin_memcpy(p, &b, sizeof(b));
    }
    EF_INLINE V read(const Brain* p) {
        const ints wide = __builtin_convertvector(load_as<small>(p), ints) << 16;
        return __builtin_convertvector((floats)wide, V);
    }
    EF_INLINE void write(Brain* p, V mean) {
        const ints bits = odd_floats(mean);
        const ints nan = (bits & 0x7fffffff) > 0x7f800000;
        const ints rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        const ints quiet = ((bits >> 16) & 0x8000) | 0x7fc0;
        store_as(p, __builtin_convertvector((nan & quiet) | (~nan & rounded), small));
    }
};

template <>
struct Element<Half> {
    EF_INLINE double read_one(const Half* p) {
        uint16_t h;
        __builtin_memcpy(&h, p, sizeof(h));
        return ef::half_to_double(h);
    }
    EF_INLINE void write_one(Half* p, double mean) {
        const uint16_t h = ef::double_to_half(mean);
        __builtin_memcpy(p, &h, sizeof(h));
    }
#if defined(EF_TARGET_AVX2)
    EF_INLINE V read(const Half* p) {
#if defined(EF_TARGET_AVX512)
        return (V)_mm512_cvtps_pd(_mm256_cvtph_ps(load_as<__m128i>(p)));
#else
        return (V)_mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i_u*>(p))));
#endif
    }
    EF_INLINE void write(Half* p, V mean) {
        const floats f = (floats)odd_floats(mean);
#if defined(EF_TARGET_AVX512)
        store_as(p, _mm256_cvtps_ph((__m256)f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
        const __m128i half = _mm_cvtps_ph((__m128)f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm_storel_epi64(reinterpret_cast<__m128i_u*>(p), half);
#endif
    }
#else
    EF_INLINE V read(const Half* p) {
        V v = {};
        for (int i = 0; i < kLanes; ++i) v[i] = read_one(p + i);
        return v;
    }
    EF_INLINE void write(Half* p, V mean) {
        for (int i = 0; i < kLanes; ++i) write_one(p + i, mean[i]);
    }
#endif
};

// kLanesF32 elements of a type that binary32 holds; integers of at most 16 bits here, the others below.
template <class T>
struct SingleRead {
    typedef T small __attribute__((vector_size(sizeof(T) * kLanesF32)));
    EF_INLINE vf32 read(const T* p) { return __builtin_convertvector(load_as<small>(p), vf32); }
};
template <>
struct SingleRead<float> {
    EF_INLINE vf32 read(const float* p) { return load_as<vf32>(p); }
};
template <>
struct SingleRead<Bool> {
    EF_INLINE vf32 read(const Bool* p) { return SingleRead<uint8_t>::read(reinterpret_cast<const uint8_t*>(p)); }
};
template <>
struct SingleRead<Brain> {
    typedef uint16_t small __attribute__((vector_size(2 * kLanesF32)));
    EF_INLINE vf32 read(const Brain* p) { return (vf32)(__builtin_convertvector(load_as<small>(p), vi32) << 16); }
};
template <>
struct SingleRead<Half> {
    EF_INLINE vf32 read(const Half* p) {
#if defined(EF_TARGET_AVX512)
        return (vf32)_mm512_cvtph_ps(load_as<__m256i>(p));
#elif defined(EF_TARGET_AVX2)
        return (vf32)_mm256_cvtph_ps(load_as<__m128i>(p));
#else
        vf32 v = {};
        for (int i = 0; i < kLanesF32; ++i) v[i] = static_cast<float>(Element<Half>::read_one(p + i));
        return v;
#endif
    }
};

// STEP(c) for c = 0 ... count - 1, count <= 16, each from code of its own: prefetchers that watch the address of a load
// instruction then see one stream each. A loop over the clients shows them one instruction that jumps about, and costs
// half of Zen 5's bandwidth. Sixteen times the code: not where arithmetic is slower than memory, as sums in binary64 are
// without wide vectors.
#if defined(EF_TARGET_AVX2) || defined(EF_TARGET_NEON)
constexpr bool kSeparate = true;
#else
constexpr bool kSeparate = false;
#endif
#ifndef EF_EACH_OF
#define EF_EACH_OF(count, STEP)                                                                               \
    switch (count) {                                                                                          \
        case 16: STEP(count - 16); [[fallthrough]];                                                           \
        case 15: STEP(count - 15); [[fallthrough]];                                                           \
        case 14: STEP(count - 14); [[fallthrough]];                                                           \
        case 13: STEP(count - 13); [[fallthrough]];                                                           \
        case 12: STEP(count - 12); [[fallthrough]];                                                           \
        case 11: STEP(count - 11); [[fallthrough]];                                                           \
        case 10: STEP(count - 10); [[fallthrough]];                                                           \
        case 9: STEP(count - 9); [[fallthrough]];                                                             \
        case 8: STEP(count - 8); [[fallthrough]];                                                             \
        case 7: STEP(count - 7); [[fallthrough]];                                                             \
        case 6: STEP(count - 6); [[fallthrough]];                                                             \
        case 5: STEP(count - 5); [[fallthrough]];                                                             \
        case 4: STEP(count - 4); [[fallthrough]];                                                             \
        case 3: STEP(count - 3); [[fallthrough]];                                                             \
        case 2: STEP(count - 2); [[fallthrough]];                                                             \
        default: STEP(count - 1);                                                                             \
    }
#endif

template <class Mask>
EF_INLINE bool any(Mask mask) {
    VI lanes;
    __builtin_memcpy(&lanes, &mask, sizeof(lanes));
    int64_t all = 0;
    for (int i = 0; i < kLanes; ++i) all |= lanes[i];
    return all != 0;
}

// Past the caches, for outputs that do not fit them: no line is read only to be overwritten. p is aligned to Piece bytes.
#if defined(EF_TARGET_AVX2)
constexpr bool kCanStream = true;
template <int Piece>
EF_INLINE void stream(char* p, const void* from, int bytes) {
    const char* const source = static_cast<const char*>(from);
#pragma GCC unroll 8
    for (int b = 0; b < bytes; b += Piece) {
#if defined(EF_TARGET_AVX512)
        if constexpr (Piece == 64) _mm512_stream_si512(reinterpret_cast<__m512i*>(p + b), load_as<__m512i>(source + b));
#endif
        if constexpr (Piece == 32) _mm256_stream_si256(reinterpret_cast<__m256i*>(p + b), load_as<__m256i>(source + b));
        if constexpr (Piece == 16) _mm_stream_si128(reinterpret_cast<__m128i*>(p + b), load_as<__m128i>(source + b));
    }
}
EF_INLINE void stream_done() { _mm_sfence(); }
#else
constexpr bool kCanStream = false;
template <int Piece>
EF_INLINE void stream(char*, const void*, int) {}
EF_INLINE void stream_done() {}
#endif

// Fetching by hand. Intel's prefetchers let go of streams that lie a multiple of the page size apart: far ahead, into the
// second level, because such lines would evict each other from the first. Zen 5's follow 16 streams, and lose an eighth
// of the bandwidth to that; a touch of the next step is enough there.
constexpr int64_t kAhead = 1024;  // bytes, of each stream
constexpr bool kTouchNext = kCanStream;
// For steps of kBytes, of which p is one: far ahead, or the next one.
template <int kBytes>
EF_INLINE void fetch_step(const void* p, bool ahead) {
    const char* const at = static_cast<const char*>(p);
    if (ahead) {
#pragma GCC unroll 4
        for (int b = 0; b < kBytes; b += 64) __builtin_prefetch(at + kAhead + b, 0, 2);
    } else if (kTouchNext) {
#pragma GCC unroll 4
        for (int b = 0; b < kBytes; b += 64) __builtin_prefetch(at + kBytes + b, 0, 3);
    }
}

template <class T>
constexpr ef::DType dtype_of();
template <> constexpr ef::DType dtype_of<Half>() { return ef::DType::f16; }
template <> constexpr ef::DType dtype_of<Brain>() { return ef::DType::bf16; }
template <> constexpr ef::DType dtype_of<float>() { return ef::DType::f32; }
template <> constexpr ef::DType dtype_of<double>() { return ef::DType::f64; }
template <> constexpr ef::DType dtype_of<int8_t>() { return ef::DType::i8; }
template <> constexpr ef::DType dtype_of<int16_t>() { return ef::DType::i16; }
template <> constexpr ef::DType dtype_of<int32_t>() { return ef::DType::i32; }
template <> constexpr ef::DType dtype_of<int64_t>() { return ef::DType::i64; }
template <> constexpr ef::DType dtype_of<uint8_t>() { return ef::DType::u8; }
template <> constexpr ef::DType dtype_of<uint16_t>() { return ef::DType::u16; }
template <> constexpr ef::DType dtype_of<uint32_t>() { return ef::DType::u32; }
template <> constexpr ef::DType dtype_of<uint64_t>() { return ef::DType::u64; }
template <> constexpr ef::DType dtype_of<Bool>() { return ef::DType::boolean; }

constexpr bool is_floating(ef::DType d) {
    return d == ef::DType::f16 || d == ef::DType::bf16 || d == ef::DType::f32 || d == ef::DType::f64;
}

// The larger lane by lane; the second where one is NaN, as x86's instruction has it.
EF_INLINE V maximum(V a, V b) {
#if defined(EF_TARGET_AVX512)
    return (V)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(EF_TARGET_AVX2)
    return (V)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
    return a > b ? a : b;
#endif
}

// EF_FOR_DTYPE(dtype, CALL) runs CALL(T) with the element type of a dtype; EF_FOR_SUMS runs SINGLE(T) in its place where
// `single` holds and binary32 holds the dtype. Defined once, for every level.
#ifndef EF_FOR_DTYPE
#define EF_FOR_NARROW(dtype, CALL)                     \
    switch (dtype) {                                   \
        case ef::DType::f16: CALL(Half); break;        \
        case ef::DType::bf16: CALL(Brain); break;      \
        case ef::DType::f32: CALL(float); break;       \
        case ef::DType::i8: CALL(int8_t); break;       \
        case ef::DType::i16: CALL(int16_t); break;     \
        case ef::DType::u8: CALL(uint8_t); break;      \
        case ef::DType::u16: CALL(uint16_t); break;    \
        case ef::DType::boolean: CALL(Bool); break;    \
        default: break;                                \
    }
#define EF_FOR_DTYPE(dtype, CALL)                      \
    switch (dtype) {                                   \
        case ef::DType::f64: CALL(double); break;      \
        case ef::DType::i32: CALL(int32_t); break;     \
        case ef::DType::i64: CALL(int64_t); break;     \
        case ef::DType::u32: CALL(uint32_t); break;    \
        case ef::DType::u64: CALL(uint64_t); break;    \
        default: EF_FOR_NARROW(dtype, CALL); break;    \
    }
#define EF_FOR_SUMS(dtype, single, WIDE, SINGLE)       \
    if ((single) && ef::holds_single(dtype)) {         \
        EF_FOR_NARROW(dtype, SINGLE)                   \
    } else {                                           \
        EF_FOR_DTYPE(dtype, WIDE)                      \
    }
#endif

// ---- walking a model -------------------------------------------------------------------------------------------

// Coordinates of all tensors, laid end to end, in chunks; body(tensor, offset, n) gets runs of at most `tile`.
constexpr int64_t kChunk = 1 << 16;
constexpr int64_t kTile = 4096;

template <class Body>
static void walk(const ef::TensorSpec* specs, int64_t tensors, int64_t clients, int threads, Body& body,
                 int64_t tile = kTile) {
    int64_t total = 0;
    for (int64_t t = 0; t < tensors; ++t) total += specs[t].size;
    struct Job {
        const ef::TensorSpec* specs;
        int64_t tensors;
        Body& body;
        int64_t tile;
    } job = {specs, tensors, body, tile};
    const int useful = ef::threads_for(total * clients, int64_t(1) << 18, threads);
    ef::parallel_for(
        (total + kChunk - 1) / kChunk, useful,
        [](void* context, int64_t chunk) {
            Job& j = *static_cast<Job*>(context);
            int64_t begin = chunk * kChunk, left = kChunk;
            int64_t t = 0;
            while (t < j.tensors && begin >= j.specs[t].size) begin -= j.specs[t++].size;
            for (; t < j.tensors && left > 0; ++t, begin = 0) {
                int64_t n = j.specs[t].size - begin;
                if (n > left) n = left;
                left -= n;
                for (int64_t o = begin; o < begin + n; o += j.tile)
                    j.body(t, o, begin + n - o < j.tile ? begin + n - o : j.tile);
            }
            stream_done();
        },
        &job);
}
