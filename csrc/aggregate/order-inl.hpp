// Body of aggregate/order.hpp; see there for order and numerics.
namespace ef {
namespace EF_ISA {
namespace order {

#include "common/simd-inl.hpp"
#include "common/lanes-inl.hpp"

typedef vf64 V;
typedef int64_t VI __attribute__((vector_size(EF_VECTOR_BYTES)));
constexpr int kLanes = kLanesF64;
typedef int16_t vi16 __attribute__((vector_size(EF_VECTOR_BYTES)));

struct Half {
    uint16_t bits;
};
struct Brain {  // bfloat16
    uint16_t bits;
};
struct Bool {
    uint8_t byte;
};

// ---- images ------------------------------------------------------------------------------------------------------

template <class I>
struct Lane;
template <>
struct Lane<int16_t> {
    typedef vi16 V;
    static constexpr int count = EF_VECTOR_BYTES / 2;
    static constexpr int16_t most = 0x7fff;
};
template <>
struct Lane<int32_t> {
    typedef vi32 V;
    static constexpr int count = EF_VECTOR_BYTES / 4;
    static constexpr int32_t most = 0x7fffffff;
};
template <>
struct Lane<int64_t> {
    typedef VI V;
    static constexpr int count = EF_VECTOR_BYTES / 8;
    static constexpr int64_t most = 0x7fffffffffffffffll;
};

EF_INLINE void exchange(vi16& a, vi16& b) {
#if defined(EF_TARGET_AVX512)
    const __m512i low = _mm512_min_epi16((__m512i)a, (__m512i)b), high = _mm512_max_epi16((__m512i)a, (__m512i)b);
#elif defined(EF_TARGET_AVX2)
    const __m256i low = _mm256_min_epi16((__m256i)a, (__m256i)b), high = _mm256_max_epi16((__m256i)a, (__m256i)b);
#elif defined(EF_TARGET_NEON)
    const int16x8_t low = vminq_s16((int16x8_t)a, (int16x8_t)b), high = vmaxq_s16((int16x8_t)a, (int16x8_t)b);
#else
    const vi16 less = a < b;
    const vi16 low = (a & less) | (b & ~less), high = (b & less) | (a & ~less);
#endif
    a = (vi16)low;
    b = (vi16)high;
}
EF_INLINE void exchange(vi32& a, vi32& b) {
#if defined(EF_TARGET_AVX512)
    const __m512i low = _mm512_min_epi32((__m512i)a, (__m512i)b), high = _mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(EF_TARGET_AVX2)
    const __m256i low = _mm256_min_epi32((__m256i)a, (__m256i)b), high = _mm256_max_epi32((__m256i)a, (__m256i)b);
#elif defined(EF_TARGET_NEON)
    const int32x4_t low = vminq_s32((int32x4_t)a, (int32x4_t)b), high = vmaxq_s32((int32x4_t)a, (int32x4_t)b);
#else
    const vi32 less = a < b;
    const vi32 low = (a & less) | (b & ~less), high = (b & less) | (a & ~less);
#endif
    a = (vi32)low;
    b = (vi32)high;
}
EF_INLINE void exchange(VI& a, VI& b) {
#if defined(EF_TARGET_AVX512)
    const __m512i low = _mm512_min_epi64((__m512i)a, (__m512i)b), high = _mm512_max_epi64((__m512i)a, (__m512i)b);
#else
    const VI less = a < b;
    const VI low = (a & less) | (b & ~less), high = (b & less) | (a & ~less);
#endif
    a = (VI)low;
    b = (VI)high;
}

// Flips the bits below the sign of negatives; its own inverse.
EF_INLINE vi16 flip_negative(vi16 x) { return x ^ ((x >> 15) & 0x7fff); }
EF_INLINE vi32 flip_negative(vi32 x) { return x ^ ((x >> 31) & 0x7fffffff); }
EF_INLINE VI flip_negative(VI x) { return x ^ ((x >> 63) & 0x7fffffffffffffffll); }

// Per dtype: `I`, the image's integer; `load` count elements to images; `decode` a vector of images to doubles.
// Floats also say which lanes hold no finite value.
template <class T>
struct Image;

template <class T, class Integer, Integer Infinity>
struct FloatImage {
    typedef Integer I;
    typedef typename Lane<I>::V VV;
    static constexpr bool is_float = true;
    static constexpr I infinity = Infinity;
    EF_INLINE VV raw(const T* p) { return load_as<VV>(p); }
    EF_INLINE VV load(const T* p) { return flip_negative(raw(p)); }
    EF_INLINE VV not_finite(VV bits) { return (bits & infinity) == (VV{} + infinity); }
    // Every NaN to the greatest image.
    EF_INLINE VV load_canonical(const T* p) {
        const VV bits = raw(p);
        const VV nan = (bits & Lane<I>::most) > (VV{} + infinity);
        return (flip_negative(bits) & ~nan) | (nan & Lane<I>::most);
    }
};
template <class T, class Integer>
struct IntegerImage {
    typedef Integer I;
    typedef typename Lane<I>::V VV;
    typedef T Small __attribute__((vector_size(sizeof(T) * Lane<I>::count)));
    static constexpr bool is_float = false;
    EF_INLINE VV load(const T* p) { return __builtin_convertvector(load_as<Small>(p), VV); }
    EF_INLINE VV load_canonical(const T* p) { return load(p); }
    EF_INLINE void decode(VV images, double* out) {
        I lanes[Lane<I>::count];
        store_as(lanes, images);
        for (int i = 0; i < Lane<I>::count; ++i) out[i] = static_cast<double>(lanes[i]);
    }
};

template <>
struct Image<float> : FloatImage<float, int32_t, 0x7f800000> {
    EF_INLINE void decode(vi32 images, double* out) {
        const vf32 v = (vf32)flip_negative(images);
#if defined(EF_TARGET_AVX512)
        store_as(out, _mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v)));
        store_as(out + 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1)));
#elif defined(EF_TARGET_AVX2)
        store_as(out, _mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v)));
        store_as(out + 4, _mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1)));
#else
        for (int i = 0; i < kLanesF32; ++i) out[i] = static_cast<double>(v[i]);
#endif
    }
};
template <>
struct Image<double> : FloatImage<double, int64_t, 0x7ff0000000000000ll> {
    EF_INLINE void decode(VI images, double* out) { store_as(out, (V)flip_negative(images)); }
};
template <>
struct Image<Half> : FloatImage<Half, int16_t, 0x7c00> {
    EF_INLINE void decode(vi16 images, double* out) {
        uint16_t bits[Lane<int16_t>::count];
        store_as(bits, flip_negative(images));
#if defined(EF_TARGET_AVX2)
        for (int i = 0; i < Lane<int16_t>::count; i += 4)
            store_as(out + i, _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i_u*>(bits + i)))));
#else
        for (int i = 0; i < Lane<int16_t>::count; ++i) out[i] = ef::half_to_double(bits[i]);
#endif
    }
};
template <>
struct Image<Brain> : FloatImage<Brain, int16_t, 0x7f80> {
    EF_INLINE void decode(vi16 images, double* out) {
        uint16_t bits[Lane<int16_t>::count];
        store_as(bits, flip_negative(images));
        for (int i = 0; i < Lane<int16_t>::count; ++i) out[i] = ef::brain_to_double(bits[i]);
    }
};
template <>
struct Image<int8_t> : IntegerImage<int8_t, int32_t> {};
template <>
struct Image<uint8_t> : IntegerImage<uint8_t, int32_t> {};
template <>
struct Image<int16_t> : IntegerImage<int16_t, int32_t> {};
template <>
struct Image<uint16_t> : IntegerImage<uint16_t, int32_t> {};
template <>
struct Image<int32_t> : IntegerImage<int32_t, int32_t> {};
template <>
struct Image<uint32_t> : IntegerImage<uint32_t, int64_t> {};
template <>
struct Image<int64_t> : IntegerImage<int64_t, int64_t> {};
template <>
struct Image<uint64_t> : IntegerImage<uint64_t, int64_t> {
    EF_INLINE VI load(const uint64_t* p) { return load_as<VI>(p) ^ static_cast<int64_t>(1ull << 63); }
    EF_INLINE VI load_canonical(const uint64_t* p) { return load(p); }
    EF_INLINE void decode(VI images, double* out) {
        for (int i = 0; i < kLanes; ++i) out[i] = static_cast<double>(static_cast<uint64_t>(images[i]) ^ (1ull << 63));
    }
};
template <>
struct Image<Bool> : IntegerImage<uint8_t, int32_t> {
    EF_INLINE vi32 load(const Bool* p) { return IntegerImage<uint8_t, int32_t>::load(reinterpret_cast<const uint8_t*>(p)); }
    EF_INLINE vi32 load_canonical(const Bool* p) { return load(p); }
};

// ---- from chosen values to one double ------------------------------------------------------------------------------

EF_INLINE V select(VI mask, V a, V b) { return (V)(((VI)a & mask) | ((VI)b & ~mask)); }
EF_INLINE VI not_finite(V v) {
    const VI exponent = VI{} + 0x7ff0000000000000ll;
    return ((VI)v & exponent) == exponent;
}
EF_INLINE bool any(VI mask) {
    int64_t all = 0;
    for (int i = 0; i < kLanes; ++i) all |= mask[i];
    return all != 0;
}

// The mean of column[first, first + count) of one lane, when the plain sum overflowed.
static double rescaled(const double* column, int64_t stride, int64_t first, int64_t count) {
    constexpr double kDown = 1.0 / 4294967296.0;
    double sum = column[first * stride] * kDown;
    for (int64_t k = first + 1; k < first + count; ++k) sum += column[k * stride] * kDown;
    return sum / static_cast<double>(count) * 4294967296.0;
}
EF_INLINE V finish(V sum, double count, V least, V most) {
    V mean = count == 2 ? sum * 0.5 : sum / count;
    mean = select(mean < least, least, mean);
    mean = select(mean > most, most, mean);
    return canonical_lanes<double>(mean);
}

// column: clients x stride doubles, sorted; one vector of lanes.
static V mean_of_ranks(const double* column, int64_t stride, int64_t low, int64_t high) {
    V sum = load_as<V>(column + low * stride);
    if (high - low == 1) return canonical_lanes<double>(sum);
    const V least = sum;
    for (int64_t k = low + 1; k < high; ++k) sum += load_as<V>(column + k * stride);
    const V most = load_as<V>(column + (high - 1) * stride);
    const VI overflow = not_finite(sum) & ~not_finite(least) & ~not_finite(most);
    const double count = static_cast<double>(high - low);
    if (any(overflow)) {
        V mean = sum / count;
        for (int l = 0; l < kLanes; ++l)
            if (overflow[l]) mean[l] = rescaled(column + l, stride, low, high - low);
        mean = select(mean < least, least, mean);
        mean = select(mean > most, most, mean);
        return canonical_lanes<double>(mean);
    }
    return finish(sum, count, least, most);
}

static V mean_near_median(const double* column, int64_t stride, int64_t clients, int64_t keep) {
    const V median = mean_of_ranks(column, stride, (clients - 1) / 2, clients / 2 + 1);
    VI first = {};
    for (int64_t s = 0; s + keep < clients; ++s) {
        const V above = load_as<V>(column + (s + keep) * stride), below = load_as<V>(column + s * stride);
        first -= (VI)(above - median < median - below);  // true only up to some s: above grows, below does not
    }
    const V none = -V{};  // x + -0 is x, and a sum of -0 stays -0
    V sum = none, least = {}, most = {};
    for (int64_t k = 0; k < clients; ++k) {
        const V x = load_as<V>(column + k * stride);
        const VI inside = (first <= k) & (first + keep > k);
        sum += select(inside, x, none);
        least = select(first == k, x, least);
        most = select(first + keep - 1 == k, x, most);
    }
    const VI overflow = not_finite(sum) & ~not_finite(least) & ~not_finite(most);
    V mean = finish(sum, static_cast<double>(keep), least, most);
    if (any(overflow)) {
        for (int l = 0; l < kLanes; ++l) {
            if (!overflow[l]) continue;
            double m = rescaled(column + l, stride, first[l], keep);
            m = m < least[l] ? least[l] : m;
            mean[l] = m > most[l] ? most[l] : m;
        }
    }
    return mean;
}

// ---- few clients: the network in registers ---------------------------------------------------------------------------

template <int K, int C>
struct Apply {
    template <class VV>
    EF_INLINE void run(VV* v) {
        if constexpr (C < ef::kNetwork<K>.length) {
            exchange(v[ef::kNetwork<K>.low[C]], v[ef::kNetwork<K>.high[C]]);
            Apply<K, C + 1>::run(v);
        }
    }
};

constexpr int kRegisters = ef::kOrderStreams;
constexpr int kMostHalves = 2 * kRegisters;
constexpr int kColumns = 8;  // sorted at a time
constexpr int64_t kAhead = 1024;  // bytes fetched ahead of each stream

EF_INLINE bool is_median(int64_t clients, int64_t low, int64_t high) {
    return low == (clients - 1) / 2 && high == clients / 2 + 1;
}

template <class VV>
EF_INLINE bool any_lane(VV v) {
    int64_t words[EF_VECTOR_BYTES / 8];
    store_as(words, v);
    int64_t all = 0;
    for (int i = 0; i < EF_VECTOR_BYTES / 8; ++i) all |= words[i];
    return all != 0;
}

// Doubles to float32, rounded once.
EF_INLINE void narrow(const double* values, int n, float* out) {
    int l = 0;
#if defined(EF_TARGET_AVX512)
    for (; l + 8 <= n; l += 8) store_as(out + l, _mm512_cvtpd_ps(load_as<__m512d>(values + l)));
#elif defined(EF_TARGET_AVX2)
    for (; l + 4 <= n; l += 4) store_as(out + l, _mm256_cvtpd_ps(load_as<__m256d>(values + l)));
#endif
    for (; l < n; ++l) out[l] = static_cast<float>(values[l]);
}
EF_INLINE void narrow(const double* values, int n, double* out) {
    __builtin_memcpy(out, values, static_cast<size_t>(n) * sizeof(double));
}

// Images of the values of K streams at an offset.
template <class T, int K>
EF_INLINE void load_column(const T* const* x, int64_t offset, typename Image<T>::VV* v, typename Image<T>::VV* bad) {
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) {
        const T* const p = x[k] + offset;
        __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead, 0, 2);
        const auto bits = Image<T>::raw(p);
        *bad |= Image<T>::not_finite(bits);
        v[k] = flip_negative(bits);
    }
}

// Sorted images of consecutive columns of K finite streams: with Median only the middle one or two of each (the
// compiler then drops every comparison they do not need), else all K. False when something was not finite.
template <class T, int K, bool Median>
static bool sort_streams(const T* const* x, int64_t columns, typename Image<T>::VV* out) {
    typedef Image<T> Im;
    typedef typename Im::VV VV;
    constexpr int L = Lane<typename Im::I>::count;
    VV bad = {};
    for (int64_t c = 0; c < columns; ++c) {
        VV v[K];
        load_column<T, K>(x, c * L, v, &bad);
        Apply<K, 0>::run(v);
        if constexpr (Median) {
            *out++ = v[(K - 1) / 2];
            if constexpr (K % 2 == 0) *out++ = v[K / 2];
        } else {
#pragma GCC unroll 16
            for (int k = 0; k < K; ++k) *out++ = v[k];
        }
    }
    return !any_lane(bad);
}

template <class T, int K>
static bool sort_some(const T* const* x, int64_t clients, bool median, int64_t columns, typename Image<T>::VV* out) {
    if constexpr (K > 1) {
        if (clients < K) return sort_some<T, K - 1>(x, clients, median, columns, out);
    }
    return median ? sort_streams<T, K, true>(x, columns, out) : sort_streams<T, K, false>(x, columns, out);
}

// The value of rank R in the union of two sorted columns: of the splits of the R + 1 least values into i from the one and
// R + 1 - i from the other, the right one has the least greatest value.
template <int A, int B, int R, int I = (R + 1 > B ? R + 1 - B : 0)>
struct Split {
    template <class VV>
    EF_INLINE VV rank(const VV* a, const VV* b) {
        VV most = I > 0 ? a[I > 0 ? I - 1 : 0] : b[R];
        if constexpr (I > 0 && I <= R) {
            VV other = b[R - I];
            exchange(other, most);
        }
        if constexpr (I < A && I <= R) {
            VV rest = Split<A, B, R, I + 1>::rank(a, b);
            exchange(most, rest);
        }
        return most;
    }
};

// sort_streams for the median of up to twice as many streams: one half sorted and put aside, the other met in registers.
template <class T, int K>
static bool median_of_halves(const T* const* x, int64_t columns, typename Image<T>::VV* out) {
    typedef Image<T> Im;
    typedef typename Im::VV VV;
    constexpr int A = (K + 1) / 2, B = K / 2, L = Lane<typename Im::I>::count;
    VV aside[kColumns * A];
    bool fine = sort_streams<T, A, false>(x, columns, aside);
    VV bad = {};
    for (int64_t c = 0; c < columns; ++c) {
        const VV* const a = aside + c * A;
        VV b[B];
        load_column<T, B>(x + A, c * L, b, &bad);
        Apply<B, 0>::run(b);
        *out++ = Split<A, B, (K - 1) / 2>::rank(a, b);
        if constexpr (K % 2 == 0) *out++ = Split<A, B, K / 2>::rank(a, b);
    }
    return fine && !any_lane(bad);
}

template <class T, int K>
static bool median_of_many(const T* const* x, int64_t clients, int64_t columns, typename Image<T>::VV* out) {
    if constexpr (K > kRegisters + 1) {
        if (clients < K) return median_of_many<T, K - 1>(x, clients, columns, out);
    }
    return median_of_halves<T, K>(x, columns, out);
}

template <class T, class Out>
static bool registers(const T* const* x, int64_t clients, int64_t n, int64_t low, int64_t high, Out* out) {
    typedef Image<T> Im;
    typedef typename Im::VV VV;
    constexpr int L = Lane<typename Im::I>::count;
    VV sorted[kColumns * kRegisters];
    const bool median = is_median(clients, low, high);
    const int64_t rows = median ? high - low : clients;
    const int64_t first = median ? 0 : low, last = median ? rows : high;
    const auto sort = [&](const T* const* from, int64_t columns, VV* to) {
        return clients > kRegisters ? median_of_many<T, kMostHalves>(from, clients, columns, to)
                                    : sort_some<T, kRegisters>(from, clients, median, columns, to);
    };
    bool fine = true;
    for (int64_t i = 0; i < n; i += kColumns * L) {
        const int64_t here = n - i < kColumns * L ? n - i : kColumns * L;
        const T* from[kMostHalves];
        const int64_t whole = here / L;
        for (int64_t k = 0; k < clients; ++k) from[k] = x[k] + i;
        fine &= sort(from, whole, sorted);
        if (whole * L < here) {
            T rest[kMostHalves][L] = {};
            for (int64_t k = 0; k < clients; ++k) {
                __builtin_memcpy(rest[k], x[k] + i + whole * L, static_cast<size_t>(here - whole * L) * sizeof(T));
                from[k] = rest[k];
            }
            fine &= sort(from, 1, sorted + whole * rows);
        }
        for (int64_t c = 0; c * L < here; ++c) {
            alignas(EF_VECTOR_BYTES) double column[kRegisters * L], values[L];
            if (median && sizeof(T) < 8) {  // no overflow, and half an exact or rounded sum lies between the two
                Im::decode(sorted[c * rows], values);
                if (rows == 2) {
                    Im::decode(sorted[c * rows + 1], column);
                    for (int l = 0; l < L; l += kLanes)
                        store_as(values + l, (load_as<V>(values + l) + load_as<V>(column + l)) * 0.5);
                }
            } else {
                for (int64_t k = first; k < last; ++k) Im::decode(sorted[c * rows + k], column + (k - first) * L);
                for (int l = 0; l < L; l += kLanes) store_as(values + l, mean_of_ranks(column + l, L, 0, last - first));
            }
            const int64_t lanes = here - c * L < L ? here - c * L : L;
            narrow(values, static_cast<int>(lanes), out + i + c * L);
        }
    }
    return !fine;
}

// Without instructions for them, comparisons of 64-bit integers are no gain over the staged form.
template <class T>
constexpr bool kInRegisters =
#if defined(EF_TARGET_AVX2) || defined(EF_TARGET_NEON)
    Image<T>::is_float;
#else
    Image<T>::is_float && sizeof(T) < 8;
#endif

template <int K>
static void half_differences_of(const char* const* from, float* rows) {
    const char* x[K];
    for (int k = 0; k < K; ++k) x[k] = from[k];
    for (int64_t i = 0; i < ef::kSegment; i += kLanesF32) {
        vi32 v[K];
#pragma GCC unroll 16
        for (int k = 0; k < K; ++k) v[k] = flip_negative(load_as<vi32>(x[k] + i * 4));
        Apply<K, 0>::run(v);
        const vi32 low = flip_negative(v[(K - 1) / 2]), high = flip_negative(v[K / 2]);
        vf32_half lows[2], highs[2];
        __builtin_memcpy(lows, &low, sizeof(low));
        __builtin_memcpy(highs, &high, sizeof(high));
        for (int part = 0; part < 2; ++part) {
            const V a = to_doubles(lows[part]);
            lows[part] = to_floats(K % 2 ? a * 0.5 : (a + to_doubles(highs[part])) * 0.25);
        }
        vf32 h;
        __builtin_memcpy(&h, lows, sizeof(h));
#pragma GCC unroll 16
        for (int k = 0; k < K; ++k) store_as(rows + k * ef::kSegment + i, load_as<vf32>(x[k] + i * 4) * 0.5f - h);
    }
}

template <int K>
static void half_differences_some(const char* const* x, int64_t clients, float* rows) {
    if constexpr (K > 1) {
        if (clients < K) return half_differences_some<K - 1>(x, clients, rows);
    }
    half_differences_of<K>(x, rows);
}

static void half_differences(const char* const* x, int64_t clients, float* rows) noexcept {
    half_differences_some<kRegisters>(x, clients, rows);
}

// ---- any number of clients: columns staged in the second level, sorted one by one -------------------------------------

constexpr int64_t kStageBytes = 1 << 17;

template <int K, int C>
struct Merge {  // the comparators of the last step of the network of K wires: two sorted halves become one
    template <class VV>
    EF_INLINE void run(VV* v) {
        if constexpr (C < ef::kNetwork<K>.length) {
            exchange(v[ef::kNetwork<K>.low[C]], v[ef::kNetwork<K>.high[C]]);
            Merge<K, C + 1>::run(v);
        }
    }
};

// Sixteen wires in registers, s[0], s[stride], ...; those from `count` on do not exist and count as the greatest.
template <class I, bool Sorted>
static void sixteen(typename Lane<I>::V* s, int64_t stride, int64_t count) {
    typename Lane<I>::V v[16];
    const auto network = [&]() __attribute__((always_inline)) {
        if constexpr (Sorted)
            Merge<16, ef::kNetwork<16>.last_step>::run(v);
        else
            Apply<16, 0>::run(v);
    };
    if (count >= 16) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) v[i] = s[i * stride];
        network();
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) s[i * stride] = v[i];
        return;
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) v[i] = i < count ? s[i * stride] : typename Lane<I>::V{} + Lane<I>::most;
    network();
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
        if (i < count) s[i * stride] = v[i];
}

// Batcher's network: sixteen wires at a time, then merges of runs of p. Wires a distance p / 8 apart meet only each
// other while the distance between partners is at least that, so each such set goes through registers; the comparators
// over shorter distances come from the program.
template <class I>
static void sort_column(typename Lane<I>::V* s, int64_t wires, const ef::Comparator* program, const int64_t* ends) {
    for (int64_t g = 0; g < wires; g += 16) sixteen<I, false>(s + g, 1, wires - g);
    int64_t c = 0;
    for (int64_t p = 16; p < wires; p *= 2) {
        const int64_t step = p / 8;
        for (int64_t b = 0; b + p < wires; b += 2 * p)
            for (int64_t r = 0; r < step; ++r)
                sixteen<I, true>(s + b + r, step, (wires - b - r + step - 1) / step);
        for (const int64_t end = *ends++; c < end; ++c) {
            auto low = s[program[c].low], high = s[program[c].high];
            exchange(low, high);
            s[program[c].low] = low;
            s[program[c].high] = high;
        }
    }
}

template <class T, class Out>
static bool staged(const ef::OrderJob& job, int64_t t, int64_t offset, int64_t n, char* scratch, Out* out) {
    typedef Image<T> Im;
    typedef typename Im::I I;
    typedef typename Im::VV VV;
    constexpr int L = Lane<I>::count;
    const int64_t clients = job.clients;
    const bool canonical_nan = job.nan != ef::NanPolicy::finite;
    // scratch: one column as doubles, then as many columns of images as fit.
    double* const column = reinterpret_cast<double*>(scratch);
    VV* const stage = reinterpret_cast<VV*>(scratch + clients * L * 8);
    int64_t columns = kStageBytes / (clients * EF_VECTOR_BYTES);
    if (columns < 4) columns = 4;
    VV bad = {};
    for (int64_t begin = 0; begin < n; begin += columns * L) {
        const int64_t here = n - begin < columns * L ? n - begin : columns * L;
        const int64_t whole = here / L;
        for (int64_t k = 0; k < clients; ++k) {
            const T* x = static_cast<const T*>(job.inputs[k * job.tensors + t]) + offset + begin;
            T rest[L] = {};
            for (int64_t c = 0; c * L < here; ++c) {
                const T* p = x + c * L;
                if (c == whole) {
                    __builtin_memcpy(rest, p, static_cast<size_t>(here - c * L) * sizeof(T));
                    p = rest;
                }
                if constexpr (Im::is_float) {
                    if (!canonical_nan) bad |= Im::not_finite(Im::raw(p));
                }
                stage[c * clients + k] = canonical_nan ? Im::load_canonical(p) : Im::load(p);
            }
        }
        for (int64_t c = 0; c * L < here; ++c) {
            VV* const s = stage + c * clients;
            // The next block arrives while this one is sorted.
            const int64_t next = begin + columns * L + c * L;
            if (next < n) {
                for (int64_t k = 0; k < clients; ++k)
                    __builtin_prefetch(static_cast<const T*>(job.inputs[k * job.tensors + t]) + offset + next, 0, 2);
            }
            sort_column<I>(s, clients, job.program, job.program_ends);
            const bool ranks = job.rule == ef::OrderRule::ranks;
            const int64_t first = ranks ? job.low : 0, last = ranks ? job.high : clients;
            for (int64_t k = first; k < last; ++k) Im::decode(s[k], column + k * L);
            double values[L];
            for (int l = 0; l < L; l += kLanes)
                store_as(values + l, ranks ? mean_of_ranks(column + l, L, job.low, job.high)
                                           : mean_near_median(column + l, L, clients, job.high));
            if (Im::is_float && job.nan == ef::NanPolicy::propagate) {
                I greatest[L];
                store_as(greatest, s[clients - 1]);
                for (int l = 0; l < L; ++l)
                    if (greatest[l] == Lane<I>::most) values[l] = __builtin_nan("");
            }
            const int64_t lanes = here - c * L < L ? here - c * L : L;
            narrow(values, static_cast<int>(lanes), out + begin + c * L);
        }
    }
    return any_lane(bad);
}

template <class T, class Out>
static bool tile_of(const ef::OrderJob& job, int64_t t, int64_t offset, int64_t n, char* scratch, Out* out) {
    if constexpr (kInRegisters<T>) {
        const int most = is_median(job.clients, job.low, job.high) ? kMostHalves : kRegisters;
        if (job.clients <= most && job.rule == ef::OrderRule::ranks && job.nan == ef::NanPolicy::finite) {
            const T* x[kMostHalves];
            for (int64_t k = 0; k < job.clients; ++k) x[k] = static_cast<const T*>(job.inputs[k * job.tensors + t]) + offset;
            return registers<T, Out>(x, job.clients, n, job.low, job.high, out);
        }
    }
    return staged<T, Out>(job, t, offset, n, scratch, out);
}

#define EF_FOR_DTYPE(dtype, CALL)                   \
    switch (dtype) {                                \
        case ef::DType::f16: CALL(Half); break;     \
        case ef::DType::bf16: CALL(Brain); break;   \
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

static bool tile(const ef::OrderJob& job, int64_t t, int64_t offset, int64_t n, char* scratch, double* values) noexcept {
    bool bad = false;
#define EF_CALL(T) bad = tile_of<T, double>(job, t, offset, n, scratch, values)
    EF_FOR_DTYPE(job.specs[t].dtype, EF_CALL)
#undef EF_CALL
    return bad;
}
static bool tile_f32(const ef::OrderJob& job, int64_t t, int64_t offset, int64_t n, char* scratch, float* out) noexcept {
    return tile_of<float, float>(job, t, offset, n, scratch, out);
}

// ---- streaming trimmed mean --------------------------------------------------------------------------------------------

template <class T>
static void push_tile(const void* row, bool from_images, void* low, void* high, double* sums, int64_t trim, int64_t size,
                      int64_t offset, int64_t n, int stage) {
    typedef Image<T> Im;
    typedef typename Im::I I;
    typedef typename Im::VV VV;
    constexpr int L = Lane<I>::count;
    for (int64_t i = offset; i < offset + n; i += L) {
        const int64_t lanes = offset + n - i < L ? offset + n - i : L;
        VV v;
        if (lanes == L) {
            v = from_images ? load_as<VV>(static_cast<const I*>(row) + i) : Im::load_canonical(static_cast<const T*>(row) + i);
        } else if (from_images) {
            I rest[L] = {};
            __builtin_memcpy(rest, static_cast<const I*>(row) + i, static_cast<size_t>(lanes) * sizeof(I));
            v = load_as<VV>(rest);
        } else {
            T rest[L] = {};
            __builtin_memcpy(rest, static_cast<const T*>(row) + i, static_cast<size_t>(lanes) * sizeof(T));
            v = Im::load_canonical(rest);
        }
        const auto insert = [&](void* rows, bool smallest) __attribute__((always_inline)) {
            for (int64_t j = 0; j < trim; ++j) {
                I* const p = static_cast<I*>(rows) + j * size + i;
                VV kept = {};
                __builtin_memcpy(&kept, p, static_cast<size_t>(lanes) * sizeof(I));
                if (smallest)
                    exchange(kept, v);
                else
                    exchange(v, kept);
                __builtin_memcpy(p, &kept, static_cast<size_t>(lanes) * sizeof(I));
            }
        };
        insert(low, true);
        if (stage == 0) continue;
        insert(high, false);
        if (stage == 1) continue;
        double values[L];
        Im::decode(v, values);
        for (int64_t l = 0; l < lanes; ++l) sums[i + l] += values[l];
    }
}

static void push(const void* row, bool from_images, ef::DType dtype, void* low, void* high, double* sums, int64_t trim,
                 int64_t size, int64_t offset, int64_t n, int stage) noexcept {
#define EF_CALL(T) push_tile<T>(row, from_images, low, high, sums, trim, size, offset, n, stage)
    EF_FOR_DTYPE(dtype, EF_CALL)
#undef EF_CALL
}

#undef EF_FOR_DTYPE

}  // namespace order

static const ef::OrderKernels kOrder = {order::tile, order::tile_f32, order::half_differences, order::push};
static const ef::OrderKernels* const kOrderTable = &kOrder;

}  // namespace EF_ISA
}  // namespace ef
