// Body of aggregate/mean.hpp; see there for numerics.
namespace ef {
namespace EF_ISA {
namespace mean {

#include "aggregate/element-inl.hpp"

// ---- the two kinds of sums -------------------------------------------------------------------------------------

template <class T>
struct Wide : Element<T> {
    typedef double Sum;
    typedef V Vec;
    typedef VI Mask;
    static constexpr int lanes = kLanes;
    // Lanes whose exponent is all ones (NaN or infinity) as all-ones masks.
    EF_INLINE VI not_finite(V v) {
        const VI exponent = VI{} + 0x7ff0000000000000ll;
        return ((VI)v & exponent) == exponent;
    }
    EF_INLINE bool not_finite_one(double v) { return !(__builtin_fabs(v) <= 1.7976931348623157e308); }
};

template <class T>
struct Single : SingleRead<T> {
    typedef float Sum;
    typedef vf32 Vec;
    typedef vi32 Mask;
    static constexpr int lanes = kLanesF32;
    EF_INLINE float read_one(const T* p) { return static_cast<float>(Element<T>::read_one(p)); }
    EF_INLINE void write_one(T* p, float mean) { Element<T>::write_one(p, static_cast<double>(mean)); }
    EF_INLINE void write(T* p, vf32 mean) {
        vf32_half part;
        for (int half = 0; half < 2; ++half) {
            __builtin_memcpy(&part, reinterpret_cast<const char*>(&mean) + half * sizeof(part), sizeof(part));
            Element<T>::write(p + half * kLanes, __builtin_convertvector(part, V));
        }
    }
    EF_INLINE vi32 not_finite(vf32 v) {
        const vi32 exponent = vi32{} + 0x7f800000;
        return ((vi32)v & exponent) == exponent;
    }
    EF_INLINE bool not_finite_one(float v) { return !(__builtin_fabsf(v) <= 3.402823466e38f); }
};

// ---- tiles -----------------------------------------------------------------------------------------------------

constexpr int kBlock = 16;  // clients read side by side: as many streams as the prefetchers follow
constexpr int64_t kStreamBytes = int64_t(4) << 20;  // outputs from here on go past the caches

// Bytes of every client at a time. Zen 5 reads 43 GB/s with 256, 38 with 128, 36 with 1024; AVX2 has registers for 128.
constexpr int kStepBytes = EF_VECTOR_BYTES == 64 ? 256 : 128;

// As block, for coordinates [i, n) in steps of kVectors vectors; returns where the last step ended.
template <class R, bool First, bool Last, int kVectors, class T>
EF_INLINE int64_t steps(const T* const* x, const double* w, int count, int64_t i, int64_t n, typename R::Sum* sums,
                        double total, T* out, bool streaming, bool ahead, typename R::Mask* bad) {
    typedef typename R::Vec Vec;
    typedef typename R::Sum Sum;
    constexpr int kStep = kVectors * R::lanes, kBytes = kStep * static_cast<int>(sizeof(T));
    const Sum divisor = static_cast<Sum>(total);
    for (; i + kStep <= n; i += kStep) {
        // Without unrolling the sums would be memory.
        Vec sum[kVectors] = {};
        if (!First) {
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sum[v] = load_as<Vec>(sums + i + v * R::lanes);
        }
        const auto step = [&](int c) __attribute__((always_inline)) {
            const T* p = x[c] + i;
            const Vec weight = broadcast<Vec>(static_cast<Sum>(w[c]));
            if (kVectors > 1) fetch_step<kBytes>(p, ahead);
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sum[v] += R::read(p + v * R::lanes) * weight;
        };
        if constexpr ((kSeparate || (sizeof(Sum) == 4 && sizeof(T) == 4)) && kVectors > 1 && is_floating(dtype_of<T>())) {
            EF_EACH_OF(count, step)
        } else {
            for (int c = 0; c < count; ++c) step(c);
        }
        if (!Last) {
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) store_as(sums + i + v * R::lanes, sum[v]);
            continue;
        }
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
            *bad |= R::not_finite(sum[v]);
            sum[v] /= divisor;
        }
        if (kVectors > 1 && streaming) {
            T rounded[kStep];
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) R::write(rounded + v * R::lanes, sum[v]);
            constexpr int kWritten = R::lanes * static_cast<int>(sizeof(T));
            stream<kWritten < 16 ? 16 : kWritten>(reinterpret_cast<char*>(out + i), rounded, sizeof(rounded));
        } else {
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) R::write(out + i + v * R::lanes, sum[v]);
        }
    }
    return i;
}

// sums[0, n) (or 0 when First) + w_c x_c over `count` clients; into sums, or divided and rounded into out when Last.
// Streaming: out begins a cache line.
template <class R, bool First, bool Last, class T>
static typename R::Mask block(const T* const* x, const double* w, int count, int64_t n, typename R::Sum* sums,
                              double total, T* out, bool streaming, bool ahead) {
    typedef typename R::Sum Sum;
    typename R::Mask bad = {};
    constexpr int kLines = kStepBytes / static_cast<int>(sizeof(T) * R::lanes);
    constexpr int kVectors = kLines < 2 ? 2 : kLines > 8 ? 8 : kLines;
    int64_t i = steps<R, First, Last, kVectors, T>(x, w, count, 0, n, sums, total, out, streaming, ahead, &bad);
    i = steps<R, First, Last, 1, T>(x, w, count, i, n, sums, total, out, false, ahead, &bad);
    for (; i < n; ++i) {
        Sum a = First ? 0 : sums[i];
        for (int c = 0; c < count; ++c) a += R::read_one(x[c] + i) * static_cast<Sum>(w[c]);
        if (Last) {
            if (R::not_finite_one(a)) bad[0] = -1;
            R::write_one(out + i, a / static_cast<Sum>(total));
        } else {
            sums[i] = a;
        }
    }
    return bad;
}

template <class R, class T>
static bool mean_tile(const void* const* inputs, const double* weights, int64_t clients, int64_t stride, double total,
                      int64_t offset, int64_t n, bool large, bool ahead, void* output) {
    typename R::Sum sums[kTile];  // for more than kBlock clients; only then n <= kTile
    typename R::Mask bad = {};
    T* out = static_cast<T*>(output) + offset;
    const auto past_line = reinterpret_cast<uintptr_t>(out) % 64;
    const bool streaming = kCanStream && large && past_line % sizeof(T) == 0;
    if (streaming && past_line) {
        // To a line of the output. Large arrays tend to lie alike, so this saves loads across lines too.
        const int64_t head = static_cast<int64_t>((64 - past_line) / sizeof(T));
        if (head < n) {
            const bool found =
                mean_tile<R, T>(inputs, weights, clients, stride, total, offset, head, false, ahead, output);
            if (found) bad[0] = -1;
            offset += head;
            n -= head;
            out += head;
        }
    }
    for (int64_t k = 0; k < clients; k += kBlock) {
        const int count = clients - k < kBlock ? static_cast<int>(clients - k) : kBlock;
        const T* x[kBlock];
        for (int c = 0; c < count; ++c) x[c] = static_cast<const T*>(inputs[(k + c) * stride]) + offset;
        const bool first = k == 0, last = k + count == clients;
        bad |= first && last ? block<R, true, true, T>(x, weights + k, count, n, sums, total, out, streaming, ahead)
               : first       ? block<R, true, false, T>(x, weights + k, count, n, sums, total, out, streaming, ahead)
               : last        ? block<R, false, true, T>(x, weights + k, count, n, sums, total, out, streaming, ahead)
                             : block<R, false, false, T>(x, weights + k, count, n, sums, total, out, streaming, ahead);
    }
    return any(bad);
}

template <class R, class T>
static void add_tile(const void* const* inputs, const double* weights, int64_t clients, int64_t stride, int64_t offset,
                     int64_t n, bool fresh, bool ahead, void* target) {
    auto* sums = static_cast<typename R::Sum*>(target) + offset;
    for (int64_t k = 0; k < clients; k += kBlock) {
        const int count = clients - k < kBlock ? static_cast<int>(clients - k) : kBlock;
        const T* x[kBlock];
        for (int c = 0; c < count; ++c) x[c] = static_cast<const T*>(inputs[(k + c) * stride]) + offset;
        if (fresh && k == 0)
            block<R, true, false, T>(x, weights + k, count, n, sums, 0, nullptr, false, ahead);
        else
            block<R, false, false, T>(x, weights + k, count, n, sums, 0, nullptr, false, ahead);
    }
}

template <class R, class T>
static void finish_tile(const void* source, double total, int64_t offset, int64_t n, void* output) {
    typedef typename R::Vec Vec;
    T* out = static_cast<T*>(output) + offset;
    const auto* sums = static_cast<const typename R::Sum*>(source) + offset;
    const auto divisor = static_cast<typename R::Sum>(total);
    int64_t i = 0;
    for (; i + R::lanes <= n; i += R::lanes) R::write(out + i, load_as<Vec>(sums + i) / divisor);
    for (; i < n; ++i) R::write_one(out + i, sums[i] / divisor);
}

template <class T>
static bool finite_tile(const void* input, int64_t offset, int64_t n) {
    const T* x = static_cast<const T*>(input) + offset;
    VI bad = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) bad |= Wide<T>::not_finite(Wide<T>::read(x + i));
    for (; i < n; ++i)
        if (Wide<T>::not_finite_one(Wide<T>::read_one(x + i))) return false;
    return !any(bad);
}

// ---- whole models ----------------------------------------------------------------------------------------------

struct MeanBody {
    const void* const* inputs;
    const double* weights;
    int64_t clients;
    double total;
    const ef::TensorSpec* specs;
    int64_t tensors;
    bool single;
    bool large, ahead;
    void* const* outputs;
    bool bad;  // set by any thread, read after they were joined
    void operator()(int64_t t, int64_t offset, int64_t n) {
        bool found = false;
#define EF_WIDE(T) \
    found = mean_tile<Wide<T>, T>(inputs + t, weights, clients, tensors, total, offset, n, large, ahead, outputs[t])
#define EF_SINGLE(T) \
    found = mean_tile<Single<T>, T>(inputs + t, weights, clients, tensors, total, offset, n, large, ahead, outputs[t])
        EF_FOR_SUMS(specs[t].dtype, single, EF_WIDE, EF_SINGLE)
#undef EF_WIDE
#undef EF_SINGLE
        if (found) __atomic_store_n(&bad, true, __ATOMIC_RELAXED);
    }
};

static bool mean(const void* const* inputs, const double* weights, int64_t clients, double total,
                 const ef::TensorSpec* specs, int64_t tensors, bool single, void* const* outputs, int threads) noexcept {
    int64_t elements = 0;
    for (int64_t t = 0; t < tensors; ++t) elements += specs[t].size;
    const bool large = elements * int64_t{4} >= kStreamBytes;
    MeanBody body = {inputs, weights, clients, total, specs, tensors, single, large, ef::prefers_prefetch(), outputs, false};
    walk(specs, tensors, clients, threads, body, clients <= kBlock ? kChunk : kTile);
    return body.bad;
}

struct AddBody {
    const void* const* inputs;
    const double* weights;
    int64_t clients;
    const ef::TensorSpec* specs;
    int64_t tensors;
    bool single, fresh, ahead;
    void* const* sums;
    void operator()(int64_t t, int64_t offset, int64_t n) {
#define EF_WIDE(T) add_tile<Wide<T>, T>(inputs + t, weights, clients, tensors, offset, n, fresh, ahead, sums[t])
#define EF_SINGLE(T) add_tile<Single<T>, T>(inputs + t, weights, clients, tensors, offset, n, fresh, ahead, sums[t])
        EF_FOR_SUMS(specs[t].dtype, single, EF_WIDE, EF_SINGLE)
#undef EF_WIDE
#undef EF_SINGLE
    }
};

static void add(const void* const* inputs, const double* weights, int64_t clients, const ef::TensorSpec* specs,
                int64_t tensors, bool single, bool fresh, void* const* sums, int threads) noexcept {
    AddBody body = {inputs, weights, clients, specs, tensors, single, fresh, ef::prefers_prefetch(), sums};
    walk(specs, tensors, clients + 4, threads, body);
}

struct FinishBody {
    const void* const* sums;
    double total;
    const ef::TensorSpec* specs;
    bool single;
    void* const* outputs;
    void operator()(int64_t t, int64_t offset, int64_t n) {
#define EF_WIDE(T) finish_tile<Wide<T>, T>(sums[t], total, offset, n, outputs[t])
#define EF_SINGLE(T) finish_tile<Single<T>, T>(sums[t], total, offset, n, outputs[t])
        EF_FOR_SUMS(specs[t].dtype, single, EF_WIDE, EF_SINGLE)
#undef EF_WIDE
#undef EF_SINGLE
    }
};

static void finish(const void* const* sums, double total, const ef::TensorSpec* specs, int64_t tensors, bool single,
                   void* const* outputs, int threads) noexcept {
    FinishBody body = {sums, total, specs, single, outputs};
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
            case ef::DType::bf16: fine = finite_tile<Brain>(inputs[t], offset, n); break;
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

}  // namespace mean

static const ef::MeanKernels kMean = {mean::mean, mean::add, mean::finish, mean::all_finite};
static const ef::MeanKernels* const kMeanTable = &kMean;

}  // namespace EF_ISA
}  // namespace ef
