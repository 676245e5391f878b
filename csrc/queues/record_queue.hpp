// RecordQueue: a bounded queue of fixed-size records with policies, a gate and statistics, over BlockingRing.
//
// Everything here runs without the GIL and from any thread. Memory: capacity * itemsize bytes and two bits a record,
// touched when first used. Counters are relaxed: each is exact, two of them may be a moment apart.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "edgefast/record_queue.h"
#include "queues/blocking_ring.hpp"

namespace ef {

// Beside a time and kDontBlock: return EDGEFAST_BUSY instead of sleeping even for a copy under way, so that a thread
// that holds the GIL can give it up first.
constexpr int64_t kTry = -2;

class RecordQueue {
public:
    enum Policy { block, drop_newest, drop_oldest, latest, error };

    struct Counters {
        int64_t size, waiting_put, waiting_get, puts, gets, cleared, dropped_newest, dropped_oldest, refused, full_waits,
            empty_waits, wakeups, high_events, peak, closed, bytes;
        double sojourn;
    };

    RecordQueue() = default;
    ~RecordQueue() { std::free(memory_); }
    RecordQueue(const RecordQueue&) = delete;
    RecordQueue& operator=(const RecordQueue&) = delete;

    // False when there is no memory.
    bool allocate(int64_t itemsize, int64_t capacity, Policy policy) {
        itemsize_ = itemsize;
        policy_ = policy;
        if (capacity > (INT64_MAX - 2 * kPage) / itemsize) return false;
        memory_ = std::calloc(static_cast<size_t>(capacity * itemsize + kPage), 1);
        if (!memory_ || !ring_.allocate(static_cast<uint64_t>(capacity))) return false;
        // In the middle of a page: big arrays begin near the start of one, and a copy between two places of the same
        // offset within their pages is half as fast, because loads then seem to need the stores before them.
        const auto offset = static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory_) % kPage);
        slots_ = static_cast<char*>(memory_) + (kPage + kPage / 2 - offset) % kPage;
        handle_ = {this,        static_cast<size_t>(itemsize), &c_put,     &c_get,  &c_reserve, &c_commit, &c_abort, &c_view,
                   &c_release, &c_size,                       &c_shutdown};
        return true;
    }
    // As Ring::configure. "latest" holds one record whatever the limit.
    void configure(int64_t limit, int64_t high, int64_t low) {
        ring_.configure(policy_ == latest ? 1 : limit, policy_ == latest ? 0 : high, low);
    }

    int64_t put(const void* records, int64_t n, int64_t deadline, int* status) {
        const char* from = static_cast<const char*>(records);
        int64_t done = 0;
        *status = EDGEFAST_OK;
        if (policy_ == latest && n > 1) {
            // The others would be dropped by the last one.
            if (ring_.is_down()) {
                *status = EDGEFAST_SHUT_DOWN;
                return 0;
            }
            done = n - 1;
        }
        const int64_t skipped = done;
        while (done < n) {
            Claim c = ring_.claim_put(n - done);
            if (c.count == 0) c = claim_by_policy(c, n - done, deadline, status);
            if (c.count == 0) {
                if (*status == EDGEFAST_OK) add(dropped_newest_, n - done);
                if (done == skipped) return 0;
                break;
            }
            copy_in(c, from + done * itemsize_);
            published(c);
            done += c.count;
        }
        if (skipped) add(passed_over_, skipped);
        return done;
    }

    // 1 to `most` records once `least` are there or `linger` (nanoseconds since the first) is over.
    int64_t get(void* out, int64_t most, int64_t least, int64_t deadline, int64_t linger, int* status) {
        *status = EDGEFAST_OK;
        const Claim c = least > 1 && linger > 0 ? claim_batch(most, least, deadline, linger, status)
                                                : claim_records(most, deadline, false, status);
        if (c.count == 0) return 0;
        copy_out(c, static_cast<char*>(out));
        freed(c);
        return c.count;
    }
    // Until records are there, without taking them: how many, or 0 and why.
    int64_t await(int64_t deadline, int* status) {
        *status = EDGEFAST_OK;
        bool counted = false;
        for (;;) {
            const int64_t n = ring_.size();
            if (n > 0) return n;
            if (ring_.is_down()) {
                *status = EDGEFAST_SHUT_DOWN;
                return 0;
            }
            if (deadline < 0 || (deadline != kForever && now_ns() >= deadline)) {
                *status = EDGEFAST_EMPTY;
                return 0;
            }
            if (!counted) add(empty_waits_, 1);
            counted = true;
            if (!ring_.linger(1, deadline)) {
                *status = EDGEFAST_INTERRUPTED;
                return 0;
            }
        }
    }

    int64_t reserve(int64_t n, int64_t deadline, void** slots, uint64_t* ticket, int* status) {
        *status = EDGEFAST_OK;
        ring_.hold_writer(1);
        Claim c = ring_.claim_put(n, false, true);
        if (c.count == 0) c = claim_by_policy(c, n, deadline, status, true);
        if (c.count == 0) {
            if (*status == EDGEFAST_OK) {
                add(dropped_newest_, n);
                *status = EDGEFAST_FULL;
            }
            ring_.hold_writer(-1);
            return 0;
        }
        *slots = slot(c.position);
        *ticket = c.position;
        note(c);
        return c.count;
    }
    void commit(uint64_t ticket, int64_t n) {
        ring_.publish(ticket, n);
        ring_.hold_writer(-1);
    }
    void abort(uint64_t ticket, int64_t n) {
        ring_.abandon(ticket, n);
        ring_.hold_writer(-1);
    }
    int64_t view(int64_t n, int64_t deadline, const void** records, uint64_t* ticket, int* status) {
        *status = EDGEFAST_OK;
        ring_.hold_reader(1);
        const Claim c = claim_records(n, deadline, true, status);
        if (c.count == 0) {
            ring_.hold_reader(-1);
            return 0;
        }
        *records = slot(c.position);
        *ticket = c.position;
        return c.count;
    }
    void release(uint64_t ticket, int64_t n) {
        freed({Claimed::some, ticket, n, 0, false});
        ring_.hold_reader(-1);
    }

    int64_t clear() {
        int64_t n = 0;
        for (Claim c; (c = ring_.claim_get(INT64_MAX)).count > 0; n += c.count) ring_.free(c.position, c.count);
        add(cleared_, n);
        return n;
    }
    void shut_down(bool immediate) {
        ring_.shut_down();
        if (immediate) clear();
    }
    bool is_down() const { return ring_.is_down(); }
    bool closed() const { return ring_.closed(); }
    int64_t size() const { return ring_.size(); }
    int64_t room() const { return ring_.room(); }
    int64_t itemsize() const { return itemsize_; }
    // EDGEFAST_OK when the gate is open; else why the wait ended.
    int writable(int64_t deadline) {
        const auto w = ring_.writable(deadline);
        if (w.claim.count) return EDGEFAST_OK;
        return w.interrupted ? EDGEFAST_INTERRUPTED : w.claim.outcome == Claimed::down ? EDGEFAST_SHUT_DOWN : EDGEFAST_FULL;
    }
    void forget_waiters() { ring_.forget_waiters(); }
    const edgefast_record_queue* handle() const { return &handle_; }

    Counters counters() const {
        const int64_t size = ring_.size(), cleared = peek(cleared_), oldest = peek(dropped_oldest_), over = peek(passed_over_);
        return {size,
                ring_.waiting_put(),
                ring_.waiting_get(),
                static_cast<int64_t>(ring_.put_position()) - ring_.abandoned() + over,
                static_cast<int64_t>(ring_.get_position()) - ring_.skipped() - oldest - cleared,
                cleared,
                peek(dropped_newest_),
                oldest + over,
                peek(refused_),
                peek(full_waits_),
                peek(empty_waits_),
                ring_.wakeups(),
                peek(high_events_),
                peek(peak_),
                ring_.closed(),
                size * itemsize_,
                sojourn_.load(std::memory_order_relaxed)};
    }

private:
    using Counter = std::atomic<int64_t>;
    static constexpr int64_t kPage = 4096;
    static constexpr uint64_t kSampleEvery = 64;

    static void add(Counter& c, int64_t n) { c.fetch_add(n, std::memory_order_relaxed); }
    static int64_t peek(const Counter& c) { return c.load(std::memory_order_relaxed); }

    // After claim_put found nothing. Count 0 with *status still EDGEFAST_OK: the policy drops the new records.
    Claim claim_by_policy(Claim c, int64_t n, int64_t deadline, int* status, bool in_a_row = false) {
        const Claim nothing{Claimed::none, 0, 0, 0, false};
        for (;;) {
            if (c.count) return c;
            if (c.outcome == Claimed::down) {
                *status = EDGEFAST_SHUT_DOWN;
                return nothing;
            }
            if (deadline == kTry && (c.outcome == Claimed::busy || policy_ == block)) {
                *status = c.outcome == Claimed::busy ? EDGEFAST_BUSY : EDGEFAST_FULL;
                return nothing;
            }
            if (policy_ == drop_oldest || policy_ == latest) {
                if (!drop(n, deadline, status)) return nothing;
                c = ring_.claim_put(n, true, in_a_row);
                if (c.count || c.outcome != Claimed::busy) continue;
                if (deadline == kTry) continue;
                const auto w = ring_.put(n, kDontBlock, true, in_a_row);
                if (w.interrupted) *status = EDGEFAST_INTERRUPTED;
                if (w.interrupted || w.claim.outcome == Claimed::busy) return nothing;
                c = w.claim;
                continue;
            }
            if (deadline == kTry) {
                if (policy_ == error) refuse(status);
                return nothing;
            }
            const auto w = ring_.put(n, policy_ == block ? deadline : kDontBlock, false, in_a_row);
            if (w.waited) add(full_waits_, 1);
            if (w.claim.count) return w.claim;
            if (w.interrupted) *status = EDGEFAST_INTERRUPTED;
            else if (w.claim.outcome == Claimed::down) *status = EDGEFAST_SHUT_DOWN;
            else if (policy_ != drop_newest) refuse(status);
            return nothing;
        }
    }
    void refuse(int* status) {
        add(refused_, 1);
        *status = EDGEFAST_FULL;
    }
    // Drops up to n of the oldest. False when the new records must be dropped instead, because the oldest is held open,
    // or when *status says more.
    bool drop(int64_t n, int64_t deadline, int* status) {
        Claim c = ring_.claim_get(n);
        if (c.count == 0 && c.outcome == Claimed::busy) {
            if (deadline == kTry) {
                *status = EDGEFAST_BUSY;
                return false;
            }
            const auto w = ring_.get(n, kDontBlock);
            if (w.interrupted) {
                *status = EDGEFAST_INTERRUPTED;
                return false;
            }
            c = w.claim;
            if (c.outcome == Claimed::busy) return false;
        }
        if (c.count) {
            ring_.free(c.position, c.count);
            add(dropped_oldest_, c.count);
        }
        return true;
    }

    Claim claim_records(int64_t n, int64_t deadline, bool in_a_row, int* status) {
        const Claim c = ring_.claim_get(n, in_a_row);
        if (c.count) return c;
        if (c.outcome == Claimed::down || deadline == kTry) {
            *status = c.outcome == Claimed::down ? EDGEFAST_SHUT_DOWN
                      : c.outcome == Claimed::busy ? EDGEFAST_BUSY
                                                   : EDGEFAST_EMPTY;
            return c;
        }
        const auto w = ring_.get(n, deadline, in_a_row);
        if (w.waited) add(empty_waits_, 1);
        if (w.claim.count == 0)
            *status = w.interrupted                         ? EDGEFAST_INTERRUPTED
                      : w.claim.outcome == Claimed::down ? EDGEFAST_SHUT_DOWN
                                                         : EDGEFAST_EMPTY;
        return w.claim;
    }
    Claim claim_batch(int64_t most, int64_t least, int64_t deadline, int64_t linger, int* status) {
        const Claim nothing{Claimed::none, 0, 0, 0, false};
        if (await(deadline, status) == 0) return nothing;
        if (ring_.size() < least && !ring_.linger(least, now_ns() + linger)) {
            *status = EDGEFAST_INTERRUPTED;
            return nothing;
        }
        // Others may have taken them meanwhile: then whatever comes next.
        return claim_records(most, deadline, false, status);
    }

    char* slot(uint64_t position) { return slots_ + static_cast<int64_t>(position % ring_.capacity()) * itemsize_; }
    int64_t before_wrap(const Claim& c) const {
        const int64_t n = static_cast<int64_t>(ring_.capacity() - c.position % ring_.capacity());
        return n < c.count ? n : c.count;
    }
    void copy_in(const Claim& c, const char* from) {
        const size_t first = static_cast<size_t>(before_wrap(c) * itemsize_);
        std::memcpy(slot(c.position), from, first);
        if (const size_t rest = static_cast<size_t>(c.count * itemsize_) - first) std::memcpy(slots_, from + first, rest);
    }
    void copy_out(const Claim& c, char* to) {
        const size_t first = static_cast<size_t>(before_wrap(c) * itemsize_);
        std::memcpy(to, slot(c.position), first);
        if (const size_t rest = static_cast<size_t>(c.count * itemsize_) - first) std::memcpy(to + first, slots_, rest);
    }
    void published(const Claim& c) {
        note(c);
        ring_.publish(c.position, c.count);
    }
    // Before the records can be taken: peak, gate, and now and then a time stamp.
    void note(const Claim& c) {
        if (c.closed) add(high_events_, 1);
        for (int64_t peak = peek(peak_); c.used > peak;)
            if (peak_.compare_exchange_weak(peak, c.used, std::memory_order_relaxed)) break;
        const uint64_t sample = (c.position + kSampleEvery - 1) / kSampleEvery * kSampleEvery;
        int64_t nobody = 0;
        if (sample < c.position + static_cast<uint64_t>(c.count) && peek(sampled_at_) == 0 &&
            sampled_at_.compare_exchange_strong(nobody, -1, std::memory_order_relaxed)) {
            sampled_position_.store(sample, std::memory_order_relaxed);
            sampled_at_.store(now_ns(), std::memory_order_release);
        }
    }
    void freed(const Claim& c) {
        const int64_t at = sampled_at_.load(std::memory_order_acquire);
        if (at > 0) {
            const uint64_t sample = sampled_position_.load(std::memory_order_relaxed);
            if (sample < c.position + static_cast<uint64_t>(c.count)) {
                // Taken now, or dropped or skipped before: then there is nothing to learn from it.
                if (sample >= c.position) {
                    const double seconds = static_cast<double>(now_ns() - at) * 1e-9;
                    const double average = sojourn_.load(std::memory_order_relaxed);
                    sojourn_.store(average < 0 ? seconds : average + 0.125 * (seconds - average), std::memory_order_relaxed);
                }
                sampled_at_.store(0, std::memory_order_relaxed);
            }
        }
        ring_.free(c.position, c.count);
    }

    // The C functions. A negative time-out is for ever.
    static RecordQueue* self(void* queue) { return static_cast<RecordQueue*>(queue); }
    static int64_t deadline_of(int64_t timeout) {
        return timeout < 0 ? kForever : timeout == 0 ? kDontBlock : timeout > kForever - now_ns() ? kForever : now_ns() + timeout;
    }
    static int64_t c_put(void* q, const void* records, int64_t n, int64_t timeout, int* status) {
        return self(q)->put(records, n, deadline_of(timeout), status);
    }
    static int64_t c_get(void* q, void* out, int64_t n, int64_t timeout, int* status) {
        return self(q)->get(out, n, 1, deadline_of(timeout), 0, status);
    }
    static int64_t c_reserve(void* q, int64_t n, int64_t timeout, void** slots, uint64_t* ticket, int* status) {
        return self(q)->reserve(n, deadline_of(timeout), slots, ticket, status);
    }
    static void c_commit(void* q, uint64_t ticket, int64_t n) { self(q)->commit(ticket, n); }
    static void c_abort(void* q, uint64_t ticket, int64_t n) { self(q)->abort(ticket, n); }
    static int64_t c_view(void* q, int64_t n, int64_t timeout, const void** records, uint64_t* ticket, int* status) {
        return self(q)->view(n, deadline_of(timeout), records, ticket, status);
    }
    static void c_release(void* q, uint64_t ticket, int64_t n) { self(q)->release(ticket, n); }
    static int64_t c_size(void* q) { return self(q)->size(); }
    static void c_shutdown(void* q) { self(q)->shut_down(false); }

    BlockingRing<StdAtomics> ring_;
    void* memory_ = nullptr;
    char* slots_ = nullptr;
    int64_t itemsize_ = 0;
    Policy policy_ = block;
    edgefast_record_queue handle_{};
    Counter cleared_{0}, dropped_newest_{0}, dropped_oldest_{0}, passed_over_{0}, refused_{0}, full_waits_{0},
        empty_waits_{0}, high_events_{0};
    alignas(128) Counter peak_{0};
    Counter sampled_at_{0};
    std::atomic<uint64_t> sampled_position_{0};
    std::atomic<double> sojourn_{-1.0};
};

}  // namespace ef
