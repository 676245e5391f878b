// Body of sketch/hadamard.hpp; see there for numerics.
namespace ef {
namespace EF_ISA {
namespace hadamard {

#include "common/vector-inl.hpp"
#include "sketch/butterfly-inl.hpp"

template <class T>
static void rows(T* data, int64_t count, int64_t n, T scale, int num_threads) noexcept {
    // About a nanosecond per 16 elements and stage; a thread has to save more than its start costs.
    const int64_t work = count * n;
    const int threads = ef::threads_for(work, int64_t(1) << 17, num_threads);
    const int64_t per_chunk = n >= (1 << 15) ? 1 : ((1 << 15) / n);
    const int64_t chunks = (count + per_chunk - 1) / per_chunk;
    struct Job {
        T* data;
        int64_t count, n, per_chunk;
        T scale;
    } job = {data, count, n, per_chunk, scale};
    ef::parallel_for(
        chunks, threads,
        [](void* context, int64_t chunk) {
            const Job& j = *static_cast<const Job*>(context);
            const int64_t first = chunk * j.per_chunk;
            const int64_t last = first + j.per_chunk < j.count ? first + j.per_chunk : j.count;
            for (int64_t r = first; r < last; ++r) {
                butterflies<T>(j.data + r * j.n, j.n);
                if (j.scale != T(1)) multiply<T>(j.data + r * j.n, j.n, j.scale);
            }
        },
        &job);
}

}  // namespace hadamard

const ef::HadamardKernels kHadamard = {hadamard::rows<float>, hadamard::rows<double>};

}  // namespace EF_ISA
}  // namespace ef
