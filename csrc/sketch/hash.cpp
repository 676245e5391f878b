#include "sketch/hash.hpp"

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
#include "common/half.hpp"
#include "common/scratch.hpp"

namespace ef {
namespace {
constexpr int kPlanBytes = 1 << 13;  // of a tile of transposed features; their negatives take as much again
constexpr int kAheadBytes = 256;     // of every row, fetched while these are added

// Features until the rows reach a cache line, where they do so together: a vector that spans two lines costs twice, and
// numpy's arrays begin 16 bytes after one.
int64_t features_before_line(const StridedMatrix& x, int64_t element_bytes) noexcept {
    const auto skew = static_cast<int64_t>(reinterpret_cast<uintptr_t>(x.data) % 64);
    const bool together = x.column_stride == element_bytes && x.row_stride % 64 == 0 && skew % element_bytes == 0;
    return together && skew ? (64 - skew) / element_bytes : 0;
}
}
}  // namespace ef

#define EF_BODY "sketch/hash-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

namespace {
using Rows = void (*)(const HashJob&, const uint16_t*, const int64_t*, int64_t, int64_t, void*) noexcept;
constexpr Rows kRowsF32[kIsaCount] = EF_PER_ISA(hash_rows_f32);
constexpr Rows kRowsF64[kIsaCount] = EF_PER_ISA(hash_rows_f64);

constexpr int64_t kGroup = 16;                       // a multiple of every lane count
constexpr int64_t kMaxGroups = 8;                    // of rows handed out at a time
constexpr size_t kMaxAccumulator = size_t{1} << 20;  // bytes; above it the lanes' accumulators leave the L2 cache
constexpr int64_t kGrain = int64_t{1} << 18;         // additions worth a thread
constexpr int kVectorBytes[kIsaCount] = {16, 32, 64, 16};
constexpr int64_t kMinRowsForPlan = 256;
constexpr int64_t kMinTermsForPlan = 2;  // of an output in a tile, on average

// The entries regrouped: per tile the number of classes, then for each class (pairs, outputs) and for each of its
// outputs its number and 2 * pairs terms. A term is the byte offset of a vector in the tile: feature j, its negative
// `count` vectors later, or the zero vector behind both (adding +0 changes no sum that began at +0). Terms ascend in
// j. Outputs with equally many pairs stand together, which makes the loop over pairs predictable.
class Plan {
public:
    Plan() = default;
    void build(const HashJob& job, int vector_bytes, int64_t element_bytes) noexcept {
        const int64_t features = kPlanBytes / vector_bytes, d = job.x.columns, k = job.components;
        const int64_t head = features_before_line(job.x, element_bytes), tiles = 1 + (d + features - 1) / features;
        // Terms, one padding term for every output, output numbers, classes (fewer than pairs + 1).
        const int64_t words = terms_before(job, d) + tiles * (2 * k + 1 + 2 * (features / 2 + 2));
        words_ = static_cast<uint16_t*>(std::malloc(static_cast<size_t>(words) * sizeof(uint16_t)));
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
        for (int64_t tile = 0, first = 0, end_of = head > 0 ? head : features; first < d;
             ++tile, first = end_of, end_of += features) {
            starts_[tile] = to - words_;
            const int64_t count = (end_of < d ? end_of : d) - first;
            const uint32_t* entry = job.entries + terms_before(job, first);
            const int64_t terms = terms_before(job, first + count) - terms_before(job, first);
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
            for (int64_t j = 0; j < count; ++j) {
                const int64_t end = terms_before(job, first + j + 1) - terms_before(job, first);
                for (int64_t i = terms_before(job, first + j) - terms_before(job, first); i < end; ++i) {
                    const int64_t vector = j + (entry[i] >> 31 ? count : 0);
                    words_[starts_[tile] + place[entry[i] & 0x7fffffffu]++] = static_cast<uint16_t>(vector * vector_bytes);
                }
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
    // Null when there was no memory for it: the path without a plan gives the same bytes.
    const uint16_t* words() const noexcept { return ok_ ? words_ : nullptr; }
    const int64_t* starts() const noexcept { return starts_; }

    static int64_t terms_before(const HashJob& job, int64_t feature) noexcept {
        return job.starts ? job.starts[feature] : feature * job.nnz;
    }

private:
    uint16_t* words_ = nullptr;
    int64_t* starts_ = nullptr;
    bool ok_ = false;
};

uint32_t pack(uint64_t lane, uint64_t height, uint64_t offset) noexcept {
    return static_cast<uint32_t>(offset + (((lane >> 1) * height) >> 31)) | static_cast<uint32_t>(lane << 31);
}
uint64_t lane_of(const PhiloxBlock& block, int lane) noexcept {
    return (block.word[lane / 2] >> (32 * (lane % 2))) & 0xffffffffu;
}
}  // namespace

void stack_table(uint64_t seed, int64_t components, int nnz, int64_t first, int64_t count, uint32_t* out) noexcept {
    const uint64_t base = static_cast<uint64_t>(components) / nnz, rest = static_cast<uint64_t>(components) % nnz;
    for (int64_t j = first; j < first + count; ++j) {
        uint64_t offset = 0;
        for (int e = 0; e < nnz;) {
            const PhiloxBlock block = philox4x64(static_cast<uint64_t>(j) + 1, static_cast<uint64_t>(e / 8), 0, 0, seed, 2);
            for (int lane = 0; lane < 8 && e < nnz; ++lane, ++e) {
                const uint64_t height = base + (static_cast<uint64_t>(e) < rest ? 1 : 0);
                *out++ = pack(lane_of(block, lane), height, offset);
                offset += height;
            }
        }
    }
}

void countsketch_table(uint64_t seed, int64_t components, int64_t first, int64_t count, uint32_t* out) noexcept {
    for (int64_t j = first; j < first + count;) {
        const PhiloxBlock block = philox4x64(static_cast<uint64_t>(j / 8) + 1, 0, 0, 0, seed, 1);
        for (int lane = static_cast<int>(j % 8); lane < 8 && j < first + count; ++lane, ++j)
            *out++ = pack(lane_of(block, lane), static_cast<uint64_t>(components), 0);
    }
}

void sparse_table(uint64_t seed, int64_t components, const uint64_t* thresholds, int64_t threshold_count, int64_t first,
                  int64_t count, int64_t* starts, uint32_t* entries) noexcept {
    int64_t total = 0;
    for (int64_t j = 0; j < count; ++j) {
        starts[j] = total;
        int64_t position = -1;
        for (uint64_t number = 0;; ++number) {
            const PhiloxBlock block = philox4x64(static_cast<uint64_t>(first + j) + 1, number, 0, 0, seed, 7);
            for (uint64_t word : block.word) {
                // The number of thresholds above word >> 1.
                int64_t low = 0, high = threshold_count;
                while (low < high) {
                    const int64_t middle = (low + high) / 2;
                    if (thresholds[middle] > word >> 1) low = middle + 1;
                    else high = middle;
                }
                position += 1 + low;
                if (position >= components) goto finished;
                if (entries) entries[total] = static_cast<uint32_t>(position) | static_cast<uint32_t>(word << 31);
                ++total;
            }
        }
    finished:;
    }
    starts[count] = total;
}

template <class T>
bool hash_transform(Isa isa, const HashJob& job, int num_threads) noexcept {
    const Rows rows = (std::is_same_v<T, float> ? kRowsF32 : kRowsF64)[static_cast<int>(isa)];
    const int vector_bytes = kVectorBytes[static_cast<int>(isa)];
    const int64_t n = job.x.rows, d = job.x.columns, terms = Plan::terms_before(job, d);
    // Work in divisions, so that the product of three sizes cannot overflow.
    const int64_t row_work = terms + job.components + 1;
    int threads = threads_for(n, row_work < kGrain ? kGrain / row_work : 1, num_threads);
    // Groups one after the other read each other ahead; few enough that every thread gets several lots.
    int64_t groups = n / kGroup / (8 * threads);
    groups = groups < 1 ? 1 : groups > kMaxGroups ? kMaxGroups : groups;
    const int64_t step = groups * kGroup, lots = (n + step - 1) / step;
    if (threads > lots) threads = lots > 0 ? static_cast<int>(lots) : 1;
    const size_t accumulator = static_cast<size_t>(job.components) * 64;
    const size_t acc_bytes = n > 2 && accumulator <= kMaxAccumulator ? accumulator : 0;
    Scratch scratch(threads, acc_bytes);
    if (!scratch.ok()) return false;
    // A plan is worth it when a tile brings an output several terms, and many rows share it.
    const int64_t tiles = (d + kPlanBytes / vector_bytes - 1) / (kPlanBytes / vector_bytes);
    Plan plan;
    if (acc_bytes && n >= kMinRowsForPlan && terms >= kMinTermsForPlan * job.components * tiles)
        plan.build(job, vector_bytes, sizeof(T));
    std::atomic<int64_t> next{0};
    parallel_for(threads, threads, [&](int64_t slot) noexcept {
        for (int64_t lot; (lot = next.fetch_add(1, std::memory_order_relaxed)) < lots;)
            rows(job, plan.words(), plan.starts(), lot * step, (lot + 1) * step < n ? (lot + 1) * step : n,
                 acc_bytes ? scratch.of(slot) : nullptr);
    });
    return true;
}

template bool hash_transform<float>(Isa, const HashJob&, int) noexcept;
template bool hash_transform<double>(Isa, const HashJob&, int) noexcept;

}  // namespace ef
