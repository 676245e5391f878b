namespace ef {
namespace EF_ISA {
namespace {
#include "common/simd-inl.hpp"
#include "common/lanes-inl.hpp"
#include "sketch/convert-inl.hpp"

// Row `row` of y as contiguous T: where it is, or converted into `room`.
template <class T>
EF_INLINE const char* row_of(const AdjointJob& job, int64_t row, T* room) {
    const char* source = job.y.data + row * job.y.row_stride;
    if (job.type == ElementType::same && job.y.column_stride == static_cast<int64_t>(sizeof(T))) return source;
    convert(job.type, source, job.y.column_stride, job.y.columns, room);
    return reinterpret_cast<const char*>(room);
}

// tile[j][row] = the sum of the entries of feature j. kNnz 0: any number of entries a feature.
template <class T, int kNnz>
EF_INLINE void gather_tile(const T* y, const uint32_t* entry, int nnz, int count, T* tile) {
    typedef typename Lanes<T>::V V;
    constexpr int L = Lanes<T>::count;
    if constexpr (kNnz > 0) nnz = kNnz;
    for (int j = 0; j < count; ++j, entry += nnz) {
        V sum = V{};
#pragma GCC unroll 8
        for (int e = 0; e < nnz; ++e)
            sum += flip(load_as<V>(y + static_cast<size_t>(entry[e] & 0x7fffffffu) * L), entry[e]);
        store_as(tile + j * L, sum);
    }
}

template <class T>
EF_INLINE void gather_features(const HashEntries& entries, int64_t first, int count, const T* y, T* tile) {
    constexpr int L = Lanes<T>::count;
    if (entries.starts) {
        for (int j = 0; j < count; ++j) {
            const int64_t begin = entries.starts[first + j];
            gather_tile<T, 0>(y, entries.packed + begin, static_cast<int>(entries.starts[first + j + 1] - begin), 1,
                              tile + j * L);
        }
        return;
    }
    const uint32_t* entry = entries.packed + first * entries.nnz;
    switch (entries.nnz) {
        case 1: return gather_tile<T, 1>(y, entry, 1, count, tile);
        case 4: return gather_tile<T, 4>(y, entry, 4, count, tile);
        case 8: return gather_tile<T, 8>(y, entry, 8, count, tile);
        default: return gather_tile<T, 0>(y, entry, entries.nnz, count, tile);
    }
}

// Up to L rows side by side: y transposed to [component][row].
template <class T>
void hash_adjoint_lanes(const HashAdjointJob& job, int64_t row, int rows, T* y, T* room) {
    typedef typename Lanes<T>::V V;
    constexpr int L = Lanes<T>::count;
    const int64_t k = job.y.columns, d = job.features;
    const char* source[L];
    for (int r = 0; r < L; ++r) source[r] = r < rows ? row_of<T>(job, row + r, room + r * k) : source[rows - 1];
    int64_t c = 0;
    for (; c + L <= k; c += L) {
        V v[L];
        load_transposed(source, c * static_cast<int64_t>(sizeof(T)), v);
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) store_as(y + (c + i) * L, v[i]);
    }
    for (; c < k; ++c)
        for (int r = 0; r < L; ++r) y[c * L + r] = element<T>(source[r] + c * static_cast<int64_t>(sizeof(T)));
    alignas(64) T tile[kAdjointTile * L];
    const T scale = static_cast<T>(job.scale);
    T* out = reinterpret_cast<T*>(job.out) + row * d + job.begin;
    const int64_t width = job.end - job.begin;
    for (int64_t first = 0; first < width; first += kAdjointTile) {
        const int count = width - first < kAdjointTile ? static_cast<int>(width - first) : kAdjointTile;
        gather_features<T>(job.entries, first, count, y, tile);
        int j = 0;
        for (; j + L <= count; j += L) {
            V v[L];
            const char* from[L];
            for (int i = 0; i < L; ++i) from[i] = reinterpret_cast<const char*>(tile + (j + i) * L);
            load_transposed(from, 0, v);
#pragma GCC unroll 16
            for (int r = 0; r < L; ++r)
                if (r < rows) store_as(out + r * d + first + j, canonical_lanes<T>(v[r] * scale));
        }
        for (; j < count; ++j)
            for (int r = 0; r < rows; ++r) out[r * d + first + j] = canonical(tile[j * L + r] * scale);
    }
}

// One row: for batches too small, or components too many, for the lanes.
template <class T>
void hash_adjoint_row(const HashAdjointJob& job, int64_t row, T* room) {
    const char* y = row_of<T>(job, row, room);
    const T scale = static_cast<T>(job.scale);
    T* out = reinterpret_cast<T*>(job.out) + row * job.features + job.begin;
    const uint32_t* entry = job.entries.packed;
    for (int64_t j = 0; j < job.end - job.begin; ++j) {
        const int64_t count =
            job.entries.starts ? job.entries.starts[j + 1] - job.entries.starts[j] : int64_t{job.entries.nnz};
        T sum = 0;
        for (int64_t e = 0; e < count; ++e, ++entry)
            sum += flip(element<T>(y + static_cast<size_t>(*entry & 0x7fffffffu) * sizeof(T)), *entry);
        out[j] = canonical(sum * scale);
    }
}

template <class T>
void hash_adjoint_rows_of(const HashAdjointJob& job, int64_t begin, int64_t end, void* lanes, void* room) {
    constexpr int L = Lanes<T>::count;
    while (begin < end) {
        const int rows = end - begin < L ? static_cast<int>(end - begin) : L;
        if (lanes && rows > 2) {
            hash_adjoint_lanes<T>(job, begin, rows, static_cast<T*>(lanes), static_cast<T*>(room));
            begin += rows;
        } else {
            hash_adjoint_row<T>(job, begin++, static_cast<T*>(room));
        }
    }
}

template <class T>
void srht_place_as(const SrhtAdjointJob& job, int64_t row, T* work, T* room) {
    const char* y = row_of<T>(job, row, room);
    __builtin_memset(work, 0, static_cast<size_t>(job.length) * sizeof(T));
    for (int64_t c = 0; c < job.y.columns; ++c) work[job.index[c]] = element<T>(y + c * sizeof(T));
}

template <class T>
void srht_sign_as(const SrhtAdjointJob& job, int64_t row, const T* work) {
    typedef typename Lanes<T>::V V;
    typedef typename Lanes<T>::U U;
    typedef typename Lanes<T>::Bits Bits;
    constexpr int L = Lanes<T>::count, kTop = 8 * sizeof(T) - 1;
    U shift;
    for (int i = 0; i < L; ++i) shift[i] = static_cast<Bits>(kTop - i);
    const U top = U{} + (static_cast<Bits>(1) << kTop);
    const int64_t d = job.features;
    const T scale = static_cast<T>(job.scale);
    T* out = reinterpret_cast<T*>(job.out) + row * d;
    int64_t j = 0;
    for (; j + L <= d; j += L) {
        const Bits bits = static_cast<Bits>(job.signs[j / 64] >> (j % 64)) & ((Bits{1} << L) - 1);
        const V v = (V)((U)load_as<V>(work + j) ^ (((U{} + bits) << shift) & top));
        store_as(out + j, canonical_lanes<T>(v * scale));
    }
    for (; j < d; ++j)
        out[j] = canonical(flip(work[j], static_cast<uint32_t>(job.signs[j / 64] >> (j % 64)) << 31) * scale);
}

// Register block, as in rademacher-inl.hpp.
#if defined(EF_TARGET_AVX512) || defined(EF_TARGET_NEON)
constexpr int kRows = 6, kVectors = 4;
#elif defined(EF_TARGET_AVX2)
constexpr int kRows = 6, kVectors = 2;
#else
constexpr int kRows = 4, kVectors = 2;
#endif

// In place: bit b of word a goes to bit a of word b (H. S. Warren, "Hacker's Delight", 7-3).
EF_INLINE void transpose_bits(uint64_t* words) {
    uint64_t mask = 0x00000000ffffffffull;
    for (int s = 32; s; s >>= 1, mask ^= mask << s)
        for (int a = 0; a < 64; a = ((a | s) + 1) & ~s) {
            const uint64_t t = ((words[a] >> s) ^ words[a | s]) & mask;
            words[a | s] ^= t;
            words[a] ^= t << s;
        }
}

// panel[component][feature] = +-1 for kPanelFeatures features and the components of one Philox block.
template <class T>
void expand_columns(uint64_t seed, int64_t first, int count, int64_t block, T* panel) {
    typedef typename Lanes<T>::V V;
    typedef typename Lanes<T>::U U;
    typedef typename Lanes<T>::Bits Bits;
    constexpr int L = Lanes<T>::count, kTop = 8 * sizeof(T) - 1;
    U shift;
    for (int i = 0; i < L; ++i) shift[i] = static_cast<Bits>(kTop - i);
    const U top = U{} + (static_cast<Bits>(1) << kTop);
    const U one = (U)broadcast<V>(static_cast<T>(1));
    uint64_t words[4][kPanelFeatures];
    for (int j = 0; j < kPanelFeatures; ++j) {
        if (j >= count) {
            for (int w = 0; w < 4; ++w) words[w][j] = 0;
            continue;
        }
        const PhiloxBlock drawn = philox4x64(static_cast<uint64_t>(first + j) + 1, static_cast<uint64_t>(block), 0, 0, seed,
                                             kRademacherStream);
        for (int w = 0; w < 4; ++w) words[w][j] = drawn.word[w];
    }
    for (int w = 0; w < 4; ++w) {
        transpose_bits(words[w]);
        for (int c = 0; c < 64; ++c) {
            T* to = panel + (w * 64 + c) * kPanelFeatures;
            for (int i = 0; i < kPanelFeatures; i += L) {
                const Bits bits = static_cast<Bits>(words[w][c] >> i) & ((Bits{1} << L) - 1);
                store_as(to + i, (V)((((U{} + bits) << shift) & top) ^ one));
            }
        }
    }
}

// The same of Gaussian entries, for components c, c + 1, ....
template <class T>
void draw_columns(const DenseAdjointJob& job, int64_t first, int width, int64_t c, int count, T* panel) {
    for (int j = 0; j < width; ++j)
        for (int b = 0; b < count; b += 16) {
            const PhiloxBlock drawn = philox4x64(static_cast<uint64_t>(first + j) + 1, static_cast<uint64_t>((c + b) / 16), 0,
                                                 0, job.seed, kGaussianStream);
            for (int i = 0; i < 16; ++i)
                panel[(b + i) * kPanelFeatures + j] =
                    static_cast<T>(job.gaussian[(drawn.word[i / 4] >> (16 * (i % 4))) & 0xffff]) *
                    static_cast<T>(1.0 / 65536);
        }
}

// acc[row][feature] += y[row][component] * panel[component][feature], components ascending.
template <class T>
void multiply_panel(const T* y, const T* panel, int count, int rows, T* acc) {
    typedef typename Lanes<T>::V V;
    constexpr int L = Lanes<T>::count;
    for (int i = 0; i < kPanelFeatures; i += kVectors * L) {
        for (int r0 = 0; r0 < rows; r0 += kRows) {
            // y and acc have room for a whole block of rows; what the surplus rows hold is never read.
            V sum[kRows][kVectors];
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) sum[r][v] = load_as<V>(acc + (r0 + r) * kPanelFeatures + i + v * L);
            const T* ys = y + r0 * kPanelOutputs;
            for (int c = 0; c < count; ++c) {
                V sign[kVectors];
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) sign[v] = load_as<V>(panel + c * kPanelFeatures + i + v * L);
#pragma GCC unroll 8
                for (int r = 0; r < kRows; ++r) {
                    const V value = broadcast<V>(ys[r * kPanelOutputs + c]);
#pragma GCC unroll 4
                    for (int v = 0; v < kVectors; ++v) sum[r][v] = multiply_add_exact(value, sign[v], sum[r][v]);
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) store_as(acc + (r0 + r) * kPanelFeatures + i + v * L, sum[r][v]);
        }
    }
}

template <class T>
void dense_adjoint_rows_of(const DenseAdjointJob& job, int64_t begin, int64_t end, T* work) {
    static_assert(kPanelSpare >= kRows - 1 && kPanelFeatures == 64 && 64 % (kVectors * Lanes<T>::count) == 0);
    constexpr int kRoom = kPanelRows + kPanelSpare;
    const int64_t k = job.y.columns, d = job.features;
    T* panel = work;
    T* acc = panel + kPanelFeatures * kPanelOutputs;
    T* y = acc + kRoom * kPanelFeatures;
    __builtin_memset(panel, 0, sizeof(T) * kPanelFeatures * kPanelOutputs);
    __builtin_memset(y, 0, sizeof(T) * kRoom * kPanelOutputs);
    const int rows = static_cast<int>(end - begin);
    const T scale = static_cast<T>(job.scale);
    for (int64_t first = 0; first < d; first += kPanelFeatures) {
        const int width = d - first < kPanelFeatures ? static_cast<int>(d - first) : kPanelFeatures;
        __builtin_memset(acc, 0, sizeof(T) * kRoom * kPanelFeatures);
        for (int64_t c = 0; c < k; c += kPanelOutputs) {
            const int count = k - c < kPanelOutputs ? static_cast<int>(k - c) : kPanelOutputs;
            if (job.gaussian) draw_columns(job, first, width, c, count, panel);
            else expand_columns(job.seed, first, width, c / kPanelOutputs, panel);
            if (first == 0 || k > kPanelOutputs)
                for (int r = 0; r < rows; ++r)
                    convert(job.type, job.y.data + (begin + r) * job.y.row_stride + c * job.y.column_stride,
                            job.y.column_stride, count, y + r * kPanelOutputs);
            multiply_panel(y, panel, count, rows, acc);
        }
        for (int r = 0; r < rows; ++r) {
            T* out = reinterpret_cast<T*>(job.out) + (begin + r) * d + first;
            for (int j = 0; j < width; ++j) out[j] = canonical(acc[r * kPanelFeatures + j] * scale);
        }
    }
}

}  // namespace

// lanes: components * EF_VECTOR_BYTES, or null for the row-at-a-time path; room: as much, or one row.
static void hash_adjoint_rows_f32(const HashAdjointJob& job, int64_t begin, int64_t end, void* lanes, void* room) noexcept {
    hash_adjoint_rows_of<float>(job, begin, end, lanes, room);
}
static void hash_adjoint_rows_f64(const HashAdjointJob& job, int64_t begin, int64_t end, void* lanes, void* room) noexcept {
    hash_adjoint_rows_of<double>(job, begin, end, lanes, room);
}
static void srht_place_f32(const SrhtAdjointJob& job, int64_t row, float* work, float* room) noexcept {
    srht_place_as(job, row, work, room);
}
static void srht_place_f64(const SrhtAdjointJob& job, int64_t row, double* work, double* room) noexcept {
    srht_place_as(job, row, work, room);
}
static void srht_sign_f32(const SrhtAdjointJob& job, int64_t row, const float* work) noexcept {
    srht_sign_as(job, row, work);
}
static void srht_sign_f64(const SrhtAdjointJob& job, int64_t row, const double* work) noexcept {
    srht_sign_as(job, row, work);
}
static void dense_adjoint_rows_f32(const DenseAdjointJob& job, int64_t begin, int64_t end, void* work) noexcept {
    dense_adjoint_rows_of<float>(job, begin, end, static_cast<float*>(work));
}
static void dense_adjoint_rows_f64(const DenseAdjointJob& job, int64_t begin, int64_t end, void* work) noexcept {
    dense_adjoint_rows_of<double>(job, begin, end, static_cast<double*>(work));
}

}  // namespace EF_ISA
}  // namespace ef
