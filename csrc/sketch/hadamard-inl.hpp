namespace ef {
namespace EF_ISA {
namespace {
#include "common/simd-inl.hpp"
#include "common/lanes-inl.hpp"

// log2 of the vectors held in registers by one pass: 16 where there are 32 registers, else 8.
#if defined(EF_TARGET_AVX512) || defined(EF_TARGET_NEON)
constexpr int kLogRadix = 4;
#else
constexpr int kLogRadix = 3;
#endif
// Pieces a power of two apart share the sets of an L1 cache of 8 or 12 ways: more of them evict each other.
constexpr int kLogStreams = 3;
constexpr int kLogBlockBytes = 14;  // half of a 32 KiB L1 cache

template <class T>
constexpr int log_lanes() {
    int log = 0;
    while ((1 << log) < Lanes<T>::count) ++log;
    return log;
}

// v with lanes at distance H exchanged.
template <int H>
EF_INLINE vf32 exchange(vf32 v) {
#if EF_VECTOR_BYTES == 16
    return __builtin_shufflevector(v, v, 0 ^ H, 1 ^ H, 2 ^ H, 3 ^ H);
#elif EF_VECTOR_BYTES == 32
    return __builtin_shufflevector(v, v, 0 ^ H, 1 ^ H, 2 ^ H, 3 ^ H, 4 ^ H, 5 ^ H, 6 ^ H, 7 ^ H);
#else
    return __builtin_shufflevector(v, v, 0 ^ H, 1 ^ H, 2 ^ H, 3 ^ H, 4 ^ H, 5 ^ H, 6 ^ H, 7 ^ H, 8 ^ H, 9 ^ H, 10 ^ H,
                                   11 ^ H, 12 ^ H, 13 ^ H, 14 ^ H, 15 ^ H);
#endif
}
template <int H>
EF_INLINE vf64 exchange(vf64 v) {
#if EF_VECTOR_BYTES == 16
    return __builtin_shufflevector(v, v, 0 ^ H, 1 ^ H);
#elif EF_VECTOR_BYTES == 32
    return __builtin_shufflevector(v, v, 0 ^ H, 1 ^ H, 2 ^ H, 3 ^ H);
#else
    return __builtin_shufflevector(v, v, 0 ^ H, 1 ^ H, 2 ^ H, 3 ^ H, 4 ^ H, 5 ^ H, 6 ^ H, 7 ^ H);
#endif
}

// (a, b) -> (b + a, a - b) inside a register: the exchanged vector plus the vector with its upper partners negated.
template <int H, class T>
EF_INLINE typename Lanes<T>::V stage_in_register(typename Lanes<T>::V v) {
    typedef typename Lanes<T>::V V;
    V sign;
    for (int i = 0; i < Lanes<T>::count; ++i) sign[i] = i & H ? static_cast<T>(-1) : static_cast<T>(1);
    return multiply_add_exact(v, sign, exchange<H>(v));
}

template <class T>
EF_INLINE typename Lanes<T>::V stages_in_register(typename Lanes<T>::V v) {
    v = stage_in_register<1, T>(v);
    if constexpr (Lanes<T>::count > 2) v = stage_in_register<2, T>(v);
    if constexpr (Lanes<T>::count > 4) v = stage_in_register<4, T>(v);
    if constexpr (Lanes<T>::count > 8) v = stage_in_register<8, T>(v);
    return v;
}

template <int R, class V>
EF_INLINE void butterflies(V* v) {
#pragma GCC unroll 4
    for (int h = 1; h < R; h *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i)
            if (!(i & h)) {
                const V a = v[i], b = v[i + h];
                v[i] = a + b;
                v[i + h] = a - b;
            }
    }
}

// The stages below L * 2^kLog, on consecutive registers.
template <class T, int kLog>
void first_pass(const T* in, T* out, int64_t length, T scale) {
    typedef typename Lanes<T>::V V;
    constexpr int L = Lanes<T>::count, R = 1 << kLog;
    const bool scaled = scale != static_cast<T>(1);
    for (int64_t i = 0; i < length; i += L * R) {
        V v[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) v[r] = stages_in_register<T>(load_as<V>(in + i + r * L));
        butterflies<R>(v);
        if (scaled) {
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) v[r] = v[r] * scale;
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) store_as(out + i + r * L, v[r]);
    }
}

// Stages h, 2h, ..., of one group of h * 2^kLog elements, for offsets [begin, end) below h.
template <class T, int kLog>
void strided_pass(T* data, int64_t h, int64_t begin, int64_t end, T scale) {
    typedef typename Lanes<T>::V V;
    constexpr int L = Lanes<T>::count, R = 1 << kLog;
    const bool scaled = scale != static_cast<T>(1);
    for (int64_t c = begin; c < end; c += L) {
        V v[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) v[r] = load_as<V>(data + c + r * h);
        butterflies<R>(v);
        if (scaled) {
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) v[r] = v[r] * scale;
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) store_as(data + c + r * h, v[r]);
    }
}

template <class T>
void strided(T* data, int64_t h, int log_radix, int64_t begin, int64_t end, T scale) {
    switch (log_radix) {
        case 1: strided_pass<T, 1>(data, h, begin, end, scale); break;
        case 2: strided_pass<T, 2>(data, h, begin, end, scale); break;
        case 3: strided_pass<T, 3>(data, h, begin, end, scale); break;
        case 4:
            if constexpr (kLogRadix >= 4) strided_pass<T, 4>(data, h, begin, end, scale);
            break;
    }
}

EF_INLINE int log2_of(int64_t n) { return 63 - __builtin_clzll(static_cast<unsigned long long>(n)); }

template <class T>
void small(const T* in, T* out, int64_t n, T scale) {
    T v[16];
    for (int64_t i = 0; i < n; ++i) v[i] = in[i];
    for (int64_t h = 1; h < n; h *= 2)
        for (int64_t i = 0; i < n; ++i)
            if (!(i & h)) {
                const T a = v[i], b = v[i + h];
                v[i] = a + b;
                v[i + h] = a - b;
            }
    for (int64_t i = 0; i < n; ++i) out[i] = v[i] * scale;
}

// A block that stays in the L1 cache: few passes, each over all of it.
template <class T>
void block(const T* in, T* out, int64_t n, T scale) {
    constexpr int log_l = log_lanes<T>();
    const int log_n = log2_of(n);
    if (log_n < log_l) return small(in, out, n, scale);
    int done = log_n - log_l < kLogRadix ? log_n : log_l + kLogRadix;
    const T first = done == log_n ? scale : static_cast<T>(1);
    switch (done - log_l) {
        case 0: first_pass<T, 0>(in, out, n, first); break;
        case 1: first_pass<T, 1>(in, out, n, first); break;
        case 2: first_pass<T, 2>(in, out, n, first); break;
        case 3: first_pass<T, 3>(in, out, n, first); break;
        case 4:
            if constexpr (kLogRadix >= 4) first_pass<T, 4>(in, out, n, first);
            break;
    }
    while (done < log_n) {
        const int radix = log_n - done < kLogRadix ? log_n - done : kLogRadix;
        const int64_t h = int64_t{1} << done;
        done += radix;
        for (int64_t i = 0; i < n; i += h << radix)
            strided(out + i, h, radix, 0, h, done == log_n ? scale : static_cast<T>(1));
    }
}

template <class T>
constexpr int log_block() {
    return kLogBlockBytes - (sizeof(T) == 4 ? 2 : 3);
}

// Cache-oblivious: the sub-transforms of 2^radix pieces first, each while it is cached, then one pass joins them.
template <class T>
void recurse(const T* in, T* out, int64_t n, T scale) {
    const int excess = log2_of(n) - log_block<T>();
    if (excess <= 0) return block(in, out, n, scale);
    const int radix = excess < kLogStreams ? excess : kLogStreams;
    const int64_t h = n >> radix;
    for (int64_t i = 0; i < n; i += h) recurse(in + i, out + i, h, static_cast<T>(1));
    strided(out, h, radix, 0, h, scale);
}

// x with the features negated whose bit is set; in == out is allowed.
template <class T>
void flip_signs(const char* source, int64_t stride, const uint64_t* signs, int64_t d, T* out) {
    typedef typename Lanes<T>::V V;
    typedef typename Lanes<T>::U U;
    typedef typename Lanes<T>::Bits Bits;
    constexpr int L = Lanes<T>::count, kTop = 8 * sizeof(T) - 1;
    U shift;
    for (int i = 0; i < L; ++i) shift[i] = static_cast<Bits>(kTop - i);
    const U top = U{} + (static_cast<Bits>(1) << kTop);
    int64_t j = 0;
    if (stride == static_cast<int64_t>(sizeof(T))) {
        for (; j + L <= d; j += L) {
            const Bits bits = static_cast<Bits>(signs[j / 64] >> (j % 64)) & ((Bits{1} << L) - 1);
            store_as(out + j, (V)((U)load_as<V>(source + j * sizeof(T)) ^ (((U{} + bits) << shift) & top)));
        }
    }
    for (; j < d; ++j) {
        const uint32_t bit = static_cast<uint32_t>(signs[j / 64] >> (j % 64)) << 31;
        out[j] = flip(element<T>(source + j * stride), bit);
    }
}

template <class T>
void srht_rows_of(const SrhtJob& job, int64_t begin, int64_t end, T* work) {
    const int64_t d = job.x.columns;
    const T scale = static_cast<T>(job.scale);
    for (int64_t row = begin; row < end; ++row) {
        flip_signs<T>(job.x.data + row * job.x.row_stride, job.x.column_stride, job.signs, d, work);
        __builtin_memset(work + d, 0, static_cast<size_t>(job.length - d) * sizeof(T));
        recurse<T>(work, work, job.length, static_cast<T>(1));
        T* out = reinterpret_cast<T*>(job.out) + row * job.components;
        for (int64_t c = 0; c < job.components; ++c) out[c] = canonical(work[job.index[c]] * scale);
    }
}

template <class T>
void mix_halves(T* x, int64_t d) {
    typedef typename Lanes<T>::V V;
    constexpr int L = Lanes<T>::count;
    const T root = static_cast<T>(0.70710678118654757);
    const int64_t half = d / 2;
    T* high = x + d - half;
    int64_t i = 0;
    for (; i + L <= half; i += L) {
        const V a = load_as<V>(x + i), b = load_as<V>(high + i);
        store_as(x + i, (a + b) * root);
        store_as(high + i, (a - b) * root);
    }
    for (; i < half; ++i) {
        const T a = x[i], b = high[i];
        x[i] = (a + b) * root;
        high[i] = (a - b) * root;
    }
}

template <class T>
void rotate_rows_of(const RotationJob& job, int64_t begin, int64_t end) {
    constexpr int64_t stride = sizeof(T);
    const int64_t d = job.x.columns, length = int64_t{1} << log2_of(d), words = (d + 255) / 256 * 4;
    const bool windows = length < d;
    const int steps = windows ? 6 : 3;
    const T scale = static_cast<T>(1.0 / __builtin_sqrt(static_cast<double>(length)));
    for (int64_t row = begin; row < end; ++row) {
        T* out = reinterpret_cast<T*>(job.out) + row * d;
        const char* x = job.x.data + row * job.x.row_stride;
        if (job.inverse && x != reinterpret_cast<char*>(out))
            for (int64_t j = 0; j < d; ++j) out[j] = element<T>(x + j * job.x.column_stride);
        for (int i = 0; i < steps; ++i) {
            const int step = job.inverse ? steps - 1 - i : i;
            T* window = step % 2 && windows ? out + d - length : out;
            const bool mixes = windows && step % 2 == 0;
            const uint64_t* signs = job.signs + step * words;
            const char* self = reinterpret_cast<const char*>(out);
            if (job.inverse) {
                recurse<T>(window, window, length, scale);
                if (mixes) mix_halves(out, d);
                flip_signs<T>(self, stride, signs, d, out);
            } else {
                flip_signs<T>(i == 0 ? x : self, i == 0 ? job.x.column_stride : stride, signs, d, out);
                if (mixes) mix_halves(out, d);
                recurse<T>(window, window, length, scale);
            }
        }
        for (int64_t j = 0; j < d; ++j) out[j] = canonical(out[j]);
    }
}

}  // namespace

static void fwht_vector_f32(const float* in, float* out, int64_t n, double scale) noexcept {
    recurse<float>(in, out, n, static_cast<float>(scale));
}
static void fwht_vector_f64(const double* in, double* out, int64_t n, double scale) noexcept {
    recurse<double>(in, out, n, scale);
}
static void fwht_join_f32(float* data, int64_t h, int radix, int64_t begin, int64_t end, double scale) noexcept {
    strided<float>(data, h, radix, begin, end, static_cast<float>(scale));
}
static void fwht_join_f64(double* data, int64_t h, int radix, int64_t begin, int64_t end, double scale) noexcept {
    strided<double>(data, h, radix, begin, end, scale);
}
static void srht_rows_f32(const SrhtJob& job, int64_t begin, int64_t end, void* work) noexcept {
    srht_rows_of<float>(job, begin, end, static_cast<float*>(work));
}
static void srht_rows_f64(const SrhtJob& job, int64_t begin, int64_t end, void* work) noexcept {
    srht_rows_of<double>(job, begin, end, static_cast<double*>(work));
}

static void rotate_rows_f32(const RotationJob& job, int64_t begin, int64_t end) noexcept {
    rotate_rows_of<float>(job, begin, end);
}
static void rotate_rows_f64(const RotationJob& job, int64_t begin, int64_t end) noexcept {
    rotate_rows_of<double>(job, begin, end);
}

}  // namespace EF_ISA
}  // namespace ef
