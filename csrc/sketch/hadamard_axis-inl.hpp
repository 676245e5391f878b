namespace ef {
namespace EF_ISA {
namespace {
#include "common/simd-inl.hpp"
#include "common/lanes-inl.hpp"

constexpr int64_t kLeafBytes = 1 << 14;  // half of a 32 KiB L1 cache

// Butterflies of 2^kLog pieces `h` elements apart, for offsets [begin, end) of a piece, times `scale`.
template <class T, int kLog, class V>
EF_INLINE void piece(const T* in, T* out, int64_t h, int64_t c, T scale, bool scaled) {
    constexpr int R = 1 << kLog;
    V v[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) v[r] = load_as<V>(in + c + r * h);
#pragma GCC unroll 3
    for (int s = 1; s < R; s *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i)
            if (!(i & s)) {
                const V a = v[i], b = v[i + s];
                v[i] = a + b;
                v[i + s] = a - b;
            }
    }
    if (scaled) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) v[r] = v[r] * scale;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) store_as(out + c + r * h, v[r]);
}

template <class T, int kLog>
void join_pieces(const T* in, T* out, int64_t h, int64_t begin, int64_t end, T scale) {
    typedef typename Lanes<T>::V V;
    const bool scaled = scale != static_cast<T>(1);
    int64_t c = begin;
    for (; c + Lanes<T>::count <= end; c += Lanes<T>::count) piece<T, kLog, V>(in, out, h, c, scale, scaled);
    for (; c < end; ++c) piece<T, kLog, T>(in, out, h, c, scale, scaled);
}

template <class T>
void join(const T* in, T* out, int64_t h, int log_radix, int64_t begin, int64_t end, T scale) {
    switch (log_radix) {
        case 0: join_pieces<T, 0>(in, out, h, begin, end, scale); break;
        case 1: join_pieces<T, 1>(in, out, h, begin, end, scale); break;
        case 2: join_pieces<T, 2>(in, out, h, begin, end, scale); break;
        default: join_pieces<T, 3>(in, out, h, begin, end, scale);
    }
}

EF_INLINE int log2_of(int64_t n) { return 63 - __builtin_clzll(static_cast<unsigned long long>(n)); }

// A contiguous (length, inner) block: the sub-blocks first, each while it is cached, then one pass joins them.
template <class T>
void block(const T* in, T* out, int64_t length, int64_t inner, T scale) {
    int log_n = log2_of(length);
    if (log_n > 3 && length * inner * static_cast<int64_t>(sizeof(T)) > kLeafBytes) {
        const int64_t h = length >> 3;
        for (int r = 0; r < 8; ++r) block<T>(in + r * h * inner, out + r * h * inner, h, inner, static_cast<T>(1));
        join<T>(out, out, h * inner, 3, 0, h * inner, scale);
        return;
    }
    const T* from = in;
    int64_t h = 1;
    do {
        const int radix = log_n < 3 ? log_n : 3;
        log_n -= radix;
        const int64_t group = (h << radix) * inner;
        for (int64_t i = 0; i < length * inner; i += group)
            join<T>(from + i, out + i, h * inner, radix, 0, h * inner, log_n == 0 ? scale : static_cast<T>(1));
        h <<= radix;
        from = out;
    } while (log_n > 0);
}

template <class T>
void strip(const T* in, T* out, int64_t length, int64_t inner, int64_t width, T scale, T* work) {
    const size_t bytes = static_cast<size_t>(width) * sizeof(T);
    for (int64_t i = 0; i < length; ++i) __builtin_memcpy(work + i * width, in + i * inner, bytes);
    block<T>(work, work, length, width, scale);
    for (int64_t i = 0; i < length; ++i) __builtin_memcpy(out + i * inner, work + i * width, bytes);
}

}  // namespace

static void axis_block_f32(const float* in, float* out, int64_t length, int64_t inner, double scale) noexcept {
    block<float>(in, out, length, inner, static_cast<float>(scale));
}
static void axis_block_f64(const double* in, double* out, int64_t length, int64_t inner, double scale) noexcept {
    block<double>(in, out, length, inner, scale);
}
static void axis_strip_f32(const float* in, float* out, int64_t length, int64_t inner, int64_t width, double scale,
                           float* work) noexcept {
    strip<float>(in, out, length, inner, width, static_cast<float>(scale), work);
}
static void axis_strip_f64(const double* in, double* out, int64_t length, int64_t inner, int64_t width, double scale,
                           double* work) noexcept {
    strip<double>(in, out, length, inner, width, scale, work);
}
static void axis_join_f32(float* data, int64_t h, int radix, int64_t begin, int64_t end, double scale) noexcept {
    join<float>(data, data, h, radix, begin, end, static_cast<float>(scale));
}
static void axis_join_f64(double* data, int64_t h, int radix, int64_t begin, int64_t end, double scale) noexcept {
    join<double>(data, data, h, radix, begin, end, scale);
}

}  // namespace EF_ISA
}  // namespace ef
