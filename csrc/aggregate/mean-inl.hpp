// Body of aggregate/mean.hpp; see there for numerics.
namespace ef {
namespace EF_ISA {
namespace mean {

#include "common/simd-inl.hpp"
#include "common/lanes-inl.hpp"

typedef vf64 V;
typedef int64_t VI __attribute__((vector_size(EF_VECTOR_BYTES)));
constexpr int kLanes = kLanesF64;

// ---- one dtype at a time: kLanes elements to and from binary64 ---------------------------------------------------

struct Half {
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
    typedef float small __attribute__((vector_size(sizeof(float) * kLanes)));
    // Intrinsics where GCC 12 would split the conversion into halves and put them together again.
    EF_INLINE V read(const float* p) {
#if defined(EF_TARGET_AVX512)
        return (V)_mm512_cvtps_pd((__m256)load_as<small>(p));
#elif defined(EF_TARGET_AVX2)
        return (V)_mm256_cvtps_pd((__m128)load_as<small>(p));
#else
        return __builtin_convertvector(load_as<small>(p), V);
#endif
    }
    EF_INLINE double read_one(const float* p) {
        float v;
        __builtin_memcpy(&v, p, sizeof(v));
        return static_cast<double>(v);
    }
    EF_INLINE void write_one(float* p, double mean) {
        const float v = static_cast<float>(mean);
        __builtin_memcpy(p, &v, sizeof(v));
    }
    EF_INLINE void write(float* p, V mean) {
#if defined(EF_TARGET_AVX512)
        store_as(p, (small)_mm512_cvtpd_ps((__m512d)mean));
#elif defined(EF_TARGET_AVX2)
        store_as(p, (small)_mm256_cvtpd_ps((__m256d)mean));
#else
        store_as(p, __builtin_convertvector(mean, small));
#endif
    }
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
    typedef float floats __attribute__((vector_size(4 * kLanes)));
    typedef int32_t ints __attribute__((vector_size(4 * kLanes)));
    EF_INLINE V read(const Half* p) {
#if defined(EF_TARGET_AVX512)
        return (V)_mm512_cvtps_pd(_mm256_cvtph_ps(load_as<__m128i>(p)));
#else
        return (V)_mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i_u*>(p))));
#endif
    }
    EF_INLINE void write(Half* p, V mean) {
        // Through float32 rounded to odd: rounding that to float16 gives what rounding the binary64 would.
        floats f = __builtin_convertvector(mean, floats);
        const V back = __builtin_convertvector(f, V);
        const vu64 magnitude = vu64{} + 0x7fffffffffffffffull;
        const VI inexact = (back != mean) & (mean == mean);
        const VI above = inexact & ((V)((vu64)back & magnitude) > (V)((vu64)mean & magnitude));
        ints bits = (ints)f + __builtin_convertvector(above, ints);  // a true lane is -1
        bits |= __builtin_convertvector(inexact, ints) & 1;
        f = (floats)bits;
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

// Lanes whose exponent is all ones (NaN or infinity) as all-ones masks.
EF_INLINE VI not_finite(V v) {
    const VI exponent = VI{} + 0x7ff0000000000000ll;
    return ((VI)v & exponent) == exponent;
}
EF_INLINE bool any(VI mask) {
    int64_t all = 0;
    for (int i = 0; i < kLanes; ++i) all |= mask[i];
    return all != 0;
}
EF_INLINE bool not_finite_one(double v) { return !(__builtin_fabs(v) <= 1.7976931348623157e308); }

// ---- tiles -----------------------------------------------------------------------------------------------------

constexpr int kBlock = 16;  // clients read side by side: as many streams as the prefetchers follow
constexpr int64_t kTile = 4096;
constexpr int64_t kAhead = 1024;  // bytes fetched ahead of each stream

// sums[0, n) (or 0 when first) + w_c x_c over `count` clients; into sums, or divided and rounded into out when last.
template <class T>
static VI block(const T* const* x, const double* w, int count, int64_t n, double* sums, bool first, bool last,
                double total, T* out) {
    VI bad = {};
    int64_t i = 0;
    // Four registers at a time hide the latency of the chain of additions.
    constexpr int kStep = 4 * kLanes;
    for (; i + kStep <= n; i += kStep) {
        V sum[4] = {};
        if (!first)
            for (int v = 0; v < 4; ++v) sum[v] = load_as<V>(sums + i + v * kLanes);
        for (int c = 0; c < count; ++c) {
            const T* p = x[c] + i;
            const V weight = V{} + w[c];
            // Into the second level: large arrays lie a multiple of the page size apart, and their lines would evict
            // each other from the first before they are used.
            __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead, 0, 2);
            __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead + 64, 0, 2);
            for (int v = 0; v < 4; ++v) sum[v] += Element<T>::read(p + v * kLanes) * weight;
        }
        for (int v = 0; v < 4; ++v) {
            if (last) {
                bad |= not_finite(sum[v]);
                Element<T>::write(out + i + v * kLanes, sum[v] / total);
            } else {
                store_as(sums + i + v * kLanes, sum[v]);
            }
        }
    }
    for (; i < n; ++i) {
        double a = first ? 0.0 : sums[i];
        for (int c = 0; c < count; ++c) a += Element<T>::read_one(x[c] + i) * w[c];
        if (last) {
            if (not_finite_one(a)) bad[0] = -1;
            Element<T>::write_one(out + i, a / total);
        } else {
            sums[i] = a;
        }
    }
    return bad;
}

template <class T>
static bool mean_tile(const void* const* inputs, const double* weights, int64_t clients, int64_t stride, double total,
                      int64_t offset, int64_t n, void* output) {
    double sums[kTile];
    T* out = static_cast<T*>(output) + offset;
    VI bad = {};
    for (int64_t k = 0; k < clients; k += kBlock) {
        const int count = clients - k < kBlock ? static_cast<int>(clients - k) : kBlock;
        const T* x[kBlock];
        for (int c = 0; c < count; ++c) x[c] = static_cast<const T*>(inputs[(k + c) * stride]) + offset;
        bad |= block<T>(x, weights + k, count, n, sums, k == 0, k + count == clients, total, out);
    }
    return any(bad);
}

template <class T>
static void add_tile(const void* input, double weight, int64_t offset, int64_t n, double* sums) {
    const T* x = static_cast<const T*>(input) + offset;
    sums += offset;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store_as(sums + i, load_as<V>(sums + i) + Element<T>::read(x + i) * weight);
    for (; i < n; ++i) sums[i] += Element<T>::read_one(x + i) * weight;
}

template <class T>
static void finish_tile(const double* sums, double total, int64_t offset, int64_t n, void* output) {
    T* out = static_cast<T*>(output) + offset;
    sums += offset;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) Element<T>::write(out + i, load_as<V>(sums + i) / total);
    for (; i < n; ++i) Element<T>::write_one(out + i, sums[i] / total);
}

template <class T>
static bool finite_tile(const void* input, int64_t offset, int64_t n) {
    const T* x = static_cast<const T*>(input) + offset;
    VI bad = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) bad |= not_finite(Element<T>::read(x + i));
    for (; i < n; ++i)
        if (not_finite_one(Element<T>::read_one(x + i))) return false;
    return !any(bad);
}

#define EF_FOR_DTYPE(dtype, CALL)              \
    switch (dtype) {                           \
        case ef::DType::f16: CALL(Half); break;     \
        case ef::DType::f32: CALL(float); break;    \
        case ef::DType::f64: CALL(double); break;   \
        case ef::DType::i8: CALL(int8_t); break;    \
        case ef::DType::i16: CALL(int16_t); break;  \
        case ef::DType::i32: CALL(int32_t); break;  \
        case ef::DType::i64: CALL(int64_t); break;  \
        case ef::DType::u8: CALL(uint8_t); break;   \
        case ef::DType::u16: CALL(uint16_t); break; \
        case ef::DType::u32: CALL(uint32_t); break; \
        case ef::DType::u64: CALL(uint64_t); break; \
        case ef::DType::boolean: CALL(Bool); break; \
    }

// ---- walking a model -------------------------------------------------------------------------------------------

// Coordinates of all tensors, laid end to end, in chunks; body(tensor, offset, n) gets runs of at most kTile.
constexpr int64_t kChunk = 1 << 16;

template <class Body>
static void walk(const ef::TensorSpec* specs, int64_t tensors, int64_t clients, int threads, Body& body) {
    int64_t total = 0;
    for (int64_t t = 0; t < tensors; ++t) total += specs[t].size;
    struct Job {
        const ef::TensorSpec* specs;
        int64_t tensors;
        Body& body;
    } job = {specs, tensors, body};
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
                for (int64_t o = begin; o < begin + n; o += kTile)
                    j.body(t, o, begin + n - o < kTile ? begin + n - o : kTile);
            }
        },
        &job);
}

struct MeanBody {
    const void* const* inputs;
    const double* weights;
    int64_t clients;
    double total;
    const ef::TensorSpec* specs;
    int64_t tensors;
    void* const* outputs;
    bool bad;  // set by any thread, read after they were joined
    void operator()(int64_t t, int64_t offset, int64_t n) {
        bool found = false;
#define EF_CALL(T) found = mean_tile<T>(inputs + t, weights, clients, tensors, total, offset, n, outputs[t])
        EF_FOR_DTYPE(specs[t].dtype, EF_CALL)
#undef EF_CALL
        if (found) __atomic_store_n(&bad, true, __ATOMIC_RELAXED);
    }
};

static bool mean(const void* const* inputs, const double* weights, int64_t clients, double total,
                 const ef::TensorSpec* specs, int64_t tensors, void* const* outputs, int threads) noexcept {
    MeanBody body = {inputs, weights, clients, total, specs, tensors, outputs, false};
    walk(specs, tensors, clients, threads, body);
    return body.bad;
}

struct AddBody {
    const void* const* inputs;
    double weight;
    const ef::TensorSpec* specs;
    double* const* sums;
    void operator()(int64_t t, int64_t offset, int64_t n) {
#define EF_CALL(T) add_tile<T>(inputs[t], weight, offset, n, sums[t])
        EF_FOR_DTYPE(specs[t].dtype, EF_CALL)
#undef EF_CALL
    }
};

static void add(const void* const* inputs, double weight, const ef::TensorSpec* specs, int64_t tensors,
                double* const* sums, int threads) noexcept {
    AddBody body = {inputs, weight, specs, sums};
    walk(specs, tensors, 4, threads, body);
}

struct FinishBody {
    const double* const* sums;
    double total;
    const ef::TensorSpec* specs;
    void* const* outputs;
    void operator()(int64_t t, int64_t offset, int64_t n) {
#define EF_CALL(T) finish_tile<T>(sums[t], total, offset, n, outputs[t])
        EF_FOR_DTYPE(specs[t].dtype, EF_CALL)
#undef EF_CALL
    }
};

static void finish(const double* const* sums, double total, const ef::TensorSpec* specs, int64_t tensors,
                   void* const* outputs, int threads) noexcept {
    FinishBody body = {sums, total, specs, outputs};
    walk(specs, tensors, 2, threads, body);
}

struct FiniteBody {
    const void* const* inputs;
    const ef::TensorSpec* specs;
    bool bad;  // set by any thread, read after they were joined
    void operator()(int64_t t, int64_t offset, int64_t n) {
        bool fine = true;
        switch (specs[t].dtype) {
            case ef::DType::f16: fine = finite_tile<Half>(inputs[t], offset, n); break;
            case ef::DType::f32: fine = finite_tile<float>(inputs[t], offset, n); break;
            case ef::DType::f64: fine = finite_tile<double>(inputs[t], offset, n); break;
            default: break;
        }
        if (!fine) __atomic_store_n(&bad, true, __ATOMIC_RELAXED);
    }
};

static bool all_finite(const void* const* inputs, const ef::TensorSpec* specs, int64_t tensors, int threads) noexcept {
    FiniteBody body = {inputs, specs, false};
    walk(specs, tensors, 1, threads, body);
    return !body.bad;
}

#undef EF_FOR_DTYPE

}  // namespace mean

static const ef::MeanKernels kMean = {mean::mean, mean::add, mean::finish, mean::all_finite};
static const ef::MeanKernels* const kMeanTable = &kMean;

}  // namespace EF_ISA
}  // namespace ef
