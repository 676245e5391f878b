// Ring with two event counts: claims that wait, and ends of claims that wake.
//
// Who waits sleeps in the kernel at once: no spinning. A claim that does not wait (kDontBlock) still waits for a slot
// that somebody is just copying, as it would for the lock of another queue, but not for one that is held open.
#pragma once

#include <cstdint>

#include "queues/event_count.hpp"
#include "queues/ring.hpp"

namespace ef {

constexpr int64_t kDontBlock = -1;

template <class A>
class BlockingRing : public Ring<A> {
public:
    using Base = Ring<A>;
    struct Waited {
        Claim claim;
        bool waited;       // slept at least once
        bool interrupted;  // by a signal: count is 0, the caller decides
    };

    Waited put(int64_t most, int64_t deadline, bool past_gate = false, bool in_a_row = false) {
        return wait(
            room_, deadline, readers_, [&] { return this->claim_put(most, past_gate, in_a_row); },
            [](const Claim& c) { return c.outcome == Claimed::down; }, [&] { after_free(); });
    }
    Waited get(int64_t most, int64_t deadline, bool in_a_row = false) {
        return wait(
            items_, deadline, writers_, [&] { return this->claim_get(most, in_a_row); },
            [](const Claim& c) { return c.outcome == Claimed::down; }, [&] { after_publish(); });
    }
    // Until `wanted` records are there, or shutdown; true unless a signal came first.
    bool linger(int64_t wanted, int64_t deadline) {
        A::add_relaxed(lingerers_, int64_t{1});
        bool uninterrupted = true;
        auto enough = [&] { return this->size() >= wanted || this->is_down() || now_ns() >= deadline; };
        while (!enough()) {
            const uint32_t key = items_.prepare();
            if (enough()) {
                items_.cancel();
                break;
            }
            if (items_.wait(key, deadline) == Slept::interrupted) {
                uninterrupted = false;
                break;
            }
        }
        A::add_relaxed(lingerers_, int64_t{-1});
        after_publish();  // a wake-up meant for somebody who would have taken the record
        return uninterrupted;
    }
    // Until the gate is open; .claim.count is 1 when it is.
    Waited writable(int64_t deadline) {
        A::add_relaxed(watchers_, int64_t{1});
        const Waited result = wait(
            room_, deadline, never_,
            [&] {
                const Claimed outcome = this->is_down() ? Claimed::down : this->closed() ? Claimed::none : Claimed::some;
                return Claim{outcome, 0, outcome == Claimed::some, 0, false};
            },
            [](const Claim& c) { return c.outcome == Claimed::down; }, [&] { after_free(); });
        A::add_relaxed(watchers_, int64_t{-1});
        if (result.waited) after_free();  // it took no room: the wake-up may have been meant for a producer
        return result;
    }

    void publish(uint64_t position, int64_t count) {
        Base::publish(position, count);
        after_publish();
    }
    void free(uint64_t position, int64_t count) {
        Base::free(position, count);
        after_free();
    }
    void abandon(uint64_t position, int64_t count) {
        Base::abandon(position, count);
        after_publish();
        after_free();
    }
    bool shut_down() {
        const bool first = Base::shut_down();
        wake_all();
        return first;
    }
    void configure(int64_t limit, int64_t high, int64_t low) {
        Base::configure(limit, high, low);
        wake_all();
    }

    // Slots held open: their claims may stay unfinished for long, and nobody who must not block waits for them.
    void hold_writer(int64_t n) { A::add_relaxed(writers_, n); }
    void hold_reader(int64_t n) { A::add_relaxed(readers_, n); }
    bool held() const { return A::peek(writers_) + A::peek(readers_) != 0; }

    uint32_t waiting_put() const { return room_.waiting(); }
    uint32_t waiting_get() const { return items_.waiting(); }
    int64_t wakeups() const { return A::peek(wakeups_); }
    void forget_waiters() {
        room_.forget();
        items_.forget();
    }

private:
    template <class Try, class Over, class PassOn>
    Waited wait(EventCount<A>& events, int64_t deadline, typename A::template atomic<int64_t>& held, Try attempt, Over over,
                PassOn pass_on) {
        Waited w{attempt(), false, false};
        while (w.claim.count == 0 && !over(w.claim)) {
            int64_t until = deadline;
            if (deadline == kDontBlock) {
                if (w.claim.outcome != Claimed::busy || A::peek(held) != 0) break;
                until = now_ns() + 1000000;  // a copy is under way
            } else if (deadline != kForever && now_ns() >= deadline) {
                break;
            }
            const uint32_t key = events.prepare();
            w.claim = attempt();
            if (w.claim.count != 0 || over(w.claim)) {
                events.cancel();
                return w;
            }
            w.waited = true;
            const Slept slept = events.wait(key, until);
            w.claim = attempt();
            if (slept == Slept::interrupted && w.claim.count == 0) {
                w.interrupted = true;
                break;
            }
        }
        // Woken and leaving with nothing: what there was to take is somebody else's now.
        if (w.waited && w.claim.count == 0) pass_on();
        return w;
    }
    // Whoever is the later of two notifiers sees the records of both, and wakes for both.
    void after_publish() {
        if (!items_.anybody()) return;
        wake(items_, A::peek(lingerers_) ? kForever : this->size());
    }
    void after_free() {
        if (!room_.anybody()) return;
        while (this->skip_abandoned()) {
        }
        wake(room_, A::peek(watchers_) && !this->closed() ? kForever : this->room());
    }
    void wake_all() {
        if (items_.anybody()) wake(items_, kForever);
        if (room_.anybody()) wake(room_, kForever);
    }
    void wake(EventCount<A>& events, int64_t n) {
        if (n > 0) A::add_relaxed(wakeups_, events.wake(n));
    }

    EventCount<A> items_;
    typename A::template atomic<int64_t> writers_{}, lingerers_{};
    alignas(128) EventCount<A> room_;
    typename A::template atomic<int64_t> readers_{}, watchers_{}, wakeups_{}, never_{};
};

}  // namespace ef
