#include "common/parallel.hpp"

#include <atomic>
#include <system_error>
#include <thread>

namespace ef {

namespace {
constexpr int kMaxThreads = 256;
}

void parallel_for(int64_t chunks, int num_threads, void (*body)(void*, int64_t), void* context) noexcept {
    if (num_threads > kMaxThreads) num_threads = kMaxThreads;
    if (num_threads > chunks) num_threads = static_cast<int>(chunks);
    if (num_threads <= 1) {
        for (int64_t i = 0; i < chunks; ++i) body(context, i);
        return;
    }
    std::atomic<int64_t> next{0};
    auto work = [&]() noexcept {
        // relaxed: the counter only hands out numbers; thread start and join order the data.
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) body(context, i);
    };
    std::thread threads[kMaxThreads - 1];
    int started = 0;
    for (; started < num_threads - 1; ++started) {
        try {
            threads[started] = std::thread(work);
        } catch (const std::system_error&) {
            break;
        }
    }
    work();
    for (int i = 0; i < started; ++i) threads[i].join();
}

}  // namespace ef
