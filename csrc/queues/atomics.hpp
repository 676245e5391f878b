// The atomics policy of the lock-free parts: which atomic type, which memory order at which place.
//
// Every ordered operation names its place (Site; SharedSite in shared_ring.hpp). The library compiles with StdAtomics, the order of each place below;
// the model checker compiles the same templates with its own atomics and weakens one place at a time (csrc/tests).
// An order stands here because the model fails without it; everything else is relaxed. No stand-alone fences.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>

#include "queues/futex.hpp"

namespace ef {

enum class Site : int {
    // ring: claims
    put_tail,   // a producer reads the put position before it judges the room
    put_head,   // and the get position before it looks at the slots
    put_word,   // finds slots free: their readers' last accesses came before
    put_claim,  // CAS of the put position
    get_head,   // a consumer reads the get position before it judges emptiness
    get_tail,   // and the put position before it looks at the slots
    get_word,   // finds records published: their bytes are there
    get_claim,  // CAS of the get position
    // ring: ends of claims
    publish,  // the records' bytes come before
    free,     // the reader's accesses come before
    // event count
    announce,      // a waiter counts itself, then looks once more
    wait_epoch,    // a waiter reads the epoch, then looks once more
    notify_look,   // a notifier looks for waiters after its change
    notify_epoch,  // a notifier moves the epoch after its change
    number_of_sites,
};

constexpr std::memory_order order_at(Site site) {
    switch (site) {
        case Site::put_tail:
        case Site::put_head:
        case Site::put_word:
        case Site::get_head:
        case Site::get_tail:
        case Site::get_word:
        case Site::wait_epoch:
            return std::memory_order_acquire;
        case Site::put_claim:
        case Site::get_claim:
        case Site::publish:
        case Site::free:
        case Site::notify_epoch:
            return std::memory_order_release;
        // Announcing and looking are read-modify-writes of one word: whichever is later sees what came before the
        // earlier, so either the waiter sees the change or the notifier sees the waiter. Both ways, so that the notifier
        // knows what the waiter waits for, and the later of two notifiers counts the other's records.
        case Site::announce:
        case Site::notify_look:
            return std::memory_order_acq_rel;
        default:
            return std::memory_order_relaxed;
    }
}

struct StdAtomics {
    static constexpr uint64_t kGroup = 64;
    template <class T>
    using atomic = std::atomic<T>;

    // Zeroed memory that is not touched before it is used.
    template <class T>
    class Array {
    public:
        Array() = default;
        ~Array() { std::free(data_); }
        Array(const Array&) = delete;
        Array& operator=(const Array&) = delete;
        bool allocate(uint64_t n) noexcept {
            static_assert(sizeof(std::atomic<T>) == sizeof(T), "zeroed memory is an array of zero atomics");
            if (n > SIZE_MAX / sizeof(T)) return false;
            data_ = static_cast<std::atomic<T>*>(std::calloc(static_cast<size_t>(n), sizeof(T)));
            return data_ != nullptr;
        }
        std::atomic<T>& operator[](uint64_t i) noexcept { return data_[i]; }

    private:
        std::atomic<T>* data_ = nullptr;
    };

    template <auto S, class T>
    static T load(const std::atomic<T>& a) noexcept {
        return a.load(order_at(S));
    }
    template <auto S, class T>
    static void store(std::atomic<T>& a, T value) noexcept {
        a.store(value, order_at(S));
    }
    template <auto S, class T>
    static bool cas(std::atomic<T>& a, T expected, T value) noexcept {
        return a.compare_exchange_strong(expected, value, order_at(S), std::memory_order_relaxed);
    }
    template <auto S, class T>
    static T add(std::atomic<T>& a, T n) noexcept {
        return a.fetch_add(n, order_at(S));
    }
    template <class T>
    static T peek(const std::atomic<T>& a) noexcept {
        return a.load(std::memory_order_relaxed);
    }
    template <class T>
    static void poke(std::atomic<T>& a, T value) noexcept {
        a.store(value, std::memory_order_relaxed);
    }
    template <class T>
    static bool cas_relaxed(std::atomic<T>& a, T expected, T value) noexcept {
        return a.compare_exchange_strong(expected, value, std::memory_order_relaxed, std::memory_order_relaxed);
    }
    template <class T>
    static T add_relaxed(std::atomic<T>& a, T n) noexcept {
        return a.fetch_add(n, std::memory_order_relaxed);
    }
    template <auto S, class T>
    static T set(std::atomic<T>& a, T bits) noexcept {
        return a.fetch_or(bits, order_at(S));
    }
    template <auto S, class T>
    static void clear(std::atomic<T>& a, T bits) noexcept {
        a.fetch_and(static_cast<T>(~bits), order_at(S));
    }
    template <class T>
    static T set_relaxed(std::atomic<T>& a, T bits) noexcept {
        return a.fetch_or(bits, std::memory_order_relaxed);
    }
    template <class T>
    static void clear_relaxed(std::atomic<T>& a, T bits) noexcept {
        a.fetch_and(static_cast<T>(~bits), std::memory_order_relaxed);
    }

    using Futex = ef::Futex;
#if defined(__linux__)
    using SharedFutex = ef::SharedFutex;
#endif
};

}  // namespace ef
