// The protocol of SharedQueue: a bounded queue of slots between processes, any of which may be killed or stopped at any
// instruction without blocking, corrupting or duplicating anything for the others.
//
// Nobody ever holds a position of the queue, only a slot of a pool. A slot's state word names its owner from the step
// that takes the slot to the step that gives it away, so a dead process leaves nothing anonymous behind; and between two
// such steps nobody waits for the owner, so a stopped process takes its slots out of the pool and nothing else.
//
//   pool   slots, more than the queue may hold; state[slot] = {position : 50 | owner : 10 | State : 4}, 0 is free
//   ring   size words, a power of two >= slots; ring[position % size] = {lap : 40 | slot : 24} once that position is
//          published; the word of the lap before means that it is not. Words are never cleared.
//   tail   the first position not published; may lag behind the ring. Whoever meets the lag moves it.
//   head   the first position not taken; may lag behind the states. Whoever meets the lag moves it.
//
//   put    free -> writing(me); write; ready(t, me); ring[t]: lap before -> {lap, slot}, here the record is in the queue;
//          tail: t -> t + 1. Lost the race for t: ready(t', me) and again.
//   get    slot of ring[h]: ready(h) -> reading(h, me), here the record is out of it; head: h -> h + 1; read; free.
//
// Position t is published only after t - 1, and taken only after t - 1, so order of publication is order of taking, and
// head <= first unpublished position. The ring does not overflow: every position from head on has a slot of its own in
// it that is ready or not freed yet (who takes a record moves head past it before freeing the slot), and the publisher
// has one more in hand, so fewer than `slots` <= size are there.
//
// The bound is exact: a publication succeeds only if t is still the first unpublished position, and head only grows, so
// the room can only have been judged too strictly. tail = closed : 1 | position; the gate closes with the move of tail to
// `high` and counts as open again as soon as `low` or fewer are left.
//
// Shutdown sets `down`, then publishes a mark instead of a slot at the first unpublished position: a put under way
// loses the race against it, and every later one sees `down`. A record that comes back from a dead consumer replaces
// the mark; whoever finds the queue empty and down puts a new mark there before he says so.
//
// What the dead leave (recover):
//   writing, ready but not in the ring        never put: freed, counted as lost
//   reading                                   returning, then put again at the end, past limit and gate; or dropped
//   returning, again(t) but not in the ring   a recovery that died itself: goes on
//   dropping, clearing                        freed, counted if they are not yet
// Every count is one word that names the last counted slot (or position) beside the number, written before the slot goes: a
// recovery that dies and is repeated counts once.
//
// Words come from memory that a hostile process may write at any time: slot indices are bounded, loops end.
#pragma once

#include <cstdint>

#include "queues/atomics.hpp"

// Test builds kill or stop the process, or end the model checker's thread, here.
#ifndef EDGEFAST_CRASH_POINT
#define EDGEFAST_CRASH_POINT(name) static_cast<void>(0)
#endif

namespace ef {

enum class SharedSite : int {
    put_tail,      // a producer reads the position before it judges the room
    put_word,      // whether the position is published: then move tail on behalf of the publisher
    claim_slot,    // takes a free slot: its last user's accesses came before
    publish,       // the record is in the queue: its bytes and state come before
    move_tail,     // what is published comes before
    get_head,      // a consumer reads the position before it judges emptiness
    get_word,      // finds the record published: its state and bytes are there
    get_state,     // whether it is taken: then move head on behalf of the consumer
    take,          // the record is out of the queue
    move_head,     // what is taken comes before
    free_slot,     // the owner's accesses come before
    mark,          // publishes the mark of a shutdown: `down` comes before
    announce,      // a waiter says that somebody waits, then looks once more
    notify_look,   // a notifier looks for waiters after its change
    number_of_sites,
};

constexpr std::memory_order order_at(SharedSite site) {
    switch (site) {
        case SharedSite::put_tail:
        case SharedSite::put_word:
        case SharedSite::claim_slot:
        case SharedSite::get_head:
        case SharedSite::get_word:
        case SharedSite::get_state:
        case SharedSite::announce:
            return std::memory_order_acquire;
        case SharedSite::publish:
        case SharedSite::move_tail:
        case SharedSite::take:
        case SharedSite::move_head:
        case SharedSite::free_slot:
        case SharedSite::mark:
        case SharedSite::notify_look:
            return std::memory_order_release;
        default:
            return std::memory_order_relaxed;
    }
}

// Sleepers of any process on one word; bit 0: somebody waits. A count of waiters would not survive their deaths, so a
// notifier wakes everybody, and takes the bit away first. As in EventCount the waiter's announcement and the notifier's
// look are read-modify-writes of the same word: whoever is later sees what came before the earlier. A notifier may
// die between the two steps: no sleep is longer than the caller's patience with that.
template <class A>
class SharedEvent {
public:
    uint32_t prepare() { return A::template set<SharedSite::announce>(futex_.word, uint32_t{1}) | 1; }
    Slept wait(uint32_t key, int64_t deadline) { return futex_.wait(key, deadline); }
    // After a change. True when somebody may have slept.
    bool notify() {
        uint32_t word = A::template add<SharedSite::notify_look>(futex_.word, uint32_t{0});
        while (word & 1) {
            EDGEFAST_CRASH_POINT("notify.looked");
            if (A::cas_relaxed(futex_.word, word, word + 1)) {
                EDGEFAST_CRASH_POINT("notify.taken");
                futex_.wake(INT32_MAX);
                EDGEFAST_CRASH_POINT("notify.woken");
                return true;
            }
            word = A::peek(futex_.word);
        }
        return false;
    }
    bool anybody() const { return A::peek(futex_.word) & 1; }

private:
    typename A::SharedFutex futex_;
};

// Counters that recovery keeps beside a participant: {count : 40 | last counted slot + 1 : 24}.
template <class A>
struct SharedJournal {
    typename A::template atomic<uint64_t> lost{}, redelivered{}, dropped{};

    static constexpr int kTagBits = 24;
    static constexpr uint64_t kTag = (uint64_t{1} << kTagBits) - 1;
    static void once(typename A::template atomic<uint64_t>& word, uint64_t slot) {
        const uint64_t before = A::peek(word);
        if ((before & kTag) == slot + 1) return;
        A::poke(word, (((before >> kTagBits) + 1) << kTagBits) | (slot + 1));
    }
    static void close(typename A::template atomic<uint64_t>& word) { A::poke(word, A::peek(word) & ~kTag); }
    static uint64_t count(const typename A::template atomic<uint64_t>& word) { return A::peek(word) >> kTagBits; }
};

enum class Took {
    some,
    none,     // full, or empty
    down,     // shut down (and empty)
    damaged,  // the words make no sense
};

struct Taken {
    Took outcome;
    int64_t count;
    uint64_t position = 0;  // of the first
    int64_t used = 0;       // records in the queue after a put, as seen by it
    bool closed = false;    // this put closed the gate
};

template <class A>
class SharedRing {
public:
    using Word = typename A::template atomic<uint64_t>;
    using Limit = typename A::template atomic<int64_t>;
    using Journal = SharedJournal<A>;

    struct Memory {
        Word *head, *tail, *down;
        Limit *limit, *high, *low;
        Word *ring, *state;        // ring_size and slots words
        Word *dropped, *cleared;   // slots words: {count : 40 | position : 24}
        Word* cursor;              // this process's
    };
    enum State : uint64_t { free_, writing, ready, again, reading, returning, dropping, clearing };

    static constexpr uint64_t kClosed = uint64_t{1} << 62;
    static constexpr uint64_t kPosition = kClosed - 1;
    static constexpr uint64_t kSlotBits = 24, kMark = (uint64_t{1} << kSlotBits) - 1;
    static constexpr uint64_t kMaxSlots = kMark - 1;
    static constexpr uint64_t kMaxOwners = 1023;

    // slots <= ring_size, a power of two. Fresh memory is zero but for start(). `few`: as few different slots as possible are
    // used, instead of one after the other.
    void bind(const Memory& memory, uint64_t slots, uint64_t ring_size, bool few = false) {
        m_ = memory;
        few_ = few;
        slots_ = slots;
        size_ = ring_size;
        shift_ = 0;
        while ((uint64_t{1} << shift_) < ring_size) ++shift_;
    }
    // Once, by the creator: zero words are the lap before.
    void start(int64_t limit) {
        A::poke(*m_.head, size_);
        A::poke(*m_.tail, size_);
        A::poke(*m_.limit, limit);
    }
    void configure(int64_t limit, int64_t high, int64_t low) {
        A::poke(*m_.limit, limit);
        A::poke(*m_.high, high);
        A::poke(*m_.low, low);
    }

    // ---- put -------------------------------------------------------------------------------------------------------

    // How many records may be put now, at most `most`.
    Taken look_for_room(int64_t most, bool past_gate) {
        for (Patience patience; !patience.over();) {
            const uint64_t tail = A::template load<SharedSite::put_tail>(*m_.tail);
            const uint64_t head = A::peek(*m_.head);
            if (A::peek(*m_.down)) return {Took::down, 0};
            const int64_t used = difference(tail & kPosition, head);
            if (used < 0 && A::peek(*m_.tail) != tail) continue;
            const int64_t room = room_at(tail, used < 0 ? 0 : used, past_gate);
            if (room <= 0) return {Took::none, 0};
            return {Took::some, room < most ? room : most};
        }
        return {Took::damaged, 0};
    }
    // Takes up to `most` free slots; next to each other if `in_a_row`.
    int64_t claim(uint64_t owner, int64_t most, uint32_t* taken, bool in_a_row) {
        int64_t n = 0;
        uint64_t at = few_ ? 0 : A::peek(*m_.cursor);
        if (at >= slots_) at = 0;
        for (uint64_t looked = 0; looked < slots_ && n < most; ++looked) {
            if (A::peek(m_.state[at]) == free_ &&
                A::template cas<SharedSite::claim_slot>(m_.state[at], uint64_t{free_}, word_of(writing, owner, 0))) {
                EDGEFAST_CRASH_POINT("claim.taken");
                taken[n++] = static_cast<uint32_t>(at);
            } else if (in_a_row && n > 0) {
                break;
            }
            if (++at == slots_) {
                at = 0;
                if (in_a_row && n > 0) break;
            }
        }
        A::poke(*m_.cursor, at);
        return n;
    }
    bool give_back(uint64_t owner, uint64_t slot) {
        const bool mine = A::template cas<SharedSite::free_slot>(m_.state[slot], word_of(writing, owner, 0), uint64_t{free_});
        EDGEFAST_CRASH_POINT("give_back.freed");
        return mine;
    }
    // Puts the slots, which are writing(owner), in this order. Less than n: why the rest is still writing(owner).
    Taken publish(uint64_t owner, const uint32_t* slots, int64_t n, bool past_gate) {
        return publish_as(ready, owner, slots, n, past_gate);
    }

    // ---- get -------------------------------------------------------------------------------------------------------

    // Takes up to `most` records; in slots next to each other if `in_a_row`. `kind`: reading, dropping or clearing.
    Taken take(State kind, uint64_t owner, int64_t most, uint32_t* taken, bool in_a_row) {
        for (Patience patience; !patience.over();) {
            const uint64_t head = A::template load<SharedSite::get_head>(*m_.head);
            uint64_t word = A::template load<SharedSite::get_word>(m_.ring[index(head)]);
            if (lap_of(word) == lap(head)) {
                if (slot_of(word) == kMark) return {Took::down, 0};
                uint64_t position = head;
                int64_t n = 0;
                bool lost = false;
                for (;;) {
                    const uint64_t slot = slot_of(word);
                    if (slot >= slots_) return {Took::damaged, 0};
                    if (in_a_row && n > 0 && slot != taken[n - 1] + uint64_t{1}) break;
                    const uint64_t state = A::template load<SharedSite::get_state>(m_.state[slot]);
                    if (!is_ready(state, position)) break;
                    lost = !A::template cas<SharedSite::take>(m_.state[slot], state, word_of(kind, owner, position));
                    if (lost) break;
                    EDGEFAST_CRASH_POINT("take.taken");
                    taken[n++] = static_cast<uint32_t>(slot);
                    ++position;
                    if (n == most) break;
                    word = A::template load<SharedSite::get_word>(m_.ring[index(position)]);
                    if (lap_of(word) != lap(position) || slot_of(word) == kMark) break;
                }
                if (n == 0 && lost) continue;  // the winner's state comes before a move of head, too: read it first
                // Nothing taken: somebody else has it.
                move_head(n ? position : head + 1);
                EDGEFAST_CRASH_POINT("take.moved_head");
                if (n) return {Took::some, n, head};
                continue;
            }
            if (lap_of(word) != lap(head - size_)) continue;  // head is stale
            if (A::peek(*m_.head) != head) continue;
            if (!A::peek(*m_.down)) return {Took::none, 0};
            if (A::template cas<SharedSite::mark>(m_.ring[index(head)], word, ring_word(head, kMark))) {
                EDGEFAST_CRASH_POINT("take.marked");
                return {Took::down, 0};
            }
        }
        return {Took::damaged, 0};
    }
    // What take(kind, owner) took. False when it is not the owner's any more.
    bool free(State kind, uint64_t owner, uint64_t slot) {
        const uint64_t state = A::peek(m_.state[slot]);
        if ((state & kWho) != word_of(kind, owner, 0)) return false;
        if (kind == dropping) count(m_.dropped[slot], state);
        if (kind == clearing) count(m_.cleared[slot], state);
        EDGEFAST_CRASH_POINT("free.counted");
        const bool mine = A::template cas<SharedSite::free_slot>(m_.state[slot], state, uint64_t{free_});
        EDGEFAST_CRASH_POINT("free.freed");
        return mine;
    }

    bool owns(State kind, uint64_t owner, uint64_t slot) const {
        return (A::peek(m_.state[slot]) & kWho) == word_of(kind, owner, 0);
    }
    // Slots that are neither free nor hold a record of the queue.
    int64_t in_hands() const {
        int64_t n = 0;
        for (uint64_t slot = 0; slot < slots_; ++slot) {
            const uint64_t state = A::peek(m_.state[slot]), kind = state & kState;
            n += kind != free_ && !((kind == ready || kind == again) && published(state, slot));
        }
        return n;
    }
    bool any_free() const {
        for (uint64_t slot = 0; slot < slots_; ++slot)
            if (A::peek(m_.state[slot]) == free_) return true;
        return false;
    }

    // ---- shutdown --------------------------------------------------------------------------------------------------

    // No put succeeds from now on. False: damaged.
    bool shut_down() {
        A::poke(*m_.down, uint64_t{1});
        EDGEFAST_CRASH_POINT("shut_down.set");
        for (Patience patience; !patience.over();) {
            const uint64_t tail = A::template load<SharedSite::put_tail>(*m_.tail) & kPosition;
            const uint64_t word = A::template load<SharedSite::put_word>(m_.ring[index(tail)]);
            if (lap_of(word) == lap(tail)) {
                if (slot_of(word) == kMark) return true;
                move_tail(tail + 1);
            } else if (lap_of(word) == lap(tail - size_)) {
                if (A::template cas<SharedSite::mark>(m_.ring[index(tail)], word, ring_word(tail, kMark))) {
                    EDGEFAST_CRASH_POINT("shut_down.marked");
                    return true;
                }
            }
        }
        return false;
    }
    bool is_down() const { return A::peek(*m_.down); }

    // ---- recovery --------------------------------------------------------------------------------------------------

    struct Recovered {
        int64_t lost = 0, redelivered = 0, dropped = 0;
        bool damaged = false;
    };
    // Whoever calls this excludes every other recovery of this owner, who is dead, or the caller himself and idle.
    Recovered recover(uint64_t owner, bool redeliver, bool count_lost, Journal& journal) {
        Recovered r;
        for (uint64_t slot = 0; slot < slots_; ++slot) {
            uint64_t state = A::template load<SharedSite::get_state>(m_.state[slot]);
            if (state == free_ || owner_of(state) != owner) continue;
            switch (state & kState) {
                case ready:
                    if (published(state, slot)) break;
                    [[fallthrough]];
                case writing:
                    if (count_lost) Journal::once(journal.lost, slot);
                    EDGEFAST_CRASH_POINT("recover.counted_lost");
                    ++r.lost;
                    let_go(slot, state);
                    EDGEFAST_CRASH_POINT("recover.freed_lost");
                    break;
                case again:
                    if (published(state, slot)) break;
                    put_again(owner, slot, &r);
                    break;
                case returning: put_again(owner, slot, &r); break;
                case reading:
                    if (!pass(state)) {
                        r.damaged = true;
                        break;
                    }
                    EDGEFAST_CRASH_POINT("recover.moved_head");
                    if (redeliver) {
                        Journal::once(journal.redelivered, slot);
                        EDGEFAST_CRASH_POINT("recover.counted_redelivered");
                        A::poke(m_.state[slot], word_of(returning, owner, 0));
                        EDGEFAST_CRASH_POINT("recover.returning");
                        ++r.redelivered;
                        put_again(owner, slot, &r);
                    } else {
                        Journal::once(journal.dropped, slot);
                        EDGEFAST_CRASH_POINT("recover.counted_dropped");
                        ++r.dropped;
                        let_go(slot, state);
                        EDGEFAST_CRASH_POINT("recover.freed_dropped");
                    }
                    break;
                case dropping:
                case clearing: {
                    if (!pass(state)) {
                        r.damaged = true;
                        break;
                    }
                    Word& word = (state & kState) == dropping ? m_.dropped[slot] : m_.cleared[slot];
                    if ((A::peek(word) & Journal::kTag) != (position_of(state) & Journal::kTag)) count(word, state);
                    EDGEFAST_CRASH_POINT("recover.counted_dropping");
                    let_go(slot, state);
                    EDGEFAST_CRASH_POINT("recover.freed_dropping");
                    break;
                }
                default: r.damaged = true;
            }
        }
        Journal::close(journal.lost);
        Journal::close(journal.redelivered);
        Journal::close(journal.dropped);
        return r;
    }

    // ---- state -----------------------------------------------------------------------------------------------------

    // Records in the queue at one moment of the call.
    int64_t size() {
        const Span s = span();
        return difference(s.put, s.taken);
    }
    // Publications ever, and takings, at one moment of the call.
    struct Span {
        uint64_t put, taken;
    };
    Span span() {
        for (int tries = 0;; ++tries) {
            const uint64_t tail = end();
            const uint64_t head = A::template load<SharedSite::get_head>(*m_.head) & kPosition;
            const int64_t used = difference(tail, head);
            if ((used >= 0 && end() == tail) || tries == 100) return {tail - size_, (used < 0 ? tail : head) - size_};
        }
    }
    bool closed() const {
        const uint64_t tail = A::template load<SharedSite::put_tail>(*m_.tail);
        const int64_t used = difference(tail & kPosition, A::peek(*m_.head));
        return is_closed(tail, used);
    }
    int64_t room() {
        const int64_t used = size();
        const int64_t n = room_at(A::template load<SharedSite::put_tail>(*m_.tail), used, false);
        return n > 0 ? n : 0;
    }
    uint64_t slots() const { return slots_; }
    int64_t limit() const {
        const int64_t limit = A::peek(*m_.limit);
        return limit < 1 ? 1 : limit > static_cast<int64_t>(slots_) ? static_cast<int64_t>(slots_) : limit;
    }

private:
    static constexpr uint64_t kState = 15, kOwnerShift = 4, kPositionShift = 14;
    static constexpr uint64_t kWho = (uint64_t{1} << kPositionShift) - 1;
    static constexpr uint64_t kLap = (uint64_t{1} << (64 - kSlotBits)) - 1;

    // Every turn of a loop is somebody's progress, unless the memory is damaged or somebody keeps changing it.
    class Patience {
    public:
        bool over() { return left_-- == 0; }

    private:
        uint32_t left_ = uint32_t{1} << 20;
    };

    static uint64_t word_of(uint64_t state, uint64_t owner, uint64_t position) {
        return state | owner << kOwnerShift | position << kPositionShift;
    }
    static uint64_t owner_of(uint64_t state) { return (state & kWho) >> kOwnerShift; }
    static uint64_t position_of(uint64_t state) { return state >> kPositionShift; }
    static bool is_ready(uint64_t state, uint64_t position) {
        return ((state & kState) == ready || (state & kState) == again) &&
               position_of(state) == (position << kPositionShift) >> kPositionShift;
    }
    uint64_t index(uint64_t position) const { return position & (size_ - 1); }
    uint64_t lap(uint64_t position) const { return position >> shift_ & kLap; }
    static uint64_t lap_of(uint64_t word) { return word >> kSlotBits; }
    static uint64_t slot_of(uint64_t word) { return word & kMark; }
    uint64_t ring_word(uint64_t position, uint64_t slot) const { return lap(position) << kSlotBits | slot; }
    static int64_t difference(uint64_t tail, uint64_t head) { return static_cast<int64_t>(tail - head); }

    bool is_closed(uint64_t tail, int64_t used) const {
        return (tail & kClosed) && A::peek(*m_.high) > 0 && used > A::peek(*m_.low);
    }
    int64_t room_at(uint64_t tail, int64_t used, bool past_gate) const {
        if (!past_gate && is_closed(tail, used)) return 0;
        const int64_t high = A::peek(*m_.high), most = limit();
        return (high > 0 && high < most ? high : most) - used;
    }
    // The first unpublished position.
    uint64_t end() {
        for (Patience patience;;) {
            const uint64_t tail = A::template load<SharedSite::put_tail>(*m_.tail) & kPosition;
            const uint64_t word = A::template load<SharedSite::put_word>(m_.ring[index(tail)]);
            if (lap_of(word) != lap(tail) || slot_of(word) == kMark || patience.over()) return tail;
            move_tail(tail + 1);
        }
    }

    Taken publish_as(State kind, uint64_t owner, const uint32_t* slots, int64_t n, bool past_gate) {
        Taken done{Took::some, 0};
        for (Patience patience; !patience.over();) {
            const uint64_t tail = A::template load<SharedSite::put_tail>(*m_.tail), first = tail & kPosition;
            uint64_t word = A::template load<SharedSite::put_word>(m_.ring[index(first)]);
            if (lap_of(word) == lap(first)) {
                if (slot_of(word) != kMark) {
                    move_tail(first + 1);
                    EDGEFAST_CRASH_POINT("publish.helped_tail");
                    continue;
                }
                if (kind != again) return unfinished(done, Took::down, owner, slots);
            } else if (lap_of(word) != lap(first - size_)) {
                continue;  // tail is stale
            }
            const int64_t used = difference(first, A::peek(*m_.head));
            if (used < 0) continue;  // tail is stale
            int64_t want = n - done.count;
            if (kind != again) {
                if (A::peek(*m_.down)) return unfinished(done, Took::down, owner, slots);
                const int64_t room = room_at(tail, used, past_gate);
                if (room <= 0) return unfinished(done, Took::none, owner, slots);
                if (room < want) want = room;
            }
            int64_t k = 0;
            while (k < want) {
                const uint64_t position = first + static_cast<uint64_t>(k), slot = slots[done.count + k];
                if (k > 0) {
                    word = A::template load<SharedSite::put_word>(m_.ring[index(position)]);
                    if (lap_of(word) != lap(position - size_)) break;
                }
                A::poke(m_.state[slot], word_of(kind, owner, position));
                EDGEFAST_CRASH_POINT("publish.ready");
                if (!A::template cas<SharedSite::publish>(m_.ring[index(position)], word, ring_word(position, slot))) break;
                EDGEFAST_CRASH_POINT("publish.in_ring");
                ++k;
            }
            if (k == 0) continue;
            if (done.count == 0) done.position = first;
            done.count += k;
            done.used = used + k;
            if (move_tail(first + static_cast<uint64_t>(k))) done.closed = true;
            EDGEFAST_CRASH_POINT("publish.moved_tail");
            if (done.count == n) return done;
        }
        return unfinished(done, Took::damaged, owner, slots);
    }
    // The next slot may have lost a race and be ready for a position that is another's.
    Taken unfinished(Taken done, Took why, uint64_t owner, const uint32_t* slots) {
        A::poke(m_.state[slots[done.count]], word_of(writing, owner, 0));
        done.outcome = why;
        return done;
    }
    // All positions before `to` are published. True when this closed the gate.
    bool move_tail(uint64_t to) {
        for (Patience patience; !patience.over();) {
            const uint64_t tail = A::template load<SharedSite::put_tail>(*m_.tail), from = tail & kPosition;
            if (difference(to, from) <= 0) return false;
            const uint64_t head = A::peek(*m_.head);
            const int64_t high = A::peek(*m_.high);
            const bool closed = is_closed(tail, difference(from, head));
            const bool closes = high > 0 && (closed || difference(to, head) >= high);
            if (A::template cas<SharedSite::move_tail>(*m_.tail, tail, to | (closes ? kClosed : 0))) return closes && !closed;
        }
        return false;
    }
    // All positions before `to` are taken.
    void move_head(uint64_t to) {
        for (Patience patience; !patience.over();) {
            const uint64_t head = A::peek(*m_.head);
            if (difference(to, head) <= 0 || A::template cas<SharedSite::move_head>(*m_.head, head, to)) return;
        }
    }
    // head past the position of a taken record: whoever took it may have died before. False: damaged.
    bool pass(uint64_t state) {
        const uint64_t head = A::template load<SharedSite::get_head>(*m_.head);
        // The position's upper bits are head's: it was taken, so head is at most a ring's size from it.
        const int64_t ahead = static_cast<int64_t>((position_of(state) - head) << kPositionShift) >> kPositionShift;
        if (ahead < 0) return true;
        if (ahead >= static_cast<int64_t>(size_)) return false;
        move_head(head + static_cast<uint64_t>(ahead) + 1);
        return true;
    }
    bool published(uint64_t state, uint64_t slot) const {
        const uint64_t word = A::template load<SharedSite::get_word>(m_.ring[index(position_of(state))]);
        // The state holds all of the lap's bits but the highest shift_ - 14, if these are more.
        const uint64_t bits = kLap & ((uint64_t{1} << (64 - kPositionShift - shift_)) - 1);
        return slot_of(word) == slot && (lap_of(word) & bits) == (position_of(state) >> shift_ & bits);
    }
    void put_again(uint64_t owner, uint64_t slot, Recovered* r) {
        const auto one = static_cast<uint32_t>(slot);
        if (publish_as(again, owner, &one, 1, true).count == 0) r->damaged = true;
    }
    void let_go(uint64_t slot, uint64_t state) { A::template cas<SharedSite::free_slot>(m_.state[slot], state, uint64_t{free_}); }
    static void count(Word& word, uint64_t state) {
        A::poke(word, (((A::peek(word) >> Journal::kTagBits) + 1) << Journal::kTagBits) | (position_of(state) & Journal::kTag));
    }

    Memory m_{};
    uint64_t slots_ = 0, size_ = 0;
    int shift_ = 0;
    bool few_ = false;
};

}  // namespace ef
