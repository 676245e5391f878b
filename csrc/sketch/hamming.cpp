#include "sketch/hamming.hpp"

#include <cstdlib>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/dispatch.hpp"
#include "common/parallel.hpp"

#define EF_BODY "sketch/hamming-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

namespace {
using SignsF32 = void (*)(const float*, int64_t, int64_t, uint8_t*, int64_t) noexcept;
using SignsF64 = void (*)(const double*, int64_t, int64_t, uint8_t*, int64_t) noexcept;
using Distances = void (*)(const uint8_t*, const uint8_t*, int64_t, int64_t, int64_t, uint16_t*) noexcept;
using Least = uint16_t (*)(const uint16_t*, int64_t) noexcept;
using Filter = void (*)(const Codes&, int64_t, int, Ring*, uint8_t*) noexcept;
constexpr SignsF32 kSignsF32[kIsaCount] = EF_PER_ISA(sign_bits_f32);
constexpr SignsF64 kSignsF64[kIsaCount] = EF_PER_ISA(sign_bits_f64);
constexpr Distances kDistances[kIsaCount] = EF_PER_ISA(hamming_distances);
constexpr Least kLeast[kIsaCount] = EF_PER_ISA(hamming_least);
constexpr Filter kFilter[kIsaCount] = EF_PER_ISA(hamming_filter_codes);

constexpr int64_t kBlock = 512;                     // codes whose distances are looked at together: they stay in L1
constexpr int64_t kGrain = int64_t{1} << 20;        // bytes compared that are worth a thread
constexpr int kMaxParts = 64;
}  // namespace

void sign_bits(Isa isa, const float* x, int64_t rows, int64_t columns, uint8_t* out, int64_t out_stride) noexcept {
    kSignsF32[static_cast<int>(isa)](x, rows, columns, out, out_stride);
}
void sign_bits(Isa isa, const double* x, int64_t rows, int64_t columns, uint8_t* out, int64_t out_stride) noexcept {
    kSignsF64[static_cast<int>(isa)](x, rows, columns, out, out_stride);
}

void hamming_pairs(Isa isa, const Codes& a, const Codes& b, int64_t bytes, uint16_t* out, int num_threads) noexcept {
    const Distances distances = kDistances[static_cast<int>(isa)];
    const int64_t row_work = b.count < kGrain ? b.count * bytes : kGrain;
    const int threads = threads_for(a.count, row_work > 0 && row_work < kGrain ? kGrain / row_work : 1, num_threads);
    const int64_t step = (a.count + 4 * threads - 1) / (4 * threads);
    parallel_for(step > 0 ? (a.count + step - 1) / step : 0, threads, [&](int64_t part) noexcept {
        const int64_t end = (part + 1) * step < a.count ? (part + 1) * step : a.count;
        for (int64_t j = 0; j < b.count; j += kBlock) {
            const int64_t count = j + kBlock < b.count ? kBlock : b.count - j;
            for (int64_t i = part * step; i < end; ++i)
                distances(a.data + i * a.stride, b.data + j * b.stride, b.stride, bytes, count, out + i * b.count + j);
        }
    });
}

namespace {
// Codes [begin, end) for queries [first, last): distances below the best so far replace it.
void nearest_part(Isa isa, const Codes& queries, int64_t first, int64_t last, const Codes& codes, int64_t begin,
                  int64_t end, int64_t bytes, int64_t* index, uint16_t* distance) noexcept {
    const Distances distances = kDistances[static_cast<int>(isa)];
    const Least least_of = kLeast[static_cast<int>(isa)];
    uint16_t d[kBlock];
    for (int64_t q = first; q < last; ++q) {
        index[q] = -1;
        distance[q] = 65535;
    }
    for (int64_t j = begin; j < end; j += kBlock) {
        const int64_t count = j + kBlock < end ? kBlock : end - j;
        for (int64_t q = first; q < last; ++q) {
            distances(queries.data + q * queries.stride, codes.data + j * codes.stride, codes.stride, bytes, count, d);
            const uint16_t least = least_of(d, count);
            if (index[q] >= 0 && least >= distance[q]) continue;
            distance[q] = least;
            int64_t i = 0;
            while (d[i] != least) ++i;
            index[q] = j + i;
        }
    }
}
}  // namespace

void hamming_nearest(Isa isa, const Codes& queries, const Codes& codes, int64_t bytes, int64_t* index,
                     uint16_t* distance, int num_threads) noexcept {
    const int64_t row_work = codes.count < kGrain ? codes.count * bytes : kGrain;
    int threads = threads_for(queries.count, row_work > 0 && row_work < kGrain ? kGrain / row_work : 1, num_threads);
    if (threads > 1 && queries.count >= 2 * threads) {
        const int64_t step = (queries.count + 4 * threads - 1) / (4 * threads);
        parallel_for((queries.count + step - 1) / step, threads, [&](int64_t part) noexcept {
            const int64_t end = (part + 1) * step < queries.count ? (part + 1) * step : queries.count;
            nearest_part(isa, queries, part * step, end, codes, 0, codes.count, bytes, index, distance);
        });
        return;
    }
    // Few queries: shares of the codes, joined in order.
    threads = threads_for(codes.count, kGrain / bytes > 0 ? kGrain / bytes : 1, num_threads);
    if (threads > kMaxParts) threads = kMaxParts;
    const size_t cells = static_cast<size_t>(queries.count) * static_cast<size_t>(threads);
    auto* memory = threads > 1 ? static_cast<char*>(std::malloc(cells * (sizeof(int64_t) + sizeof(uint16_t)))) : nullptr;
    if (!memory) return nearest_part(isa, queries, 0, queries.count, codes, 0, codes.count, bytes, index, distance);
    auto* part_index = reinterpret_cast<int64_t*>(memory);
    auto* part_distance = reinterpret_cast<uint16_t*>(part_index + cells);
    const int64_t step = (codes.count + threads - 1) / threads;
    parallel_for(threads, threads, [&](int64_t t) noexcept {
        const int64_t begin = t * step < codes.count ? t * step : codes.count;
        const int64_t end = begin + step < codes.count ? begin + step : codes.count;
        nearest_part(isa, queries, 0, queries.count, codes, begin, end, bytes, part_index + t * queries.count,
                     part_distance + t * queries.count);
    });
    for (int64_t q = 0; q < queries.count; ++q) {
        index[q] = -1;
        distance[q] = 65535;
        for (int t = 0; t < threads; ++t) {
            const int64_t cell = t * queries.count + q;
            if (part_index[cell] < 0 || (index[q] >= 0 && part_distance[cell] >= distance[q])) continue;
            index[q] = part_index[cell];
            distance[q] = part_distance[cell];
        }
    }
    std::free(memory);
}

int64_t hamming_within(Isa isa, const uint8_t* query, const Codes& codes, int64_t bytes, int radius, int64_t begin,
                       int64_t end, int64_t room, int64_t* index, uint16_t* distance, int64_t* next) noexcept {
    const Distances distances = kDistances[static_cast<int>(isa)];
    const Least least_of = kLeast[static_cast<int>(isa)];
    uint16_t d[kBlock];
    int64_t found = 0;
    for (int64_t j = begin; j < end; j += kBlock) {
        const int64_t count = j + kBlock < end ? kBlock : end - j;
        distances(query, codes.data + j * codes.stride, codes.stride, bytes, count, d);
        if (least_of(d, count) > radius) continue;
        for (int64_t i = 0; i < count; ++i) {
            if (d[i] > radius) continue;
            if (found == room) {
                *next = j + i;
                return found;
            }
            index[found] = j + i;
            distance[found++] = d[i];
        }
    }
    *next = end;
    return found;
}

void hamming_filter(Isa isa, const Codes& codes, int64_t bytes, int radius, Ring* ring, uint8_t* keep) noexcept {
    kFilter[static_cast<int>(isa)](codes, bytes, radius, ring, keep);
}

}  // namespace ef
