#include "sketch/hadamard_axis.hpp"

#include <atomic>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/dispatch.hpp"
#include "common/parallel.hpp"
#include "common/scratch.hpp"

#define EF_BODY "sketch/hadamard_axis-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

namespace {
template <class T>
using Block = void (*)(const T*, T*, int64_t, int64_t, double) noexcept;
template <class T>
using Strip = void (*)(const T*, T*, int64_t, int64_t, int64_t, double, T*) noexcept;
template <class T>
using Join = void (*)(T*, int64_t, int, int64_t, int64_t, double) noexcept;

constexpr Block<float> kBlockF32[kIsaCount] = EF_PER_ISA(axis_block_f32);
constexpr Block<double> kBlockF64[kIsaCount] = EF_PER_ISA(axis_block_f64);
constexpr Strip<float> kStripF32[kIsaCount] = EF_PER_ISA(axis_strip_f32);
constexpr Strip<double> kStripF64[kIsaCount] = EF_PER_ISA(axis_strip_f64);
constexpr Join<float> kJoinF32[kIsaCount] = EF_PER_ISA(axis_join_f32);
constexpr Join<double> kJoinF64[kIsaCount] = EF_PER_ISA(axis_join_f64);

template <class T>
struct Table {
    Block<T> block;
    Strip<T> strip;
    Join<T> join;
};
Table<float> table_of(Isa isa, const float*) {
    const int i = static_cast<int>(isa);
    return {kBlockF32[i], kStripF32[i], kJoinF32[i]};
}
Table<double> table_of(Isa isa, const double*) {
    const int i = static_cast<int>(isa);
    return {kBlockF64[i], kStripF64[i], kJoinF64[i]};
}

constexpr int64_t kCacheBytes = int64_t{1} << 18;  // of a block transformed in one go
constexpr int64_t kStripBytes = 256;               // of a row of a strip
constexpr int64_t kMinStripBytes = 64;
constexpr int64_t kGrain = int64_t{1} << 17;       // elements worth a thread
constexpr int64_t kChunk = int64_t{1} << 13;       // elements of a joining pass handed out at a time
}  // namespace

template <class T>
bool fwht_axis(Isa isa, const T* in, T* out, int64_t outer, int64_t length, int64_t inner, double scale,
               int num_threads) noexcept {
    const Table<T> table = table_of(isa, in);
    const int64_t total = outer * length * inner, item = sizeof(T);
    const int threads = threads_for(total, kGrain, num_threads);
    // Sub-transforms of `part` of the axis that fit the cache, then passes over all of it that join them.
    const bool strips = inner * item > kStripBytes && length > 8;
    const int64_t row = strips ? kMinStripBytes : inner * item;
    int64_t part = length;
    while (part > 8 && part * row > (strips ? 2 : 1) * kCacheBytes) part >>= 1;
    int64_t width = strips ? kStripBytes / item : inner;
    while (strips && width * item > kMinStripBytes && part * width * item > 2 * kCacheBytes) width >>= 1;
    const int64_t columns = (inner + width - 1) / width;
    const int64_t blocks = outer * (length / part);
    const double first_scale = part == length ? scale : 1.0;
    if (strips) {
        Scratch scratch(threads, static_cast<size_t>(part * width * item));
        if (!scratch.ok()) return false;
        std::atomic<int64_t> next{0};
        parallel_for(threads, threads, [&](int64_t slot) noexcept {
            for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < blocks * columns;) {
                const int64_t column = i % columns * width, at = i / columns * part * inner + column;
                table.strip(in + at, out + at, part, inner, column + width < inner ? width : inner - column, first_scale,
                            reinterpret_cast<T*>(scratch.of(slot)));
            }
        });
    } else {
        const int64_t size = part * inner, step = size < kGrain / 8 ? kGrain / 8 / size : 1;
        parallel_for((blocks + step - 1) / step, threads, [&](int64_t chunk) noexcept {
            const int64_t end = (chunk + 1) * step < blocks ? (chunk + 1) * step : blocks;
            for (int64_t b = chunk * step; b < end; ++b) table.block(in + b * size, out + b * size, part, inner, first_scale);
        });
    }
    for (int64_t h = part; h < length;) {
        int radix = 0;
        while (radix < 3 && (h << radix) < length) ++radix;
        const int64_t piece = h * inner, chunks = (piece + kChunk - 1) / kChunk;
        const double last = (h << radix) == length ? scale : 1.0;
        parallel_for(outer * (length / (h << radix)) * chunks, threads, [&](int64_t i) noexcept {
            const int64_t begin = i % chunks * kChunk;
            table.join(out + i / chunks * (piece << radix), piece, radix, begin,
                       begin + kChunk < piece ? begin + kChunk : piece, last);
        });
        h <<= radix;
    }
    return true;
}

template bool fwht_axis<float>(Isa, const float*, float*, int64_t, int64_t, int64_t, double, int) noexcept;
template bool fwht_axis<double>(Isa, const double*, double*, int64_t, int64_t, int64_t, double, int) noexcept;

}  // namespace ef
