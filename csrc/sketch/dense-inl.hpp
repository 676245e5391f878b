namespace ef {
namespace EF_ISA {
namespace {
#include "common/simd-inl.hpp"
#include "common/lanes-inl.hpp"
#include "sketch/blocks-inl.hpp"
#include "sketch/convert-inl.hpp"

// Register block: kRows rows times kVectors vectors of outputs, all sums of a block in registers.
#if defined(EF_TARGET_AVX512)
constexpr int kRows = 5, kVectors = 4;
#elif defined(EF_TARGET_NEON)
constexpr int kRows = 6, kVectors = 4;
#else
constexpr int kRows = 6, kVectors = 2;
#endif
static_assert(kDensePackRows % kRows == 0);

template <class T>
constexpr int kWidth = kVectors * Lanes<T>::count;  // outputs of a panel

// How a term +-x is added to a sum. AMD's cores add on two ports that multiply-adds do not use; with about a third of
// the terms added there, after an xor of the sign, the loop runs at up to 1.4 times the speed of multiply-adds alone.
enum class Term { fused, fused_from_sign, added };
template <bool kBeside>
constexpr Term term(int row, int vector) {
    if (!kBeside || vector < kVectors / 2) return Term::fused;
    // Two thirds of one vector's rows, where a register for its second form can be spared.
    return kVectors == 4 && vector == 2 && row % 3 != 2 ? Term::fused_from_sign : Term::added;
}

template <class V, class U>
EF_INLINE V add_signed(V x, V sign, V sum) {
    return sum + (V)((U)x ^ (U)sign);
}

// kR rows of x times kV vectors of a panel, `count` features. kBeside: the panel's vectors from kVectors / 2 on hold
// sign bits instead of numbers.
template <class T, int kR, int kV, bool kBeside>
void multiply(const char* x, int64_t row_stride, const T* panel, int count, T* out, int64_t out_stride) {
    typedef typename Lanes<T>::V V;
    typedef typename Lanes<T>::U U;
    constexpr int L = Lanes<T>::count;
    V sum[kR][kV];
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) sum[r][v] = load_as<V>(out + r * out_stride + v * L);
    const V one = broadcast<V>(static_cast<T>(1));
    for (int j = 0; j < count; ++j) {
        V entry[kV];
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) entry[v] = load_as<V>(panel + j * kWidth<T> + v * L);
        V number = V{};
        if (kBeside && kV > 2) number = (V)((U)entry[kV > 2 ? 2 : 0] | (U)one);
#pragma GCC unroll 8
        for (int r = 0; r < kR; ++r) {
            const V value = broadcast<V>(element<T>(x + r * row_stride + j * static_cast<int64_t>(sizeof(T))));
#pragma GCC unroll 4
            for (int v = 0; v < kV; ++v) {
                if (term<kBeside>(r, v) == Term::fused)
                    sum[r][v] = multiply_add_exact(value, entry[v], sum[r][v]);
                else if (term<kBeside>(r, v) == Term::fused_from_sign)
                    sum[r][v] = multiply_add_exact(value, number, sum[r][v]);
                else
                    sum[r][v] = add_signed<V, U>(value, entry[v], sum[r][v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) store_as(out + r * out_stride + v * L, sum[r][v]);
}

// The same for any number of rows up to kRows and any width up to a panel's: what sticks out goes through a tile.
template <class T, bool kBeside>
EF_INLINE void multiply_edge(const char* x, int64_t row_stride, int rows, int width, const T* panel, int count, T* out,
                             int64_t out_stride) {
    T tile[kRows * kWidth<T>];
    T* to = out;
    int64_t stride = out_stride;
    const bool narrow = width < kWidth<T>;
    const size_t bytes = sizeof(T) * static_cast<size_t>(width);
    if (narrow) {
        to = tile;
        stride = kWidth<T>;
        __builtin_memset(tile, 0, sizeof tile);
        for (int r = 0; r < rows; ++r) __builtin_memcpy(tile + r * stride, out + r * out_stride, bytes);
    }
    const bool few = !kBeside && width <= kWidth<T> / 2;  // sign bits are for whole panels
    if (rows == kRows) {
        if (few)
            multiply<T, kRows, kVectors / 2, kBeside>(x, row_stride, panel, count, to, stride);
        else
            multiply<T, kRows, kVectors, kBeside>(x, row_stride, panel, count, to, stride);
    } else {
        for (int r = 0; r < rows; ++r) {
            if (few)
                multiply<T, 1, kVectors / 2, kBeside>(x + r * row_stride, 0, panel, count, to + r * stride, 0);
            else
                multiply<T, 1, kVectors, kBeside>(x + r * row_stride, 0, panel, count, to + r * stride, 0);
        }
    }
    if (narrow)
        for (int r = 0; r < rows; ++r) __builtin_memcpy(out + r * out_stride, tile + r * stride, bytes);
}

// +-1, or the sign bit alone, for outputs [i, i + L) of a block of 256.
template <class T>
EF_INLINE typename Lanes<T>::V signs_of(const uint64_t* words, int i, bool bit_alone) {
    typedef typename Lanes<T>::V V;
    typedef typename Lanes<T>::U U;
    typedef typename Lanes<T>::Bits Bits;
    constexpr int L = Lanes<T>::count, kTop = 8 * sizeof(T) - 1;
    const uint64_t bits = words[i / 64] >> (i % 64);
    const U top = U{} + (static_cast<Bits>(1) << kTop);
    const U base = bit_alone ? U{} : (U)broadcast<V>(static_cast<T>(1));
#if defined(EF_TARGET_AVX512)
    if constexpr (L == 16)
        return (V)_mm512_mask_blend_epi32(static_cast<__mmask16>(bits), (__m512i)base, (__m512i)(base | top));
    else
        return (V)_mm512_mask_blend_epi64(static_cast<__mmask8>(bits), (__m512i)base, (__m512i)(base | top));
#else
    U shift;
    for (int e = 0; e < L; ++e) shift[e] = static_cast<Bits>(kTop - e);
    return (V)((((U{} + static_cast<Bits>(bits)) << shift) & top) | base);
#endif
}

// The first `panels` panels of a block of 256 outputs: +-1 for `count` features, or the sign bit alone.
template <class T, bool kBeside>
void fill_signs(const DenseJob& job, int64_t first, int count, int64_t block, int panels, T* panel) {
    constexpr int L = Lanes<T>::count;
    uint64_t words[kBlocks][4];
    for (int j = 0; j < count; ++j) {
        if (j % kBlocks == 0)
            philox_blocks(static_cast<uint64_t>(first + j) + 1, 1, static_cast<uint64_t>(block), 0, job.seed, 3, words);
        T* to = panel + j * kWidth<T>;
        int i = 0;
        for (int p = 0; p < panels; ++p, to += kDenseFeatures<T> * kWidth<T>)
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v, i += L)
                store_as(to + v * L, signs_of<T>(words[j % kBlocks], i, kBeside && v >= kVectors / 2));
    }
}

// kGaussianCubics[power] of every lane's octave.
EF_INLINE vi32 coefficients(int power, vi32 octave) {
#if defined(EF_TARGET_AVX512)
    return (vi32)_mm512_permutexvar_epi32((__m512i)octave, _mm512_loadu_si512(kGaussianCubics[power]));
#elif defined(EF_TARGET_AVX2)
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kGaussianCubics[power]));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kGaussianCubics[power] + 8));
    const __m256i index = (__m256i)octave;
    return (vi32)_mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(_mm256_permutevar8x32_epi32(low, index)),
                                                      _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(high, index)),
                                                      _mm256_castsi256_ps(_mm256_slli_epi32(index, 28))));
#elif defined(EF_TARGET_NEON)
    const auto* bytes = reinterpret_cast<const uint8_t*>(kGaussianCubics[power]);
    const uint8x16x4_t table = {{vld1q_u8(bytes), vld1q_u8(bytes + 16), vld1q_u8(bytes + 32), vld1q_u8(bytes + 48)}};
    return (vi32)vqtbl4q_u8(table, (uint8x16_t)(octave * 0x04040404 + 0x03020100));
#else
    vi32 c;
    for (int i = 0; i < kLanesF32; ++i) c[i] = kGaussianCubics[power][octave[i]];
    return c;
#endif
}

// gaussian_entry of every lane. The float32 of the odd number 2 v + 1 has the octave for exponent and the fraction within
// it for mantissa.
EF_INLINE vi32 gaussian_entries(vi32 draw) {
    const vi32 odd = ((draw & 0x7fff) << 1) | 1;
    const vi32 bits = (vi32) __builtin_convertvector(odd, vf32);
    const vi32 octave = (bits >> 23) - 127, fraction = (bits >> 9) & 0x3fff;
    vi32 y = coefficients(3, octave) * fraction >> 14;
    y = (y + coefficients(2, octave)) * fraction >> 14;
    y = (y + coefficients(1, octave)) * fraction >> 14;
    y += coefficients(0, octave);
    const vi32 negative = -(draw >> 15);
    return (y ^ negative) - negative;
}

EF_INLINE void store_entries(vi32 entries, float* to) {
    store_as(to, __builtin_convertvector(entries, vf32) * kGaussianUnit);
}
EF_INLINE void store_entries(vi32 entries, double* to) {
    typedef int32_t vi32_half __attribute__((vector_size(EF_VECTOR_BYTES / 2)));
    int32_t halves[kLanesF32];
    store_as(halves, entries);
    for (int i = 0; i < kLanesF32; i += kLanesF64)
        store_as(to + i, __builtin_convertvector(load_as<vi32_half>(halves + i), vf64) * double{kGaussianUnit});
}

// Numbers for the first `width` outputs of a block of 256 (rounded up to 16, the draws of a Philox block), `count`
// features.
template <class T>
void fill_gaussian(const DenseJob& job, int64_t first, int count, int64_t block, int width, T* panel) {
    typedef uint16_t vu16_half __attribute__((vector_size(EF_VECTOR_BYTES / 2)));
    static_assert(kWidth<T> % kLanesF32 == 0 && 16 % kLanesF32 == 0);
    uint64_t words[kBlocks][4];
    for (int j0 = 0; j0 < count; j0 += kBlocks) {
        const int features = count - j0 < kBlocks ? count - j0 : kBlocks;
        for (int output = 0; output < width; output += 16) {
            philox_blocks(static_cast<uint64_t>(first + j0) + 1, 1, static_cast<uint64_t>((block * kDenseOutputs + output) / 16),
                          0, job.seed, 4, words);
            for (int j = 0; j < features; ++j) {
                uint16_t draws[16];
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
                __builtin_memcpy(draws, words[j], sizeof draws);
#else
                for (int i = 0; i < 16; ++i) draws[i] = static_cast<uint16_t>(words[j][i / 4] >> (16 * (i % 4)));
#endif
                for (int i = 0; i < 16; i += kLanesF32) {
                    const int p = (output + i) / kWidth<T>, c = (output + i) % kWidth<T>;
                    T* to = panel + p * (kDenseFeatures<T> * kWidth<T>) + (j0 + j) * kWidth<T> + c;
                    store_entries(gaussian_entries(__builtin_convertvector(load_as<vu16_half>(draws + i), vi32)), to);
                }
            }
        }
    }
}

// Brings rows [begin, end) of the next group towards the core while this one is multiplied.
EF_INLINE void prefetch_rows(const char* x, int64_t row_stride, int bytes, int begin, int end) {
    for (int r = begin; r < end; ++r)
        for (int i = 0; i < bytes; i += 64) __builtin_prefetch(x + r * row_stride + i);
}

template <class T>
EF_INLINE void finish_rows(T* out, int rows, int64_t stride, int width, T scale) {
    typedef typename Lanes<T>::V V;
    constexpr int L = Lanes<T>::count;
    for (int r = 0; r < rows; ++r, out += stride) {
        int c = 0;
        for (; c + L <= width; c += L) store_as(out + c, canonical_lanes<T>(load_as<V>(out + c) * scale));
        for (; c < width; ++c) out[c] = canonical(out[c] * scale);
    }
}

template <class T, bool kGaussian, bool kBeside>
void dense_tile(const DenseJob& job, const DenseTile& tile, void* work) {
    constexpr int64_t kSize = sizeof(T);
    const int64_t row_begin = tile.row_begin, row_end = tile.row_end;
    T* panels = static_cast<T*>(work);
    T* packed = panels + kDenseFeatures<T> * kDenseOutputs;
    const int64_t d = job.x.columns, k = job.components;
    const bool same = job.x.type == ElementType::same, direct = same && job.x.column_stride == kSize;
    const T scale = static_cast<T>(job.scale);
    for (int64_t first = 0; first < d; first += kDenseFeatures<T>) {
        const int count = static_cast<int>(d - first < kDenseFeatures<T> ? d - first : kDenseFeatures<T>);
        const int bytes = count * static_cast<int>(kSize);
        for (int64_t block = tile.block_begin; block < tile.block_end; ++block) {
            const int64_t output = block * kDenseOutputs;
            const int width = static_cast<int>(k - output < kDenseOutputs ? k - output : kDenseOutputs);
            const int used = (width + kWidth<T> - 1) / kWidth<T>;
            if (kGaussian)
                fill_gaussian<T>(job, first, count, block, width, panels);
            else
                fill_signs<T, kBeside>(job, first, count, block, used, panels);
            for (int64_t row = row_begin; row < row_end; row += kRows) {
                const int rows = static_cast<int>(row_end - row < kRows ? row_end - row : kRows);
                const char* x = job.x.data + row * job.x.row_stride + first * job.x.column_stride;
                int64_t row_stride = job.x.row_stride;
                int ahead = static_cast<int>(row_end - row - rows < kRows ? row_end - row - rows : kRows);
                if (!direct) {
                    const int64_t at = (row - row_begin) % kDensePackRows;
                    if (at == 0) {
                        const int64_t pack = row_end - row < kDensePackRows ? row_end - row : kDensePackRows;
                        for (int64_t r = 0; r < pack && !same; ++r)
                            convert(job.x.type, x + r * job.x.row_stride, job.x.column_stride, count,
                                    packed + r * kDenseFeatures<T>);
                        for (int j = 0; j < count && same; ++j)
                            for (int64_t r = 0; r < pack; ++r)
                                packed[r * kDenseFeatures<T> + j] =
                                    element<T>(x + r * job.x.row_stride + j * job.x.column_stride);
                    }
                    row_stride = kDenseFeatures<T> * kSize;
                    x = reinterpret_cast<const char*>(packed) + at * row_stride;
                    ahead = 0;
                }
                T* out = reinterpret_cast<T*>(job.out) + row * k + output;
                if (first == 0)
                    for (int r = 0; r < rows; ++r) __builtin_memset(out + r * k, 0, sizeof(T) * static_cast<size_t>(width));
                for (int p = 0; p < used; ++p) {
                    const T* panel = panels + p * (kDenseFeatures<T> * kWidth<T>);
                    const int left = width - p * kWidth<T>;
                    prefetch_rows(x + kRows * row_stride, row_stride, bytes, p * ahead / used, (p + 1) * ahead / used);
                    if (rows == kRows && left >= kWidth<T>)
                        multiply<T, kRows, kVectors, kBeside>(x, row_stride, panel, count, out + p * kWidth<T>, k);
                    else
                        multiply_edge<T, kBeside>(x, row_stride, rows, left < kWidth<T> ? left : kWidth<T>, panel, count,
                                                  out + p * kWidth<T>, k);
                }
                if (first + count == d) finish_rows(out, rows, k, width, scale);
            }
        }
    }
}

}  // namespace

template <class T>
static void rademacher_tile(const DenseJob& job, const DenseTile& tile, void* work) noexcept {
#if defined(EF_TARGET_AVX2)
    if (tile.adds_beside) return dense_tile<T, false, true>(job, tile, work);
#endif
    dense_tile<T, false, false>(job, tile, work);
}
template <class T>
static void gaussian_tile(const DenseJob& job, const DenseTile& tile, void* work) noexcept {
    dense_tile<T, true, false>(job, tile, work);
}

}  // namespace EF_ISA
}  // namespace ef
