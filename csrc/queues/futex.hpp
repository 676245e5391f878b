// One 32-bit word to sleep on until somebody wakes it, a deadline, or a signal.
//
// futex(2) on Linux; elsewhere a mutex and a condition variable that only those who really sleep or wake touch.
#pragma once

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdint>

#include "queues/parker.hpp"  // now_ns, kForever, and the headers of both platforms

namespace ef {

enum class Slept { woken, timed_out, interrupted };

#if defined(__linux__)

// Flag 0: the word may lie in memory that processes share.
template <int Flag>
class FutexWord {
public:
    std::atomic<uint32_t> word{0};

    // Sleeps while the word is `expected`. May return early; the caller looks again.
    Slept wait(uint32_t expected, int64_t deadline) {
        timespec t;
        t.tv_sec = static_cast<time_t>(deadline / 1000000000);
        t.tv_nsec = static_cast<long>(deadline % 1000000000);
        // FUTEX_WAIT_BITSET takes an absolute time of the monotonic clock.
        const long done =
            syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_BITSET | Flag, expected,
                    deadline == kForever ? nullptr : &t, nullptr, FUTEX_BITSET_MATCH_ANY);
        if (done == 0 || errno == EAGAIN) return Slept::woken;
        return errno == ETIMEDOUT ? Slept::timed_out : Slept::interrupted;
    }
    int64_t wake(int64_t n) noexcept {
        const int most = n > INT_MAX ? INT_MAX : static_cast<int>(n);
        return syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE | Flag, most, nullptr,
                       nullptr, 0);
    }

private:
    static_assert(sizeof(std::atomic<uint32_t>) == 4, "the futex word is the atomic itself");
};
using Futex = FutexWord<FUTEX_PRIVATE_FLAG>;
using SharedFutex = FutexWord<0>;

#else

class Futex {
public:
    std::atomic<uint32_t> word{0};

    Slept wait(uint32_t expected, int64_t deadline) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (word.load(std::memory_order_relaxed) != expected) return Slept::woken;
        // In slices, so that a signal handler of the main thread runs soon: a condition variable hides EINTR.
        int64_t left = deadline == kForever ? kSlice : deadline - now_ns();
        if (left <= 0) return Slept::timed_out;
        const bool sliced = left > kSlice || deadline == kForever;
        if (left > kSlice) left = kSlice;
        if (condition_.wait_for(lock, std::chrono::nanoseconds(left)) == std::cv_status::no_timeout) return Slept::woken;
        return sliced ? Slept::interrupted : Slept::timed_out;
    }
    int64_t wake(int64_t n) noexcept {
        // Taking the mutex orders this after the look of whoever is about to sleep.
        std::lock_guard<std::mutex> lock(mutex_);
        if (n == 1) condition_.notify_one();
        else condition_.notify_all();
        return n;
    }

private:
    static constexpr int64_t kSlice = 50 * 1000000;
    std::mutex mutex_;
    std::condition_variable condition_;
};

#endif

}  // namespace ef
