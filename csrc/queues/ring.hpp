// A bounded ring of slots for any number of producers and consumers, without a lock.
//
// The ring hands out slots; what is in them is the caller's. A producer claims a run of slots (one CAS for all of
// them), writes, and publishes them; a consumer claims a run of published slots, reads, and frees them. As in D. Vyukov's
// bounded MPMC queue a producer never waits for another producer, nor a consumer for another consumer. Where he keeps a
// sequence number per slot, here is one bit, so that a batch of 4096 touches 64 words: set while a record is in the slot,
// from publish to free. Which lap it belongs to follows from the positions, if these are read first:
//
//   tail > position >= head: whoever claimed the slot for `position` saw the bit clear, and moved tail after that, so
//       who has read that tail (acquire) and sees the bit set sees this lap's record;
//   head > position - capacity: whoever took the last lap's record saw the bit set, and moved head after that, so who
//       has read that head (acquire) and sees the bit clear sees the slot freed after it.
//
// tail = flags | put position: one CAS checks and changes position, gate and shutdown together. The bound is exact: a
// claim succeeds only if the put position it judged is still the position, and get positions only grow, so it can only
// have been judged too strictly. Capacity is any number of slots; positions have 62 bits and do not wrap in practice;
// differences are signed. The gate (hysteresis) closes with the claim that reaches `high` and counts as open again as
// soon as `low` or fewer are left.
//
// What a stalled thread can block: a producer stalled between claim and publish holds back the records behind it,
// a consumer stalled between claim and free holds back the producer one lap later; nothing else.
#pragma once

#include <cstdint>

#include "queues/atomics.hpp"

namespace ef {

enum class Claimed {
    some,  // count > 0
    none,  // full, or empty
    busy,  // not full (not empty), but the next slot is still in somebody's hands
    down,  // shut down (and empty)
};

struct Claim {
    Claimed outcome;
    uint64_t position;
    int64_t count;
    int64_t used;  // records in the ring behind a put claim, as seen by it
    bool closed;   // this put claim closed the gate
};

template <class A>
class Ring {
public:
    static constexpr uint64_t kDown = uint64_t{1} << 63;
    static constexpr uint64_t kClosed = uint64_t{1} << 62;
    static constexpr uint64_t kPosition = kClosed - 1;

    // False when there is no memory. 1 <= capacity < 2^60.
    bool allocate(uint64_t capacity) {
        capacity_ = capacity;
        A::poke(limit_, static_cast<int64_t>(capacity));
        return taken_.allocate(groups()) && abandoned_bits_.allocate(groups());
    }
    // 1 <= limit <= capacity; high 0: no gate; else 0 <= low < high <= limit. May be changed at any time; more than
    // the new limit may then be there, and drains.
    void configure(int64_t limit, int64_t high, int64_t low) {
        A::poke(limit_, limit);
        A::poke(high_, high);
        A::poke(low_, low);
    }

    // Claims 1 to `most` slots at the end. `past_gate` ignores a closed gate, not the limit; `in_a_row` stops at the
    // end of the memory instead of going on at its beginning.
    Claim claim_put(int64_t most, bool past_gate = false, bool in_a_row = false) {
        for (;;) {
            const uint64_t tail = A::template load<Site::put_tail>(tail_);
            if (tail & kDown) return {Claimed::down, 0, 0, 0, false};
            const uint64_t position = tail & kPosition;
            // Read after the tail: then the ring held at least this much at this moment.
            const int64_t used = static_cast<int64_t>(position - A::template load<Site::put_head>(head_));
            if (used < 0) continue;  // the tail is stale
            const int64_t high = A::peek(high_);
            const bool closed = (tail & kClosed) && high && used > A::peek(low_);
            int64_t room = A::peek(limit_) - used;
            if (high && high - used < room) room = high - used;
            if (closed && !past_gate) room = 0;
            if (room <= 0) {
                if (skip_abandoned()) continue;
                return {Claimed::none, position, 0, used, false};
            }
            if (room > most) room = most;
            if (in_a_row && room > to_the_end(position)) room = to_the_end(position);
            const int64_t count = run<Site::put_word>(position, room, false);
            if (count == 0) {
                if (A::peek(tail_) != tail) continue;
                return {Claimed::busy, position, 0, used, false};
            }
            const bool closes = high && (closed || used + count >= high);
            const uint64_t next = (position + static_cast<uint64_t>(count)) | (closes ? kClosed : 0);
            if (A::template cas<Site::put_claim>(tail_, tail, next))
                return {Claimed::some, position, count, used + count, closes && !closed};
        }
    }

    // Claims 1 to `most` published slots at the front.
    Claim claim_get(int64_t most, bool in_a_row = false) {
        for (;;) {
            const uint64_t head = A::template load<Site::get_head>(head_);
            // Read after the head: nothing was there at this moment.
            const uint64_t tail = A::template load<Site::get_tail>(tail_);
            int64_t there = static_cast<int64_t>((tail & kPosition) - head);
            if (there <= 0) return {tail & kDown ? Claimed::down : Claimed::none, head, 0, 0, false};
            if (there > most) there = most;
            if (in_a_row && there > to_the_end(head)) there = to_the_end(head);
            const int64_t count = run<Site::get_word>(head, there, true);
            if (count > 0) {
                if (A::template cas<Site::get_claim>(head_, head, head + static_cast<uint64_t>(count)))
                    return {Claimed::some, head, count, 0, false};
                continue;
            }
            if (skip_abandoned()) continue;
            if (A::peek(head_) == head) return {Claimed::busy, head, 0, 0, false};
        }
    }

    void publish(uint64_t position, int64_t count) {
        each_group(position, count, [&](uint64_t group, uint64_t mask) {
            if (mask == kAll) A::template store<Site::publish>(taken_[group], mask);
            else A::template set<Site::publish>(taken_[group], mask);
        });
    }
    // The consumer is done with the slots: free for the next lap.
    void free(uint64_t position, int64_t count) {
        each_group(position, count, [&](uint64_t group, uint64_t mask) {
            if (mask == kAll) A::template store<Site::free>(taken_[group], uint64_t{0});
            else A::template clear<Site::free>(taken_[group], mask);
        });
    }
    // Instead of publish: the slots pass by unseen when their turn comes.
    void abandon(uint64_t position, int64_t count) {
        each_group(position, count, [&](uint64_t group, uint64_t mask) { A::set_relaxed(abandoned_bits_[group], mask); });
        A::add_relaxed(abandoned_, count);
        Ring::publish(position, count);
    }

    // No claim_put succeeds from now on; what was claimed before still comes. True for the first caller.
    bool shut_down() { return !(A::set_relaxed(tail_, kDown) & kDown); }
    bool is_down() const { return A::peek(tail_) & kDown; }

    // Whether the gate is closed.
    bool closed() const {
        const uint64_t tail = A::template load<Site::put_tail>(tail_);
        return (tail & kClosed) && A::peek(high_) &&
               static_cast<int64_t>((tail & kPosition) - A::peek(head_)) > A::peek(low_);
    }
    // Slots claimed by producers and not yet by consumers, at one moment of the call.
    int64_t size() const {
        for (int tries = 0;; ++tries) {
            const uint64_t tail = A::template load<Site::put_tail>(tail_) & kPosition;
            const uint64_t head = A::template load<Site::get_head>(head_);
            const int64_t used = static_cast<int64_t>(tail - head);
            if ((A::peek(tail_) & kPosition) == tail || tries == 100) return used > 0 ? used : 0;
        }
    }
    // Records that may be put now.
    int64_t room() const {
        if (closed()) return 0;
        const int64_t high = A::peek(high_), limit = A::peek(limit_), used = size();
        const int64_t bound = high && high < limit ? high : limit;
        return bound > used ? bound - used : 0;
    }

    uint64_t put_position() const { return A::peek(tail_) & kPosition; }
    uint64_t get_position() const { return A::peek(head_); }
    uint64_t capacity() const { return capacity_; }
    int64_t limit() const { return A::peek(limit_); }
    int64_t abandoned() const { return A::peek(abandoned_); }  // ever
    int64_t skipped() const { return A::peek(skipped_); }      // of these, how many consumers have passed

protected:
    // True when the first slot was an abandoned one and is out of the way.
    bool skip_abandoned() {
        const uint64_t head = A::template load<Site::get_head>(head_);
        const uint64_t tail = A::template load<Site::get_tail>(tail_);
        if (static_cast<int64_t>((tail & kPosition) - head) <= 0) return false;
        const uint64_t index = head % capacity_, bit = uint64_t{1} << index % kGroup;
        if (!(A::template load<Site::get_word>(taken_[index / kGroup]) & bit)) return false;
        if (!(A::peek(abandoned_bits_[index / kGroup]) & bit)) return false;
        if (A::template cas<Site::get_claim>(head_, head, head + 1)) {
            A::add_relaxed(skipped_, int64_t{1});
            A::clear_relaxed(abandoned_bits_[index / kGroup], bit);
            free(head, 1);
        }
        return true;
    }

private:
    static constexpr uint64_t kGroup = A::kGroup;  // slots a word, 64 but for the model checker
    static constexpr uint64_t kAll = ~uint64_t{0} >> (64 - kGroup);

    uint64_t groups() const { return (capacity_ + kGroup - 1) / kGroup; }
    int64_t to_the_end(uint64_t position) const { return static_cast<int64_t>(capacity_ - position % capacity_); }

    // Calls with every word that the slots touch and their bits in it.
    template <class F>
    void each_group(uint64_t position, int64_t count, F f) {
        uint64_t index = position % capacity_;
        while (count > 0) {
            const uint64_t shift = index % kGroup, span = span_from(index, count);
            f(index / kGroup, (kAll >> (kGroup - span)) << shift);
            count -= static_cast<int64_t>(span);
            index += span;
            if (index == capacity_) index = 0;
        }
    }
    uint64_t span_from(uint64_t index, int64_t count) const {
        uint64_t span = kGroup - index % kGroup;
        if (span > capacity_ - index) span = capacity_ - index;
        return span > static_cast<uint64_t>(count) ? static_cast<uint64_t>(count) : span;
    }
    // How many of the `most` slots from `position` on hold a record (and no abandoned one), or are free.
    template <Site S>
    int64_t run(uint64_t position, int64_t most, bool ready) {
        uint64_t index = position % capacity_;
        for (int64_t done = 0; done < most;) {
            const uint64_t span = span_from(index, most - done);
            uint64_t word = A::template load<S>(taken_[index / kGroup]);
            word = ready ? ~word | A::peek(abandoned_bits_[index / kGroup]) : word;  // zeros are what is looked for
            word = word >> index % kGroup & kAll >> (kGroup - span);
            if (word != 0) return done + __builtin_ctzll(word);
            done += static_cast<int64_t>(span);
            index += span;
            if (index == capacity_) index = 0;
        }
        return most;
    }

    typename A::template Array<uint64_t> taken_, abandoned_bits_;
    uint64_t capacity_ = 0;
    typename A::template atomic<int64_t> limit_{}, high_{}, low_{}, abandoned_{}, skipped_{};
    // Two lines apart: adjacent lines are fetched in pairs.
    alignas(128) typename A::template atomic<uint64_t> tail_{};
    alignas(128) typename A::template atomic<uint64_t> head_{};
    char pad_[128 - sizeof(uint64_t)]{};
};

}  // namespace ef
