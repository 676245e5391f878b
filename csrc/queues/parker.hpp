// Threads that wait: one word each, in the order they came.
//
// WaitList is not synchronised (the caller serialises it, as GatedRing); Parker::wait runs outside that protection.
// A waker takes the parker off its list and then signals it, both under the caller's protection; a waiter that finds
// itself off the list was signalled. So no wake-up is lost between the last check and the sleep, and nobody is woken
// who does not wait: an uncontended operation makes no system call.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <ctime>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <chrono>
#include <condition_variable>
#include <mutex>
#endif

namespace ef {

// Nanoseconds of the monotonic clock.
inline int64_t now_ns() noexcept {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<int64_t>(t.tv_sec) * 1000000000 + t.tv_nsec;
}

constexpr int64_t kForever = INT64_MAX;

class Parker {
public:
    Parker* next = nullptr;
    Parker* previous = nullptr;
    bool listed = false;
    int64_t need = 0;       // what the waiter asks for, where that matters
    bool shallow = false;   // looks again by itself soon: its wake-up may be put off
    uint32_t seen = 0;      // for a spinning waiter, set before signal(): the count it waits to change
    bool spins = false;     // set before signal(): the waker is about to let its protection go
    void* owner = nullptr;  // set: no thread; whoever takes it off a list tells its owner instead of signalling

#if defined(__linux__)
    // Sleeps until signalled, `deadline` (now_ns clock), or a signal handler ran; spurious returns are possible.
    // Not noexcept: at interpreter exit CPython unwinds waiting threads.
    void wait(int64_t deadline) {
        timespec t;
        t.tv_sec = static_cast<time_t>(deadline / 1000000000);
        t.tv_nsec = static_cast<long>(deadline % 1000000000);
        if (word_.load(std::memory_order_acquire) != 0) return;
        // FUTEX_WAIT_BITSET takes an absolute time of the monotonic clock.
        syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word_), FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, 0,
                deadline == kForever ? nullptr : &t, nullptr, FUTEX_BITSET_MATCH_ANY);
    }
    bool signalled() const noexcept { return word_.load(std::memory_order_acquire) != 0; }
    void signal() noexcept {
        // release: what the waker did before is visible to a waiter that sees the word without the caller's lock.
        word_.store(1, std::memory_order_release);
        syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word_), FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, nullptr, nullptr, 0);
    }

private:
    std::atomic<uint32_t> word_{0};
    static_assert(sizeof(std::atomic<uint32_t>) == 4, "the futex word is the atomic itself");
#else
    void wait(int64_t deadline) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (signalled_) return;
        // In slices, so that a signal handler of the main thread runs soon: a condition variable hides EINTR.
        int64_t left = deadline == kForever ? kSlice : deadline - now_ns();
        if (left > kSlice) left = kSlice;
        if (left > 0) condition_.wait_for(lock, std::chrono::nanoseconds(left));
    }
    bool signalled() {
        std::lock_guard<std::mutex> lock(mutex_);
        return signalled_;
    }
    void signal() noexcept {
        std::lock_guard<std::mutex> lock(mutex_);
        signalled_ = true;
        condition_.notify_one();
    }

private:
    static constexpr int64_t kSlice = 50 * 1000000;
    std::mutex mutex_;
    std::condition_variable condition_;
    bool signalled_ = false;
#endif
};

// Waits without sleeping until the count differs from `seen`, for about so many nanoseconds at most; returns how long.
inline int64_t spin_while(const std::atomic<uint32_t>& count, uint32_t seen, int64_t nanoseconds) noexcept {
    const int64_t begin = now_ns();
    int64_t spun = 0;
    while (count.load(std::memory_order_acquire) == seen) {
        for (int i = 0; i < 16; ++i) {
#if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            __asm__ volatile("isb");
#endif
        }
        spun = now_ns() - begin;
        if (spun >= nanoseconds) break;
    }
    return spun;
}

class WaitList {
public:
    bool empty() const noexcept { return first_ == nullptr; }
    int64_t size() const noexcept { return size_; }

    void add(Parker* p) noexcept {
        p->previous = last_;
        p->next = nullptr;
        (last_ ? last_->next : first_) = p;
        last_ = p;
        p->listed = true;
        ++size_;
    }
    // For a waiter that was woken in vain: it keeps its place.
    void add_first(Parker* p) noexcept {
        p->previous = nullptr;
        p->next = first_;
        (first_ ? first_->previous : last_) = p;
        first_ = p;
        p->listed = true;
        ++size_;
    }
    Parker* first() const noexcept { return first_; }
    void remove(Parker* p) noexcept {
        (p->previous ? p->previous->next : first_) = p->next;
        (p->next ? p->next->previous : last_) = p->previous;
        p->listed = false;
        --size_;
    }
    // Wakes up to n, longest waiting first; returns how many.
    int64_t wake(int64_t n) noexcept {
        int64_t woken = 0;
        for (; woken < n && first_; ++woken) {
            Parker* p = first_;
            remove(p);
            p->signal();
        }
        return woken;
    }
    // After fork, in the child: the listed threads do not exist there.
    void forget() noexcept {
        first_ = last_ = nullptr;
        size_ = 0;
    }

private:
    Parker* first_ = nullptr;
    Parker* last_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace ef
