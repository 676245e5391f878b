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
#include "common/dispatch.hpp"
#include "common/scratch.hpp"

namespace ef {
namespace {
constexpr int kPlanBytes = 1 << 13;  // of a tile of transposed features; their negatives take as much again
}
}  // namespace ef

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
constexpr int kVectorBytes[kIsaCount] = {16, 32, 64, 16};
constexpr int64_t kMinRowsForPlan = 64;

// The table regrouped: per tile the number of classes, then for each class (pairs, outputs) and for each of its
// outputs its number and 2 * pairs terms. A term is the byte offset of a vector in the tile: feature j, its negative
// `count` vectors later, or the zero vector behind both (adding +0 changes no sum that began at +0). Terms ascend in
// j. Outputs with equally many pairs stand together, which makes the loop over pairs predictable.
class Plan {
public:
    Plan(const StackJob& job, int vector_bytes) noexcept {
        const int64_t features = kPlanBytes / vector_bytes, d = job.x.columns, k = job.components;
        const int64_t tiles = (d + features - 1) / features;
        const int64_t most = features * job.nnz;  // terms of a tile
        // Terms, one padding term for every output, output numbers, classes (fewer than pairs + 1).
        const int64_t tile_words = 2 * k + most + 1 + 2 * (features / 2 + 2);
        words_ = static_cast<uint16_t*>(std::malloc(static_cast<size_t>(tiles * tile_words) * sizeof(uint16_t)));
        starts_ = static_cast<int64_t*>(std::malloc(static_cast<size_t>(tiles) * sizeof(int64_t)));
        auto* counts = static_cast<int32_t*>(std::malloc(static_cast<size_t>(3 * k + features + 4) * sizeof(int32_t)));
        if (!words_ || !starts_ || !counts) {
            std::free(counts);
            return;
        }
        int32_t* place = counts + k;     // where the next term of an output goes
        int32_t* order = place + k;      // outputs by class
        int32_t* members = order + k;    // outputs of each class
        uint16_t* to = words_;
        for (int64_t tile = 0; tile < tiles; ++tile) {
            starts_[tile] = to - words_;
            const int64_t first = tile * features, count = d - first < features ? d - first : features;
            const uint32_t* entry = job.table + first * job.nnz;
            const int64_t terms = count * job.nnz;
            for (int64_t c = 0; c < k; ++c) counts[c] = 0;
            for (int64_t i = 0; i < terms; ++i) ++counts[entry[i] & 0x7fffffffu];
            const int64_t classes = count / 2 + 2;  // an output has at most one term per feature
            for (int64_t p = 0; p <= classes; ++p) members[p] = 0;
            for (int64_t c = 0; c < k; ++c) ++members[(counts[c] + 1) / 2 + 1];
            for (int64_t p = 1; p <= classes; ++p) members[p] += members[p - 1];
            for (int64_t c = 0; c < k; ++c) order[members[(counts[c] + 1) / 2]++] = static_cast<int32_t>(c);
            uint16_t* class_count = to++;
            *class_count = 0;
            const auto zero = static_cast<uint16_t>(2 * count * vector_bytes);
            for (int64_t i = 0; i < k;) {
                const int32_t pairs = (counts[order[i]] + 1) / 2;
                int64_t end = i;
                while (end < k && (counts[order[end]] + 1) / 2 == pairs) ++end;
                if (pairs > 0) {
                    ++*class_count;
                    *to++ = static_cast<uint16_t>(pairs);
                    *to++ = static_cast<uint16_t>(end - i);
                    for (int64_t o = i; o < end; ++o) {
                        *to++ = static_cast<uint16_t>(order[o]);
                        place[order[o]] = static_cast<int32_t>(to - words_ - starts_[tile]);
                        to[2 * pairs - 1] = zero;
                        to += 2 * pairs;
                    }
                }
                i = end;
            }
            for (int64_t i = 0; i < terms; ++i) {
                const int64_t vector = i / job.nnz + (entry[i] >> 31 ? count : 0);
                words_[starts_[tile] + place[entry[i] & 0x7fffffffu]++] = static_cast<uint16_t>(vector * vector_bytes);
            }
        }
        std::free(counts);
        ok_ = true;
    }
    ~Plan() {
        std::free(words_);
        std::free(starts_);
    }
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;
    void apply(StackJob* job) const noexcept {
        if (!ok_) return;  // no memory for it: the path without a plan gives the same bytes
        job->plan = words_;
        job->plan_start = starts_;
    }

private:
    uint16_t* words_ = nullptr;
    int64_t* starts_ = nullptr;
    bool ok_ = false;
};
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

namespace {
template <class T>
bool run(Isa isa, const StackJob& job, int num_threads) noexcept {
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
}  // namespace

template <class T>
bool stack_transform(Isa isa, const StackJob& job, int num_threads) noexcept {
    const int vector_bytes = kVectorBytes[static_cast<int>(isa)];
    const size_t accumulator = static_cast<size_t>(job.components) * 64;
    // Worth it when a tile brings an output several terms.
    if (job.table && job.x.rows >= kMinRowsForPlan && accumulator <= kMaxAccumulator &&
        int64_t{kPlanBytes} / vector_bytes * job.nnz >= 2 * job.components) {
        const Plan plan(job, vector_bytes);
        StackJob planned = job;
        plan.apply(&planned);
        return run<T>(isa, planned, num_threads);
    }
    return run<T>(isa, job, num_threads);
}

template bool stack_transform<float>(Isa, const StackJob&, int) noexcept;
template bool stack_transform<double>(Isa, const StackJob&, int) noexcept;

}  // namespace ef
