// The atomics policy for Relacy: the templates of csrc/queues over atomics that a model checker controls.
//
// One place (Site, SharedSite) at a time can be given another order than its own: `mutant`.
#pragma once

// Before Relacy, whose macros replace standard names.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ostream>
#include <streambuf>
#include <string>
#include <vector>

#include "queues/blocking_ring.hpp"

#include <relacy/relacy.hpp>

#undef new
#undef delete
#undef malloc
#undef calloc
#undef realloc
#undef free
#undef errno
#undef memory_order_relaxed
#undef memory_order_consume
#undef memory_order_acquire
#undef memory_order_release
#undef memory_order_acq_rel
#undef memory_order_seq_cst

namespace model {

template <class Site>
struct Mutant {
    Site site = Site::number_of_sites;  // none
    std::memory_order order = std::memory_order_relaxed;
};
template <class Site>
inline Mutant<Site> mutant;

template <class Site>
rl::memory_order relacy_order(Site site) {
    switch (site == mutant<Site>.site ? mutant<Site>.order : order_at(site)) {
        case std::memory_order_acquire: return rl::mo_acquire;
        case std::memory_order_release: return rl::mo_release;
        case std::memory_order_acq_rel: return rl::mo_acq_rel;
        default: return rl::mo_relaxed;
    }
}

template <uint64_t Group>
struct Atomics {
    static constexpr uint64_t kGroup = Group;
    template <class T>
    struct atomic : rl::generic_atomic<T, true> {
        // Stored, because Relacy takes an initialisation for something every thread has seen: nobody could miss the
        // first change of a variable.
        atomic() { this->store(T(), rl::mo_relaxed, $); }
    };

    template <class T>
    class Array {
    public:
        bool allocate(uint64_t n) { return n <= 4; }
        atomic<T>& operator[](uint64_t i) { return data_[i]; }

    private:
        atomic<T> data_[4];
    };

    template <auto S, class T>
    static T load(const atomic<T>& a) {
        return a.load(relacy_order(S), $);
    }
    template <auto S, class T>
    static void store(atomic<T>& a, T value) {
        a.store(value, relacy_order(S), $);
    }
    template <auto S, class T>
    static bool cas(atomic<T>& a, T expected, T value) {
        return a.compare_exchange_strong(expected, value, relacy_order(S), $, rl::mo_relaxed, $);
    }
    template <auto S, class T>
    static T add(atomic<T>& a, T n) {
        return a.fetch_add(n, relacy_order(S), $);
    }
    template <class T>
    static T peek(const atomic<T>& a) {
        return a.load(rl::mo_relaxed, $);
    }
    template <class T>
    static void poke(atomic<T>& a, T value) {
        a.store(value, rl::mo_relaxed, $);
    }
    template <class T>
    static bool cas_relaxed(atomic<T>& a, T expected, T value) {
        return a.compare_exchange_strong(expected, value, rl::mo_relaxed, $, rl::mo_relaxed, $);
    }
    template <class T>
    static T add_relaxed(atomic<T>& a, T n) {
        return a.fetch_add(n, rl::mo_relaxed, $);
    }
    template <auto S, class T>
    static T set(atomic<T>& a, T bits) {
        return a.fetch_or(bits, relacy_order(S), $);
    }
    template <auto S, class T>
    static void clear(atomic<T>& a, T bits) {
        a.fetch_and(static_cast<T>(~bits), relacy_order(S), $);
    }
    template <class T>
    static T set_relaxed(atomic<T>& a, T bits) {
        return a.fetch_or(bits, rl::mo_relaxed, $);
    }
    template <class T>
    static void clear_relaxed(atomic<T>& a, T bits) {
        a.fetch_and(static_cast<T>(~bits), rl::mo_relaxed, $);
    }

    // Compare and sleep are one step, as in the kernel. Nobody wakes without a reason: a lost wake-up is a deadlock.
    struct Futex {
        atomic<uint32_t> word;
        ef::Slept wait(uint32_t expected, int64_t) {
            word.load(rl::mo_relaxed, $);  // others may run between the last look and the system call
            if (word.debug_value() == expected) word.wait(rl::ctx(), false, false, $);
            else rl::yield(1, $);  // a stale epoch is not stale for ever
            return ef::Slept::woken;
        }
        int64_t wake(int64_t n) {
            return static_cast<int64_t>(word.wake(rl::ctx(), n > 8 ? 8 : static_cast<rl::thread_id_t>(n), $));
        }
    };
    using SharedFutex = Futex;
};

}  // namespace model
