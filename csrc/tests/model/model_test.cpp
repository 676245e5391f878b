// Model checking of the ring and the event count (Relacy): small programs of two and three threads, every interleaving
// that the schedulers below reach, every value that a load may return under the C++ memory model.
//
//     model_test             each program with the library's orders must pass; then every order is weakened in turn,
//                            and some program must fail each time
//     model_test --quick     fewer random schedules
#include "model/driver.hpp"

namespace {

// All slots in one word, and a word for each: read-modify-writes of shared bits, and stores of whole words.
using Atomics = model::Atomics<64>;
using Ring = ef::Ring<Atomics>;
using Split = ef::Ring<model::Atomics<1>>;
using Blocking = ef::BlockingRing<Atomics>;
using ef::Claim;
using ef::Claimed;

// A ring of ints that notices every read that does not come after its write: rl::var is checked for data races.
template <class R, int Capacity>
struct Queue {
    R ring;
    rl::var<int> slots[Capacity];

    Queue() { ring.allocate(Capacity); }

    Claim put(int value, bool past_gate = false) {
        const Claim c = ring.claim_put(1, past_gate);
        if (c.count) {
            slots[c.position % Capacity]($) = value;
            ring.publish(c.position, 1);
        }
        return c;
    }
    // The number taken; *value is their sum in base 10.
    Claim get(int* value, int64_t most = 1) {
        const Claim c = ring.claim_get(most);
        *value = 0;
        for (int64_t i = 0; i < c.count; ++i) *value = *value * 10 + slots[(c.position + i) % Capacity]($);
        if (c.count) ring.free(c.position, c.count);
        return c;
    }
    void wait_put(int value) {
        const auto w = ring.put(1, ef::kForever);
        RL_ASSERT(w.claim.count == 1);
        slots[w.claim.position % Capacity]($) = value;
        ring.publish(w.claim.position, 1);
    }
    int wait_get() {
        const auto w = ring.get(1, ef::kForever);
        if (!w.claim.count) return 0;
        const int value = slots[w.claim.position % Capacity]($);
        ring.free(w.claim.position, 1);
        return value;
    }
};

// ---- the ring ------------------------------------------------------------------------------------------------------

// A record's bytes are there when it is taken, and nobody writes into a slot that is being read.
template <class R, int Capacity>
struct HandOver : rl::test_suite<HandOver<R, Capacity>, 2> {
    Queue<R, Capacity> q;
    void thread(unsigned index) {
        if (index == 0) {
            for (int i = 1; i <= Capacity + 1;)
                if (q.put(i).count) ++i;
                else rl::yield(1, $);
        } else {
            for (int i = 1; i <= Capacity + 1;) {
                int value;
                if (q.get(&value).count) {
                    RL_ASSERT(value == i);
                    ++i;
                } else {
                    rl::yield(1, $);
                }
            }
        }
    }
};

// Two producers, one consumer that takes batches: all records, each once, a producer's own in order.
template <class R>
struct TwoProducers : rl::test_suite<TwoProducers<R>, 3> {
    Queue<R, 2> q;
    void thread(unsigned index) {
        if (index < 2) {
            const int mine = static_cast<int>(index) + 1;
            while (!q.put(mine).count) rl::yield(1, $);
        } else {
            int sum = 0;
            for (int64_t taken = 0; taken < 2;) {
                int value;
                const Claim c = q.get(&value, 2);
                taken += c.count;
                sum += value / 10 + value % 10;
                if (!c.count) rl::yield(1, $);
            }
            RL_ASSERT(sum == 3);
        }
    }
};

// One record at a time, two consumers that want it: nobody gets it twice, the bound holds.
struct TwoConsumers : rl::test_suite<TwoConsumers, 3> {
    Queue<Ring, 1> q;
    int got[3];
    void before() { std::memset(got, 0, sizeof got); }
    void thread(unsigned index) {
        if (index == 0) {
            for (int i = 1; i <= 2;)
                if (q.put(i).count) ++i;
                else rl::yield(1, $);
        } else {
            int value;
            for (;;) {
                if (q.get(&value).count) break;
                rl::yield(1, $);
            }
            ++got[value];
        }
    }
    void after() { RL_ASSERT(got[1] == 1 && got[2] == 1); }
};

// One of two places is always free: a put must not be refused.
struct NeverFull : rl::test_suite<NeverFull, 2> {
    Queue<Ring, 2> q;
    void before() { q.put(1); }
    void thread(unsigned index) {
        int value;
        if (index == 0) {
            RL_ASSERT(q.get(&value).count == 1);
            RL_ASSERT(q.put(2).outcome != Claimed::none);
        } else {
            // May be busy (the slot is being read), never full.
            RL_ASSERT(q.put(3).outcome != Claimed::none);
        }
    }
};

// One record is always there: a get must not find the queue empty.
struct NeverEmpty : rl::test_suite<NeverEmpty, 2> {
    Queue<Ring, 2> q;
    void before() { q.put(1); }
    void thread(unsigned index) {
        int value;
        if (index == 0) {
            RL_ASSERT(q.put(2).count == 1);
            RL_ASSERT(q.get(&value).outcome != Claimed::none);
        } else {
            RL_ASSERT(q.get(&value).outcome != Claimed::none);
        }
    }
};

// An aborted record is skipped; its writer's last access comes before the next lap's first.
struct Abandoned : rl::test_suite<Abandoned, 2> {
    Queue<Ring, 1> q;
    Claim open;
    void before() { open = q.ring.claim_put(1); }
    void thread(unsigned index) {
        if (index == 0) {
            q.slots[0]($) = 9;
            q.ring.abandon(open.position, 1);
        } else {
            for (int tries = 0; tries < 2; ++tries) {
                int value;
                if (q.get(&value).count) RL_ASSERT(false);
                if (q.put(5).count) {
                    RL_ASSERT(q.get(&value).count == 1 && value == 5);
                    break;
                }
            }
        }
    }
};

// Two threads meet an abandoned slot: one takes it away, the other puts into it.
struct Skipped : rl::test_suite<Skipped, 2> {
    Queue<Ring, 1> q;
    void before() { q.ring.abandon(q.ring.claim_put(1).position, 1); }
    void thread(unsigned index) {
        int value;
        if (index == 0) {
            q.get(&value);
        } else {
            while (!q.put(4).count) rl::yield(1, $);
        }
    }
};

// The slot's last writer gave it up, one thread skips it, another writes: skip must hand the accesses on.
struct SkippedByOther : rl::test_suite<SkippedByOther, 3> {
    Queue<Ring, 1> q;
    Claim open;
    void before() { open = q.ring.claim_put(1); }
    void thread(unsigned index) {
        int value;
        if (index == 0) {
            q.slots[0]($) = 9;
            q.ring.abandon(open.position, 1);
        } else if (index == 1) {
            q.get(&value);
        } else {
            q.put(4);
        }
    }
};

// Shutdown: what was put before is got, then the queue says so; nothing is put after.
struct Shutdown : rl::test_suite<Shutdown, 2> {
    Queue<Ring, 1> q;
    bool accepted;
    void thread(unsigned index) {
        if (index == 0) {
            accepted = q.put(1).count == 1;
        } else {
            q.ring.shut_down();
            int value, got = 0;
            for (;;) {
                const Claim c = q.get(&value);
                got += static_cast<int>(c.count);
                if (c.outcome == Claimed::down) break;
                rl::yield(1, $);
            }
            RL_ASSERT(q.put(2).outcome == Claimed::down);
            got_ = got;
        }
    }
    void after() { RL_ASSERT(got_ == (accepted ? 1 : 0)); }
    int got_;
};

// ---- the event count -----------------------------------------------------------------------------------------------

// A flag set with a relaxed store: only the event count carries it to the waiter.
struct NoLostWakeup : rl::test_suite<NoLostWakeup, 2> {
    ef::EventCount<Atomics> events;
    Atomics::atomic<int> flag;
    void thread(unsigned index) {
        if (index == 0) {
            Atomics::poke(flag, 1);
            if (events.anybody()) events.wake(1);
        } else {
            while (!Atomics::peek(flag)) {
                const uint32_t key = events.prepare();
                if (Atomics::peek(flag)) {
                    events.cancel();
                    break;
                }
                events.wait(key, ef::kForever);
            }
        }
    }
};

// Two changes by two threads, a waiter that needs both: the later notifier must know of the earlier one's.
struct TwoNotifiers : rl::test_suite<TwoNotifiers, 3> {
    ef::EventCount<Atomics> events;
    Atomics::atomic<int> flags[2];
    bool both() { return Atomics::peek(flags[0]) && Atomics::peek(flags[1]); }
    void thread(unsigned index) {
        if (index < 2) {
            Atomics::poke(flags[index], 1);
            if (events.anybody() && both()) events.wake(1);
        } else {
            while (!both()) {
                const uint32_t key = events.prepare();
                if (both()) {
                    events.cancel();
                    break;
                }
                events.wait(key, ef::kForever);
            }
        }
    }
};

// A waiter says what it waits for before it announces itself: the notifier that sees the waiter knows it.
struct Announced : rl::test_suite<Announced, 2> {
    ef::EventCount<Atomics> events;
    Atomics::atomic<int> flag, special;
    void thread(unsigned index) {
        if (index == 0) {
            Atomics::poke(flag, 1);
            if (events.anybody()) events.wake(Atomics::peek(special) ? 1 : 0);
        } else {
            Atomics::poke(special, 1);
            const uint32_t key = events.prepare();
            if (Atomics::peek(flag)) events.cancel();
            else events.wait(key, ef::kForever);
        }
    }
};

// ---- both ----------------------------------------------------------------------------------------------------------

struct BlockingPair : rl::test_suite<BlockingPair, 2> {
    Queue<Blocking, 1> q;
    void thread(unsigned index) {
        for (int i = 1; i <= 2; ++i) {
            if (index == 0) q.wait_put(i);
            else RL_ASSERT(q.wait_get() == i);
        }
    }
};

struct BlockingTwoProducers : rl::test_suite<BlockingTwoProducers, 3> {
    Queue<Blocking, 1> q;
    void thread(unsigned index) {
        if (index < 2) q.wait_put(static_cast<int>(index) + 1);
        else RL_ASSERT(q.wait_get() + q.wait_get() == 3);
    }
};

struct BlockingTwoConsumers : rl::test_suite<BlockingTwoConsumers, 3> {
    Queue<Blocking, 2> q;
    int got[3];
    void thread(unsigned index) {
        if (index == 0) {
            q.wait_put(1);
            q.wait_put(2);
        } else {
            got[index] = q.wait_get();
        }
    }
    void after() { RL_ASSERT(got[1] + got[2] == 3); }
};

// The gate: closes at 2, reopens at 0; the third put waits for both to be taken.
struct BlockingGate : rl::test_suite<BlockingGate, 2> {
    Queue<Blocking, 2> q;
    void before() { q.ring.configure(2, 2, 0); }
    void thread(unsigned index) {
        for (int i = 1; i <= 3; ++i) {
            if (index == 0) q.wait_put(i);
            else RL_ASSERT(q.wait_get() == i);
        }
    }
};

// Shutdown wakes who waits.
struct BlockingShutdown : rl::test_suite<BlockingShutdown, 2> {
    Queue<Blocking, 1> q;
    void thread(unsigned index) {
        if (index == 0) q.ring.shut_down();
        else RL_ASSERT(q.wait_get() == 0);
    }
};

// An aborted reservation lets the blocked producer go.
struct BlockingAbandon : rl::test_suite<BlockingAbandon, 2> {
    Queue<Blocking, 1> q;
    Claim open;
    void before() { open = q.ring.claim_put(1); }
    void thread(unsigned index) {
        if (index == 0) {
            q.slots[0]($) = 9;
            q.ring.abandon(open.position, 1);
        } else {
            q.wait_put(5);
        }
    }
};

using model::Program;
using model::run;
const Program kPrograms[] = {
    {"hand-over, 1 slot", run<HandOver<Ring, 1>>, false},
    {"hand-over, 2 slots", run<HandOver<Ring, 2>>, false},
    {"hand-over, 2 words", run<HandOver<Split, 2>>, false},
    {"two producers", run<TwoProducers<Ring>>, false},
    {"two producers, 2 words", run<TwoProducers<Split>>, false},
    {"two consumers", run<TwoConsumers>, false},
    {"never full", run<NeverFull>, true},
    {"never empty", run<NeverEmpty>, true},
    {"abandoned", run<Abandoned>, true},
    {"skipped", run<Skipped>, false},
    {"skipped by another", run<SkippedByOther>, true},
    {"shutdown", run<Shutdown>, false},
    {"no lost wake-up", run<NoLostWakeup>, true},
    {"two notifiers", run<TwoNotifiers>, true},
    {"announced", run<Announced>, true},
    {"blocking pair", run<BlockingPair>, false},
    {"blocking, two producers", run<BlockingTwoProducers>, false},
    {"blocking, two consumers", run<BlockingTwoConsumers>, false},
    {"blocking, gate", run<BlockingGate>, false},
    {"blocking, shutdown", run<BlockingShutdown>, false},
    {"blocking, abandoned", run<BlockingAbandon>, false},
};

const char* const kSites[] = {"put_tail",  "put_head", "put_word", "put_claim", "get_head",   "get_tail",    "get_word",
                              "get_claim", "publish",  "free",     "announce",  "wait_epoch", "notify_look", "notify_epoch"};

}  // namespace

int main(int argc, char** argv) {
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    const int bad = model::check<ef::Site>(kPrograms, kSites, quick ? 5000 : 100000);
    std::printf("model_test: %s\n", bad ? "an order that no program needs" : "ok");
    return bad != 0;
}
