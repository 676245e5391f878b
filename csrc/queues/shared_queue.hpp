// SharedQueue: a bounded queue of records or byte messages between processes, with the policies, gate and statistics of
// RecordQueue, that survives the death or the stop of any participant at any instruction.
//
// Protocol in shared_ring.hpp, memory and participants in shared_segment.hpp. Any thread of the process may call anything
// but close and after_fork_in_child; nothing needs the GIL. Who waits sleeps in the kernel, after a short spin where
// there is a second CPU, and at most kLook at a time: then it looks for participants that died, and recovers what they
// left. What a process that must not wait holds is never waited for.
//
// Statuses are those of record_queue.h and edgefast_shared_status; deadlines are RecordQueue's.
#pragma once

#if defined(__linux__)

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "edgefast/record_queue.h"
#include "queues/record_queue.hpp"  // kTry, kDontBlock, Policy
#include "queues/shared_segment.hpp"

namespace ef {

enum edgefast_shared_status {
    EDGEFAST_DAMAGED = 6,  // the segment's words make no sense: somebody wrote into them
    EDGEFAST_DETACHED = 7  // closed, or a forked child that did not become a participant
};

class SharedQueue {
public:
    using Ring = SharedRing<StdAtomics>;
    using Policy = RecordQueue::Policy;
    static constexpr unsigned kAnyOwner = SharedSegment::kAnyOwner;

    struct Counters {
        // As RecordQueue's. At rest: puts = gets + cleared + dropped_oldest + dropped_dead + size.
        int64_t size, waiting_put, waiting_get, puts, gets, cleared, dropped_newest, dropped_oldest, refused, full_waits,
            empty_waits, wakeups, high_events, peak, closed, bytes;
        double sojourn;  // seconds; negative: not known
        int64_t lost;          // never put: in the hands of producers that died
        int64_t redelivered;   // put again: in the hands of consumers that died
        int64_t dropped_dead;  // the same, dropped (drop_of_dead)
        int64_t recoveries;    // participants found dead
        int64_t participants;  // handles of all processes
        int64_t in_hands;      // slots being written, read, reserved or viewed
    };
    struct Participant {
        uint64_t index;
        int64_t pid, start_time;
        bool alive, self;
    };
    struct RecoveryReport {
        int64_t participants, lost, redelivered, dropped;
        bool damaged;
    };

    SharedQueue() = default;
    ~SharedQueue() { close(); }
    SharedQueue(const SharedQueue&) = delete;
    SharedQueue& operator=(const SharedQueue&) = delete;

    // Before anything else; once, unless it fails. False: why.
    bool create(const char* path, const SharedConfig& config, mode_t mode, SharedFailure* failure) {
        *failure = {};
        if (!segment_.create(path, config, mode, failure)) return false;
        begin();
        return true;
    }
    bool attach(const char* path, unsigned flags, SharedFailure* failure) {
        *failure = {};
        if (!segment_.attach(path, flags, failure)) return false;
        begin();
        if (join(failure)) return true;
        segment_.drop();
        return false;
    }
    // Looks without taking part. *in_use: whether some process is a participant of the queue.
    static bool inspect(const char* path, unsigned flags, SharedConfig* config, bool* in_use, SharedFailure* failure) {
        *failure = {};
        return SharedSegment::inspect(path, flags, config, in_use, failure);
    }
    const SharedConfig& config() const { return segment_.config(); }
    // Of the file, while attached.
    int descriptor() const { return segment_.descriptor(); }

    // Leaves the queue: what this handle holds open is given up (reservations), put again or dropped (views). Everything
    // returns EDGEFAST_DETACHED from now on; the memory stays mapped until the destructor.
    void close() {
        if (!segment_.joined()) return;
        SharedEntry& mine = segment_.entry(segment_.me());
        // As a recovery would, which goes on with it if this dies on the way.
        ring_.recover(segment_.me(), !config().drop_of_dead, false, mine.journal);
        EDGEFAST_CRASH_POINT("close.recovered");
        segment_.leave();
        notify_all();
    }
    // From any thread, before close(): calls under way that wait return EDGEFAST_DETACHED, as do later ones that would.
    void stop_waiting() {
        leaving_.store(true, std::memory_order_seq_cst);
        notify_all();
    }
    // In a forked child, before anything else there: the parent's reservations and views are the parent's. False: the
    // child is no participant, and everything returns EDGEFAST_DETACHED.
    bool after_fork_in_child(SharedFailure* failure) {
        if (!segment_.joined()) return true;
        return inherit(failure) && rejoin(failure);
    }
    // The same in two steps, the second when the child first uses the queue, if ever.
    bool inherit(SharedFailure* failure) {
        *failure = {};
        recovering_.store(false, std::memory_order_relaxed);
        return segment_.renew(failure);
    }
    bool rejoin(SharedFailure* failure) {
        *failure = {};
        return join(failure);
    }

    // In a forked child that will not use it: without this call the parent's death goes unnoticed as long as the child lives.
    void forget_in_child() { segment_.forget(); }

    // ---- records ---------------------------------------------------------------------------------------------------

    // n records of itemsize bytes each, one behind the other; of `lengths[i]` bytes each in a queue of byte messages, or
    // of itemsize if lengths is null. Returns how many were accepted.
    int64_t put(const void* records_, const uint32_t* lengths, int64_t n, int64_t deadline, int* status) {
        const uint64_t itemsize = config().itemsize;
        const char* from = static_cast<const char*>(records_);
        if (!records())
            return put_each_by(n, deadline, status, [&](uint64_t slot, int64_t i) {
                const uint64_t bytes = lengths && lengths[i] < itemsize ? lengths[i] : itemsize;
                write(slot, from + static_cast<uint64_t>(i) * itemsize, bytes);
            });
        return put_all(n, deadline, status, [&](const uint32_t* slots, int64_t count, int64_t first) {
            // Neighbours in one copy.
            for (int64_t i = 0, run; i < count; i += run) {
                run = 1;
                while (i + run < count && slots[i + run] == slots[i] + static_cast<uint64_t>(run)) ++run;
                std::memcpy(segment_.payload(slots[i]), from + static_cast<uint64_t>(first + i) * itemsize, static_cast<uint64_t>(run) * itemsize);
            }
        });
    }
    // One message; length <= itemsize.
    int64_t put_bytes(const void* data, size_t length, int64_t deadline, int* status) {
        const uint64_t bytes = length < config().itemsize ? length : config().itemsize;
        return put_each_by(1, deadline, status, [&](uint64_t slot, int64_t) { write(slot, static_cast<const char*>(data), bytes); });
    }
    // n messages at `data[i]`, of lengths[i] <= itemsize bytes.
    int64_t put_each(const void* const* data, const uint32_t* lengths, int64_t n, int64_t deadline, int* status) {
        return put_each_by(n, deadline, status, [&](uint64_t slot, int64_t i) {
            const uint64_t bytes = lengths[i] < config().itemsize ? lengths[i] : config().itemsize;
            write(slot, static_cast<const char*>(data[i]), bytes);
        });
    }

    // n messages in parts one behind the other, the first `begin` of them left out: message i is parts[ends[i - 1]] to
    // before parts[ends[i]], together at most itemsize bytes.
    struct Part {
        const void* data;
        size_t length;
    };
    int64_t put_parts(const Part* parts, const int64_t* ends, int64_t begin, int64_t n, int64_t deadline, int* status) {
        return put_each_by(n - begin, deadline, status, [&](uint64_t slot, int64_t i) {
            uint64_t at = 0;
            for (int64_t p = begin + i == 0 ? 0 : ends[begin + i - 1]; p < ends[begin + i]; ++p) {
                const uint64_t left = config().itemsize - at, bytes = parts[p].length < left ? parts[p].length : left;
                if (bytes) std::memcpy(segment_.payload(slot) + at, parts[p].data, bytes);
                at += bytes;
            }
            segment_.length(slot).store(static_cast<uint32_t>(at), std::memory_order_relaxed);
        });
    }

    // 1 to `most` records once `least` are there or `linger` (nanoseconds since the first) is over: record i goes to
    // out + i * itemsize, its length to lengths[i] unless that is null.
    int64_t get(void* out, uint32_t* lengths, int64_t most, int64_t least, int64_t deadline, int64_t linger, int* status) {
        *status = EDGEFAST_OK;
        if (least > 1 && linger > 0 && !gather(least, deadline, linger, status)) return 0;
        const uint64_t itemsize = config().itemsize;
        return take(Ring::reading, most, deadline, false, status, [&](const uint32_t* slots, const Taken& t) {
            char* to = static_cast<char*>(out);
            for (int64_t i = 0; i < t.count;) {
                // Neighbours in one copy.
                int64_t run = 1;
                if (records()) {
                    while (i + run < t.count && slots[i + run] == slots[i] + static_cast<uint64_t>(run)) ++run;
                    std::memcpy(to + static_cast<uint64_t>(i) * itemsize, segment_.payload(slots[i]),
                                static_cast<uint64_t>(run) * itemsize);
                    if (lengths)
                        for (int64_t k = 0; k < run; ++k) lengths[i + k] = static_cast<uint32_t>(itemsize);
                } else {
                    const uint32_t bytes = length_of(slots[i], status);
                    std::memcpy(to + static_cast<uint64_t>(i) * itemsize, segment_.payload(slots[i]), bytes);
                    if (lengths) lengths[i] = bytes;
                }
                i += run;
            }
            EDGEFAST_CRASH_POINT("get.read");
            release_slots(slots, t);
        });
    }
    // Until records are there, without taking them: how many, or 0 and why.
    int64_t await(int64_t deadline, int* status) { return await_many(1, deadline, status); }
    // Until there are `least`.
    int64_t await_many(int64_t least, int64_t deadline, int* status) {
        *status = EDGEFAST_OK;
        if (!segment_.joined()) {
            *status = EDGEFAST_DETACHED;
            return 0;
        }
        const auto attempt = [&] {
            const int64_t n = ring_.size();
            return n >= least ? Taken{Took::some, n} : Taken{ring_.is_down() ? Took::down : Took::none, 0};
        };
        Taken t = attempt();
        if (t.outcome == Took::none) t = wait(segment_.control().items, deadline, status, &entry().empty_waits, attempt);
        if (t.count == 0 && *status == EDGEFAST_OK && judge(t, status)) *status = EDGEFAST_EMPTY;
        return t.count;
    }
    // Until there is room, without claiming it: for how many, or 0 and why.
    int64_t await_room(int64_t deadline, int* status) {
        *status = EDGEFAST_OK;
        if (!segment_.joined()) {
            *status = EDGEFAST_DETACHED;
            return 0;
        }
        const auto attempt = [&] {
            const Taken t = ring_.look_for_room(INT64_MAX, false);
            return t.count && !ring_.any_free() ? Taken{Took::none, 0} : t;
        };
        const Taken t = wait(segment_.control().room, deadline, status, &entry().full_waits, attempt);
        if (t.count == 0 && *status == EDGEFAST_OK && judge(t, status)) *status = EDGEFAST_FULL;
        return t.count;
    }

    // ---- in place --------------------------------------------------------------------------------------------------

    // Claims 1 to n slots that lie in a row (stride() bytes apart), after waiting for room as put does. Returns how many, or 0.
    int64_t reserve(int64_t n, int64_t deadline, void** slots, uint64_t* ticket, int* status) {
        *status = EDGEFAST_OK;
        if (n > static_cast<int64_t>(SharedSegment::kMostAtOnce)) n = SharedSegment::kMostAtOnce;
        uint32_t mine[SharedSegment::kMostAtOnce];
        const int64_t count = claim(n, deadline, mine, true, status);
        if (count == 0) {
            if (*status == EDGEFAST_OK) {
                add(entry().dropped_newest, n);
                *status = EDGEFAST_FULL;
            }
            return 0;
        }
        *slots = segment_.payload(mine[0]);
        *ticket = mine[0];
        return count;
    }
    // Puts the first n slots of a reservation, with lengths (null: itemsize). Others may have filled the queue meanwhile:
    // then as put. Returns how many are out of the reservation's hands; the rest begins at ticket + that, and is for another
    // commit or for abort.
    int64_t commit(uint64_t ticket, int64_t n, const uint32_t* lengths, int64_t deadline, int* status) {
        *status = EDGEFAST_OK;
        if (!mine(Ring::writing, ticket, n, status)) return 0;
        if (n > static_cast<int64_t>(SharedSegment::kMostAtOnce)) n = SharedSegment::kMostAtOnce;
        uint32_t slots[SharedSegment::kMostAtOnce];
        for (int64_t i = 0; i < n; ++i) {
            slots[i] = static_cast<uint32_t>(ticket) + static_cast<uint32_t>(i);
            if (!records())
                segment_.length(slots[i]).store(
                    lengths && lengths[i] < config().itemsize ? lengths[i] : static_cast<uint32_t>(config().itemsize),
                    std::memory_order_relaxed);
        }
        EDGEFAST_CRASH_POINT("put.written");
        int64_t done = 0;
        bool past_gate = false;
        while (done < n) {
            const Taken t = publish(slots + done, n - done, past_gate, status);
            done += t.count;
            if (done == n || *status != EDGEFAST_OK) break;
            const Taken room = make_room(n - done, deadline, &past_gate, status);
            if (room.count) continue;
            if (*status != EDGEFAST_OK) break;
            add(entry().dropped_newest, n - done);
            for (; done < n; ++done) ring_.give_back(segment_.me(), slots[done]);
            notify_room();
        }
        return done;
    }
    // Gives n slots of a reservation up.
    void abort(uint64_t ticket, int64_t n) {
        int status;
        if (!mine(Ring::writing, ticket, n, &status)) return;
        for (int64_t i = 0; i < n; ++i) ring_.give_back(segment_.me(), ticket + static_cast<uint64_t>(i));
        notify_room();
    }
    // Takes 1 to n records that lie in a row, to be read in place; lengths[i] unless null. They are this handle's until
    // release, and put again should it die before.
    int64_t view(int64_t n, int64_t deadline, const void** records_, uint32_t* lengths, uint64_t* ticket, int* status) {
        *status = EDGEFAST_OK;
        return take(Ring::reading, n, deadline, true, status, [&](const uint32_t* slots, const Taken& t) {
            *records_ = segment_.payload(slots[0]);
            *ticket = slots[0];
            for (int64_t i = 0; lengths && i < t.count; ++i) lengths[i] = length_of(slots[i], status);
            notify_room();  // there is room; the slots are some of the spare ones
        });
    }
    void release(uint64_t ticket, int64_t n) {
        int status;
        if (!mine(Ring::reading, ticket, n, &status)) return;
        for (int64_t i = 0; i < n; ++i) ring_.free(Ring::reading, segment_.me(), ticket + static_cast<uint64_t>(i));
        notify_room();
    }
    // Bytes from one slot to the next.
    uint64_t stride() const { return segment_.layout().stride; }

    // ---- the queue as a whole --------------------------------------------------------------------------------------

    // 1 <= limit <= capacity; high 0: no gate; else 0 <= low < high <= limit. For all processes. "latest" holds one record
    // whatever the limit.
    void configure(int64_t limit, int64_t high, int64_t low) {
        if (latest()) limit = 1, high = 0;
        ring_.configure(limit, high, low);
        notify_all();
    }
    int64_t clear() {
        int status = EDGEFAST_OK;
        int64_t n = 0;
        while (int64_t k = take(Ring::clearing, kBatch, kTry, false, &status, [&](const uint32_t* slots, const Taken& t) {
                   for (int64_t i = 0; i < t.count; ++i) ring_.free(Ring::clearing, segment_.me(), slots[i]);
               }))
            n += k;
        if (n) notify_room();
        return n;
    }
    // False: damaged, or not attached.
    bool shut_down(bool immediate) {
        if (!segment_.joined()) return false;
        const bool done = ring_.shut_down();
        notify_all();
        if (immediate) clear();
        return done;
    }
    bool is_down() const { return ring_.is_down(); }
    bool closed() const { return ring_.closed(); }
    int64_t size() { return ring_.size(); }
    int64_t room() { return ring_.room(); }
    int64_t limit() const { return ring_.limit(); }
    int64_t high() const { return peek(segment_.control().high); }
    int64_t low() const { return peek(segment_.control().low); }
    // EDGEFAST_OK when the gate is open; else why the wait ended.
    int writable(int64_t deadline) {
        int status = EDGEFAST_OK;
        const Taken t = wait(segment_.control().room, deadline, &status, nullptr, [&] {
            const Took outcome = ring_.is_down() ? Took::down : ring_.closed() ? Took::none : Took::some;
            return Taken{outcome, outcome == Took::some};
        });
        if (status != EDGEFAST_OK || t.count) return status;
        return t.outcome == Took::down ? EDGEFAST_SHUT_DOWN : EDGEFAST_FULL;
    }
    // Wakes every sleeper of this queue, in all processes, to look again.
    void stir() { notify_all(); }
    // Whether a call that waits returns EDGEFAST_INTERRUPTED five times a second, for a caller who must look after what does
    // not wake it, such as a signal that came just before the sleep or to another thread.
    void poll(bool on) { polls_ = on; }
    // Pauses of the processor before this handle sleeps; 0 sleeps at once. By default about what a sleep and a wake-up cost,
    // and none where there is one CPU. Before anything waits.
    void set_spin(int pauses) { spins_ = pauses; }

    // ---- participants ----------------------------------------------------------------------------------------------

    // Looks for dead participants now, and recovers what they left.
    RecoveryReport recover() {
        RecoveryReport report{};
        look(&report);
        return report;
    }
    // Up to `most` of them; returns how many there are.
    int64_t participants(Participant* list, int64_t most) const {
        int64_t n = 0;
        for (uint64_t i = 0; i < config().participants; ++i) {
            if (!segment_.in_use(i)) continue;
            if (n < most) {
                const SharedEntry& e = segment_.entry(i);
                list[n] = {i, peek(e.pid), peek(e.start_time), segment_.alive(i), segment_.joined() && i == segment_.me()};
            }
            ++n;
        }
        return n;
    }
    Counters counters() {
        Counters c{};
        uint64_t dropped = 0, cleared = 0, lost = 0, redelivered = 0, dead = 0, over = 0;
        const auto sum = [](int64_t* to, const std::atomic<int64_t>& from) {
            *to = static_cast<int64_t>(static_cast<uint64_t>(*to) + static_cast<uint64_t>(peek(from)));
        };
        const auto memory = segment_.ring_memory(nullptr);
        for (uint64_t slot = 0; slot < segment_.layout().slots; ++slot) {
            dropped += memory.dropped[slot].load(std::memory_order_relaxed) >> SharedJournal<StdAtomics>::kTagBits;
            cleared += memory.cleared[slot].load(std::memory_order_relaxed) >> SharedJournal<StdAtomics>::kTagBits;
        }
        for (uint64_t i = 0; i < config().participants; ++i) {
            const SharedEntry& e = segment_.entry(i);
            using Journal = SharedJournal<StdAtomics>;
            lost += Journal::count(e.journal.lost);
            redelivered += Journal::count(e.journal.redelivered);
            dead += Journal::count(e.journal.dropped);
            over += static_cast<uint64_t>(peek(e.passed_over));
            sum(&c.dropped_newest, e.dropped_newest);
            sum(&c.refused, e.refused);
            sum(&c.full_waits, e.full_waits);
            sum(&c.empty_waits, e.empty_waits);
            sum(&c.wakeups, e.wakeups);
            sum(&c.high_events, e.high_events);
            sum(&c.recoveries, e.recoveries);
            sum(&c.waiting_put, e.waiting_put);
            sum(&c.waiting_get, e.waiting_get);
            c.participants += segment_.in_use(i);
        }
        // At one moment: the sum holds at all times.
        const Ring::Span span = ring_.span();
        const uint64_t taken = span.taken, put = span.put;
        c.size = static_cast<int64_t>(put - taken);
        c.puts = static_cast<int64_t>(put - redelivered + over);
        c.gets = static_cast<int64_t>(taken - dropped - cleared - redelivered - dead);
        c.cleared = static_cast<int64_t>(cleared);
        c.dropped_oldest = static_cast<int64_t>(dropped + over);
        c.lost = static_cast<int64_t>(lost);
        c.redelivered = static_cast<int64_t>(redelivered);
        c.dropped_dead = static_cast<int64_t>(dead);
        c.in_hands = ring_.in_hands();
        c.peak = peek(segment_.control().peak);
        c.closed = ring_.closed();
        c.bytes = static_cast<int64_t>(static_cast<uint64_t>(c.size) * config().itemsize);
        const uint64_t sojourn = segment_.control().sojourn.load(std::memory_order_relaxed);
        c.sojourn = sojourn == 0 ? -1.0 : static_cast<double>(sojourn) * 1e-9;
        return c;
    }

private:
    static constexpr int64_t kLook = 200 * 1000000;  // the longest sleep, and the time between two looks for the dead
    static constexpr uint32_t kCallsPerLook = 1024;
    static constexpr int64_t kBatch = 256;           // records taken at a time without memory for more
    static constexpr uint64_t kSampleEvery = 64;

    template <class T>
    static T peek(const std::atomic<T>& a) {
        return a.load(std::memory_order_relaxed);
    }
    static void add(std::atomic<int64_t>& a, int64_t n) { a.fetch_add(n, std::memory_order_relaxed); }

    SharedEntry& entry() const { return segment_.entry(segment_.me()); }
    bool records() const { return config().kind == shared_records; }
    Policy policy() const { return static_cast<Policy>(config().policy); }
    bool latest() const { return policy() == RecordQueue::latest; }

    void begin() {
        ring_.bind(segment_.ring_memory(&cursor_), segment_.layout().slots, segment_.layout().ring_size,
                   segment_.layout().stride >= kBigSlot);
        cpu_set_t cpus;
        if (sched_getaffinity(0, sizeof cpus, &cpus) == 0 && CPU_COUNT(&cpus) > 1) spins_ = kSpins;
        if (latest()) segment_.control().limit.store(1, std::memory_order_relaxed);
    }
    bool join(SharedFailure* failure) {
        if (segment_.join(failure)) return true;
        if (failure->error != SharedError::crowded) return false;
        // The dead take no part.
        RecoveryReport report{};
        look(&report);
        if (report.participants == 0) return false;
        *failure = {};
        return segment_.join(failure);
    }

    void write(uint64_t slot, const char* from, uint64_t bytes) {
        std::memcpy(segment_.payload(slot), from, bytes);
        if (!records()) segment_.length(slot).store(static_cast<uint32_t>(bytes), std::memory_order_relaxed);
    }
    uint32_t length_of(uint64_t slot, int* status) const {
        if (records()) return static_cast<uint32_t>(config().itemsize);
        const uint32_t bytes = segment_.length(slot).load(std::memory_order_relaxed);
        if (bytes <= config().itemsize) return bytes;
        *status = EDGEFAST_DAMAGED;
        return 0;
    }

    template <class Write>
    int64_t put_each_by(int64_t n, int64_t deadline, int* status, Write write_one) {
        return put_all(n, deadline, status, [&](const uint32_t* slots, int64_t count, int64_t first) {
            for (int64_t i = 0; i < count; ++i) write_one(slots[i], first + i);
        });
    }
    template <class Write>
    int64_t put_all(int64_t n, int64_t deadline, int* status, Write write_some) {
        *status = EDGEFAST_OK;
        int64_t done = 0;
        if (latest() && n > 1) {
            // The others would be dropped by the last one.
            if (ring_.is_down()) {
                *status = EDGEFAST_SHUT_DOWN;
                return 0;
            }
            done = n - 1;
        }
        const int64_t skipped = done;
        uint32_t slots[SharedSegment::kMostAtOnce];
        while (done < n) {
            constexpr int64_t kMost = SharedSegment::kMostAtOnce;
            const int64_t most = n - done < kMost ? n - done : kMost;
            bool past_gate = false;
            const int64_t count = claim(most, deadline, slots, false, status, &past_gate);
            if (count == 0) {
                if (*status == EDGEFAST_OK) add(entry().dropped_newest, n - done);
                if (done == skipped) return 0;
                break;
            }
            write_some(slots, count, done);
            EDGEFAST_CRASH_POINT("put.written");
            const Taken t = publish(slots, count, past_gate, status);
            for (int64_t i = t.count; i < count; ++i) ring_.give_back(segment_.me(), slots[i]);
            if (t.count < count) notify_room();  // somebody may wait for a slot
            done += t.count;
            if (*status != EDGEFAST_OK) {
                if (done == skipped) return 0;
                break;
            }
        }
        if (skipped) add(entry().passed_over, skipped);
        return done;
    }
    // Room and slots for 1 to `most` records. 0 with EDGEFAST_OK: the policy drops the new ones.
    int64_t claim(int64_t most, int64_t deadline, uint32_t* slots, bool in_a_row, int* status, bool* past = nullptr) {
        if (!segment_.joined()) {
            *status = EDGEFAST_DETACHED;
            return 0;
        }
        bool past_gate = false;
        Taken room = ring_.look_for_room(most, false);
        for (;;) {
            if (room.count == 0) room = make_room(most, deadline, &past_gate, status);
            if (room.count == 0) return 0;
            const int64_t n = ring_.claim(segment_.me(), room.count, slots, in_a_row);
            if (past) *past = past_gate;
            if (n) return n;
            // Every slot is in somebody's hands: nothing a producer could drop.
            room = wait_for_slot(deadline, status);
            if (room.count == 0) return 0;
        }
    }
    // After a look that found no room: as the policy says.
    Taken make_room(int64_t n, int64_t deadline, bool* past_gate, int* status) {
        const Taken nothing{Took::none, 0};
        Taken t = ring_.look_for_room(n, *past_gate);
        for (;;) {
            if (t.count) return t;
            if (!judge(t, status)) return nothing;
            if (policy() == RecordQueue::drop_oldest || latest()) {
                *past_gate = true;
                if (!drop(n, status)) return nothing;
                t = ring_.look_for_room(n, true);
                continue;
            }
            if (policy() == RecordQueue::block) {
                if (deadline != kTry) {
                    t = wait(segment_.control().room, deadline, status, &entry().full_waits,
                             [&] { return ring_.look_for_room(n, false); });
                    if (t.count) return t;
                }
                if (*status == EDGEFAST_OK && judge(t, status)) *status = EDGEFAST_FULL;
                return nothing;
            }
            if (policy() == RecordQueue::error) {
                add(entry().refused, 1);
                *status = EDGEFAST_FULL;
            }
            return nothing;
        }
    }
    // Until a slot may be free, by policy.
    Taken wait_for_slot(int64_t deadline, int* status) {
        const Taken nothing{Took::none, 0};
        const auto attempt = [&] {
            const Taken t = ring_.look_for_room(1, false);
            return t.count && !ring_.any_free() ? nothing : t;
        };
        Taken t = nothing;
        if (policy() == RecordQueue::block && deadline != kTry)
            t = wait(segment_.control().room, deadline, status, &entry().full_waits, attempt);
        else if (look_if_due()) t = attempt();
        if (t.count || *status != EDGEFAST_OK || !judge(t, status)) return t;
        if (policy() == RecordQueue::error) add(entry().refused, 1);
        if (policy() == RecordQueue::error || policy() == RecordQueue::block) *status = EDGEFAST_FULL;
        return nothing;
    }
    // False: *status says why nothing can be done.
    bool judge(const Taken& t, int* status) const {
        if (t.outcome == Took::down) *status = EDGEFAST_SHUT_DOWN;
        if (t.outcome == Took::damaged) *status = EDGEFAST_DAMAGED;
        if (is_leaving()) *status = EDGEFAST_DETACHED;
        return *status == EDGEFAST_OK;
    }
    bool is_leaving() const { return leaving_.load(std::memory_order_relaxed) || !segment_.joined(); }
    // Drops up to n of the oldest.
    bool drop(int64_t n, int* status) {
        uint32_t slots[kBatch];
        const Taken t = ring_.take(Ring::dropping, segment_.me(), n < kBatch ? n : kBatch, slots, false);
        for (int64_t i = 0; i < t.count; ++i) ring_.free(Ring::dropping, segment_.me(), slots[i]);
        if (t.count) notify_room();
        if (t.outcome != Took::damaged) return true;
        *status = EDGEFAST_DAMAGED;
        return false;
    }
    Taken publish(const uint32_t* slots, int64_t n, bool past_gate, int* status) {
        const Taken t = ring_.publish(segment_.me(), slots, n, past_gate);
        if (t.count) {
            note(t);
            look_while_busy();
            if (segment_.control().items.notify()) add(entry().wakeups, 1);
        }
        judge(t, status);
        return t;
    }

    // Takes records as `kind` and hands their slots to `use`, which frees them or does not.
    template <class Use>
    int64_t take(Ring::State kind, int64_t most, int64_t deadline, bool in_a_row, int* status, Use use) {
        if (!segment_.joined()) {
            *status = EDGEFAST_DETACHED;
            return 0;
        }
        uint32_t few[kBatch];
        uint32_t* slots = few;
        void* many = nullptr;
        if (most > kBatch) {
            // All of them at once: those freed early would be lost if this process died before it has all.
            const int64_t there = ring_.size();
            if (most > there) most = there > kBatch ? there : kBatch;
            if (most > kBatch) many = std::malloc(static_cast<size_t>(most) * sizeof *slots);
            if (many) slots = static_cast<uint32_t*>(many);
            else most = kBatch;
        }
        const auto attempt = [&] { return ring_.take(kind, segment_.me(), most, slots, in_a_row); };
        Taken t = attempt();
        if (t.outcome == Took::none && deadline != kTry)
            t = wait(segment_.control().items, deadline, status, &entry().empty_waits, attempt);
        else if (t.outcome == Took::none && look_if_due())
            t = attempt();
        if (t.count) {
            sample_taken(t);
            use(slots, t);
            look_while_busy();
        } else if (*status == EDGEFAST_OK && judge(t, status)) {
            *status = EDGEFAST_EMPTY;
        }
        std::free(many);
        return t.count;
    }
    void release_slots(const uint32_t* slots, const Taken& t) {
        for (int64_t i = 0; i < t.count; ++i) ring_.free(Ring::reading, segment_.me(), slots[i]);
        notify_room();
    }
    bool mine(Ring::State kind, uint64_t ticket, int64_t n, int* status) const {
        *status = EDGEFAST_OK;
        if (!segment_.joined()) *status = EDGEFAST_DETACHED;
        else if (n < 1 || ticket >= ring_.slots() || static_cast<uint64_t>(n) > ring_.slots() - ticket) *status = EDGEFAST_DAMAGED;
        for (int64_t i = 0; i < n && *status == EDGEFAST_OK; ++i)
            if (!ring_.owns(kind, segment_.me(), ticket + static_cast<uint64_t>(i))) *status = EDGEFAST_DAMAGED;
        return *status == EDGEFAST_OK;
    }

    bool gather(int64_t least, int64_t deadline, int64_t linger, int* status) {
        if (await_many(1, deadline, status) == 0) return false;
        await_many(least, now_ns() + linger, status);
        if (*status == EDGEFAST_INTERRUPTED || *status == EDGEFAST_DAMAGED) return false;
        // Others may have taken them meanwhile: then whatever comes next.
        *status = EDGEFAST_OK;
        return true;
    }

    // Repeats attempt() until its outcome is not `none`, the deadline, a signal, or close().
    template <class Try>
    Taken wait(SharedEvent<StdAtomics>& event, int64_t deadline, int* status, std::atomic<int64_t>* waits, Try attempt) {
        const Taken nothing{Took::none, 0};
        Taken t = attempt();
        if (t.outcome != Took::none) return t;
        if (deadline < 0) return look_if_due() ? attempt() : nothing;
        // Before it sleeps, as long as that pays: with the other side on the same CPU, or away for long, it never does.
        const int credit = peek(spin_credit_);
        const bool spins = spins_ > 0 && (credit > 0 || probes_.fetch_add(1, std::memory_order_relaxed) % kProbeEvery == 0);
        for (int i = 1; spins && i <= spins_; ++i) {
            pause();
            // Not more often: who takes each record as it comes exchanges its cache lines with the producer each time.
            if (i % kLookEvery == 0 && (t = attempt()).outcome != Took::none) {
                if (credit < kMostCredit) spin_credit_.store(credit + 2, std::memory_order_relaxed);
                return t;
            }
        }
        if (spins && credit > 0) spin_credit_.store(credit - 1, std::memory_order_relaxed);
        std::atomic<int64_t>& sleepers = &event == &segment_.control().items ? entry().waiting_get : entry().waiting_put;
        Slept slept = Slept::woken;
        for (bool counted = false;;) {
            const int64_t now = now_ns();
            if ((deadline != kForever && now >= deadline) || is_leaving()) return nothing;
            if (slept == Slept::timed_out && polls_) {
                if (waits) add(*waits, -1);  // it is counted where it goes on
                *status = EDGEFAST_INTERRUPTED;
                return nothing;
            }
            look_if_due(now);
            const uint32_t key = event.prepare();
            EDGEFAST_CRASH_POINT("wait.prepared");
            t = attempt();
            if (t.outcome != Took::none) return t;
            if (!counted && waits) add(*waits, 1);
            counted = true;
            add(sleepers, 1);
            int64_t look = peek(segment_.control().looked) + kLook;
            if (look <= now || look > now + kLook) look = now + kLook;
            slept = event.wait(key, deadline < look ? deadline : look);
            EDGEFAST_CRASH_POINT("wait.woken");
            if (!segment_.joined()) return nothing;
            add(sleepers, -1);
            if (is_leaving()) return nothing;
            t = attempt();
            if (t.outcome != Took::none) return t;
            if (slept == Slept::interrupted) {
                *status = EDGEFAST_INTERRUPTED;
                return nothing;
            }
        }
    }
    static void pause() {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("isb" ::: "memory");
#endif
    }
    void notify_room() { segment_.control().room.notify(); }
    void notify_all() {
        segment_.control().items.notify();
        segment_.control().room.notify();
    }

    // Looks for the dead if nobody has for a while, in any process. True: something may have changed.
    bool look_if_due(int64_t now = now_ns()) {
        std::atomic<int64_t>& looked = segment_.control().looked;
        int64_t last = peek(looked);
        // A time ahead of ours is of another time namespace, or nonsense.
        if (last <= now && now - kLook < last) return false;
        if (!looked.compare_exchange_strong(last, now, std::memory_order_relaxed)) return false;
        RecoveryReport report{};
        look(&report);
        return report.participants > 0;
    }
    // Those who never wait look now and then, too.
    void look_while_busy() {
        const uint32_t calls = peek(calls_);
        calls_.store(calls + 1, std::memory_order_relaxed);
        if (calls % kCallsPerLook == 0) look_if_due();
    }
    void look(RecoveryReport* report) {
        // Two threads of one handle share their locks.
        if (recovering_.exchange(true, std::memory_order_acquire)) return;
        for (uint64_t i = 0; i < config().participants; ++i) {
            if ((segment_.joined() && i == segment_.me()) || !segment_.in_use(i) || !segment_.seize(i)) continue;
            EDGEFAST_CRASH_POINT("recover.locked");
            SharedEntry& e = segment_.entry(i);
            const Ring::Recovered r = ring_.recover(i, !config().drop_of_dead, true, e.journal);
            add(e.recoveries, 1);
            report->participants += 1;
            report->lost += r.lost;
            report->redelivered += r.redelivered;
            report->dropped += r.dropped;
            report->damaged |= r.damaged;
            segment_.bury(i);
            EDGEFAST_CRASH_POINT("recover.unlocked");
            notify_all();
        }
        recovering_.store(false, std::memory_order_release);
    }

    // After records were put: peak, gate, and now and then a time stamp.
    void note(const Taken& t) {
        SharedSegment::Control& c = segment_.control();
        if (t.closed) add(entry().high_events, 1);
        for (int64_t peak = peek(c.peak); t.used > peak;)
            if (c.peak.compare_exchange_weak(peak, t.used, std::memory_order_relaxed)) break;
        const uint64_t sample = (t.position + kSampleEvery - 1) / kSampleEvery * kSampleEvery;
        uint64_t none = 0;
        if (sample < t.position + static_cast<uint64_t>(t.count) && peek(c.sample) == 0)
            c.sample.compare_exchange_strong(none, microseconds() << 24 | (sample & 0xffffff), std::memory_order_relaxed);
    }
    void sample_taken(const Taken& t) {
        SharedSegment::Control& c = segment_.control();
        const uint64_t sample = peek(c.sample);
        if (sample == 0) return;
        // Differences of the low 24 bits, signed.
        const auto after = [&](uint64_t position) { return static_cast<int32_t>(static_cast<uint32_t>(position - sample) << 8); };
        if (after(t.position + static_cast<uint64_t>(t.count)) <= 0) return;
        // Taken now, or before by somebody who did not say: then there is nothing to learn from it.
        if (after(t.position) <= 0) {
            const uint64_t took = ((microseconds() - (sample >> 24)) & 0xffffffffff) * 1000 + 1, average = peek(c.sojourn);
            c.sojourn.store(average == 0 ? took : average - average / 8 + took / 8, std::memory_order_relaxed);
        }
        c.sample.store(0, std::memory_order_relaxed);
    }
    static uint64_t microseconds() { return (static_cast<uint64_t>(now_ns()) / 1000 & 0xffffffffff) | 1; }

    // About what a sleep and a wake-up cost: the other side is often at its next record by then.
    static constexpr int kSpins = 400;
    static constexpr int kLookEvery = 24, kMostCredit = 8;
    static constexpr uint32_t kProbeEvery = 64;  // waits: how often one that sleeps at once finds out whether to
    // From this size on the slot freed last is taken first: it is still in the cache.
    static constexpr uint64_t kBigSlot = 65536;

    SharedSegment segment_;
    Ring ring_;
    std::atomic<uint64_t> cursor_{0};
    std::atomic<uint32_t> calls_{0};
    std::atomic<bool> recovering_{false}, leaving_{false};
    bool polls_ = false;
    int spins_ = 0;
    std::atomic<int> spin_credit_{kMostCredit};
    std::atomic<uint32_t> probes_{0};
};

}  // namespace ef

#endif
