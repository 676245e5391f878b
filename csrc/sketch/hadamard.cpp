#include "sketch/hadamard.hpp"

#include <atomic>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/parallel.hpp"
#include "common/dispatch.hpp"
#include "common/scratch.hpp"

#define EF_BODY "sketch/hadamard-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

namespace {
template <class T>
using Vector = void (*)(const T*, T*, int64_t, double) noexcept;
template <class T>
using Join = void (*)(T*, int64_t, int, int64_t, int64_t, double) noexcept;
using SrhtRows = void (*)(const SrhtJob&, int64_t, int64_t, void*) noexcept;

constexpr Vector<float> kVectorF32[kIsaCount] = EF_PER_ISA(fwht_vector_f32);
constexpr Vector<double> kVectorF64[kIsaCount] = EF_PER_ISA(fwht_vector_f64);
constexpr Join<float> kJoinF32[kIsaCount] = EF_PER_ISA(fwht_join_f32);
constexpr Join<double> kJoinF64[kIsaCount] = EF_PER_ISA(fwht_join_f64);
constexpr SrhtRows kSrhtF32[kIsaCount] = EF_PER_ISA(srht_rows_f32);
constexpr SrhtRows kSrhtF64[kIsaCount] = EF_PER_ISA(srht_rows_f64);

using RotateRows = void (*)(const RotationJob&, int64_t, int64_t) noexcept;
constexpr RotateRows kRotateF32[kIsaCount] = EF_PER_ISA(rotate_rows_f32);
constexpr RotateRows kRotateF64[kIsaCount] = EF_PER_ISA(rotate_rows_f64);

template <class T>
constexpr auto& vector_table() {
    if constexpr (std::is_same_v<T, float>) return kVectorF32;
    else return kVectorF64;
}
template <class T>
constexpr auto& join_table() {
    if constexpr (std::is_same_v<T, float>) return kJoinF32;
    else return kJoinF64;
}

constexpr int64_t kGrain = int64_t{1} << 17;  // elements worth a thread
constexpr int kJoinRadix = 3;                 // every level has a radix-8 pass
constexpr int64_t kColumns = 1024;            // elements of a joining pass handed out at a time
}  // namespace

template <class T>
void fwht(Isa isa, const T* in, T* out, int64_t rows, int64_t length, double scale, int num_threads) noexcept {
    const Vector<T> vector = vector_table<T>()[static_cast<int>(isa)];
    const int threads = threads_for(rows * length, kGrain, num_threads);
    if (rows >= 2 * threads || threads < 2) {
        const int64_t step = length < kGrain / 8 ? kGrain / 8 / length : 1;
        parallel_for((rows + step - 1) / step, threads, [&](int64_t chunk) noexcept {
            const int64_t end = (chunk + 1) * step < rows ? (chunk + 1) * step : rows;
            for (int64_t r = chunk * step; r < end; ++r) vector(in + r * length, out + r * length, length, scale);
        });
        return;
    }
    // Few long vectors: eighths of all of them in parallel, then the three stages that join the eighths.
    const Join<T> join = join_table<T>()[static_cast<int>(isa)];
    const int64_t h = length >> kJoinRadix, strips = (h + kColumns - 1) / kColumns;
    parallel_for(rows << kJoinRadix, threads,
                 [&](int64_t part) noexcept { vector(in + part * h, out + part * h, h, 1.0); });
    parallel_for(rows * strips, threads, [&](int64_t chunk) noexcept {
        const int64_t begin = chunk % strips * kColumns;
        join(out + chunk / strips * length, h, kJoinRadix, begin, begin + kColumns < h ? begin + kColumns : h, scale);
    });
}

template <class T>
bool srht_transform(Isa isa, const SrhtJob& job, int num_threads) noexcept {
    const SrhtRows rows = (std::is_same_v<T, float> ? kSrhtF32 : kSrhtF64)[static_cast<int>(isa)];
    const int64_t n = job.x.rows;
    const int64_t step = job.length < kGrain / 8 ? kGrain / 8 / job.length : 1;
    const int64_t chunks = (n + step - 1) / step;
    int threads = threads_for(n, job.length < kGrain ? kGrain / job.length : 1, num_threads);
    if (threads > chunks) threads = chunks > 0 ? static_cast<int>(chunks) : 1;
    Scratch scratch(threads, static_cast<size_t>(job.length) * sizeof(T));
    if (!scratch.ok()) return false;
    std::atomic<int64_t> next{0};
    parallel_for(threads, threads, [&](int64_t slot) noexcept {
        for (int64_t c; (c = next.fetch_add(1, std::memory_order_relaxed)) < chunks;)
            rows(job, c * step, (c + 1) * step < n ? (c + 1) * step : n, scratch.of(slot));
    });
    return true;
}

template <class T>
void rotate(Isa isa, const RotationJob& job, int num_threads) noexcept {
    const RotateRows rows = (std::is_same_v<T, float> ? kRotateF32 : kRotateF64)[static_cast<int>(isa)];
    const int64_t n = job.x.rows, d = job.x.columns;
    const int threads = threads_for(n, d < kGrain / 4 ? kGrain / 4 / d : 1, num_threads);
    const int64_t step = d < kGrain / 8 ? kGrain / 8 / d : 1;
    parallel_for((n + step - 1) / step, threads, [&](int64_t chunk) noexcept {
        rows(job, chunk * step, (chunk + 1) * step < n ? (chunk + 1) * step : n);
    });
}

template void fwht<float>(Isa, const float*, float*, int64_t, int64_t, double, int) noexcept;
template void fwht<double>(Isa, const double*, double*, int64_t, int64_t, double, int) noexcept;
template void rotate<float>(Isa, const RotationJob&, int) noexcept;
template void rotate<double>(Isa, const RotationJob&, int) noexcept;
template bool srht_transform<float>(Isa, const SrhtJob&, int) noexcept;
template bool srht_transform<double>(Isa, const SrhtJob&, int) noexcept;

}  // namespace ef
