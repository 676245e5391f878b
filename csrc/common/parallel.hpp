// Fork-join parallelism without a resident pool.
//
// Threads live for one call only: nothing survives into a forked child, nothing has to be shut down at interpreter
// exit, and no OpenMP runtime can collide with somebody else's. Starting one costs 20 to 50 microseconds, so callers
// ask for threads only above a measured amount of work (threads_for).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ef {

// Calls body(context, chunk) once for every chunk in [0, chunks), on up to num_threads threads, the caller among
// them. Chunks are handed out dynamically; what a chunk computes must not depend on which thread runs it.
// body must not throw. Falls back to fewer threads when the system refuses to start one.
void parallel_for(int64_t chunks, int num_threads, void (*body)(void* context, int64_t chunk), void* context) noexcept;

template <class Body>
void parallel_for(int64_t chunks, int num_threads, Body&& body) noexcept {
    parallel_for(
        chunks, num_threads, [](void* context, int64_t chunk) { (*static_cast<Body*>(context))(chunk); }, &body);
}

// Number of threads worth starting for `work` units when one thread should get at least `grain` of them.
inline int threads_for(int64_t work, int64_t grain, int num_threads) noexcept {
    const int64_t useful = grain > 0 ? work / grain : work;
    if (useful < 2 || num_threads < 2) return 1;
    return useful < num_threads ? static_cast<int>(useful) : num_threads;
}

}  // namespace ef
