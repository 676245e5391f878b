// Body of aggregate/binned.hpp; see there for the scheme and why it does not depend on order.
namespace ef {
namespace EF_ISA {
namespace binned {

#include "aggregate/element-inl.hpp"

typedef vu64 VU;
constexpr int kBlock = 16;  // clients side by side
constexpr int64_t kStreamBytes = int64_t(4) << 20;  // outputs from here on go past the caches
constexpr int kTopExponent = 2016;  // biased exponent of 2^993

EF_INLINE VU all_bits(uint64_t x) { return VU{} + x; }
EF_INLINE VI magnitude_bits(V t) { return (VI)((VU)t & all_bits(0x7fffffffffffffffull)); }
EF_INLINE VI select(VI mask, VI yes, VI no) { return (mask & yes) | (~mask & no); }

// Smallest j with |t| < 2^43 u_j, from the bits of |t| < 2^993: (e + 52) / 44 by a multiplication exact for e < 2048.
EF_INLINE VI bin_of(VI bits) { return (VI)((((VU)bits >> 52) + 52) * 1490 >> 16); }
EF_INLINE int64_t bin_of_one(int64_t bits) { return ((bits >> 52) + 52) / kBinBits; }

EF_INLINE VI times_44(VI j) { return (j << 5) + (j << 3) + (j << 2); }

// 1.5 * 2^52 u_j: adding it rounds to a multiple of u_j and leaves the multiple in the low bits.
EF_INLINE VI magic_bits(VI j) { return ((times_44(j) + 1) << 52) | (VI{} + (int64_t(1) << 51)); }
EF_INLINE int64_t magic_bits_one(int64_t j) { return ((kBinBits * j + 1) << 52) | int64_t(1) << 51; }

EF_INLINE double as_double(int64_t bits) {
    double d;
    __builtin_memcpy(&d, &bits, sizeof(d));
    return d;
}
EF_INLINE int64_t as_bits(double d) {
    int64_t bits;
    __builtin_memcpy(&bits, &d, sizeof(bits));
    return bits;
}

// ---- one coordinate --------------------------------------------------------------------------------------------

EF_INLINE int flag_of(double t) { return t != t ? ef::kNan : t > 0 ? ef::kPlusInfinity : ef::kMinusInfinity; }
EF_INLINE int join(int a, int b) { return a == b ? a : ef::kNan; }
EF_INLINE bool is_flag(int index) { return index > ef::kTopBin; }

template <int F>
static void shift_one(int64_t* bins, int64_t steps) {
    for (int f = F - 1; f >= 0; --f) bins[f] = f >= steps ? bins[f - steps] : 0;
}

template <int F>
static void add_one(double t, int64_t* bins, int* index) {
    const int64_t bits = as_bits(t) & 0x7fffffffffffffff;
    if (bits >> 52 >= kTopExponent) {
        *index = is_flag(*index) ? join(*index, flag_of(t)) : flag_of(t);
        for (int f = 0; f < F; ++f) bins[f] = 0;
        return;
    }
    if (is_flag(*index)) return;
    const int64_t j = bin_of_one(bits);
    if (j > *index) {
        shift_one<F>(bins, j - *index);
        *index = static_cast<int>(j);
    }
    for (int f = 0; f < F; ++f) {
        const int64_t m = magic_bits_one(*index - f);
        const double s = t + as_double(m);
        bins[f] += as_bits(s) - m;
        t -= s - as_double(m);
    }
}

EF_INLINE double flag_value(int index) {
    return index == ef::kNan ? __builtin_nan("") : index == ef::kPlusInfinity ? __builtin_inf() : -__builtin_inf();
}

template <int F>
static double value_one(const int64_t* bins, int index) {
    if (is_flag(index)) return flag_value(index);
    int64_t limb[F];
    for (int f = 0; f < F; ++f) limb[f] = bins[f];
    for (int f = F - 1; f > 0; --f) {
        const int64_t carry = (limb[f] + (int64_t(1) << (kBinBits - 1))) >> kBinBits;
        limb[f] -= carry * (int64_t(1) << kBinBits);
        limb[f - 1] += carry;
    }
    double low = static_cast<double>(limb[F - 1]), unit = 17592186044416.0;  // 2^44
    for (int f = F - 2; f >= 0; --f) {
        low = static_cast<double>(limb[f]) * unit + low;
        unit *= 17592186044416.0;
    }
    const double half = as_double((22 * int64_t(index - F + 1) + 486) << 52);  // half * half = the lowest unit
    return low * half * half;
}

// ---- vectors ---------------------------------------------------------------------------------------------------

template <int F>
EF_INLINE V value(const VI* bins, VI index) {
    VI limb[F];
    for (int f = 0; f < F; ++f) limb[f] = bins[f];
    for (int f = F - 1; f > 0; --f) {
        const VI carry = (limb[f] + (int64_t(1) << (kBinBits - 1))) >> kBinBits;
        limb[f] -= carry << kBinBits;
        limb[f - 1] += carry;
    }
    V low = __builtin_convertvector(limb[F - 1], V);
    double unit = 17592186044416.0;
    for (int f = F - 2; f >= 0; --f) {
        low = __builtin_convertvector(limb[f], V) * unit + low;
        unit *= 17592186044416.0;
    }
    const VI lowest = index - (F - 1);
    const V half = (V)((((lowest << 4) + (lowest << 2) + (lowest << 1)) + 486) << 52);
    return low * half * half;
}

typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
EF_INLINE VI load_index(const uint8_t* p) { return __builtin_convertvector(load_as<Bytes>(p), VI); }
EF_INLINE void store_index(uint8_t* p, VI index) { store_as(p, __builtin_convertvector(index, Bytes)); }

// Lanes move down by `steps` >= 0 bins.
template <int F>
EF_INLINE void shift(VI* bins, VI steps) {
    for (int f = F - 1; f >= 0; --f) {
        VI moved = {};
        for (int s = 0; s <= f; ++s) moved |= bins[f - s] & (steps == VI{} + s);
        bins[f] = moved;
    }
}

// ---- tiles -----------------------------------------------------------------------------------------------------

// Sums of a coordinate that has a flag, or the end of a tile.
template <class T, int F>
static double sum_one(const void* const* inputs, const double* weights, int64_t clients, int64_t stride, int64_t i,
                      bool* flagged) {
    int64_t bins[F] = {};
    int index = F - 1;
    for (int64_t k = 0; k < clients; ++k)
        add_one<F>(Element<T>::read_one(static_cast<const T*>(inputs[k * stride]) + i) * weights[k], bins, &index);
    if (is_flag(index)) *flagged = true;
    return value_one<F>(bins, index);
}

// sums = those of kVectors vectors of coordinates from i on. Twice over the clients: the largest term fixes the bins, and
// the second reading comes from the cache.
template <class T, int kVectors>
static void sum_group(const void* const* inputs, const double* weights, int64_t clients, int64_t stride, int64_t i,
                      bool ahead, V* sums, bool* flagged) {
    constexpr int F = ef::binned_folds(dtype_of<T>());
    V largest[kVectors] = {}, check[kVectors] = {};
    for (int64_t k = 0; k < clients; k += kBlock) {
        const int count = clients - k < kBlock ? static_cast<int>(clients - k) : kBlock;
        const auto step = [&](int c) __attribute__((always_inline)) {
            const T* p = static_cast<const T*>(inputs[(k + c) * stride]) + i;
            const V w = broadcast<V>(weights[k + c]);
            if (ahead) __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead, 0, 2);
            for (int g = 0; g < kVectors; ++g) {
                const V t = Element<T>::read(p + g * kLanes) * w;
                const V a = (V)magnitude_bits(t);
                largest[g] = maximum(a, largest[g]);
                check[g] += t;  // NaN and infinity stay; maximum may lose a NaN
            }
        };
        if constexpr (kSeparate && is_floating(dtype_of<T>())) {
            EF_EACH_OF(count, step)
        } else {
            for (int c = 0; c < count; ++c) step(c);
        }
    }
    V magic[kVectors][F];
    VI bins[kVectors][F], index[kVectors], special[kVectors];
    for (int g = 0; g < kVectors; ++g) {
        const VI j = bin_of((VI)largest[g]);
        index[g] = select(j > VI{} + (F - 1), j, VI{} + (F - 1));
        const VI top = VI{} + (int64_t(kTopExponent) << 52);
        special[g] = ((VI)largest[g] >= top) | (magnitude_bits(check[g]) >= (VI{} + (int64_t(0x7ff) << 52)));
        for (int f = 0; f < F; ++f) {
            magic[g][f] = (V)magic_bits(index[g] - f);
            bins[g][f] = VI{};
        }
    }
    for (int64_t k = 0; k < clients; ++k) {
        const T* p = static_cast<const T*>(inputs[k * stride]) + i;
        const V w = broadcast<V>(weights[k]);
        for (int g = 0; g < kVectors; ++g) {
            V t = Element<T>::read(p + g * kLanes) * w;
            for (int f = 0; f < F; ++f) {
                const V s = t + magic[g][f];
                bins[g][f] = (VI)((VU)bins[g][f] + (VU)s);
                if (f + 1 < F) t -= s - magic[g][f];
            }
        }
    }
    for (int g = 0; g < kVectors; ++g) {
        for (int f = 0; f < F; ++f)
            bins[g][f] = (VI)((VU)bins[g][f] - (VU)magic[g][f] * static_cast<uint64_t>(clients));
        sums[g] = value<F>(bins[g], index[g]);
        if (any(special[g])) {
            for (int l = 0; l < kLanes; ++l)
                if (special[g][l])
                    sums[g][l] = sum_one<T, F>(inputs, weights, clients, stride, i + g * kLanes + l, flagged);
        }
    }
}

// "Without bins" of binned.hpp, as far as it depends on the weights alone.
struct Proof {
    double slack;  // of a coordinate whose largest |x| is 1
    double exact;  // W / 2^(b + 20): at most 2^e for that coordinate where its plain sum is exact
    double most;   // a larger |x| takes the bins
    Proof(const double* weights, int64_t clients, double total) {
        double largest = 0;
        int64_t unit = 2047;  // b, biased
        for (int64_t k = 0; k < clients; ++k) {
            const int64_t bits = as_bits(weights[k]);
            if (weights[k] > largest) largest = weights[k];
            const int64_t lowest = (bits >> 52) - 52 + __builtin_ctzll(static_cast<uint64_t>(bits) | uint64_t(1) << 52);
            if (bits && lowest < unit) unit = lowest;
        }
        const double count = static_cast<double>(clients);
        slack = largest * count / total * (0x1p-43 + count * 0x1p-52);
        exact = clients <= 512 && unit > 0 ? largest / as_double(unit << 52) : __builtin_inf();
        exact = exact < 0x1p29 ? exact * 0x1p-20 : __builtin_inf();
        most = largest < 0x1p864 ? 3.4028234663852886e38 : -1;
    }
};

template <int kBytes>
struct Unsigned;
template <>
struct Unsigned<1> {
    typedef uint8_t type;
};
template <>
struct Unsigned<2> {
    typedef uint16_t type;
};
template <>
struct Unsigned<4> {
    typedef uint32_t type;
};
// kLanes elements as the integers of their bits.
template <class T>
EF_INLINE auto patterns(const T* p) {
    typedef typename Unsigned<sizeof(T)>::type one;
    typedef one vec __attribute__((vector_size(sizeof(T) * kLanes)));
    return load_as<vec>(p);
}

EF_INLINE vi32 larger(vi32 a, vi32 b) {
#if defined(EF_TARGET_AVX512)
    return (vi32)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(EF_TARGET_AVX2)
    return (vi32)_mm256_max_epi32((__m256i)a, (__m256i)b);
#elif defined(EF_TARGET_NEON)
    return (vi32)vmaxq_s32((int32x4_t)a, (int32x4_t)b);
#else
    return a > b ? a : b;
#endif
}
EF_INLINE vi32 smaller(vi32 a, vi32 b) {
#if defined(EF_TARGET_AVX512)
    return (vi32)_mm512_min_epi32((__m512i)a, (__m512i)b);
#elif defined(EF_TARGET_AVX2)
    return (vi32)_mm256_min_epi32((__m256i)a, (__m256i)b);
#elif defined(EF_TARGET_NEON)
    return (vi32)vminq_s32((int32x4_t)a, (int32x4_t)b);
#else
    return a < b ? a : b;
#endif
}
// Half h of a vector of binary32.
EF_INLINE V half_of(vf32 v, int h) {
    vf32_half part;
    __builtin_memcpy(&part, reinterpret_cast<const char*>(&v) + h * static_cast<int>(sizeof(part)), sizeof(part));
    return to_doubles(part);
}

// Pairs of vectors side by side: as many as the registers hold.
constexpr int kPairsAtOnce = EF_VECTOR_BYTES == 64 ? 4 : 2;

// Means of coordinates [i, n) in steps of kPairs pairs of vectors, from plain sums where they settle them; returns where
// the last step ended. Gives up, with *settles false, where more than half of the vectors took the bins after all, as those
// of three or four equal weights do that share no large power of two.
template <class T, int kPairs>
EF_INLINE int64_t steps(const void* const* inputs, const double* weights, int64_t clients, int64_t stride, double total,
                        const Proof& proof, int64_t offset, int64_t i, int64_t n, bool ahead, bool streaming, T* out,
                        bool* flagged, bool* settles) {
    constexpr int kStep = kPairs * kLanesF32, kBytes = kStep * static_cast<int>(sizeof(T));
    constexpr int64_t kTrial = 32;  // vectors
    int64_t tried = 0, binned_vectors = 0;
    const vu32 magnitude = vu32{} + 0x7fffffffu;
    for (; i + kStep <= n; i += kStep) {
        V sum[2 * kPairs] = {};
        // Bits of the largest |x|, and of the smallest above zero, plus 2^31 - 1 modulo 2^32: zero is the largest of these.
        vi32 largest[kPairs] = {}, smallest[kPairs];
#pragma GCC unroll 4
        for (int v = 0; v < kPairs; ++v) smallest[v] = (vi32)magnitude;
        for (int64_t k = 0; k < clients; k += kBlock) {
            const int count = clients - k < kBlock ? static_cast<int>(clients - k) : kBlock;
            const auto step = [&](int c) __attribute__((always_inline)) {
                const T* p = static_cast<const T*>(inputs[(k + c) * stride]) + offset + i;
                const V w = broadcast<V>(weights[k + c]);
                if (kPairs > 1) fetch_step<kBytes>(p, ahead);
#pragma GCC unroll 4
                for (int v = 0; v < kPairs; ++v) {
                    const vf32 x = SingleRead<T>::read(p + v * kLanesF32);
                    const vu32 a = (vu32)x & magnitude;
                    largest[v] = larger(largest[v], (vi32)a);
                    smallest[v] = smaller(smallest[v], (vi32)(a + magnitude));
#pragma GCC unroll 2
                    for (int h = 0; h < 2; ++h) {
                        if constexpr (sizeof(T) == sizeof(float))
                            sum[2 * v + h] += Element<T>::read(p + v * kLanesF32 + h * kLanes) * w;
                        else
                            sum[2 * v + h] += half_of(x, h) * w;
                    }
                }
            };
            if constexpr (kSeparate && is_floating(dtype_of<T>())) {
                EF_EACH_OF(count, step)
            } else {
                for (int c = 0; c < count; ++c) step(c);
            }
        }
        T low[kStep], high[kStep];
        VI open[2 * kPairs], all = {};
#pragma GCC unroll 8
        for (int v = 0; v < 2 * kPairs; ++v) {
            const V most = half_of((vf32)largest[v / 2], v % 2);
            const V power = half_of((vf32)(((vu32)smallest[v / 2] - magnitude) & 0x7f800000u), v % 2);
            const VI inexact = ~(most * proof.exact <= power);
            const V mean = sum[v] / total, slack = (V)((VI)(most * proof.slack) & inexact);
            Element<T>::write(low + v * kLanes, mean - slack);
            Element<T>::write(high + v * kLanes, mean + slack);
            open[v] = __builtin_convertvector(patterns(low + v * kLanes) ^ patterns(high + v * kLanes), VI) |
                      ~(most <= V{} + proof.most);
            all |= open[v];
        }
        if (any(all)) {
            for (int v = 0; v < 2 * kPairs; ++v) {
                if (!any(open[v])) continue;
                ++binned_vectors;
                V binned;
                sum_group<T, 1>(inputs, weights, clients, stride, offset + i + v * kLanes, false, &binned, flagged);
                Element<T>::write(high + v * kLanes, binned / total);
            }
        }
        if (kPairs > 1 && streaming) {
            constexpr int kWritten = kLanes * static_cast<int>(sizeof(T));
            stream<kWritten < 16 ? 16 : kWritten>(reinterpret_cast<char*>(out + i), high, sizeof(high));
        } else {
            __builtin_memcpy(out + i, high, sizeof(high));
        }
        tried += 2 * kPairs;
        if (tried >= kTrial && 2 * binned_vectors > tried) {
            *settles = false;
            return i + kStep;
        }
    }
    return i;
}

template <class T>
static bool mean_tile(const void* const* inputs, const double* weights, int64_t clients, int64_t stride, double total,
                      const Proof& proof, int64_t offset, int64_t n, bool large, bool ahead, void* output) {
    constexpr int F = ef::binned_folds(dtype_of<T>());
    T* out = static_cast<T*>(output) + offset;
    bool flagged = false, settles = F == 2;
    int64_t i = 0;
    if constexpr (F == 2) {
        const auto past_line = reinterpret_cast<uintptr_t>(out) % 64;
        const bool streaming = kCanStream && large && past_line % sizeof(T) == 0;
        if (streaming && past_line) {
            const int64_t head = static_cast<int64_t>((64 - past_line) / sizeof(T));
            if (head < n) {
                flagged = mean_tile<T>(inputs, weights, clients, stride, total, proof, offset, head, false, ahead, output);
                offset += head;
                n -= head;
                out += head;
            }
        }
        i = steps<T, kPairsAtOnce>(inputs, weights, clients, stride, total, proof, offset, i, n, ahead, streaming, out,
                                   &flagged, &settles);
        if (settles)
            i = steps<T, 1>(inputs, weights, clients, stride, total, proof, offset, i, n, ahead, false, out, &flagged,
                            &settles);
    }
    if (!settles) {
        constexpr int kGroup = 2;  // to hide the latency of the chains
        for (; i + kGroup * kLanes <= n; i += kGroup * kLanes) {
            V sums[kGroup];
            sum_group<T, kGroup>(inputs, weights, clients, stride, offset + i, ahead, sums, &flagged);
            for (int g = 0; g < kGroup; ++g) Element<T>::write(out + i + g * kLanes, sums[g] / total);
        }
    }
    for (; i < n; ++i)
        Element<T>::write_one(out + i, sum_one<T, F>(inputs, weights, clients, stride, offset + i, &flagged) / total);
    return flagged;
}

template <class T>
static void add_tile(const void* input, double weight, int64_t offset, int64_t n, int64_t size, ef::BinnedState state) {
    constexpr int F = ef::binned_folds(dtype_of<T>());
    const T* x = static_cast<const T*>(input) + offset;
    int64_t* const rows = state.bins + offset;
    uint8_t* const tops = state.index + offset;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        V t = Element<T>::read(x + i) * weight;
        const VI bits = magnitude_bits(t);
        VI index = load_index(tops + i);
        VI bins[F];
        for (int f = 0; f < F; ++f) bins[f] = load_as<VI>(rows + f * size + i);
        // |t| < 2^43 u_index, as a comparison of bit patterns; a flag as index makes the limit negative or nonsense.
        const VI limit = (times_44(index) - 8) << 52;
        const VI odd = (index > VI{} + ef::kTopBin) | (bits >= limit);
        if (any(odd)) {
            if (any((index > VI{} + ef::kTopBin) | (bits >= VI{} + (int64_t(kTopExponent) << 52)))) {
                for (int l = 0; l < kLanes; ++l) {
                    int64_t one[F];
                    int top = static_cast<int>(index[l]);
                    for (int f = 0; f < F; ++f) one[f] = bins[f][l];
                    add_one<F>(t[l], one, &top);
                    for (int f = 0; f < F; ++f) store_as(rows + f * size + i + l, one[f]);
                    tops[i + l] = static_cast<uint8_t>(top);
                }
                continue;
            }
            const VI j = bin_of(bits);
            const VI raised = select(j > index, j, index);
            shift<F>(bins, raised - index);
            index = raised;
            store_index(tops + i, index);
        }
        for (int f = 0; f < F; ++f) {
            const V m = (V)magic_bits(index - f);
            const V s = t + m;
            store_as(rows + f * size + i, bins[f] + ((VI)s - (VI)m));
            if (f + 1 < F) t -= s - m;
        }
    }
    for (; i < n; ++i) {
        int64_t one[F];
        int top = tops[i];
        for (int f = 0; f < F; ++f) one[f] = element<int64_t>(reinterpret_cast<const char*>(rows + f * size + i));
        add_one<F>(Element<T>::read_one(x + i) * weight, one, &top);
        for (int f = 0; f < F; ++f) store_as(rows + f * size + i, one[f]);
        tops[i] = static_cast<uint8_t>(top);
    }
}

template <int F>
static void merge_one(int64_t* mine, int* top, int64_t* theirs, int other) {
    if (is_flag(*top) || is_flag(other)) {
        *top = is_flag(*top) && is_flag(other) ? join(*top, other) : is_flag(*top) ? *top : other;
        for (int f = 0; f < F; ++f) mine[f] = 0;
        return;
    }
    if (other > *top) {
        shift_one<F>(mine, other - *top);
        *top = other;
    } else {
        shift_one<F>(theirs, *top - other);
    }
    for (int f = 0; f < F; ++f) mine[f] += theirs[f];
}

template <int F>
static void merge_tile(ef::BinnedState other, int64_t offset, int64_t n, int64_t size, ef::BinnedState state) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const int64_t o = offset + i;
        const VI a = load_index(state.index + o), b = load_index(other.index + o);
        VI mine[F], theirs[F];
        for (int f = 0; f < F; ++f) {
            mine[f] = load_as<VI>(state.bins + f * size + o);
            theirs[f] = load_as<VI>(other.bins + f * size + o);
        }
        const VI flags = (a > VI{} + ef::kTopBin) | (b > VI{} + ef::kTopBin);
        if (any(flags)) {
            for (int l = 0; l < kLanes; ++l) {
                int64_t one[F], two[F];
                int top = static_cast<int>(a[l]);
                for (int f = 0; f < F; ++f) one[f] = mine[f][l], two[f] = theirs[f][l];
                merge_one<F>(one, &top, two, static_cast<int>(b[l]));
                for (int f = 0; f < F; ++f) store_as(state.bins + f * size + o + l, one[f]);
                state.index[o + l] = static_cast<uint8_t>(top);
            }
            continue;
        }
        if (any(a != b)) {
            const VI top = select(a > b, a, b);
            shift<F>(mine, top - a);
            shift<F>(theirs, top - b);
            store_index(state.index + o, top);
        }
        for (int f = 0; f < F; ++f) store_as(state.bins + f * size + o, mine[f] + theirs[f]);
    }
    for (; i < n; ++i) {
        const int64_t o = offset + i;
        int64_t one[F], two[F];
        int top = state.index[o];
        for (int f = 0; f < F; ++f) {
            one[f] = element<int64_t>(reinterpret_cast<const char*>(state.bins + f * size + o));
            two[f] = element<int64_t>(reinterpret_cast<const char*>(other.bins + f * size + o));
        }
        merge_one<F>(one, &top, two, other.index[o]);
        for (int f = 0; f < F; ++f) store_as(state.bins + f * size + o, one[f]);
        state.index[o] = static_cast<uint8_t>(top);
    }
}

template <class T>
static void finish_tile(ef::BinnedState state, double total, int64_t offset, int64_t n, int64_t size, void* output) {
    constexpr int F = ef::binned_folds(dtype_of<T>());
    T* out = static_cast<T*>(output) + offset;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const int64_t o = offset + i;
        const VI index = load_index(state.index + o);
        VI bins[F];
        for (int f = 0; f < F; ++f) bins[f] = load_as<VI>(state.bins + f * size + o);
        V sum = value<F>(bins, select(index > VI{} + ef::kTopBin, VI{} + (F - 1), index));
        if (any(index > VI{} + ef::kTopBin))
            for (int l = 0; l < kLanes; ++l)
                if (is_flag(static_cast<int>(index[l]))) sum[l] = flag_value(static_cast<int>(index[l]));
        Element<T>::write(out + i, sum / total);
    }
    for (; i < n; ++i) {
        const int64_t o = offset + i;
        int64_t one[F];
        for (int f = 0; f < F; ++f) one[f] = element<int64_t>(reinterpret_cast<const char*>(state.bins + f * size + o));
        Element<T>::write_one(out + i, value_one<F>(one, state.index[o]) / total);
    }
}

// ---- whole models ----------------------------------------------------------------------------------------------

struct MeanBody {
    const void* const* inputs;
    const double* weights;
    int64_t clients;
    double total;
    Proof proof;
    const ef::TensorSpec* specs;
    int64_t tensors;
    bool large, ahead;
    void* const* outputs;
    bool flagged;  // set by any thread, read after they were joined
    void operator()(int64_t t, int64_t offset, int64_t n) {
        bool found = false;
#define EF_CALL(T) \
    found = mean_tile<T>(inputs + t, weights, clients, tensors, total, proof, offset, n, large, ahead, outputs[t])
        EF_FOR_DTYPE(specs[t].dtype, EF_CALL)
#undef EF_CALL
        if (found) __atomic_store_n(&flagged, true, __ATOMIC_RELAXED);
    }
};

static bool mean(const void* const* inputs, const double* weights, int64_t clients, double total,
                 const ef::TensorSpec* specs, int64_t tensors, void* const* outputs, int threads) noexcept {
    int64_t elements = 0;
    for (int64_t t = 0; t < tensors; ++t) elements += specs[t].size;
    const bool large = elements * int64_t{4} >= kStreamBytes;
    MeanBody body = {inputs, weights, clients, total,   Proof(weights, clients, total), specs, tensors, large,
                     ef::prefers_prefetch(), outputs, false};
    walk(specs, tensors, 2 * clients, threads, body, kChunk);
    return body.flagged;
}

struct AddBody {
    const void* const* inputs;
    double weight;
    const ef::TensorSpec* specs;
    const ef::BinnedState* states;
    void operator()(int64_t t, int64_t offset, int64_t n) {
#define EF_CALL(T) add_tile<T>(inputs[t], weight, offset, n, specs[t].size, states[t])
        EF_FOR_DTYPE(specs[t].dtype, EF_CALL)
#undef EF_CALL
    }
};

static void add(const void* const* inputs, double weight, const ef::TensorSpec* specs, int64_t tensors,
                const ef::BinnedState* states, int threads) noexcept {
    AddBody body = {inputs, weight, specs, states};
    walk(specs, tensors, 8, threads, body);
}

struct MergeBody {
    const ef::BinnedState* others;
    const ef::TensorSpec* specs;
    const ef::BinnedState* states;
    void operator()(int64_t t, int64_t offset, int64_t n) {
        if (ef::binned_folds(specs[t].dtype) == 2)
            merge_tile<2>(others[t], offset, n, specs[t].size, states[t]);
        else
            merge_tile<3>(others[t], offset, n, specs[t].size, states[t]);
    }
};

static void merge(const ef::BinnedState* others, const ef::TensorSpec* specs, int64_t tensors,
                  const ef::BinnedState* states, int threads) noexcept {
    MergeBody body = {others, specs, states};
    walk(specs, tensors, 8, threads, body);
}

struct FinishBody {
    const ef::BinnedState* states;
    double total;
    const ef::TensorSpec* specs;
    void* const* outputs;
    void operator()(int64_t t, int64_t offset, int64_t n) {
#define EF_CALL(T) finish_tile<T>(states[t], total, offset, n, specs[t].size, outputs[t])
        EF_FOR_DTYPE(specs[t].dtype, EF_CALL)
#undef EF_CALL
    }
};

static void finish(const ef::BinnedState* states, double total, const ef::TensorSpec* specs, int64_t tensors,
                   void* const* outputs, int threads) noexcept {
    FinishBody body = {states, total, specs, outputs};
    walk(specs, tensors, 4, threads, body);
}

}  // namespace binned

static const ef::BinnedKernels kBinned = {binned::mean, binned::add, binned::merge, binned::finish};
static const ef::BinnedKernels* const kBinnedTable = &kBinned;

}  // namespace EF_ISA
}  // namespace ef
