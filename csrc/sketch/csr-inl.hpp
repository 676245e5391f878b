namespace ef {
namespace EF_ISA {
namespace {
#include "common/simd-inl.hpp"
#include "common/lanes-inl.hpp"
#include "sketch/convert-inl.hpp"

// Values of entries [begin, begin + count) as T: in place, or converted into `room`.
template <class T>
EF_INLINE const char* values_of(const CompressedMatrix& x, int64_t begin, int count, T* room) {
    const int64_t size = element_size(x.type, sizeof(T));
    const char* source = x.data + begin * size;
    if (x.type == ElementType::same) return source;
    convert(x.type, source, size, count, room);
    return reinterpret_cast<const char*>(room);
}

// The packed entries of feature j, as the operator's tables have them.
template <int kNnz>
EF_INLINE void draw_entries(const CsrHashJob& job, uint64_t base, uint64_t rest, int64_t j, uint32_t* out) {
    if (job.kind == kCountSketchStream) {
        const PhiloxBlock block = philox4x64(static_cast<uint64_t>(j / 8) + 1, 0, 0, 0, job.seed, kCountSketchStream);
        const int lane = static_cast<int>(j % 8);
        const uint64_t u = (block.word[lane / 2] >> (32 * (lane % 2))) & 0xffffffffu;
        *out = static_cast<uint32_t>(((u >> 1) * base) >> 31) | static_cast<uint32_t>(u << 31);
        return;
    }
    const int nnz = kNnz > 0 ? kNnz : job.entries.nnz;
    uint64_t offset = 0;
    for (int e = 0; e < nnz;) {
        const PhiloxBlock block =
            philox4x64(static_cast<uint64_t>(j) + 1, static_cast<uint64_t>(e / 8), 0, 0, job.seed, kStackStream);
        for (int lane = 0; lane < 8 && e < nnz; ++lane, ++e) {
            const uint64_t u = (block.word[lane / 2] >> (32 * (lane % 2))) & 0xffffffffu;
            const uint64_t height = base + (static_cast<uint64_t>(e) < rest ? 1 : 0);
            *out++ = static_cast<uint32_t>(offset + (((u >> 1) * height) >> 31)) | static_cast<uint32_t>(u << 31);
            offset += height;
        }
    }
}

template <class T, int kNnz>
EF_INLINE void add_entries(T x, const uint32_t* entry, int64_t nnz, T* out) {
    if constexpr (kNnz > 0) {
        // The entries of one feature hit different outputs by construction: all loads may go before the stores.
        T sum[kNnz];
#pragma GCC unroll 8
        for (int e = 0; e < kNnz; ++e) sum[e] = out[entry[e] & 0x7fffffffu] + flip(x, entry[e]);
#pragma GCC unroll 8
        for (int e = 0; e < kNnz; ++e) out[entry[e] & 0x7fffffffu] = sum[e];
    } else {
        for (int64_t e = 0; e < nnz; ++e) out[entry[e] & 0x7fffffffu] += flip(x, entry[e]);
    }
}

// The first of entries [p, last) in column `begin` or later.
template <class I>
EF_INLINE int64_t first_from(const I* indices, int64_t p, int64_t last, int64_t begin) {
    while (p < last) {
        const int64_t middle = p + (last - p) / 2;
        if (indices[middle] < begin) p = middle + 1;
        else last = middle;
    }
    return p;
}

template <class T, class I, int kNnz>
void csr_hash_rows_as(const CsrHashJob& job, int64_t begin, int64_t end, uint32_t* drawn) {
    const int64_t k = job.components;
    const int nnz = kNnz > 0 ? kNnz : job.entries.nnz;
    const I* indices = static_cast<const I*>(job.x.indices);
    const uint64_t base = nnz > 0 ? static_cast<uint64_t>(k) / nnz : 0, rest = nnz > 0 ? static_cast<uint64_t>(k) % nnz : 0;
    const bool all = job.begin == 0 && job.end == job.x.columns;
    const uint32_t* packed = job.entries.packed;
    const int64_t* starts = job.entries.starts;
    const T scale = static_cast<T>(job.scale);
    T room[kCsrChunk];
    for (int64_t row = begin; row < end; ++row) {
        T* out = reinterpret_cast<T*>(job.out) + row * k;
        if (!job.accumulate) __builtin_memset(out, 0, static_cast<size_t>(k) * sizeof(T));
        int64_t p = job.x.indptr[row], last = job.x.indptr[row + 1];
        if (!all) {
            p = first_from(indices, p, last, job.begin);
            last = first_from(indices, p, last, job.end);
        }
        for (; p < last; p += kCsrChunk) {
            const int count = last - p < kCsrChunk ? static_cast<int>(last - p) : kCsrChunk;
            const char* value = values_of<T>(job.x, p, count, room);
            const I* index = indices + p;
            if (starts) {
                for (int i = 0; i < count; ++i) {
                    const int64_t j = index[i] - job.begin;
                    add_entries<T, 0>(element<T>(value + i * sizeof(T)), packed + starts[j], starts[j + 1] - starts[j], out);
                }
            } else if (packed) {
                // Entries of a row are far apart in a large table: the next ones are on their way before they are due.
                for (int i = 0; i < count; ++i) {
                    if (p + i + kCsrAhead < last) __builtin_prefetch(packed + (index[i + kCsrAhead] - job.begin) * nnz);
                    add_entries<T, kNnz>(element<T>(value + i * sizeof(T)), packed + (index[i] - job.begin) * nnz, nnz, out);
                }
            } else {
                for (int i = 0; i < count; i += kCsrDraw) {
                    const int some = count - i < kCsrDraw ? count - i : kCsrDraw;
                    for (int s = 0; s < some; ++s)
                        draw_entries<kNnz>(job, base, rest, job.first + index[i + s], drawn + s * nnz);
                    for (int s = 0; s < some; ++s)
                        add_entries<T, kNnz>(element<T>(value + (i + s) * sizeof(T)), drawn + s * nnz, nnz, out);
                }
            }
        }
        if (job.finish)
            for (int64_t c = 0; c < k; ++c) out[c] = canonical(out[c] * scale);
    }
}

template <class T, class I>
void csr_hash_rows_of(const CsrHashJob& job, int64_t begin, int64_t end, uint32_t* drawn) {
    switch (job.entries.nnz) {
        case 1: return csr_hash_rows_as<T, I, 1>(job, begin, end, drawn);
        case 2: return csr_hash_rows_as<T, I, 2>(job, begin, end, drawn);
        case 4: return csr_hash_rows_as<T, I, 4>(job, begin, end, drawn);
        case 8: return csr_hash_rows_as<T, I, 8>(job, begin, end, drawn);
        default: return csr_hash_rows_as<T, I, 0>(job, begin, end, drawn);
    }
}

// kFeatures entries of a row at once: an output is loaded and stored once for all of them.
template <class T, int kFeatures>
EF_INLINE void add_signed(const T* x, const uint64_t (*words)[4], T* acc) {
    typedef typename Lanes<T>::V V;
    typedef typename Lanes<T>::U U;
    typedef typename Lanes<T>::Bits Bits;
    constexpr int L = Lanes<T>::count, kTop = 8 * sizeof(T) - 1;
    U shift;
    for (int i = 0; i < L; ++i) shift[i] = static_cast<Bits>(kTop - i);
    const U top = U{} + (static_cast<Bits>(1) << kTop);
    U value[kFeatures];
#pragma GCC unroll 4
    for (int f = 0; f < kFeatures; ++f) value[f] = (U)broadcast<V>(x[f]);
    for (int i = 0; i < kSignOutputs; i += L) {
        V sum = load_as<V>(acc + i);
#pragma GCC unroll 4
        for (int f = 0; f < kFeatures; ++f) {
            const Bits bits = static_cast<Bits>(words[f][i / 64] >> (i % 64)) & ((Bits{1} << L) - 1);
            sum += (V)((((U{} + bits) << shift) & top) ^ value[f]);
        }
        store_as(acc + i, sum);
    }
}

template <class T, class I>
void csr_rademacher_rows_of(const CsrRademacherJob& job, int64_t begin, int64_t end) {
    const int64_t k = job.components;
    const I* indices = static_cast<const I*>(job.x.indices);
    const T scale = static_cast<T>(job.scale);
    T room[kCsrChunk];
    alignas(64) T acc[kSignOutputs];
    for (int64_t row = begin; row < end; ++row) {
        const int64_t last = job.x.indptr[row + 1];
        for (int64_t output = 0; output < k; output += kSignOutputs) {
            __builtin_memset(acc, 0, sizeof(acc));
            const int64_t width = k - output < kSignOutputs ? k - output : kSignOutputs;
            T* out = reinterpret_cast<T*>(job.out) + row * k + output;
            if (job.accumulate) __builtin_memcpy(acc, out, static_cast<size_t>(width) * sizeof(T));
            for (int64_t p = job.x.indptr[row]; p < last; p += kCsrChunk) {
                const int count = last - p < kCsrChunk ? static_cast<int>(last - p) : kCsrChunk;
                const char* value = values_of<T>(job.x, p, count, room);
                for (int i = 0; i < count; i += 4) {
                    const int some = count - i < 4 ? count - i : 4;
                    T x[4];
                    uint64_t words[4][4];
                    for (int s = 0; s < some; ++s) {
                        x[s] = element<T>(value + (i + s) * sizeof(T));
                        const PhiloxBlock block =
                            philox4x64(static_cast<uint64_t>(job.first + indices[p + i + s]) + 1,
                                       static_cast<uint64_t>(output / kSignOutputs), 0, 0, job.seed, kRademacherStream);
                        __builtin_memcpy(words[s], block.word, sizeof(words[s]));
                    }
                    if (some == 4)
                        add_signed<T, 4>(x, words, acc);
                    else
                        for (int s = 0; s < some; ++s) add_signed<T, 1>(x + s, words + s, acc);
                }
            }
            for (int64_t c = 0; c < width; ++c) out[c] = canonical(acc[c] * scale);
        }
    }
}

// Entries of one feature for outputs output, output + 1, ... (a multiple of 16): 16 draws a block.
template <class T>
EF_INLINE void draw_gaussian(const CsrGaussianJob& job, int64_t feature, int64_t output, int64_t width, T* to) {
    for (int64_t c = 0; c < width; c += 16) {
        const PhiloxBlock block = philox4x64(static_cast<uint64_t>(feature) + 1, static_cast<uint64_t>((output + c) / 16), 0,
                                             0, job.seed, kGaussianStream);
        for (int i = 0; i < 16; ++i)
            to[c + i] = static_cast<T>(job.table[(block.word[i / 4] >> (16 * (i % 4))) & 0xffff]) *
                        static_cast<T>(1.0 / 65536);
    }
}

template <class T>
EF_INLINE void add_multiple(T x, const T* entries, int64_t width, T* out) {
    typedef typename Lanes<T>::V V;
    constexpr int L = Lanes<T>::count;
    const V value = broadcast<V>(x);
    int64_t c = 0;
    for (; c + L <= width; c += L) store_as(out + c, load_as<V>(out + c) + value * load_as<V>(entries + c));
    for (; c < width; ++c) out[c] += x * entries[c];
}

// cursors: one a row, or null: then the entries are drawn for every stored number.
template <class T, class I>
void csr_gaussian_rows_of(const CsrGaussianJob& job, int64_t begin, int64_t end, T* panel, int64_t* cursors) {
    const int64_t k = job.components;
    const I* indices = static_cast<const I*>(job.x.indices);
    const int64_t size = element_size(job.x.type, sizeof(T));
    const T scale = static_cast<T>(job.scale);
    T* const base = reinterpret_cast<T*>(job.out);
    if (!job.accumulate) __builtin_memset(base + begin * k, 0, static_cast<size_t>((end - begin) * k) * sizeof(T));
    for (int64_t output = 0; output < k; output += kGaussianOutputs) {
        const int64_t width = k - output < kGaussianOutputs ? k - output : kGaussianOutputs;
        if (!cursors) {
            for (int64_t row = begin; row < end; ++row)
                for (int64_t p = job.x.indptr[row]; p < job.x.indptr[row + 1]; ++p) {
                    T value;
                    convert(job.x.type, job.x.data + p * size, size, 1, &value);
                    draw_gaussian(job, job.first + indices[p], output, width, panel);
                    add_multiple(value, panel, width, base + row * k + output);
                }
            continue;
        }
        for (int64_t row = begin; row < end; ++row) cursors[row - begin] = job.x.indptr[row];
        for (int64_t j = 0; j < job.x.columns; j += kGaussianFeatures) {
            const int64_t count = job.x.columns - j < kGaussianFeatures ? job.x.columns - j : kGaussianFeatures;
            for (int64_t f = 0; f < count; ++f)
                draw_gaussian(job, job.first + j + f, output, width, panel + f * kGaussianOutputs);
            for (int64_t row = begin; row < end; ++row) {
                int64_t p = cursors[row - begin];
                const int64_t last = job.x.indptr[row + 1];
                for (; p < last && indices[p] < j + count; ++p) {
                    T value;
                    convert(job.x.type, job.x.data + p * size, size, 1, &value);
                    add_multiple(value, panel + (indices[p] - j) * kGaussianOutputs, width, base + row * k + output);
                }
                cursors[row - begin] = p;
            }
        }
    }
    for (int64_t i = begin * k; i < end * k; ++i) base[i] = canonical(base[i] * scale);
}

template <class T, class I>
void csr_srht_scatter_as(const CsrSrhtJob& job, int64_t row, T* work) {
    const I* indices = static_cast<const I*>(job.x.indices);
    const int64_t last = job.x.indptr[row + 1];
    T room[kCsrChunk];
    __builtin_memset(work, 0, static_cast<size_t>(job.length) * sizeof(T));
    for (int64_t p = job.x.indptr[row]; p < last; p += kCsrChunk) {
        const int count = last - p < kCsrChunk ? static_cast<int>(last - p) : kCsrChunk;
        const char* value = values_of<T>(job.x, p, count, room);
        for (int i = 0; i < count; ++i) {
            const int64_t j = job.first + indices[p + i];
            const uint32_t bit = static_cast<uint32_t>(job.signs[j / 64] >> (j % 64)) << 31;
            work[j] = flip(element<T>(value + i * sizeof(T)), bit);
        }
    }
}

template <class T>
void csr_srht_pick_as(const CsrSrhtJob& job, int64_t row, const T* work) {
    const T scale = static_cast<T>(job.scale);
    T* out = reinterpret_cast<T*>(job.out) + row * job.components;
    for (int64_t c = 0; c < job.components; ++c) out[c] = canonical(work[job.index[c]] * scale);
}

}  // namespace

static void csr_hash_rows_f32(const CsrHashJob& job, int64_t begin, int64_t end, uint32_t* drawn) noexcept {
    job.x.wide ? csr_hash_rows_of<float, int64_t>(job, begin, end, drawn)
               : csr_hash_rows_of<float, int32_t>(job, begin, end, drawn);
}
static void csr_hash_rows_f64(const CsrHashJob& job, int64_t begin, int64_t end, uint32_t* drawn) noexcept {
    job.x.wide ? csr_hash_rows_of<double, int64_t>(job, begin, end, drawn)
               : csr_hash_rows_of<double, int32_t>(job, begin, end, drawn);
}
static void csr_rademacher_rows_f32(const CsrRademacherJob& job, int64_t begin, int64_t end) noexcept {
    job.x.wide ? csr_rademacher_rows_of<float, int64_t>(job, begin, end)
               : csr_rademacher_rows_of<float, int32_t>(job, begin, end);
}
static void csr_rademacher_rows_f64(const CsrRademacherJob& job, int64_t begin, int64_t end) noexcept {
    job.x.wide ? csr_rademacher_rows_of<double, int64_t>(job, begin, end)
               : csr_rademacher_rows_of<double, int32_t>(job, begin, end);
}
static void csr_gaussian_rows_f32(const CsrGaussianJob& job, int64_t begin, int64_t end, void* panel,
                                  int64_t* cursors) noexcept {
    job.x.wide ? csr_gaussian_rows_of<float, int64_t>(job, begin, end, static_cast<float*>(panel), cursors)
               : csr_gaussian_rows_of<float, int32_t>(job, begin, end, static_cast<float*>(panel), cursors);
}
static void csr_gaussian_rows_f64(const CsrGaussianJob& job, int64_t begin, int64_t end, void* panel,
                                  int64_t* cursors) noexcept {
    job.x.wide ? csr_gaussian_rows_of<double, int64_t>(job, begin, end, static_cast<double*>(panel), cursors)
               : csr_gaussian_rows_of<double, int32_t>(job, begin, end, static_cast<double*>(panel), cursors);
}
static void csr_srht_scatter_f32(const CsrSrhtJob& job, int64_t row, float* work) noexcept {
    job.x.wide ? csr_srht_scatter_as<float, int64_t>(job, row, work) : csr_srht_scatter_as<float, int32_t>(job, row, work);
}
static void csr_srht_scatter_f64(const CsrSrhtJob& job, int64_t row, double* work) noexcept {
    job.x.wide ? csr_srht_scatter_as<double, int64_t>(job, row, work)
               : csr_srht_scatter_as<double, int32_t>(job, row, work);
}
static void csr_srht_pick_f32(const CsrSrhtJob& job, int64_t row, const float* work) noexcept {
    csr_srht_pick_as<float>(job, row, work);
}
static void csr_srht_pick_f64(const CsrSrhtJob& job, int64_t row, const double* work) noexcept {
    csr_srht_pick_as<double>(job, row, work);
}

}  // namespace EF_ISA
}  // namespace ef
