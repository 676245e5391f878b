#include "sketch/count_sketch.hpp"

#include <cstdlib>

#include "common/dispatch.hpp"
#include "common/parallel.hpp"
#include "sketch/hash.hpp"

#define EF_COUNT_INLINE static inline __attribute__((always_inline))
#define EF_BODY "sketch/count_sketch-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

namespace {
using Add = void (*)(const void*, const uint32_t*, int64_t, int, int, void*) noexcept;
using Estimate = void (*)(const void*, const uint32_t*, int64_t, int, void*) noexcept;
constexpr Add kAdd[4][kIsaCount] = {EF_PER_ISA(count_add_f32), EF_PER_ISA(count_add_f32_to_f64),
                                    EF_PER_ISA(count_add_f64), EF_PER_ISA(count_add_i64)};
constexpr Estimate kEstimate[4][kIsaCount] = {EF_PER_ISA(count_estimate_f32), EF_PER_ISA(count_estimate_f64),
                                              EF_PER_ISA(count_estimate_f64), EF_PER_ISA(count_estimate_i64)};

constexpr size_t kEntryBytes = size_t{1} << 21;  // of entries drawn at a time, over all threads
constexpr int64_t kGrain = int64_t{1} << 14;     // entries worth a thread: each costs nanoseconds

int64_t size_of_x(CountTypes types) { return types == CountTypes::f32 || types == CountTypes::f32_to_f64 ? 4 : 8; }

// Entries of values [begin, end) of the call.
void draw(const CountTable& table, const int64_t* indices, int64_t first, int64_t begin, int64_t end,
          uint32_t* out) noexcept {
    const int64_t components = table.width * table.depth;
    if (!indices) {
        stack_table(table.seed, components, table.depth, first + begin, end - begin, out);
        return;
    }
    for (int64_t i = begin; i < end; ++i, out += table.depth)
        stack_table(table.seed, components, table.depth, indices[i], 1, out);
}

uint32_t* entries_for(int depth, int64_t count, int64_t* tile) noexcept {
    int64_t values = static_cast<int64_t>(kEntryBytes / (static_cast<size_t>(depth) * sizeof(uint32_t)));
    if (values > count) values = count > 0 ? count : 1;
    *tile = values;
    return static_cast<uint32_t*>(std::malloc(static_cast<size_t>(values) * static_cast<size_t>(depth) * sizeof(uint32_t)));
}
}  // namespace

bool count_sketch_add(Isa isa, const CountTable& table, CountTypes types, const void* values, const int64_t* indices,
                      int64_t first, int64_t count, int num_threads) noexcept {
    const Add add = kAdd[static_cast<int>(types)][static_cast<int>(isa)];
    int64_t tile;
    uint32_t* entries = entries_for(table.depth, count, &tile);
    if (!entries) return false;
    for (int64_t at = 0; at < count; at += tile) {
        const int64_t size = at + tile < count ? tile : count - at;
        const int threads = threads_for(size * table.depth, kGrain, num_threads);
        const int64_t step = (size + threads - 1) / threads;
        parallel_for(threads, threads, [&](int64_t t) noexcept {
            const int64_t begin = t * step, end = begin + step < size ? begin + step : size;
            if (begin < end) draw(table, indices, first, at + begin, at + end, entries + begin * table.depth);
        });
        const char* part = static_cast<const char*>(values) + at * size_of_x(types);
        parallel_for(table.depth, threads, [&](int64_t r) noexcept {
            add(part, entries, size, table.depth, static_cast<int>(r), table.counters);
        });
    }
    std::free(entries);
    return true;
}

bool count_sketch_estimate(Isa isa, const CountTable& table, CountTypes types, const int64_t* indices, int64_t first,
                           int64_t count, void* out, int num_threads) noexcept {
    const Estimate estimate = kEstimate[static_cast<int>(types)][static_cast<int>(isa)];
    const int64_t out_size = types == CountTypes::f32 ? 4 : 8;
    const int threads = threads_for(count * table.depth < 0 ? count : count * table.depth, kGrain, num_threads);
    int64_t tile;
    uint32_t* entries = entries_for(table.depth * threads, (count + threads - 1) / threads, &tile);
    if (!entries) return false;
    const int64_t share = (count + threads - 1) / threads;
    parallel_for(threads, threads, [&](int64_t t) noexcept {
        uint32_t* own = entries + t * tile * table.depth;
        const int64_t end = (t + 1) * share < count ? (t + 1) * share : count;
        for (int64_t at = t * share; at < end; at += tile) {
            const int64_t size = at + tile < end ? tile : end - at;
            draw(table, indices, first, at, at + size, own);
            estimate(table.counters, own, size, table.depth, static_cast<char*>(out) + at * out_size);
        }
    });
    std::free(entries);
    return true;
}

}  // namespace ef
