// An event count: sleep until something changed, without a lock around the change.
//
//   waiter                                     notifier
//   key = events.prepare()                     make the change visible (release)
//   look again; found it: events.cancel()      if (events.anybody()) events.wake(n)
//   else events.wait(key, deadline)
//
// No wake-up is lost. prepare() and anybody() are read-modify-writes of the same counter: if the waiter's came first,
// the notifier sees it; if the notifier's did, the waiter's look sees the change. In the first case the notifier moves
// the epoch: either before prepare() read it, and then the look sees the change, or after, and then wait() does not
// sleep or is woken. A notifier that finds nobody has made one atomic operation and no system call.
#pragma once

#include <cstdint>

#include "queues/atomics.hpp"

namespace ef {

template <class A>
class EventCount {
public:
    uint32_t prepare() {
        A::template add<Site::announce>(waiters_, uint32_t{1});
        return A::template load<Site::wait_epoch>(futex_.word);
    }
    void cancel() { A::add_relaxed(waiters_, ~uint32_t{0}); }

    // Ends what prepare() began.
    Slept wait(uint32_t key, int64_t deadline) {
        const Slept slept = futex_.wait(key, deadline);
        cancel();
        return slept;
    }

    // After a change: whether somebody may wait for it.
    bool anybody() { return A::template add<Site::notify_look>(waiters_, uint32_t{0}) != 0; }

    // Returns how many were asleep and are not now.
    int64_t wake(int64_t n) {
        A::template add<Site::notify_epoch>(futex_.word, uint32_t{1});
        return futex_.wake(n);
    }

    uint32_t waiting() const { return A::peek(waiters_); }
    // In a forked child: those who waited do not exist there.
    void forget() { A::poke(waiters_, uint32_t{0}); }

private:
    typename A::template atomic<uint32_t> waiters_{};
    typename A::Futex futex_;
};

}  // namespace ef
