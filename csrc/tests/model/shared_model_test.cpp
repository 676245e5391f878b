// Model checking of SharedQueue's protocol (Relacy): small programs of two and three threads, some of which die at any
// step, what they leave being recovered by another that may die as well.
//
//     shared_model_test             as model_test
//     shared_model_test --quick     fewer random schedules
#include "model/death.hpp"
#define EDGEFAST_CRASH_POINT(name) model::step()
#include "model/driver.hpp"
#include "queues/shared_ring.hpp"

void model::step() {
    if (mortal >= 0 && rl::thread_index() == static_cast<unsigned>(mortal) && rl::rand(4) == 0) throw Died();
}

namespace {

using Atomics = model::Atomics<64>;
using Ring = ef::SharedRing<Atomics>;
using Journal = ef::SharedJournal<Atomics>;
using Event = ef::SharedEvent<Atomics>;
using ef::Taken;
using ef::Took;

// A queue of ints over the protocol, whose slots notice every access that is not ordered. Thread i is owner i.
template <int Slots, int Limit>
struct Queue {
    static constexpr int kSize = Slots <= 2 ? 2 : 4;
    Atomics::atomic<uint64_t> head, tail, down, ring_words[kSize], state[Slots], dropped[Slots], cleared[Slots], cursors[3];
    Atomics::atomic<int64_t> limit, high, low;
    Ring rings[3];  // each thread's own view of the same memory
    Journal journals[3];
    rl::var<int> slots[Slots];

    Queue() {
        for (int i = 0; i < 3; ++i)
            rings[i].bind({&head, &tail, &down, &limit, &high, &low, ring_words, state, dropped, cleared, &cursors[i]}, Slots, kSize);
        rings[0].start(Limit);
    }
    Ring& ring() { return rings[static_cast<unsigned>(rl::thread_index()) % 3]; }

    Taken put(unsigned me, int value) {
        Taken t = ring().look_for_room(1, false);
        if (!t.count) return t;
        uint32_t slot;
        if (!ring().claim(me, 1, &slot, false)) return {Took::some, 0};  // every slot is in somebody's hands
        slots[slot]($) = value;
        model::step();
        t = ring().publish(me, &slot, 1, false);
        if (!t.count) RL_ASSERT(ring().give_back(me, slot));
        return t;
    }
    void put_surely(unsigned me, int value) {
        while (!put(me, value).count) rl::yield(1, $);
    }
    // Two at once.
    void put_both(unsigned me, int value) {
        uint32_t two[2];
        RL_ASSERT(ring().claim(me, 2, two, false) == 2);
        slots[two[0]]($) = value;
        slots[two[1]]($) = value + 1;
        for (int64_t done = 0; done < 2;) {
            const Taken t = ring().publish(me, two + done, 2 - done, false);
            done += t.count;
            if (!t.count) rl::yield(1, $);
        }
    }
    // *value: the values in base 10.
    Taken get(unsigned me, int* value, int64_t most = 1, Ring::State kind = Ring::reading) {
        uint32_t taken[2];
        const Taken t = ring().take(kind, me, most, taken, false);
        *value = 0;
        for (int64_t i = 0; i < t.count; ++i) *value = *value * 10 + slots[taken[i]]($);
        model::step();
        for (int64_t i = 0; i < t.count; ++i) RL_ASSERT(ring().free(kind, me, taken[i]));
        return t;
    }
    int get_surely(unsigned me) {
        for (int value;; rl::yield(1, $))
            if (get(me, &value).count) return value;
    }
    Ring::Recovered recover(unsigned owner, bool redeliver = true) {
        const auto r = ring().recover(owner, redeliver, true, journals[owner]);
        RL_ASSERT(!r.damaged);
        return r;
    }
    int64_t lost(unsigned owner) const { return static_cast<int64_t>(Journal::count(journals[owner].lost)); }
    int64_t returned(unsigned owner) const { return static_cast<int64_t>(Journal::count(journals[owner].redelivered)); }
    int64_t dead(unsigned owner) const { return static_cast<int64_t>(Journal::count(journals[owner].dropped)); }
    int64_t sum(Atomics::atomic<uint64_t>* words) const {
        int64_t n = 0;
        for (int i = 0; i < Slots; ++i) n += static_cast<int64_t>(Atomics::peek(words[i]) >> Journal::kTagBits);
        return n;
    }
    // Everything is out of everybody's hands.
    void at_rest() {
        RL_ASSERT(ring().in_hands() == 0);
    }
};

// What the kernel's lock tells about a participant: 1 dead, 2 finished.
struct Pulse {
    Atomics::atomic<uint32_t> word;
    void tell(bool died) { word.store(died ? 1 : 2, rl::mo_release, $); }
    bool dead() { return word.load(rl::mo_acquire, $) == 1; }
    // Waits for the end; whether by death.
    bool await() {
        for (;;) {
            const uint32_t w = word.load(rl::mo_acquire, $);
            if (w) return w == 1;
            rl::yield(1, $);
        }
    }
};

// ---- nobody dies -----------------------------------------------------------------------------------------------------

// A record's bytes are there when it is taken, nobody writes into a slot that is being read, order holds.
template <int Slots, int Limit>
struct HandOver : rl::test_suite<HandOver<Slots, Limit>, 2> {
    Queue<Slots, Limit> q;
    void thread(unsigned index) {
        for (int i = 1; i <= 3; ++i) {
            if (index == 0) q.put_surely(0, i);
            else RL_ASSERT(q.get_surely(1) == i);
        }
    }
    void after() { q.at_rest(); }
};

struct TwoProducers : rl::test_suite<TwoProducers, 3> {
    Queue<3, 2> q;
    void thread(unsigned index) {
        if (index < 2) {
            q.put_surely(index, static_cast<int>(index) + 1);
        } else {
            int sum = 0, value;
            for (int64_t taken = 0; taken < 2;) {
                const Taken t = q.get(index, &value, 2);
                taken += t.count;
                sum += value / 10 + value % 10;
                if (!t.count) rl::yield(1, $);
            }
            RL_ASSERT(sum == 3);
        }
    }
    void after() { q.at_rest(); }
};

// One puts two at once, another one: the two stay in order.
struct Batches : rl::test_suite<Batches, 3> {
    Queue<4, 4> q;
    void thread(unsigned index) {
        if (index == 0) {
            q.put_both(0, 1);
        } else if (index == 1) {
            q.put_surely(1, 5);
        } else {
            int last = 0, value;
            for (int64_t taken = 0; taken < 3;) {
                const Taken t = q.get(2, &value, 2);
                taken += t.count;
                for (const int v : {value / 10, value % 10}) {
                    if (v != 1 && v != 2) continue;
                    RL_ASSERT(v == last + 1);
                    last = v;
                }
                if (!t.count) rl::yield(1, $);
            }
            RL_ASSERT(last == 2);
        }
    }
    void after() { q.at_rest(); }
};

struct TwoConsumers : rl::test_suite<TwoConsumers, 3> {
    Queue<2, 1> q;
    int got[3];
    void before() { std::memset(got, 0, sizeof got); }
    void thread(unsigned index) {
        if (index == 0) {
            q.put_surely(0, 1);
            q.put_surely(0, 2);
        } else {
            ++got[q.get_surely(index)];
        }
    }
    void after() {
        RL_ASSERT(got[1] == 1 && got[2] == 1);
        q.at_rest();
    }
};

// One of two places is always free: a put must not be refused. The third thread only helps.
template <bool Helped>
struct NeverFull : rl::test_suite<NeverFull<Helped>, Helped ? 3 : 2> {
    Queue<4, 2> q;
    void before() { q.put(0, 1); }
    void thread(unsigned index) {
        int value;
        if (index == 0) {
            RL_ASSERT(q.get(0, &value).count == 1);
            RL_ASSERT(q.put(0, 2).outcome != Took::none);
        } else if (index == 1) {
            RL_ASSERT(q.put(1, 3).outcome != Took::none);
        } else {
            q.ring().span();
        }
    }
};

// One record is always there: a get must not find the queue empty. The third thread takes nothing: it helps, and dies.
template <bool Helped>
struct NeverEmpty : rl::test_suite<NeverEmpty<Helped>, Helped ? 3 : 2> {
    Queue<4, 3> q;
    void before() {
        q.put(0, 1);
        if (Helped) q.put(0, 2);
        model::mortal = Helped ? 2 : -1;
    }
    void thread(unsigned index) {
        int value;
        if (index == 0) {
            RL_ASSERT(q.put(0, 3).count == 1);
            RL_ASSERT(q.get(0, &value).outcome != Took::none);
        } else if (index == 1) {
            RL_ASSERT(q.get(1, &value).outcome != Took::none);
        } else {
            model::live([&] { q.get(2, &value); });
        }
    }
    void after() { model::mortal = -1; }
};

// Two producers and one place: never two records.
struct Bound : rl::test_suite<Bound, 2> {
    Queue<3, 1> q;
    int put[2];
    void thread(unsigned index) { put[index] = static_cast<int>(q.put(index, 1).count); }
    void after() {
        RL_ASSERT(put[0] + put[1] == 1);
        RL_ASSERT(q.ring().size() == 1);
    }
};

// What was accepted before the shutdown comes; whoever was told "down" misses nothing.
template <int Threads>
struct Shutdown : rl::test_suite<Shutdown<Threads>, Threads> {
    Queue<3, 2> q;
    int accepted, got;
    void thread(unsigned index) {
        if (index == 0) {
            accepted = static_cast<int>(q.put(0, 1).count);
        } else if (index == 1) {
            RL_ASSERT(q.ring().shut_down());
            if (Threads == 2) drain(index);
            RL_ASSERT(q.put(1, 2).outcome == Took::down);
        } else {
            drain(index);
        }
    }
    void drain(unsigned me) {
        got = 0;
        for (int value;;) {
            const Taken t = q.get(me, &value);
            got += static_cast<int>(t.count);
            if (t.outcome == Took::down) break;
            rl::yield(1, $);
        }
        RL_ASSERT(q.put(me, 2).outcome == Took::down);
    }
    void after() {
        RL_ASSERT(got == accepted);
        q.at_rest();
    }
};

// Told by a relaxed flag that the shutdown is done: then no put succeeds, though the consumer sees nothing of it.
struct DownMeansDown : rl::test_suite<DownMeansDown, 2> {
    Queue<3, 2> q;
    int accepted, got;
    bool told;
    void thread(unsigned index) {
        int value;
        if (index == 0) {
            accepted = static_cast<int>(q.put(0, 1).count);
        } else {
            Atomics::poke(q.down, uint64_t{1});  // a shutdown that died after its first step
            got = 0;
            for (;;) {
                const Taken t = q.get(1, &value);
                got += static_cast<int>(t.count);
                if (t.outcome == Took::down) break;
            }
        }
    }
    void after() { RL_ASSERT(got == accepted); }
};

// ---- waiting ---------------------------------------------------------------------------------------------------------

// The gate and the records wait on an event each.
template <int Slots, int Limit>
struct Blocking : rl::test_suite<Blocking<Slots, Limit>, 2> {
    Queue<Slots, Limit> q;
    Event items, room;
    void thread(unsigned index) {
        for (int i = 1; i <= 2; ++i) {
            if (index == 0) {
                while (!q.put(0, i).count) {
                    const uint32_t key = room.prepare();
                    if (q.put(0, i).count) break;
                    room.wait(key, ef::kForever);
                }
                items.notify();
            } else {
                int value;
                while (!q.get(1, &value).count) {
                    const uint32_t key = items.prepare();
                    if (q.get(1, &value).count) break;
                    items.wait(key, ef::kForever);
                }
                RL_ASSERT(value == i);
                room.notify();
            }
        }
    }
};

// A flag set with a relaxed store: only the event carries it to the waiter.
struct NoLostWakeup : rl::test_suite<NoLostWakeup, 2> {
    Event event;
    Atomics::atomic<int> flag;
    void thread(unsigned index) {
        if (index == 0) {
            Atomics::poke(flag, 1);
            event.notify();
        } else {
            while (!Atomics::peek(flag)) {
                const uint32_t key = event.prepare();
                if (Atomics::peek(flag)) break;
                event.wait(key, ef::kForever);
            }
        }
    }
};
// Two waiters, two notifiers in one: the word is taken from the one and set by the other.
struct TwoWaiters : rl::test_suite<TwoWaiters, 3> {
    Event event;
    Atomics::atomic<int> flag;
    void thread(unsigned index) {
        if (index == 0) {
            Atomics::poke(flag, 1);
            event.notify();
            Atomics::poke(flag, 2);
            event.notify();
        } else {
            while (Atomics::peek(flag) < static_cast<int>(index)) {
                const uint32_t key = event.prepare();
                if (Atomics::peek(flag) >= static_cast<int>(index)) break;
                event.wait(key, ef::kForever);
            }
        }
    }
};
struct TwoNotifiers : rl::test_suite<TwoNotifiers, 3> {
    Event event;
    Atomics::atomic<int> flags[2];
    bool both() { return Atomics::peek(flags[0]) && Atomics::peek(flags[1]); }
    void thread(unsigned index) {
        if (index < 2) {
            Atomics::poke(flags[index], 1);
            event.notify();
        } else {
            while (!both()) {
                const uint32_t key = event.prepare();
                if (both()) break;
                event.wait(key, ef::kForever);
            }
        }
    }
};

// ---- deaths ----------------------------------------------------------------------------------------------------------

// A producer dies at any step: its record is in the queue or lost, and counted so; the other goes on without it.
struct ProducerDies : rl::test_suite<ProducerDies, 2> {
    Queue<3, 2> q;
    Pulse pulse;
    void before() { model::mortal = 0; }
    void thread(unsigned index) {
        if (index == 0) {
            pulse.tell(model::live([&] { q.put_surely(0, 1); }));
        } else {
            RL_ASSERT(q.put(1, 2).count == 1);  // at once: there is room for both
            const bool died = pulse.await();
            if (died) q.recover(0);
            int got = 0, value;
            for (int i = 0; i < 2; ++i) {
                const Taken t = q.get(1, &value);
                got += static_cast<int>(t.count);
            }
            RL_ASSERT(got >= 1 && got <= 2 && q.get(1, &value).outcome == Took::none);
            RL_ASSERT(q.lost(0) <= 2 - got && (died || got == 2));
        }
    }
    void after() {
        model::mortal = -1;
        q.at_rest();
    }
};

// A consumer dies at any step: its record comes again, once, unless it had let it go. The other gets what is left at once.
template <bool Redeliver>
struct ConsumerDies : rl::test_suite<ConsumerDies<Redeliver>, 2> {
    Queue<4, 3> q;
    Pulse pulse;
    void before() {
        model::mortal = -1;
        q.put(1, 1);
        q.put(1, 2);
        model::mortal = 0;
    }
    void thread(unsigned index) {
        int value;
        if (index == 0) {
            pulse.tell(model::live([&] { q.get(0, &value); }));
        } else {
            int seen[4] = {};
            const Taken t = q.get(1, &value);
            RL_ASSERT(t.count == 1);
            ++seen[value];
            if (pulse.await()) q.recover(0, Redeliver);
            while (q.get(1, &value).count) ++seen[value];
            RL_ASSERT(seen[1] <= 1 && seen[2] <= 1);
            const int64_t taken = static_cast<int64_t>(q.ring().span().taken) - q.returned(0) - q.dead(0);
            RL_ASSERT(taken + q.dead(0) == 2 && taken - seen[1] - seen[2] <= 1);
            RL_ASSERT((Redeliver ? q.dead(0) : q.returned(0)) == 0);
        }
    }
    void after() {
        model::mortal = -1;
        q.at_rest();
    }
};

// Someone who drops the oldest dies at any step: what it took is counted once.
struct DropperDies : rl::test_suite<DropperDies, 2> {
    Queue<3, 2> q;
    Pulse pulse;
    void before() {
        model::mortal = -1;
        q.put(1, 1);
        model::mortal = 0;
    }
    void thread(unsigned index) {
        int value;
        if (index == 0) {
            pulse.tell(model::live([&] { q.get(0, &value, 1, Ring::dropping); }));
        } else {
            if (pulse.await()) q.recover(0);
            const int64_t left = q.get(1, &value).count;
            RL_ASSERT(left + q.sum(q.dropped) == 1);
        }
    }
    void after() {
        model::mortal = -1;
        q.at_rest();
    }
};

// A consumer dies holding a record, whoever recovers it dies at any step, the third finishes the work: redelivered once,
// counted once.
struct RecovererDies : rl::test_suite<RecovererDies, 3> {
    Queue<4, 3> q;
    Pulse pulse;
    uint32_t half;
    void before() {
        model::mortal = -1;
        q.put(0, 1);
        uint32_t taken;
        RL_ASSERT(q.ring().take(Ring::reading, 0, 1, &taken, false).count == 1);  // and dies
        RL_ASSERT(q.ring().claim(0, 1, &half, false) == 1);                        // in two threads
        model::mortal = 1;
    }
    void thread(unsigned index) {
        int value;
        if (index == 0) {
            // Somebody lives and works meanwhile, under another name.
            q.put_surely(2, 5);
        } else if (index == 1) {
            pulse.tell(model::live([&] { q.recover(0); }));
        } else {
            if (pulse.await()) q.recover(0);
            int seen[6] = {};
            for (int n = 0; n < 2;)
                if (q.get(1, &value).count) ++seen[value], ++n;
                else rl::yield(1, $);
            RL_ASSERT(seen[1] == 1 && seen[5] == 1 && q.get(1, &value).outcome == Took::none);
            RL_ASSERT(q.lost(0) == 1 && q.returned(0) == 1);
        }
    }
    void after() {
        model::mortal = -1;
        q.at_rest();
    }
};

// A record that comes back after the shutdown takes the mark's place; a producer that saw nothing of the shutdown must not
// slip in behind it when somebody has been told that nothing comes any more.
struct ReturnAfterShutdown : rl::test_suite<ReturnAfterShutdown, 3> {
    Queue<4, 3> q;
    int accepted, got[3];
    void before() {
        std::memset(got, 0, sizeof got);
        q.put(0, 1);
        uint32_t taken;
        RL_ASSERT(q.ring().take(Ring::reading, 0, 1, &taken, false).count == 1);
    }
    void thread(unsigned index) {
        if (index == 0) {
            accepted = static_cast<int>(q.put(2, 2).count);
        } else if (index == 1) {
            q.ring().shut_down();
            drain();
        } else {
            q.recover(0);
        }
    }
    void drain() {
        int value;
        for (Taken t; (t = q.get(1, &value)).outcome != Took::down; ++got[value]) RL_ASSERT(t.count == 1);
    }
    void after() {
        RL_ASSERT(got[2] == accepted);
        drain();
        RL_ASSERT(got[1] == 1 && got[2] == accepted);
        q.at_rest();
    }
};

using model::Program;
using model::run;
const Program kPrograms[] = {
    {"hand-over, 2 slots", run<HandOver<2, 1>>, false},
    {"hand-over, 3 slots", run<HandOver<3, 2>>, false},
    {"two producers", run<TwoProducers>, false},
    {"batches", run<Batches>, false},
    {"two consumers", run<TwoConsumers>, false},
    {"never full", run<NeverFull<false>>, true},
    {"never full, helped", run<NeverFull<true>>, false},
    {"never empty", run<NeverEmpty<false>>, true},
    {"never empty, helped", run<NeverEmpty<true>>, false},
    {"bound", run<Bound>, true},
    {"shutdown", run<Shutdown<2>>, false},
    {"shutdown, 3 threads", run<Shutdown<3>>, false},
    {"down means down", run<DownMeansDown>, true},
    {"no lost wake-up", run<NoLostWakeup>, true},
    {"two waiters", run<TwoWaiters>, false},
    {"two notifiers", run<TwoNotifiers>, true},
    {"blocking", run<Blocking<2, 1>>, false},
    {"producer dies", run<ProducerDies>, false},
    {"consumer dies", run<ConsumerDies<true>>, false},
    {"consumer dies, dropped", run<ConsumerDies<false>>, false},
    {"dropper dies", run<DropperDies>, false},
    {"recoverer dies", run<RecovererDies>, false},
    {"return after shutdown", run<ReturnAfterShutdown>, false},
};

const char* const kSites[] = {"put_tail",  "put_word", "claim_slot", "publish",   "move_tail", "get_head", "get_word",
                              "get_state", "take",     "move_head",  "free_slot", "mark",      "announce", "notify_look"};

}  // namespace

int main(int argc, char** argv) {
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    const int bad = model::check<ef::SharedSite>(kPrograms, kSites, quick ? 2000 : 20000);
    std::printf("shared_model_test: %s\n", bad ? "an order that no program needs" : "ok");
    return bad != 0;
}
