#include "sketch/csr.hpp"

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
constexpr int kCsrChunk = 128;     // entries converted at a time
constexpr int kCsrAhead = 16;      // entries between a table line's request and its use
constexpr int kCsrDraw = 8;        // features drawn back to back: independent chains of multiplications
constexpr int kSignOutputs = 256;  // outputs of one Philox block
constexpr int kGaussianOutputs = 256;   // outputs and features of a panel of entries: 512 KiB of float
constexpr int kGaussianFeatures = 512;
constexpr uint64_t kCountSketchStream = 1, kStackStream = 2, kRademacherStream = 3, kGaussianStream = 4;
}  // namespace
}  // namespace ef

#define EF_BODY "sketch/csr-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

namespace {
using HashRows = void (*)(const CsrHashJob&, int64_t, int64_t, uint32_t*) noexcept;
using RademacherRows = void (*)(const CsrRademacherJob&, int64_t, int64_t) noexcept;
using GaussianRows = void (*)(const CsrGaussianJob&, int64_t, int64_t, void*, int64_t*) noexcept;
template <class T>
using Scatter = void (*)(const CsrSrhtJob&, int64_t, T*) noexcept;
template <class T>
using Pick = void (*)(const CsrSrhtJob&, int64_t, const T*) noexcept;

constexpr HashRows kHashF32[kIsaCount] = EF_PER_ISA(csr_hash_rows_f32);
constexpr HashRows kHashF64[kIsaCount] = EF_PER_ISA(csr_hash_rows_f64);
constexpr RademacherRows kRademacherF32[kIsaCount] = EF_PER_ISA(csr_rademacher_rows_f32);
constexpr RademacherRows kRademacherF64[kIsaCount] = EF_PER_ISA(csr_rademacher_rows_f64);
constexpr GaussianRows kGaussianF32[kIsaCount] = EF_PER_ISA(csr_gaussian_rows_f32);
constexpr GaussianRows kGaussianF64[kIsaCount] = EF_PER_ISA(csr_gaussian_rows_f64);
constexpr Scatter<float> kScatterF32[kIsaCount] = EF_PER_ISA(csr_srht_scatter_f32);
constexpr Scatter<double> kScatterF64[kIsaCount] = EF_PER_ISA(csr_srht_scatter_f64);
constexpr Pick<float> kPickF32[kIsaCount] = EF_PER_ISA(csr_srht_pick_f32);
constexpr Pick<double> kPickF64[kIsaCount] = EF_PER_ISA(csr_srht_pick_f64);

constexpr int64_t kGrain = int64_t{1} << 17;  // additions worth a thread
constexpr int64_t kStep = 16;                 // rows handed out at a time

int64_t product(int64_t a, int64_t b) noexcept { return a < kGrain && b < kGrain ? a * b : kGrain * kGrain; }

int threads_of(const CompressedMatrix& x, int64_t entry_work, int64_t row_work, int num_threads) noexcept {
    const int64_t work = product(x.indptr[x.rows] / 64 + 1, entry_work) + product(x.rows / 64 + 1, row_work);
    const int threads = threads_for(work, kGrain / 64, num_threads);
    const int64_t chunks = (x.rows + kStep - 1) / kStep;
    return threads < chunks ? threads : chunks > 0 ? static_cast<int>(chunks) : 1;
}

// Row ranges of kStep to `threads` threads; body(slot, begin, end).
template <class Body>
void for_rows(int64_t rows, int threads, const Body& body) noexcept {
    std::atomic<int64_t> next{0};
    const int64_t chunks = (rows + kStep - 1) / kStep;
    parallel_for(threads, threads, [&](int64_t slot) noexcept {
        for (int64_t c; (c = next.fetch_add(1, std::memory_order_relaxed)) < chunks;)
            body(slot, c * kStep, (c + 1) * kStep < rows ? (c + 1) * kStep : rows);
    });
}
}  // namespace

template <class T>
bool csr_hash_transform(Isa isa, const CsrHashJob& job, int num_threads) noexcept {
    const HashRows rows = (std::is_same_v<T, float> ? kHashF32 : kHashF64)[static_cast<int>(isa)];
    const int threads = threads_of(job.x, job.entries.nnz, job.components, num_threads);
    Scratch scratch(threads, job.entries.packed ? 0 : sizeof(uint32_t) * kCsrDraw * static_cast<size_t>(job.entries.nnz));
    if (!scratch.ok()) return false;
    for_rows(job.x.rows, threads, [&](int64_t slot, int64_t begin, int64_t end) noexcept {
        rows(job, begin, end, reinterpret_cast<uint32_t*>(scratch.of(slot)));
    });
    return true;
}

template <class T>
bool csr_rademacher_transform(Isa isa, const CsrRademacherJob& job, int num_threads) noexcept {
    const RademacherRows rows = (std::is_same_v<T, float> ? kRademacherF32 : kRademacherF64)[static_cast<int>(isa)];
    const int threads = threads_of(job.x, job.components, job.components, num_threads);
    for_rows(job.x.rows, threads, [&](int64_t, int64_t begin, int64_t end) noexcept { rows(job, begin, end); });
    return true;
}

template <class T>
bool csr_gaussian_transform(Isa isa, const CsrGaussianJob& job, int num_threads) noexcept {
    const GaussianRows rows = (std::is_same_v<T, float> ? kGaussianF32 : kGaussianF64)[static_cast<int>(isa)];
    const int threads = threads_of(job.x, job.components, job.components, num_threads);
    const int64_t share = (job.x.rows + threads - 1) / threads;
    // A panel pays when a thread has more numbers than features to draw entries for.
    const bool panels = job.x.indptr[job.x.rows] / threads > job.x.columns;
    const size_t panel = size_t{kGaussianOutputs} * (panels ? kGaussianFeatures : 1) * sizeof(T);
    Scratch scratch(threads, panel + (panels ? static_cast<size_t>(share) * sizeof(int64_t) : 0));
    if (!scratch.ok()) return false;
    parallel_for(threads, threads, [&](int64_t slot) noexcept {
        const int64_t begin = slot * share, end = begin + share < job.x.rows ? begin + share : job.x.rows;
        char* memory = scratch.of(slot);
        if (begin < end) rows(job, begin, end, memory, panels ? reinterpret_cast<int64_t*>(memory + panel) : nullptr);
    });
    return true;
}

template <class T>
bool csr_srht_transform(Isa isa, const CsrSrhtJob& job, int num_threads) noexcept {
    const auto level = static_cast<int>(isa);
    const int threads = threads_of(job.x, 1, job.length, num_threads);
    Scratch scratch(threads, static_cast<size_t>(job.length) * sizeof(T));
    if (!scratch.ok()) return false;
    for_rows(job.x.rows, threads, [&](int64_t slot, int64_t begin, int64_t end) noexcept {
        T* work = reinterpret_cast<T*>(scratch.of(slot));
        for (int64_t row = begin; row < end; ++row) {
            if constexpr (std::is_same_v<T, float>) kScatterF32[level](job, row, work);
            else kScatterF64[level](job, row, work);
            fwht<T>(isa, work, work, 1, job.length, 1.0, 1);
            if constexpr (std::is_same_v<T, float>) kPickF32[level](job, row, work);
            else kPickF64[level](job, row, work);
        }
    });
    return true;
}

template bool csr_hash_transform<float>(Isa, const CsrHashJob&, int) noexcept;
template bool csr_hash_transform<double>(Isa, const CsrHashJob&, int) noexcept;
template bool csr_gaussian_transform<float>(Isa, const CsrGaussianJob&, int) noexcept;
template bool csr_gaussian_transform<double>(Isa, const CsrGaussianJob&, int) noexcept;
template bool csr_srht_transform<float>(Isa, const CsrSrhtJob&, int) noexcept;
template bool csr_srht_transform<double>(Isa, const CsrSrhtJob&, int) noexcept;
template bool csr_rademacher_transform<float>(Isa, const CsrRademacherJob&, int) noexcept;
template bool csr_rademacher_transform<double>(Isa, const CsrRademacherJob&, int) noexcept;

}  // namespace ef
