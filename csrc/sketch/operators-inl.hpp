// Body of sketch/operators.hpp; see there for numerics.
namespace ef {
namespace EF_ISA {
namespace operators {

#include "common/vector-inl.hpp"
#include "sketch/butterfly-inl.hpp"

// ---- shared ----------------------------------------------------------------------------------------------------

constexpr int64_t kAhead = 1024;  // bytes

// Rows [row, row + rows) x features [j, j + lanes) of X as `lanes` vectors, one per feature, lane = row. Lanes
// beyond `rows` and features beyond the last are zero.
template <class T>
EF_INLINE void load_tile(const ef::MatrixView& x, int64_t row, int rows, int64_t j, typename Vec<T>::type* tile) {
    typedef typename Vec<T>::type V;
    constexpr int lanes = Vec<T>::lanes;
    const int64_t left = x.columns - j;
    const int columns = left < lanes ? static_cast<int>(left) : lanes;
    const char* base = x.data + row * x.row_stride + j * x.column_stride;
    if (rows == lanes && columns == lanes && x.column_stride == int64_t(sizeof(T))) {
        // One stream per row is more than the hardware follows. Into the second level: rows that lie a power of two
        // apart would evict each other from the first.
        for (int r = 0; r < lanes; ++r) __builtin_prefetch(base + r * x.row_stride + kAhead, 0, 2);
        for (int r = 0; r < lanes; ++r) tile[r] = load<V>(base + r * x.row_stride);
        transpose<T>(tile);
    } else if (rows == lanes && x.row_stride == int64_t(sizeof(T))) {
        for (int c = 0; c < columns; ++c) tile[c] = load<V>(base + c * x.column_stride);
    } else {
        for (int c = 0; c < columns; ++c) {
            V v = {};
            for (int r = 0; r < rows; ++r) v[r] = load_scalar<T>(base + r * x.row_stride + c * x.column_stride);
            tile[c] = v;
        }
    }
}

// sums is (k, lanes), lane = row; writes rows of y (row length k), scaled.
template <class T>
EF_INLINE void store_rows(const T* sums, T* y, int64_t k, int rows, T scale) {
    typedef typename Vec<T>::type V;
    constexpr int lanes = Vec<T>::lanes;
    int64_t i = 0;
    if (rows == lanes) {
        for (; i + lanes <= k; i += lanes) {
            V v[lanes];
            for (int c = 0; c < lanes; ++c) v[c] = load<V>(sums + (i + c) * lanes) * scale;
            transpose<T>(v);
            for (int r = 0; r < lanes; ++r) store(y + r * k + i, v[r]);
        }
    }
    for (; i < k; ++i)
        for (int r = 0; r < rows; ++r) y[r * k + i] = sums[i * lanes + r] * scale;
}

// ---- sparse_stack ----------------------------------------------------------------------------------------------

// Bucket (31 bits) and sign (top bit) of features [j0, j1), nnz entries each.
static void stack_entries(uint32_t* table, int64_t j0, int64_t j1, int64_t k, int nnz, uint64_t seed) {
    const uint64_t base = static_cast<uint64_t>(k) / nnz, larger = static_cast<uint64_t>(k) % nnz;
    for (int64_t j = j0; j < j1; ++j) {
        for (int group = 0; group * 8 < nnz; ++group) {
            const ef::PhiloxBlock block =
                ef::philox4x64(static_cast<uint64_t>(j) + 1, group, 0, 0, seed, ef::kKindSparseStack);
            const int last = nnz - group * 8 < 8 ? nnz - group * 8 : 8;
            for (int lane = 0; lane < last; ++lane) {
                const uint64_t r = group * 8 + lane;
                const uint32_t u = static_cast<uint32_t>(block.word[lane / 2] >> (32 * (lane % 2)));
                // The first k % nnz blocks are one row taller.
                const uint64_t height = base + (r < larger ? 1 : 0);
                const uint64_t offset = r * base + (r < larger ? r : larger);
                const uint64_t bucket = ((static_cast<uint64_t>(u >> 1) * height) >> 31) + offset;
                *table++ = static_cast<uint32_t>(bucket) | (u << 31);
            }
        }
    }
}

template <class T, int N>
EF_INLINE void scatter(T* sums, const uint32_t* entry, int nnz, typename Vec<T>::type x) {
    typedef typename Vec<T>::type V;
    typedef typename Vec<T>::bits Bits;
    typedef typename Vec<T>::word Word;
    constexpr int lanes = Vec<T>::lanes;
    const int count = N ? N : nnz;
    for (int r = 0; r < count; ++r) {
        const uint32_t e = entry[r];
        T* target = sums + static_cast<int64_t>(e & 0x7fffffffu) * lanes;
        const Bits mask = Bits{} + (static_cast<Word>(e & 0x80000000u) << (8 * (sizeof(T) - 4)));
        store(target, load<V>(target) + flip<T>(x, mask));
    }
}

template <class T, int N>
static void stack_group(const ef::MatrixView& x, int64_t row, int rows, int64_t j0, int64_t j1, const uint32_t* table,
                        int nnz, T* sums) {
    typedef typename Vec<T>::type V;
    constexpr int lanes = Vec<T>::lanes;
    for (int64_t j = j0; j < j1; j += lanes) {
        V tile[lanes];
        load_tile<T>(x, row, rows, j, tile);
        const int columns = j1 - j < lanes ? static_cast<int>(j1 - j) : lanes;
        for (int c = 0; c < columns; ++c) scatter<T, N>(sums, table + (j - j0 + c) * nnz, nnz, tile[c]);
    }
}

template <class T>
static void stack_row(const ef::MatrixView& x, int64_t row, int64_t j0, int64_t j1, const uint32_t* table, int nnz,
                      T* sums) {
    for (int64_t j = j0; j < j1; ++j) {
        const T v = load_scalar<T>(x.data + row * x.row_stride + j * x.column_stride);
        for (int r = 0; r < nnz; ++r) {
            const uint32_t e = *table++;
            sums[e & 0x7fffffffu] += (e >> 31) ? -v : v;
        }
    }
}

template <class T>
struct StackJob {
    const ef::MatrixView& x;
    T* y;
    int64_t k;
    int nnz;
    uint64_t seed;
    T scale;
    int64_t tile;           // features per table
    const uint32_t* table;  // the whole table when one tile holds every feature, else null
    int64_t groups;         // row groups per chunk
    ef::Atomic<bool> failed;
};

template <class T>
static void stack_chunk(void* context, int64_t chunk) {
    StackJob<T>& job = *static_cast<StackJob<T>*>(context);
    constexpr int lanes = Vec<T>::lanes;
    const int64_t first = chunk * job.groups * lanes;
    const int64_t last = first + job.groups * lanes < job.x.rows ? first + job.groups * lanes : job.x.rows;
    // One or two rows are cheaper one by one than as a group of mostly empty lanes.
    const bool single = last - first <= 2;
    const int64_t width = single ? job.k : job.k * lanes;
    const int64_t count = single ? last - first : (last - first + lanes - 1) / lanes;
    ef::Scratch sums_memory(sizeof(T) * static_cast<size_t>(width * count));
    ef::Scratch table_memory(job.table ? 0 : sizeof(uint32_t) * static_cast<size_t>(job.tile * job.nnz));
    T* sums = static_cast<T*>(sums_memory.get());
    uint32_t* own = static_cast<uint32_t*>(table_memory.get());
    if (!sums || (!job.table && !own)) {
        job.failed.set(true);
        return;
    }
    __builtin_memset(sums, 0, sizeof(T) * static_cast<size_t>(width * count));
    for (int64_t j0 = 0; j0 < job.x.columns; j0 += job.tile) {
        const int64_t j1 = j0 + job.tile < job.x.columns ? j0 + job.tile : job.x.columns;
        const uint32_t* table = job.table;
        if (!table) {
            stack_entries(own, j0, j1, job.k, job.nnz, job.seed);
            table = own;
        }
        for (int64_t g = 0; g < count; ++g) {
            T* target = sums + g * width;
            if (single) {
                stack_row<T>(job.x, first + g, j0, j1, table, job.nnz, target);
                continue;
            }
            const int64_t row = first + g * lanes;
            const int rows = last - row < lanes ? static_cast<int>(last - row) : lanes;
            switch (job.nnz) {
                case 8:
                    stack_group<T, 8>(job.x, row, rows, j0, j1, table, 8, target);
                    break;
                case 4:
                    stack_group<T, 4>(job.x, row, rows, j0, j1, table, 4, target);
                    break;
                default:
                    stack_group<T, 0>(job.x, row, rows, j0, j1, table, job.nnz, target);
            }
        }
    }
    for (int64_t g = 0; g < count; ++g) {
        if (single) {
            T* y = job.y + (first + g) * job.k;
            for (int64_t i = 0; i < job.k; ++i) y[i] = sums[g * width + i] * job.scale;
            continue;
        }
        const int64_t row = first + g * lanes;
        const int rows = last - row < lanes ? static_cast<int>(last - row) : lanes;
        store_rows<T>(sums + g * width, job.y + row * job.k, job.k, rows, job.scale);
    }
}

template <class T>
static bool sparse_stack(const ef::MatrixView& x, T* y, int64_t k, int nnz, uint64_t seed, T scale,
                         int num_threads) noexcept {
    constexpr int lanes = Vec<T>::lanes;
    constexpr int64_t kTableBytes = 2 << 20, kSumsBytes = 512 << 10;
    if (x.rows == 0) return true;
    const int64_t row_groups = (x.rows + lanes - 1) / lanes;
    const bool whole = x.columns * nnz * int64_t(sizeof(uint32_t)) <= kTableBytes;
    const int64_t tile = whole ? (x.columns > 0 ? x.columns : 1) : 4096;
    // With the whole table at hand a group is a chunk; else several share the cost of generating a tile.
    int64_t groups = 1;
    if (!whole) {
        groups = kSumsBytes / (k * lanes * int64_t(sizeof(T)));
        groups = groups < 1 ? 1 : groups > 16 ? 16 : groups;
    }
    const int threads = ef::threads_for(x.rows * x.columns * nnz, int64_t(1) << 20, num_threads);
    ef::Scratch memory(whole ? sizeof(uint32_t) * static_cast<size_t>(tile * nnz) : 0);
    uint32_t* table = static_cast<uint32_t*>(memory.get());
    if (whole) {
        if (!table) return false;
        stack_entries(table, 0, x.columns, k, nnz, seed);
    }
    StackJob<T> job = {x, y, k, nnz, seed, scale, tile, whole ? table : nullptr, groups, {}};
    ef::parallel_for((row_groups + groups - 1) / groups, threads, &stack_chunk<T>, &job);
    return !job.failed.get();
}

// ---- srht ------------------------------------------------------------------------------------------------------

template <class T>
struct SrhtJob {
    const ef::MatrixView& x;
    T* y;
    const int64_t* rows;
    int64_t k, padded;
    const typename Vec<T>::word* signs;  // sign bit in place, one word per feature
    T scale;
    int64_t per_chunk;
    ef::Atomic<bool> failed;
};

template <class T>
static void srht_chunk(void* context, int64_t chunk) {
    typedef typename Vec<T>::type V;
    typedef typename Vec<T>::bits Bits;
    typedef typename Vec<T>::word Word;
    constexpr int lanes = Vec<T>::lanes;
    SrhtJob<T>& job = *static_cast<SrhtJob<T>*>(context);
    ef::Scratch memory(sizeof(T) * static_cast<size_t>(job.padded));
    T* a = static_cast<T*>(memory.get());
    if (!a) {
        job.failed.set(true);
        return;
    }
    const int64_t d = job.x.columns;
    const int64_t first = chunk * job.per_chunk;
    const int64_t last = first + job.per_chunk < job.x.rows ? first + job.per_chunk : job.x.rows;
    for (int64_t row = first; row < last; ++row) {
        const char* source = job.x.data + row * job.x.row_stride;
        int64_t j = 0;
        if (job.x.column_stride == int64_t(sizeof(T)))
            for (; j + lanes <= d; j += lanes)
                store(a + j, flip<T>(load<V>(source + j * int64_t(sizeof(T))), load<Bits>(job.signs + j)));
        for (; j < d; ++j) {
            const Word bits = load_scalar<Word>(source + j * job.x.column_stride) ^ job.signs[j];
            __builtin_memcpy(a + j, &bits, sizeof(T));
        }
        __builtin_memset(a + d, 0, sizeof(T) * static_cast<size_t>(job.padded - d));
        butterflies<T>(a, job.padded);
        T* y = job.y + row * job.k;
        for (int64_t i = 0; i < job.k; ++i) y[i] = a[job.rows[i]] * job.scale;
    }
}

template <class T>
static bool srht(const ef::MatrixView& x, T* y, const int64_t* rows, int64_t k, int64_t padded, uint64_t seed, T scale,
                 int num_threads) noexcept {
    typedef typename Vec<T>::word Word;
    if (x.rows == 0) return true;
    ef::Scratch memory(sizeof(Word) * static_cast<size_t>(x.columns + 1));
    Word* signs = static_cast<Word*>(memory.get());
    if (!signs) return false;
    for (int64_t j = 0; j < x.columns; j += 256) {
        const ef::PhiloxBlock block =
            ef::philox4x64(static_cast<uint64_t>(j / 256) + 1, 0, 0, 0, seed, ef::kKindSrht);
        const int64_t end = x.columns - j < 256 ? x.columns - j : 256;
        for (int64_t b = 0; b < end; ++b)
            signs[j + b] = static_cast<Word>((block.word[b / 64] >> (b % 64)) & 1) << (8 * sizeof(T) - 1);
    }
    const int threads = ef::threads_for(x.rows * padded, int64_t(1) << 17, num_threads);
    const int64_t per_chunk = padded >= (1 << 16) ? 1 : ((1 << 16) / padded);
    SrhtJob<T> job = {x, y, rows, k, padded, signs, scale, per_chunk, {}};
    ef::parallel_for((x.rows + per_chunk - 1) / per_chunk, threads, &srht_chunk<T>, &job);
    return !job.failed.get();
}

// ---- rademacher ------------------------------------------------------------------------------------------------

// Signs of a tile of features x 256 outputs as +-1 in T: the right-hand panel of a matrix product, made on the fly.
constexpr int64_t kPanelFeatures = 128, kPanelOutputs = 256;

template <class T>
static void sign_panel(T* panel, int64_t j0, int64_t features, int64_t output_block, uint64_t seed) {
    for (int64_t j = 0; j < features; ++j) {
        const ef::PhiloxBlock block = ef::philox4x64(static_cast<uint64_t>(j0 + j) + 1,
                                                     static_cast<uint64_t>(output_block), 0, 0, seed, ef::kKindRademacher);
        T* row = panel + j * kPanelOutputs;
        for (int w = 0; w < 4; ++w)
            for (int b = 0; b < 64; ++b) row[w * 64 + b] = T(1) - T(2) * static_cast<T>((block.word[w] >> b) & 1);
    }
}

// R rows x C registers of outputs, accumulated over the panel's features in ascending order.
template <class T, int R, int C>
EF_INLINE void panel_kernel(const T* const* x, const T* panel, int64_t features, T* const* y) {
    typedef typename Vec<T>::type V;
    constexpr int lanes = Vec<T>::lanes;
    V sum[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) sum[r][c] = load<V>(y[r] + c * lanes);
    for (int64_t j = 0; j < features; ++j) {
        V s[C];
        for (int c = 0; c < C; ++c) s[c] = load<V>(panel + j * kPanelOutputs + c * lanes);
        for (int r = 0; r < R; ++r) {
            const T v = x[r][j];
            for (int c = 0; c < C; ++c) sum[r][c] += s[c] * v;  // the product is exact: s is +-1
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) store(y[r] + c * lanes, sum[r][c]);
}

constexpr int kRowBlock = 192;
#if EF_VECTOR_BYTES == 64
constexpr int kTileRows = 6, kTileRegisters = 4;  // 24 of 32 registers hold sums
#else
constexpr int kTileRows = 4, kTileRegisters = 2;  // 8 of 16
#endif

template <class T>
struct RademacherJob {
    const ef::MatrixView& x;
    T* y;
    int64_t k;
    uint64_t seed;
    T scale;
    ef::Atomic<bool> failed;
};

template <class T>
static void rademacher_chunk(void* context, int64_t chunk) {
    constexpr int lanes = Vec<T>::lanes;
    constexpr int64_t step = kTileRegisters * lanes;
    static_assert(kPanelOutputs % step == 0, "a panel is a whole number of register tiles");
    RademacherJob<T>& job = *static_cast<RademacherJob<T>*>(context);
    const int64_t first = chunk * kRowBlock;
    const int rows = job.x.rows - first < kRowBlock ? static_cast<int>(job.x.rows - first) : kRowBlock;
    const int64_t blocks = (job.k + kPanelOutputs - 1) / kPanelOutputs;
    ef::Scratch memory(sizeof(T) * static_cast<size_t>(kPanelFeatures * kPanelOutputs + kRowBlock * kPanelFeatures +
                                                       kRowBlock * kPanelOutputs));
    T* panel = static_cast<T*>(memory.get());
    if (!panel) {
        job.failed.set(true);
        return;
    }
    T* tile = panel + kPanelFeatures * kPanelOutputs;  // X, packed: strides and alignment are gone
    T* sums = tile + kRowBlock * kPanelFeatures;
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t outputs = job.k - block * kPanelOutputs < kPanelOutputs ? job.k - block * kPanelOutputs : kPanelOutputs;
        __builtin_memset(sums, 0, sizeof(T) * kRowBlock * kPanelOutputs);
        for (int64_t j0 = 0; j0 < job.x.columns; j0 += kPanelFeatures) {
            const int64_t features = job.x.columns - j0 < kPanelFeatures ? job.x.columns - j0 : kPanelFeatures;
            sign_panel<T>(panel, j0, features, block, job.seed);
            for (int r = 0; r < rows; ++r) {
                const char* source = job.x.data + (first + r) * job.x.row_stride + j0 * job.x.column_stride;
                if (job.x.column_stride == int64_t(sizeof(T)))
                    __builtin_memcpy(tile + r * kPanelFeatures, source, sizeof(T) * static_cast<size_t>(features));
                else
                    for (int64_t j = 0; j < features; ++j)
                        tile[r * kPanelFeatures + j] = load_scalar<T>(source + j * job.x.column_stride);
            }
            for (int64_t o = 0; o < outputs; o += step) {
                int r = 0;
                for (; r + kTileRows <= rows; r += kTileRows) {
                    const T* in[kTileRows];
                    T* out[kTileRows];
                    for (int i = 0; i < kTileRows; ++i) {
                        in[i] = tile + (r + i) * kPanelFeatures;
                        out[i] = sums + (r + i) * kPanelOutputs + o;
                    }
                    panel_kernel<T, kTileRows, kTileRegisters>(in, panel + o, features, out);
                }
                for (; r < rows; ++r) {
                    const T* in[1] = {tile + r * kPanelFeatures};
                    T* out[1] = {sums + r * kPanelOutputs + o};
                    panel_kernel<T, 1, kTileRegisters>(in, panel + o, features, out);
                }
            }
        }
        for (int r = 0; r < rows; ++r) {
            T* y = job.y + (first + r) * job.k + block * kPanelOutputs;
            for (int64_t o = 0; o < outputs; ++o) y[o] = sums[r * kPanelOutputs + o] * job.scale;
        }
    }
}

template <class T>
static bool rademacher(const ef::MatrixView& x, T* y, int64_t k, uint64_t seed, T scale, int num_threads) noexcept {
    if (x.rows == 0) return true;
    const int threads = ef::threads_for(x.rows * x.columns * k, int64_t(1) << 22, num_threads);
    RademacherJob<T> job = {x, y, k, seed, scale, {}};
    ef::parallel_for((x.rows + kRowBlock - 1) / kRowBlock, threads, &rademacher_chunk<T>, &job);
    return !job.failed.get();
}

}  // namespace operators

const ef::OperatorKernels<float> kOperatorsF32 = {operators::sparse_stack<float>, operators::srht<float>,
                                                  operators::rademacher<float>};
const ef::OperatorKernels<double> kOperatorsF64 = {operators::sparse_stack<double>, operators::srht<double>,
                                                   operators::rademacher<double>};

}  // namespace EF_ISA
}  // namespace ef
