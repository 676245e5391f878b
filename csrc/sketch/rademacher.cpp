#include "sketch/rademacher.hpp"

#include <atomic>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/parallel.hpp"
#include "common/philox.hpp"
#include "common/dispatch.hpp"
#include "common/scratch.hpp"
#include "sketch/gaussian.hpp"

namespace ef {
namespace {
constexpr int kRademacherOutputs = 256;  // outputs of one Philox block
constexpr int kRademacherFeatures = 64;  // features of a sign panel
constexpr int kRademacherRows = 96;      // rows that share a panel; a multiple of every register block
constexpr int kRademacherSpare = 5;      // rows a last, partial register block may touch beyond them
}  // namespace
}  // namespace ef

#define EF_BODY "sketch/rademacher-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

namespace {
using Rows = void (*)(const RademacherJob&, int64_t, int64_t, void*) noexcept;
constexpr Rows kRowsF32[kIsaCount] = EF_PER_ISA(rademacher_rows_f32);
constexpr Rows kRowsF64[kIsaCount] = EF_PER_ISA(rademacher_rows_f64);
constexpr int64_t kGrain = int64_t{1} << 20;  // multiply-adds worth a thread
}  // namespace

template <class T>
bool rademacher_transform(Isa isa, const RademacherJob& job, int num_threads) noexcept {
    const Rows rows = (std::is_same_v<T, float> ? kRowsF32 : kRowsF64)[static_cast<int>(isa)];
    const int64_t n = job.x.rows;
    // Work of a row, cut off before the product can overflow.
    const int64_t row_work = job.x.columns < kGrain && job.components < kGrain ? job.x.columns * job.components : kGrain;
    int threads = threads_for(n, row_work < kGrain ? kGrain / (row_work > 0 ? row_work : 1) : 1, num_threads);
    // Rows that share a panel: as many as fit, fewer when that would leave a thread without any.
    int64_t step = (n + threads - 1) / (threads > 0 ? threads : 1);
    if (step > kRademacherRows) step = kRademacherRows;
    if (step < 1) step = 1;
    const int64_t chunks = (n + step - 1) / step;
    constexpr size_t kElements = size_t{kRademacherFeatures} * kRademacherOutputs +
                                 size_t{kRademacherRows + kRademacherSpare} * (kRademacherOutputs + kRademacherFeatures);
    Scratch scratch(threads, kElements * sizeof(T));
    if (!scratch.ok()) return false;
    std::atomic<int64_t> next{0};
    parallel_for(threads, threads, [&](int64_t slot) noexcept {
        for (int64_t c; (c = next.fetch_add(1, std::memory_order_relaxed)) < chunks;)
            rows(job, c * step, (c + 1) * step < n ? (c + 1) * step : n, scratch.of(slot));
    });
    return true;
}

template bool rademacher_transform<float>(Isa, const RademacherJob&, int) noexcept;
template bool rademacher_transform<double>(Isa, const RademacherJob&, int) noexcept;

}  // namespace ef
