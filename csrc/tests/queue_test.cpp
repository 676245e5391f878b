// The ring, the gate and the wait lists: unit tests, then the blocking queue they make under many threads. A mutex
// plays the part the GIL or the critical section plays in the binding; run it under TSan.
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "check.hpp"
#include "queues/gated_ring.hpp"
#include "queues/parker.hpp"

namespace {

void ring_against_a_deque() {
    uint64_t random = 88172645463325252ull;
    auto next = [&](uint64_t n) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        return random % n;
    };
    for (int round = 0; round < 200; ++round) {
        const int64_t limit = static_cast<int64_t>(next(9));
        int64_t high = static_cast<int64_t>(next(9));
        if (limit > 0 && high > limit) high = limit;
        const int64_t low = high ? static_cast<int64_t>(next(static_cast<uint64_t>(high))) : 0;
        ef::GatedRing<uint64_t> ring;
        ring.configure(limit, high, low);
        std::deque<uint64_t> model;
        bool closed = false;
        uint64_t value = 0;
        for (int step = 0; step < 2000; ++step) {
            if (next(2)) {
                const bool room = !closed && (!limit || static_cast<int64_t>(model.size()) < limit);
                CHECK((ring.room() > 0) == room);
                if (!room) continue;
                CHECK(ring.reserve(1));
                model.push_back(value);
                const bool closes = high && static_cast<int64_t>(model.size()) >= high && !closed;
                CHECK(ring.push(value++) == closes);
                closed |= closes;
            } else if (!model.empty()) {
                bool reopened = false;
                CHECK(ring.pop(&reopened) == model.front());
                model.pop_front();
                const bool opens = closed && static_cast<int64_t>(model.size()) <= low;
                CHECK(reopened == opens);
                if (opens) closed = false;
            }
            CHECK(ring.size() == static_cast<int64_t>(model.size()) && ring.closed() == closed);
            for (size_t i = 0; i < model.size(); ++i) CHECK(ring.at(static_cast<int64_t>(i)) == model[i]);
        }
    }
}

void ring_gives_memory_back() {
    ef::GatedRing<uint64_t> ring;
    bool reopened = false;
    for (uint64_t i = 0; i < 300000; ++i) {
        CHECK(ring.reserve(1));
        ring.push(i);
    }
    for (uint64_t i = 0; i < 300000; ++i) CHECK(ring.pop(&reopened) == i);
    CHECK(ring.reserve(1) && !reopened);
    ring.push(7);
    CHECK(ring.pop(&reopened) == 7);
}

// Bytes, the number of items to evict, and the parts of push and pop.
void metered_ring_against_a_deque() {
    uint64_t random = 1234567ull;
    auto next = [&](uint64_t n) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        return random % n;
    };
    for (int round = 0; round < 200; ++round) {
        const int64_t limit = static_cast<int64_t>(next(6)), max_bytes = static_cast<int64_t>(4 + next(9));
        const int64_t high = limit > 1 && next(2) ? limit : 0, low = high / 2;
        ef::GatedRing<uint64_t> ring;
        ring.meter(max_bytes);
        ring.configure(limit, high, low);
        std::deque<std::pair<uint64_t, int64_t>> model;
        bool closed = false;
        auto used = [&] {
            int64_t sum = 0;
            for (const auto& [item, bytes] : model) sum += bytes;
            return sum;
        };
        auto gate = [&] {
            const int64_t size = static_cast<int64_t>(model.size());
            if (high && !closed && size >= high) closed = true;
            else if (closed && size <= low) closed = false;
            ring.settle();
            CHECK(ring.closed() == closed);
        };
        for (uint64_t step = 0; step < 1000; ++step) {
            if (next(3)) {
                const int64_t bytes = static_cast<int64_t>(next(static_cast<uint64_t>(max_bytes + 1)));
                const bool in = !closed && (!limit || static_cast<int64_t>(model.size()) < limit);
                CHECK(ring.fits(bytes) == (in && used() + bytes <= max_bytes));
                int64_t n = ring.fits(bytes) ? 0 : ring.excess(bytes);
                CHECK((n > 0) == !ring.fits(bytes));
                CHECK(ring.reserve(1));
                for (bool first = closed; n > 0; --n, first = false) {
                    // Every one of them has to go.
                    const bool full = limit && static_cast<int64_t>(model.size()) >= limit;
                    CHECK(first || full || used() + bytes > max_bytes);
                    CHECK(ring.remove() == model.front().first);
                    model.pop_front();
                }
                ring.append(step, ef::Meter{bytes, static_cast<int64_t>(step)});
                model.emplace_back(step, bytes);
                CHECK(used() <= max_bytes && (!limit || static_cast<int64_t>(model.size()) <= limit));
            } else if (!model.empty()) {
                CHECK(ring.meter_at(0).stamp == static_cast<int64_t>(model.front().first));
                CHECK(ring.remove() == model.front().first);
                model.pop_front();
            }
            gate();
            CHECK(ring.bytes() == used() && ring.size() == static_cast<int64_t>(model.size()));
        }
    }
}

void many_at_once() {
    ef::GatedRing<uint64_t> ring;
    uint64_t in = 0, out = 0, taken[40];
    for (uint64_t n = 0; n < 400; ++n) {
        CHECK(ring.reserve(static_cast<int64_t>(n % 37)));
        for (uint64_t i = 0; i < n % 37; ++i) ring.append(in++);
        const int64_t k = ring.size() < static_cast<int64_t>(n % 40) ? ring.size() : static_cast<int64_t>(n % 40);
        ring.remove(taken, k);
        for (int64_t i = 0; i < k; ++i) CHECK(taken[i] == out++);
        CHECK(ring.size() == static_cast<int64_t>(in - out));
    }
}

void wait_list_is_fifo() {
    ef::WaitList list;
    ef::Parker a, b, c;
    list.add(&a), list.add(&b), list.add(&c);
    list.remove(&b);
    CHECK(list.size() == 2 && !b.listed && list.first() == &a);
    list.add_first(&b);
    CHECK(list.first() == &b);
    list.remove(&b);
    CHECK(list.wake(1) == 1 && !a.listed && c.listed);
    CHECK(list.wake(5) == 1 && list.empty());
    a.wait(ef::kForever);  // was signalled: returns at once
    const int64_t deadline = ef::now_ns() + 2000000;
    while (ef::now_ns() < deadline) b.wait(deadline);
}

// The binding's algorithm over std::mutex.
class BlockingQueue {
public:
    BlockingQueue(int64_t limit, int64_t high, int64_t low) { ring_.configure(limit, high, low); }

    bool put(uint64_t value, int64_t deadline) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (!wait(lock, putters_, deadline, [&] { return ring_.room() > 0; })) return false;
        CHECK(ring_.reserve(1));
        ring_.push(value);
        if (ring_.size() > peak_) peak_ = ring_.size();
        getters_.wake(1);
        return true;
    }
    bool get(uint64_t* value, int64_t deadline) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (!wait(lock, getters_, deadline, [&] { return !ring_.empty(); })) return false;
        bool reopened = false;
        *value = ring_.pop(&reopened);
        putters_.wake(ring_.room());
        return true;
    }
    void shut_down() {
        std::lock_guard<std::mutex> lock(mutex_);
        down_ = true;
        getters_.wake(INT64_MAX);
        putters_.wake(INT64_MAX);
    }
    int64_t peak() {
        std::lock_guard<std::mutex> lock(mutex_);
        return peak_;
    }

private:
    template <class Ready>
    bool wait(std::unique_lock<std::mutex>& lock, ef::WaitList& list, int64_t deadline, Ready ready) {
        while (!ready()) {
            if (down_ || (deadline != ef::kForever && ef::now_ns() >= deadline)) return false;
            ef::Parker parker;
            list.add(&parker);
            lock.unlock();
            parker.wait(deadline);
            lock.lock();
            if (parker.listed) list.remove(&parker);
        }
        return true;
    }
    std::mutex mutex_;
    ef::GatedRing<uint64_t> ring_;
    ef::WaitList getters_, putters_;
    int64_t peak_ = 0;
    bool down_ = false;
};

void threads(int producers, int consumers, int64_t limit, int64_t high, int64_t low) {
    constexpr uint64_t kEach = 20000;
    BlockingQueue q(limit, high, low);
    std::vector<std::vector<uint64_t>> got(static_cast<size_t>(consumers));
    std::vector<std::thread> makers, takers;
    for (int p = 0; p < producers; ++p)
        makers.emplace_back([&q, p] {
            for (uint64_t i = 0; i < kEach;) {
                // Every other put with a time-out that often expires: leaving a wait list is part of the test.
                const int64_t deadline = i % 2 ? ef::kForever : ef::now_ns() + 20000;
                if (q.put(static_cast<uint64_t>(p) * kEach + i, deadline)) ++i;
            }
        });
    for (int c = 0; c < consumers; ++c)
        takers.emplace_back([&q, &mine = got[static_cast<size_t>(c)]] {
            uint64_t value;
            for (;;) {
                if (q.get(&value, ef::now_ns() + 20000)) mine.push_back(value);
                else if (q.get(&value, ef::kForever)) mine.push_back(value);
                else return;
            }
        });
    for (auto& t : makers) t.join();
    q.shut_down();
    for (auto& t : takers) t.join();
    std::vector<int> seen(static_cast<size_t>(producers) * kEach, 0);
    for (const auto& mine : got) {
        std::vector<int64_t> last(static_cast<size_t>(producers), -1);
        for (uint64_t v : mine) {
            ++seen[v];
            CHECK(static_cast<int64_t>(v) > last[v / kEach]);
            last[v / kEach] = static_cast<int64_t>(v);
        }
    }
    for (int n : seen) CHECK(n == 1);
    CHECK(q.peak() <= (high ? high : limit));
}

}  // namespace

int main() {
    ring_against_a_deque();
    ring_gives_memory_back();
    metered_ring_against_a_deque();
    many_at_once();
    wait_list_is_fifo();
    threads(1, 1, 1, 0, 0);
    threads(1, 1, 64, 0, 0);
    threads(1, 1, 64, 48, 12);
    threads(4, 4, 16, 0, 0);
    threads(4, 4, 16, 12, 3);
    threads(3, 1, 8, 8, 0);
    std::puts("queue_test: ok");
}
