#include "sketch/row_sketch.hpp"

#include <cstdlib>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/dispatch.hpp"
#include "common/parallel.hpp"
#include "common/philox.hpp"
#include "common/scratch.hpp"
#include "sketch/hash.hpp"

namespace ef {
namespace {
constexpr int kRowSketchColumns = 1024;  // columns of a block at most
}
}  // namespace ef

#define EF_BODY "sketch/row_sketch-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

namespace {
using Add = void (*)(const RowSketchJob&, int64_t, int64_t, int64_t, int, const uint32_t*, void*, int64_t, bool) noexcept;
constexpr Add kAdd[4][kIsaCount] = {EF_PER_ISA(row_sketch_f32), EF_PER_ISA(row_sketch_f32_to_f64),
                                    EF_PER_ISA(row_sketch_f64), EF_PER_ISA(row_sketch_i64)};

constexpr size_t kBlockBytes = size_t{1} << 18;    // of acc, so that it stays in the L2 cache
constexpr size_t kEntryBytes = size_t{1} << 20;    // of entries drawn at a time
constexpr int64_t kTileBytes = int64_t{1} << 18;   // of x between two column blocks
constexpr int64_t kGrain = int64_t{1} << 20;       // additions worth a thread
constexpr int kPad = 16;                           // a multiple of every lane count
constexpr int kMinShare = 32;                      // columns worth a thread of their own
constexpr int kCountSketch = 1, kStack = 2, kRademacher = 3;  // kind numbers
}  // namespace

void row_entries(int kind, uint64_t seed, int64_t components, int nnz, int64_t first, int64_t count,
                 uint32_t* out) noexcept {
    if (kind == kStack) {
        stack_table(seed, components, nnz, first, count, out);
        return;
    }
    if (kind == kCountSketch) {
        countsketch_table(seed, components, first, count, out);
        return;
    }
    for (int64_t j = first; j < first + count; ++j)
        for (int64_t c = 0; c < components; c += 256) {
            const PhiloxBlock block = philox4x64(static_cast<uint64_t>(j) + 1, static_cast<uint64_t>(c / 256), 0, 0, seed,
                                                 static_cast<uint64_t>(kRademacher));
            for (int64_t i = 0; i < 256 && c + i < components; ++i)
                *out++ = static_cast<uint32_t>(c + i) | static_cast<uint32_t>(block.word[i / 64] >> (i % 64)) << 31;
        }
}

bool row_sketch_add(Isa isa, const RowSketchJob& job, RowSketchTypes types, int num_threads) noexcept {
    const Add add = kAdd[static_cast<int>(types)][static_cast<int>(isa)];
    const size_t item = types == RowSketchTypes::f32 ? 4 : 8;
    const int64_t n = job.x.rows, columns = job.x.columns, k = job.components;
    if (n == 0 || columns == 0) return true;
    // Work in divisions, so that the product of three sizes cannot overflow.
    const int64_t row_work = columns < kGrain ? columns * job.nnz : kGrain;
    int threads = threads_for(n, row_work < kGrain ? kGrain / row_work : 1, num_threads);
    int64_t width = static_cast<int64_t>(kBlockBytes / (static_cast<size_t>(k) * item)) / kPad * kPad;
    if (width < kPad) width = kPad;
    if (width > kRowSketchColumns) width = kRowSketchColumns;
    if (threads > 1 && columns >= 2 * kMinShare) {
        const int64_t share = ((columns + threads - 1) / threads + kPad - 1) / kPad * kPad;
        if (share < width) width = share < kMinShare ? kMinShare : share;
    }
    const int64_t blocks = (columns + width - 1) / width;
    if (threads > blocks) threads = static_cast<int>(blocks);

    int64_t drawn = static_cast<int64_t>(kEntryBytes / (static_cast<size_t>(job.nnz) * sizeof(uint32_t)));
    if (drawn < 64) drawn = 64;
    if (drawn > n) drawn = n;
    // Packed copies of the column blocks: whole vectors, no rows of acc a power of two apart. Worth it when every row of
    // acc is touched about once.
    const bool packed = n >= k / job.nnz;
    const int64_t padded_width = width < columns ? width : (columns + kPad - 1) / kPad * kPad;
    const size_t block_bytes = packed ? static_cast<size_t>(k) * static_cast<size_t>(padded_width) * item : 0;
    Scratch scratch(packed ? static_cast<int>(blocks) : 1, block_bytes);
    auto* entries = static_cast<uint32_t*>(
        std::malloc(static_cast<size_t>(drawn) * static_cast<size_t>(job.nnz) * sizeof(uint32_t)));
    if (!scratch.ok() || !entries) {
        std::free(entries);
        return false;
    }
    char* acc = static_cast<char*>(job.acc);
    const auto width_of = [&](int64_t b) { return static_cast<int>((b + 1) * width < columns ? width : columns - b * width); };
    const auto copy_block = [&](int64_t b, bool in) noexcept {
        const size_t bytes = static_cast<size_t>(width_of(b)) * item, stride = static_cast<size_t>(padded_width) * item;
        char* own = scratch.of(b);
        if (in && bytes < stride) std::memset(own, 0, block_bytes);
        for (int64_t r = 0; r < k; ++r) {
            char* theirs = acc + static_cast<size_t>(r * columns + b * width) * item;
            char* mine = own + static_cast<size_t>(r) * stride;
            std::memcpy(in ? mine : theirs, in ? theirs : mine, bytes);
        }
    };
    if (packed)
        for (int64_t b = 0; b < blocks; ++b) copy_block(b, true);
    const int64_t item_bytes = static_cast<int64_t>(types == RowSketchTypes::f32 || types == RowSketchTypes::f32_to_f64 ? 4 : 8);
    int64_t tile = kTileBytes / (columns < kTileBytes ? columns * item_bytes : kTileBytes);
    if (tile < 16) tile = 16;
    if (blocks == 1) tile = drawn;
    for (int64_t first = 0; first < n; first += drawn) {
        const int64_t count = first + drawn < n ? drawn : n - first;
        const int64_t step = (count + threads - 1) / threads;
        parallel_for(threads, threads, [&](int64_t t) noexcept {
            const int64_t begin = t * step, end = begin + step < count ? begin + step : count;
            if (begin < end)
                row_entries(job.kind, job.seed, k, job.nnz, job.first_row + first + begin, end - begin,
                            entries + begin * job.nnz);
        });
        // A thread owns blocks t, t + threads, ...: every sum has one owner and one order.
        parallel_for(threads, threads, [&](int64_t t) noexcept {
            for (int64_t row = 0; row < count; row += tile) {
                const int64_t rows = row + tile < count ? tile : count - row;
                for (int64_t b = t; b < blocks; b += threads)
                    add(job, first + row, rows, b * width, width_of(b), entries + row * job.nnz,
                        packed ? static_cast<void*>(scratch.of(b)) : acc + static_cast<size_t>(b * width) * item,
                        packed ? padded_width : columns, packed);
            }
        });
    }
    if (packed)
        for (int64_t b = 0; b < blocks; ++b) copy_block(b, false);
    std::free(entries);
    return true;
}

}  // namespace ef
