namespace ef {
namespace EF_ISA {
namespace {
#include "common/simd-inl.hpp"
#include "common/lanes-inl.hpp"
#include "sketch/convert-inl.hpp"

constexpr int kTile = kPlanBytes / EF_VECTOR_BYTES;  // features transposed at a time

// Features [first, first + count) of up to L rows into tile[feature][row]; missing rows repeat the last one. With
// kNegate their negatives follow, then a zero vector. Other element types are converted on the way, a tile at a time.
template <class T, bool kNegate>
EF_INLINE void load_tile(StridedMatrix x, int64_t row, int rows, int64_t first, int count, T* tile) {
    typedef typename Lanes<T>::V V;
    constexpr int L = Lanes<T>::count;
    const char* base = x.data + row * x.row_stride + first * x.column_stride;
    T converted[L * kTile];
    if (x.type != ElementType::same) {
        for (int r = 0; r < rows; ++r) convert(x.type, base + r * x.row_stride, x.column_stride, count, converted + r * kTile);
        base = reinterpret_cast<const char*>(converted);
        x.row_stride = kTile * static_cast<int64_t>(sizeof(T));
        x.column_stride = sizeof(T);
    }
    T* const negative = tile + count * L;
    if (kNegate) store_as(tile + 2 * count * L, V{});
    if (x.column_stride == static_cast<int64_t>(sizeof(T))) {
        const char* source[L];
        for (int r = 0; r < L; ++r) source[r] = base + (r < rows ? r : rows - 1) * x.row_stride;
        int j = 0;
        for (; j + L <= count; j += L) {
            V v[L];
            // The next tile: rows a power of two apart are too many streams for the hardware's prefetcher.
#pragma GCC unroll 16
            for (int r = 0; r < L; ++r) __builtin_prefetch(source[r] + (j + kTile) * sizeof(T), 0, 3);
            load_transposed(source, j * static_cast<int64_t>(sizeof(T)), v);
#pragma GCC unroll 16
            for (int r = 0; r < L; ++r) {
                store_as(tile + (j + r) * L, v[r]);
                if (kNegate) store_as(negative + (j + r) * L, -v[r]);
            }
        }
        for (; j < count; ++j) {
            for (int r = 0; r < L; ++r) tile[j * L + r] = element<T>(source[r] + j * sizeof(T));
            if (kNegate) store_as(negative + j * L, -load_as<V>(tile + j * L));
        }
        return;
    }
    if (x.row_stride == static_cast<int64_t>(sizeof(T)) && rows == L) {
        for (int j = 0; j < count; ++j) store_as(tile + j * L, load_as<V>(base + j * x.column_stride));
    } else {
        for (int j = 0; j < count; ++j)
            for (int r = 0; r < L; ++r)
                tile[j * L + r] = element<T>(base + (r < rows ? r : rows - 1) * x.row_stride + j * x.column_stride);
    }
    if (kNegate)
        for (int j = 0; j < count; ++j) store_as(negative + j * L, -load_as<V>(tile + j * L));
}

// Adds `count` transposed features to acc[component][row]. kNnz 0: any number of entries a feature.
template <class T, int kNnz>
EF_INLINE void add_tile(const T* tile, const uint32_t* entry, int nnz, int count, T* acc) {
    typedef typename Lanes<T>::V V;
    constexpr int L = Lanes<T>::count;
    for (int j = 0; j < count; ++j) {
        const V v = load_as<V>(tile + j * L);
        if constexpr (kNnz > 0) {
            // The entries of one feature hit different outputs by construction: all loads may go before the stores.
            V sum[kNnz];
#pragma GCC unroll 8
            for (int e = 0; e < kNnz; ++e)
                sum[e] = load_as<V>(acc + static_cast<size_t>(entry[e] & 0x7fffffffu) * L) + flip(v, entry[e]);
#pragma GCC unroll 8
            for (int e = 0; e < kNnz; ++e) store_as(acc + static_cast<size_t>(entry[e] & 0x7fffffffu) * L, sum[e]);
            entry += kNnz;
        } else {
            for (int e = 0; e < nnz; ++e, ++entry) {
                T* a = acc + static_cast<size_t>(*entry & 0x7fffffffu) * L;
                store_as(a, load_as<V>(a) + flip(v, *entry));
            }
        }
    }
}

// Contiguous features, `count` a multiple of L, from the transposed registers: few entries a feature are not worth the
// detour through memory.
template <class T, int kNnz>
EF_INLINE void add_directly(const HashJob& job, int64_t row, int rows, int64_t first, int count, T* acc) {
    typedef typename Lanes<T>::V V;
    constexpr int L = Lanes<T>::count;
    const char* source[L];
    for (int r = 0; r < L; ++r)
        source[r] = job.x.data + (row + (r < rows ? r : rows - 1)) * job.x.row_stride + first * job.x.column_stride;
    for (int j = 0; j < count; j += L) {
        V v[L];
#pragma GCC unroll 16
        for (int r = 0; r < L; ++r) __builtin_prefetch(source[r] + j * sizeof(T) + kAheadBytes);
        load_transposed(source, j * static_cast<int64_t>(sizeof(T)), v);
        const uint32_t* entry = job.entries + (first + j) * kNnz;
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i, entry += kNnz) {
            V sum[kNnz];
#pragma GCC unroll 4
            for (int e = 0; e < kNnz; ++e)
                sum[e] = load_as<V>(acc + static_cast<size_t>(entry[e] & 0x7fffffffu) * L) + flip(v[i], entry[e]);
#pragma GCC unroll 4
            for (int e = 0; e < kNnz; ++e) store_as(acc + static_cast<size_t>(entry[e] & 0x7fffffffu) * L, sum[e]);
        }
    }
}

// The outputs of one class, kAtOnce at a time: several independent chains of additions in flight. kPairs 0: `pairs`.
template <class T, int kPairs, int kAtOnce>
EF_INLINE const uint16_t* add_outputs(const uint16_t* plan, int pairs, int* outputs, const char* base, T* acc) {
    typedef typename Lanes<T>::V V;
    constexpr int L = Lanes<T>::count;
    const int terms = 2 * (kPairs > 0 ? kPairs : pairs);
    for (; *outputs >= kAtOnce; *outputs -= kAtOnce, plan += kAtOnce * (terms + 1)) {
        T* to[kAtOnce];
        V sum[kAtOnce];
#pragma GCC unroll 4
        for (int o = 0; o < kAtOnce; ++o) {
            to[o] = acc + static_cast<size_t>(plan[o * (terms + 1)]) * L;
            sum[o] = load_as<V>(to[o]);
        }
#pragma GCC unroll 16
        for (int i = 1; i <= terms; ++i)
#pragma GCC unroll 4
            for (int o = 0; o < kAtOnce; ++o) sum[o] += load_as<V>(base + plan[o * (terms + 1) + i]);
#pragma GCC unroll 4
        for (int o = 0; o < kAtOnce; ++o) store_as(to[o], sum[o]);
    }
    return plan;
}

template <class T, int kPairs>
EF_INLINE const uint16_t* add_class(const uint16_t* plan, int pairs, int outputs, const char* base, T* acc) {
    plan = add_outputs<T, kPairs, 4>(plan, pairs, &outputs, base, acc);
    plan = add_outputs<T, kPairs, 2>(plan, pairs, &outputs, base, acc);
    return add_outputs<T, kPairs, 1>(plan, pairs, &outputs, base, acc);
}

// Adds by output: its accumulator stays in a register for all terms of the tile. Feature by feature, every term would
// be a load that waits for a recent store to the same place. The sign of an entry is part of its address in the tile.
template <class T>
EF_INLINE void add_planned(const T* tile, const uint16_t* plan, T* acc) {
    const char* base = reinterpret_cast<const char*>(tile);
    for (int classes = *plan++; classes > 0; --classes) {
        const int pairs = *plan++, outputs = *plan++;
        switch (pairs) {  // a known number of terms needs no loop, and no mispredicted end of one
            case 1: plan = add_class<T, 1>(plan, pairs, outputs, base, acc); break;
            case 2: plan = add_class<T, 2>(plan, pairs, outputs, base, acc); break;
            case 3: plan = add_class<T, 3>(plan, pairs, outputs, base, acc); break;
            case 4: plan = add_class<T, 4>(plan, pairs, outputs, base, acc); break;
            case 5: plan = add_class<T, 5>(plan, pairs, outputs, base, acc); break;
            case 6: plan = add_class<T, 6>(plan, pairs, outputs, base, acc); break;
            case 7: plan = add_class<T, 7>(plan, pairs, outputs, base, acc); break;
            case 8: plan = add_class<T, 8>(plan, pairs, outputs, base, acc); break;
            default: plan = add_class<T, 0>(plan, pairs, outputs, base, acc);
        }
    }
}

// Rows [row, row + rows), side by side in vectors.
template <class T>
void hash_lanes(const HashJob& job, const uint16_t* plan, const int64_t* plan_start, int64_t row, int rows, T* acc) {
    typedef typename Lanes<T>::V V;
    constexpr int L = Lanes<T>::count;
    const int64_t k = job.components, d = job.x.columns;
    const T scale = static_cast<T>(job.scale);
    T* out = reinterpret_cast<T*>(job.out) + row * k;
    if (job.more) {
        const char* source[L];
        for (int r = 0; r < L; ++r) source[r] = reinterpret_cast<const char*>(out + (r < rows ? r : rows - 1) * k);
        int64_t c = 0;
        for (; c + L <= k; c += L) {
            V v[L];
            load_transposed(source, c * static_cast<int64_t>(sizeof(T)), v);
#pragma GCC unroll 16
            for (int r = 0; r < L; ++r) store_as(acc + (c + r) * L, v[r]);
        }
        for (; c < k; ++c)
            for (int r = 0; r < L; ++r) acc[c * L + r] = element<T>(source[r] + c * static_cast<int64_t>(sizeof(T)));
    } else {
        __builtin_memset(acc, 0, static_cast<size_t>(k) * L * sizeof(T));
    }
    alignas(64) T tile[(2 * kTile + 1) * L];
    const int64_t head = features_before_line(job.x, sizeof(T));
    const bool contiguous =
        job.x.type == ElementType::same && job.x.column_stride == static_cast<int64_t>(sizeof(T));
    for (int64_t j = 0, end = head > 0 ? head : kTile; j < d; j = end, end += kTile) {
        int count = static_cast<int>((end < d ? end : d) - j);
        if (plan) {
            load_tile<T, true>(job.x, row, rows, j, count, tile);
            add_planned<T>(tile, plan + *plan_start++, acc);
            continue;
        }
        if (contiguous && (job.nnz == 1 || job.nnz == 4)) {
            const int whole = count - count % L;
            if (job.nnz == 1) add_directly<T, 1>(job, row, rows, j, whole, acc);
            else add_directly<T, 4>(job, row, rows, j, whole, acc);
            j += whole;
            count -= whole;
        }
        load_tile<T, false>(job.x, row, rows, j, count, tile);
        if (job.starts) {
            for (int i = 0; i < count; ++i) {
                const int64_t at = job.starts[j + i];
                add_tile<T, 0>(tile + i * L, job.entries + at, static_cast<int>(job.starts[j + i + 1] - at), 1, acc);
            }
            continue;
        }
        const uint32_t* entry = job.entries + j * job.nnz;
        switch (job.nnz) {
            case 8: add_tile<T, 8>(tile, entry, 8, count, acc); break;
            default: add_tile<T, 0>(tile, entry, job.nnz, count, acc);
        }
    }
    int64_t c = 0;
    for (; c + L <= k; c += L) {
        V v[L];
        const char* source[L];
        for (int r = 0; r < L; ++r) source[r] = reinterpret_cast<const char*>(acc + (c + r) * L);
        load_transposed(source, 0, v);
#pragma GCC unroll 16
        for (int r = 0; r < L; ++r)
            if (r < rows) store_as(out + r * k + c, job.last ? canonical_lanes<T>(v[r] * scale) : v[r]);
    }
    for (; c < k; ++c)
        for (int r = 0; r < rows; ++r) out[r * k + c] = job.last ? canonical(acc[c * L + r] * scale) : acc[c * L + r];
}

// One row, accumulated in place: for batches too small, or outputs too many, for the lanes.
template <class T>
void hash_row(const HashJob& job, int64_t row) {
    const int64_t k = job.components;
    const int nnz = job.nnz;
    T* __restrict out = reinterpret_cast<T*>(job.out) + row * k;
    if (!job.more) __builtin_memset(out, 0, static_cast<size_t>(k) * sizeof(T));
    const char* source = job.x.data + row * job.x.row_stride;
    const uint32_t* entry = job.entries;
    T converted[kTile];
    for (int64_t first = 0; first < job.x.columns; first += kTile) {
        const int count = job.x.columns - first < kTile ? static_cast<int>(job.x.columns - first) : kTile;
        const char* at = source + first * job.x.column_stride;
        int64_t stride = job.x.column_stride;
        if (job.x.type != ElementType::same) {
            convert(job.x.type, at, stride, count, converted);
            at = reinterpret_cast<const char*>(converted);
            stride = sizeof(T);
        }
        for (int i = 0; i < count; ++i) {
            const T x = element<T>(at + i * stride);
            const uint32_t* end = job.starts ? job.entries + job.starts[first + i + 1] : entry + nnz;
            for (; entry != end; ++entry) out[*entry & 0x7fffffffu] += flip(x, *entry);
        }
    }
    if (!job.last) return;
    const T scale = static_cast<T>(job.scale);
    for (int64_t c = 0; c < k; ++c) out[c] = canonical(out[c] * scale);
}

template <class T>
void hash_rows_of(const HashJob& job, const uint16_t* plan, const int64_t* plan_start, int64_t begin, int64_t end,
                  void* acc) {
    constexpr int L = Lanes<T>::count;
    while (begin < end) {
        const int rows = end - begin < L ? static_cast<int>(end - begin) : L;
        if (acc && rows > 2) {
            hash_lanes<T>(job, plan, plan_start, begin, rows, static_cast<T*>(acc));
            begin += rows;
        } else {
            hash_row<T>(job, begin++);
        }
    }
}

}  // namespace

// Rows [begin, end). acc: components * EF_VECTOR_BYTES, or null for the row-at-a-time path.
static void hash_rows_f32(const HashJob& job, const uint16_t* plan, const int64_t* plan_start, int64_t begin, int64_t end,
                          void* acc) noexcept {
    hash_rows_of<float>(job, plan, plan_start, begin, end, acc);
}
static void hash_rows_f64(const HashJob& job, const uint16_t* plan, const int64_t* plan_start, int64_t begin, int64_t end,
                          void* acc) noexcept {
    hash_rows_of<double>(job, plan, plan_start, begin, end, acc);
}

}  // namespace EF_ISA
}  // namespace ef
