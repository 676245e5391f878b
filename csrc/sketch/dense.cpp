#include "sketch/dense.hpp"

#include <atomic>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/dispatch.hpp"
#include "common/half.hpp"
#include "common/parallel.hpp"
#include "common/philox.hpp"
#include "common/scratch.hpp"
#include "sketch/gaussian.hpp"

namespace ef {
namespace {
constexpr int kDenseOutputs = 256;  // outputs of a block: the bits of one Philox block
constexpr int kDensePackRows = 60;  // rows copied together where x has no contiguous rows
template <class T>
constexpr int kDenseFeatures = 1536 / static_cast<int>(sizeof(T));  // features of a panel

// What one thread computes at a time: all features of some rows and some blocks of outputs.
struct DenseTile {
    int64_t row_begin, row_end, block_begin, block_end;
    bool adds_beside;  // this CPU adds on other ports than it multiplies
};
}  // namespace
}  // namespace ef

#define EF_BODY "sketch/dense-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

namespace {
using Tile = void (*)(const DenseJob&, const DenseTile&, void*) noexcept;
template <class T>
constexpr Tile kRademacher[kIsaCount] = EF_PER_ISA(rademacher_tile<T>);
template <class T>
constexpr Tile kGaussian[kIsaCount] = EF_PER_ISA(gaussian_tile<T>);
constexpr int64_t kGrain = int64_t{1} << 20;  // multiply-adds worth a thread

bool adds_beside_multiplies() noexcept {
#if defined(__x86_64__)
    static const bool amd = __builtin_cpu_is("amd") != 0;
    return amd;
#else
    return false;
#endif
}

// `rows_a_draw`: rows that share a drawn panel, enough to make drawing cheap beside multiplying.
template <class T>
bool dense_transform(Tile tile, const DenseJob& job, int64_t rows_a_draw, int num_threads) noexcept {
    const int64_t n = job.x.rows, blocks = (job.components + kDenseOutputs - 1) / kDenseOutputs;
    // Work of a row, cut off before the product can overflow.
    const int64_t row_work = job.x.columns < kGrain && job.components < kGrain ? job.x.columns * job.components : kGrain;
    const int64_t share = row_work < kGrain ? kGrain / (row_work > 0 ? row_work : 1) : 1;
    int threads = threads_for(n * (row_work < kGrain ? 1 : blocks), share, num_threads);
    // Few rows: a thread takes some of the outputs, so that nothing is drawn twice. Many: some of the rows.
    const bool by_outputs = threads > 1 && n < 2 * rows_a_draw && blocks >= threads;
    const int64_t row_chunks_least = (n + rows_a_draw - 1) / rows_a_draw;
    int64_t row_chunks = by_outputs ? row_chunks_least : (row_chunks_least + threads - 1) / threads * threads;
    int64_t row_step = (n + row_chunks - 1) / (row_chunks > 0 ? row_chunks : 1);
    row_step = (row_step + kDensePackRows - 1) / kDensePackRows * kDensePackRows;
    const int64_t row_fit = n > 0 ? (n + row_step - 1) / row_step : 0;
    const int64_t block_step = by_outputs ? (blocks + threads - 1) / threads : blocks;
    const int64_t block_chunks = (blocks + block_step - 1) / block_step, chunks = row_fit * block_chunks;
    if (threads > chunks) threads = static_cast<int>(chunks);
    if (chunks == 0) return true;
    const bool packs = job.x.type != ElementType::same || job.x.column_stride != static_cast<int64_t>(sizeof(T));
    const size_t elements = size_t{kDenseFeatures<T>} * (size_t{kDenseOutputs} + (packs ? size_t{kDensePackRows} : 0));
    Scratch scratch(threads, elements * sizeof(T));
    if (!scratch.ok()) return false;
    std::atomic<int64_t> next{0};
    const bool beside = adds_beside_multiplies();
    parallel_for(threads, threads, [&](int64_t slot) noexcept {
        for (int64_t c; (c = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
            const int64_t row = c / block_chunks * row_step, block = c % block_chunks * block_step;
            tile(job,
                 {row, row + row_step < n ? row + row_step : n, block, block + block_step < blocks ? block + block_step : blocks,
                  beside},
                 scratch.of(slot));
        }
    });
    return true;
}
}  // namespace

template <class T>
bool rademacher_transform(Isa isa, const DenseJob& job, int num_threads) noexcept {
    return dense_transform<T>(kRademacher<T>[static_cast<int>(isa)], job, 1024, num_threads);
}

template <class T>
bool gaussian_transform(Isa isa, const DenseJob& job, int num_threads) noexcept {
    return dense_transform<T>(kGaussian<T>[static_cast<int>(isa)], job, 2048, num_threads);
}

template bool rademacher_transform<float>(Isa, const DenseJob&, int) noexcept;
template bool rademacher_transform<double>(Isa, const DenseJob&, int) noexcept;
template bool gaussian_transform<float>(Isa, const DenseJob&, int) noexcept;
template bool gaussian_transform<double>(Isa, const DenseJob&, int) noexcept;

}  // namespace ef
