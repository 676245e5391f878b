#include "sketch/adjoint.hpp"

#include <atomic>
#include <type_traits>
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
#include "sketch/hadamard.hpp"

namespace ef {
namespace {
constexpr int kAdjointTile = 64;     // features gathered at a time
constexpr int kPanelFeatures = 64;   // of a sign panel: one 64 x 64 bit transposition
constexpr int kPanelOutputs = 256;   // components of one Philox block
constexpr int kPanelRows = 384;      // rows that share a panel; a multiple of every register block
constexpr int kPanelSpare = 5;       // rows a last, partial register block may touch beyond them
constexpr uint64_t kRademacherStream = 3, kGaussianStream = 4;
}  // namespace
}  // namespace ef

#define EF_BODY "sketch/adjoint-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

namespace {
using HashRows = void (*)(const HashAdjointJob&, int64_t, int64_t, void*, void*) noexcept;
using DenseRows = void (*)(const DenseAdjointJob&, int64_t, int64_t, void*) noexcept;
template <class T>
using Place = void (*)(const SrhtAdjointJob&, int64_t, T*, T*) noexcept;
template <class T>
using Sign = void (*)(const SrhtAdjointJob&, int64_t, const T*) noexcept;

constexpr HashRows kHashF32[kIsaCount] = EF_PER_ISA(hash_adjoint_rows_f32);
constexpr HashRows kHashF64[kIsaCount] = EF_PER_ISA(hash_adjoint_rows_f64);
constexpr DenseRows kDenseF32[kIsaCount] = EF_PER_ISA(dense_adjoint_rows_f32);
constexpr DenseRows kDenseF64[kIsaCount] = EF_PER_ISA(dense_adjoint_rows_f64);
constexpr Place<float> kPlaceF32[kIsaCount] = EF_PER_ISA(srht_place_f32);
constexpr Place<double> kPlaceF64[kIsaCount] = EF_PER_ISA(srht_place_f64);
constexpr Sign<float> kSignF32[kIsaCount] = EF_PER_ISA(srht_sign_f32);
constexpr Sign<double> kSignF64[kIsaCount] = EF_PER_ISA(srht_sign_f64);

constexpr int64_t kGrain = int64_t{1} << 18;         // additions worth a thread
constexpr size_t kMaxLanes = size_t{1} << 20;        // bytes of transposed components; above it they leave the L2 cache
constexpr int64_t kLaneRows = 16;                    // a multiple of every lane count

// Threads for `rows` rows of a * b additions each.
int threads_of(int64_t rows, int64_t a, int64_t b, int64_t chunks, int num_threads) noexcept {
    const int64_t work = a < kGrain && b < kGrain ? a * b : kGrain;
    const int threads = threads_for(rows, work < kGrain ? kGrain / (work > 0 ? work : 1) : 1, num_threads);
    return threads < chunks ? threads : chunks > 0 ? static_cast<int>(chunks) : 1;
}

template <class Body>
void for_rows(int64_t rows, int64_t step, int threads, const Body& body) noexcept {
    std::atomic<int64_t> next{0};
    const int64_t chunks = (rows + step - 1) / step;
    parallel_for(threads, threads, [&](int64_t slot) noexcept {
        for (int64_t c; (c = next.fetch_add(1, std::memory_order_relaxed)) < chunks;)
            body(slot, c * step, (c + 1) * step < rows ? (c + 1) * step : rows);
    });
}
}  // namespace

template <class T>
bool hash_adjoint(Isa isa, const HashAdjointJob& job, int num_threads) noexcept {
    const HashRows rows = (std::is_same_v<T, float> ? kHashF32 : kHashF64)[static_cast<int>(isa)];
    const int64_t n = job.y.rows, width = job.end - job.begin;
    const int64_t entries = job.entries.starts ? job.entries.starts[width] : width * job.entries.nnz;
    const int threads = threads_of(n, entries + width, 1, (n + kLaneRows - 1) / kLaneRows, num_threads);
    const size_t transposed = static_cast<size_t>(job.y.columns) * 64;
    const size_t lanes = n > 2 && transposed <= kMaxLanes ? transposed : 0;
    const size_t room = lanes > 0 ? lanes : static_cast<size_t>(job.y.columns) * sizeof(T);
    Scratch scratch(threads, lanes + room);
    if (!scratch.ok()) return false;
    for_rows(n, kLaneRows, threads, [&](int64_t slot, int64_t begin, int64_t end) noexcept {
        char* memory = scratch.of(slot);
        rows(job, begin, end, lanes ? memory : nullptr, memory + lanes);
    });
    return true;
}

template <class T>
bool srht_adjoint(Isa isa, const SrhtAdjointJob& job, int num_threads) noexcept {
    const auto level = static_cast<int>(isa);
    const int64_t n = job.y.rows;
    const int threads = threads_of(n, job.length, 1, n, num_threads);
    const size_t work_bytes = static_cast<size_t>(job.length) * sizeof(T);
    Scratch scratch(threads, work_bytes + static_cast<size_t>(job.y.columns) * sizeof(T));
    if (!scratch.ok()) return false;
    for_rows(n, 1, threads, [&](int64_t slot, int64_t begin, int64_t end) noexcept {
        T* work = reinterpret_cast<T*>(scratch.of(slot));
        T* room = work + job.length;
        for (int64_t row = begin; row < end; ++row) {
            if constexpr (std::is_same_v<T, float>) kPlaceF32[level](job, row, work, room);
            else kPlaceF64[level](job, row, work, room);
            fwht<T>(isa, work, work, 1, job.length, 1.0, 1);
            if constexpr (std::is_same_v<T, float>) kSignF32[level](job, row, work);
            else kSignF64[level](job, row, work);
        }
    });
    return true;
}

template <class T>
bool dense_adjoint(Isa isa, const DenseAdjointJob& job, int num_threads) noexcept {
    const DenseRows rows = (std::is_same_v<T, float> ? kDenseF32 : kDenseF64)[static_cast<int>(isa)];
    const int64_t n = job.y.rows;
    const int threads = threads_of(n, job.features, job.y.columns, n, num_threads);
    int64_t step = (n + threads - 1) / threads;
    if (step > kPanelRows) step = kPanelRows;
    if (step < 1) step = 1;
    constexpr size_t kElements = size_t{kPanelFeatures} * kPanelOutputs +
                                 size_t{kPanelRows + kPanelSpare} * (kPanelOutputs + kPanelFeatures);
    Scratch scratch(threads, kElements * sizeof(T));
    if (!scratch.ok()) return false;
    for_rows(n, step, threads,
             [&](int64_t slot, int64_t begin, int64_t end) noexcept { rows(job, begin, end, scratch.of(slot)); });
    return true;
}

template bool hash_adjoint<float>(Isa, const HashAdjointJob&, int) noexcept;
template bool hash_adjoint<double>(Isa, const HashAdjointJob&, int) noexcept;
template bool srht_adjoint<float>(Isa, const SrhtAdjointJob&, int) noexcept;
template bool srht_adjoint<double>(Isa, const SrhtAdjointJob&, int) noexcept;
template bool dense_adjoint<float>(Isa, const DenseAdjointJob&, int) noexcept;
template bool dense_adjoint<double>(Isa, const DenseAdjointJob&, int) noexcept;

}  // namespace ef
