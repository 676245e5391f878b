#include "sketch/stack.hpp"

#include <atomic>
#include <cstdlib>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/parallel.hpp"
#include "common/philox.hpp"
#include "sketch/dispatch.hpp"
#include "sketch/scratch.hpp"

#define EF_BODY "sketch/stack-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

namespace {
using Rows = void (*)(const StackJob&, int64_t, int64_t, void*, uint32_t*) noexcept;
constexpr Rows kRowsF32[kIsaCount] = EF_PER_ISA(stack_rows_f32);
constexpr Rows kRowsF64[kIsaCount] = EF_PER_ISA(stack_rows_f64);

constexpr int64_t kGroup = 16;                      // rows handed out at a time: a multiple of every lane count
constexpr size_t kMaxAccumulator = size_t{1} << 20;  // bytes; above it the lanes' accumulators leave the L2 cache
constexpr int64_t kGrain = int64_t{1} << 18;         // additions worth a thread
constexpr uint64_t kKind = 2;
}  // namespace

void stack_table(uint64_t seed, int64_t components, int nnz, int64_t first, int64_t count, uint32_t* out) noexcept {
    const uint64_t base = static_cast<uint64_t>(components) / nnz, rest = static_cast<uint64_t>(components) % nnz;
    for (int64_t j = first; j < first + count; ++j) {
        uint64_t offset = 0;
        for (int e = 0; e < nnz;) {
            const PhiloxBlock block = philox4x64(static_cast<uint64_t>(j) + 1, static_cast<uint64_t>(e / 8), 0, 0, seed, kKind);
            for (int lane = 0; lane < 8 && e < nnz; ++lane, ++e) {
                const uint64_t u = (block.word[lane / 2] >> (32 * (lane % 2))) & 0xffffffffu;
                const uint64_t height = base + (static_cast<uint64_t>(e) < rest ? 1 : 0);
                *out++ = static_cast<uint32_t>(offset + (((u >> 1) * height) >> 31)) | static_cast<uint32_t>(u << 31);
                offset += height;
            }
        }
    }
}

template <class T>
bool stack_transform(Isa isa, const StackJob& job, int num_threads) noexcept {
    const Rows rows = (std::is_same_v<T, float> ? kRowsF32 : kRowsF64)[static_cast<int>(isa)];
    const int64_t n = job.x.rows, groups = (n + kGroup - 1) / kGroup;
    // Work in divisions, so that the product of three sizes cannot overflow.
    const int64_t row_work = job.x.columns < kGrain ? job.x.columns * job.nnz + job.components : kGrain;
    int threads = threads_for(n, row_work < kGrain ? kGrain / (row_work > 0 ? row_work : 1) : 1, num_threads);
    if (threads > groups) threads = groups > 0 ? static_cast<int>(groups) : 1;
    const size_t accumulator = static_cast<size_t>(job.components) * 64;
    const size_t acc_bytes = n > 2 && accumulator <= kMaxAccumulator ? accumulator : 0;
    const size_t entry_bytes = job.table ? 0 : static_cast<size_t>(64) * job.nnz * sizeof(uint32_t);
    Scratch scratch(threads, acc_bytes + entry_bytes);
    if (!scratch.ok()) return false;
    std::atomic<int64_t> next{0};
    parallel_for(threads, threads, [&](int64_t slot) noexcept {
        char* memory = scratch.of(slot);
        void* acc = acc_bytes ? memory : nullptr;
        auto* entries = reinterpret_cast<uint32_t*>(memory + acc_bytes);
        for (int64_t g; (g = next.fetch_add(1, std::memory_order_relaxed)) < groups;)
            rows(job, g * kGroup, (g + 1) * kGroup < n ? (g + 1) * kGroup : n, acc, entries);
    });
    return true;
}

template bool stack_transform<float>(Isa, const StackJob&, int) noexcept;
template bool stack_transform<double>(Isa, const StackJob&, int) noexcept;

}  // namespace ef
