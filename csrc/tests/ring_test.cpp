// RecordQueue and what it is made of: unit tests against a deque, then every operation from many threads at once. Run it
// under TSan and ASan.
#include <atomic>
#include <cstring>
#include <deque>
#include <thread>
#include <vector>

#include "queue_check.hpp"
#include "queues/record_queue.hpp"

namespace {

using ef::RecordQueue;

void against_a_deque() {
    Random random{88172645463325252ull};
    for (int round = 0; round < 400; ++round) {
        // Capacities around the word size, limits and gates of all kinds, every policy.
        const int64_t capacity = static_cast<int64_t>(random(4) ? 1 + random(9) : 60 + random(80));
        const int64_t limit = static_cast<int64_t>(1 + random(static_cast<uint64_t>(capacity)));
        const auto policy = static_cast<RecordQueue::Policy>(random(5));
        const bool latest = policy == RecordQueue::latest;
        const int64_t high = latest || random(2) ? 0 : static_cast<int64_t>(1 + random(static_cast<uint64_t>(limit)));
        const int64_t low = high ? static_cast<int64_t>(random(static_cast<uint64_t>(high))) : 0;
        RecordQueue q;
        CHECK(q.allocate(sizeof(Record), capacity, policy));
        q.configure(limit, high, low);
        const int64_t bound = latest ? 1 : high ? high : limit;
        std::deque<uint64_t> model;
        bool closed = false;
        uint64_t value = 0;
        int64_t dropped_new = 0, dropped_old = 0, refused = 0;
        std::vector<Record> buffer(200);
        for (int step = 0; step < 400; ++step) {
            const int64_t n = static_cast<int64_t>(1 + random(6));
            int status;
            const auto size = [&] { return static_cast<int64_t>(model.size()); };
            if (random(2)) {
                for (int64_t i = 0; i < n; ++i) buffer[static_cast<size_t>(i)] = Record::of(value + static_cast<uint64_t>(i));
                const int64_t accepted = q.put(buffer.data(), n, random(2) ? ef::kDontBlock : ef::kTry, &status);
                int64_t expected = 0;
                const auto push = [&] {
                    model.push_back(value + static_cast<uint64_t>(expected++));
                    if (high && size() >= high) closed = true;
                };
                if (latest) expected = n - 1, dropped_old += n - 1;
                while (expected < n) {
                    if (!closed && size() < bound) {
                        push();
                    } else if (policy == RecordQueue::drop_oldest || latest) {
                        // As a consumer would take them: the gate may reopen. Then past it, as far as the bound.
                        const int64_t drops = n - expected < size() ? n - expected : size();
                        model.erase(model.begin(), model.begin() + drops);
                        dropped_old += drops;
                        if (size() <= low) closed = false;
                        while (expected < n && size() < bound) push();
                    } else {
                        if (policy == RecordQueue::drop_newest) dropped_new += n - expected;
                        break;
                    }
                }
                value += static_cast<uint64_t>(n);
                CHECK(accepted == expected);
                const bool full = expected < n && policy != RecordQueue::drop_newest;
                CHECK(status == (full ? EDGEFAST_FULL : EDGEFAST_OK));
                refused += full && policy == RecordQueue::error;
            } else if (random(8) == 0) {
                // A reservation, committed or aborted, and a view.
                void* slots;
                const void* records;
                uint64_t ticket;
                if (!closed && size() < bound) {
                    const int64_t k = q.reserve(n, ef::kDontBlock, &slots, &ticket, &status);
                    CHECK(k >= 1 && k <= n && status == EDGEFAST_OK);
                    for (int64_t i = 0; i < k; ++i) static_cast<Record*>(slots)[i] = Record::of(value + static_cast<uint64_t>(i));
                    const bool aborts = model.empty() && random(2) && !high;
                    if (aborts) q.abort(ticket, k);
                    else q.commit(ticket, k);
                    for (int64_t i = 0; i < k && !aborts; ++i) model.push_back(value + static_cast<uint64_t>(i));
                    value += static_cast<uint64_t>(k);
                    if (high && size() >= high) closed = true;
                }
                const int64_t k = q.view(n, ef::kDontBlock, &records, &ticket, &status);
                CHECK((k > 0) == !model.empty());
                for (int64_t i = 0; i < k; ++i) {
                    CHECK(static_cast<const Record*>(records)[i].value == model.front());
                    model.pop_front();
                }
                if (k) q.release(ticket, k);
            } else {
                const int64_t k = q.get(buffer.data(), n, 1, random(2) ? ef::kDontBlock : ef::kTry, 0, &status);
                CHECK(k == (size() < n ? size() : n));
                CHECK(status == (k ? EDGEFAST_OK : EDGEFAST_EMPTY));
                for (int64_t i = 0; i < k; ++i) {
                    buffer[static_cast<size_t>(i)].check();
                    CHECK(buffer[static_cast<size_t>(i)].value == model.front());
                    model.pop_front();
                }
            }
            if (size() <= low) closed = false;
            CHECK(q.size() == size());
            CHECK(q.closed() == closed);
            CHECK(q.room() == (closed || size() > bound ? 0 : bound - size()));
        }
        const auto c = q.counters();
        CHECK(c.dropped_newest == dropped_new && c.dropped_oldest == dropped_old && c.peak <= bound);
        CHECK(c.puts - c.gets - c.dropped_oldest - c.cleared == c.size);
        if (policy == RecordQueue::error) CHECK(c.refused == refused);
        q.shut_down(true);
        int status;
        CHECK(q.size() == 0 && q.put(buffer.data(), 1, ef::kForever, &status) == 0 && status == EDGEFAST_SHUT_DOWN);
        CHECK(q.get(buffer.data(), 1, 1, ef::kForever, 0, &status) == 0 && status == EDGEFAST_SHUT_DOWN);
    }
}

// An aborted reservation behind a record keeps its place until the record is taken, and nobody waits for it then.
void aborted_in_the_middle() {
    RecordQueue q;
    CHECK(q.allocate(8, 3, RecordQueue::block));
    q.configure(3, 0, 0);
    uint64_t value = 7, ticket;
    int status;
    void* slots;
    CHECK(q.put(&value, 1, ef::kDontBlock, &status) == 1);
    CHECK(q.reserve(2, ef::kDontBlock, &slots, &ticket, &status) == 2);
    CHECK(q.put(&value, 1, ef::kDontBlock, &status) == 0 && status == EDGEFAST_FULL);
    q.abort(ticket, 2);
    CHECK(q.put(&value, 1, ef::kDontBlock, &status) == 0 && status == EDGEFAST_FULL);
    CHECK(q.get(&value, 1, 1, ef::kDontBlock, 0, &status) == 1 && value == 7);
    const uint64_t three[] = {1, 2, 3};
    CHECK(q.put(three, 3, ef::kDontBlock, &status) == 3);  // now they are out of the way
    CHECK(q.counters().puts == 4);
}

void time_outs() {
    RecordQueue q;
    CHECK(q.allocate(8, 1, RecordQueue::block));
    q.configure(1, 1, 0);
    uint64_t value = 1;
    int status;
    const int64_t start = ef::now_ns();
    CHECK(q.get(&value, 1, 1, start + 2000000, 0, &status) == 0 && status == EDGEFAST_EMPTY);
    CHECK(q.put(&value, 1, ef::kForever, &status) == 1);
    CHECK(q.put(&value, 1, ef::now_ns() + 2000000, &status) == 0 && status == EDGEFAST_FULL);
    CHECK(q.writable(ef::now_ns() + 2000000) == EDGEFAST_FULL);
    CHECK(ef::now_ns() - start >= 6000000);
}

// Producers and consumers with every operation and random time-outs, then shutdown: each record once, each producer's in
// order for each consumer, never more than the bound.
void threads(int producers, int consumers, int64_t capacity, int64_t high, int64_t low, uint64_t each) {
    RecordQueue q;
    CHECK(q.allocate(sizeof(Record), capacity, RecordQueue::block));
    q.configure(capacity, high, low);
    std::vector<std::vector<uint64_t>> got(static_cast<size_t>(consumers));
    std::vector<std::thread> makers, takers;
    const edgefast_record_queue* h = q.handle();
    for (int p = 0; p < producers; ++p)
        makers.emplace_back([&, p] {
            Random random{0x9e3779b97f4a7c15ull * static_cast<uint64_t>(p + 1)};
            Record batch[5];
            for (uint64_t i = 0; i < each;) {
                const uint64_t first = static_cast<uint64_t>(p) * each + i;
                int64_t n = static_cast<int64_t>(1 + random(5));
                if (static_cast<uint64_t>(n) > each - i) n = static_cast<int64_t>(each - i);
                const int64_t timeout = random(3) ? -1 : static_cast<int64_t>(random(2) * 20000);
                int status;
                if (random(4)) {
                    for (int64_t k = 0; k < n; ++k) batch[k] = Record::of(first + static_cast<uint64_t>(k));
                    i += static_cast<uint64_t>(h->put(h->queue, batch, n, timeout, &status));
                } else {
                    void* slots;
                    uint64_t ticket;
                    n = h->reserve(h->queue, n, timeout, &slots, &ticket, &status);
                    for (int64_t k = 0; k < n; ++k) static_cast<Record*>(slots)[k] = Record::of(first + static_cast<uint64_t>(k));
                    if (n == 0) continue;
                    if (random(8)) {
                        h->commit(h->queue, ticket, n);
                        i += static_cast<uint64_t>(n);
                    } else {
                        h->abort(h->queue, ticket, n);
                    }
                }
                if (random(64) == 0) q.writable(ef::now_ns() + 10000);
                if (random(64) == 0) q.configure(1 + static_cast<int64_t>(random(static_cast<uint64_t>(capacity))), 0, 0);
                if (random(64) == 0) q.configure(capacity, high, low);
                if (random(64) == 0) CHECK(q.counters().peak <= capacity && h->size(h->queue) <= capacity);
            }
        });
    for (int c = 0; c < consumers; ++c)
        takers.emplace_back([&, c] {
            auto& mine = got[static_cast<size_t>(c)];
            Random random{0xd1342543de82ef95ull * static_cast<uint64_t>(c + 1)};
            Record batch[7];
            for (;;) {
                const int64_t n = static_cast<int64_t>(1 + random(7));
                const int64_t timeout = random(3) ? -1 : static_cast<int64_t>(random(2) * 20000);
                int status = EDGEFAST_OK;
                int64_t k;
                if (random(3) == 0) {
                    const void* records;
                    uint64_t ticket;
                    k = h->view(h->queue, n, timeout, &records, &ticket, &status);
                    for (int64_t i = 0; i < k; ++i) batch[i] = static_cast<const Record*>(records)[i];
                    if (k) h->release(h->queue, ticket, k);
                } else if (random(2)) {
                    k = q.get(batch, n, n, ef::now_ns() + 100000, 20000, &status);
                } else {
                    k = h->get(h->queue, batch, n, timeout, &status);
                }
                for (int64_t i = 0; i < k; ++i) {
                    batch[i].check();
                    mine.push_back(batch[i].value);
                }
                if (status == EDGEFAST_SHUT_DOWN) return;
            }
        });
    for (auto& t : makers) t.join();
    q.configure(capacity, high, low);
    h->shutdown(h->queue);
    for (auto& t : takers) t.join();
    each_once_and_in_order(got, producers, each);
    CHECK(q.size() == 0 && q.counters().peak <= capacity);
}

// Producers that drop: what is got is in order, and what is missing was counted.
void dropping(RecordQueue::Policy policy) {
    constexpr uint64_t kEach = 20000;
    RecordQueue q;
    CHECK(q.allocate(sizeof(Record), 8, policy));
    q.configure(8, 0, 0);
    std::vector<uint64_t> got;
    std::thread maker[2];
    for (uint64_t p = 0; p < 2; ++p)
        maker[p] = std::thread([&, p] {
            int status;
            for (uint64_t i = 0; i < kEach; i += 2) {
                const Record two[] = {Record::of(p * kEach + i), Record::of(p * kEach + i + 1)};
                q.put(two, 2, ef::kForever, &status);
                CHECK(status == EDGEFAST_OK);
            }
        });
    std::thread taker([&] {
        int status;
        for (Record r; q.get(&r, 1, 1, ef::kForever, 0, &status) == 1;) {
            r.check();
            got.push_back(r.value);
        }
        CHECK(status == EDGEFAST_SHUT_DOWN);
    });
    for (auto& m : maker) m.join();
    q.shut_down(false);
    taker.join();
    int64_t last[2] = {-1, -1};
    for (uint64_t v : got) {
        CHECK(static_cast<int64_t>(v) > last[v / kEach]);
        last[v / kEach] = static_cast<int64_t>(v);
    }
    const auto c = q.counters();
    CHECK(c.gets == static_cast<int64_t>(got.size()));
    CHECK(c.gets + c.dropped_newest + c.dropped_oldest == static_cast<int64_t>(2 * kEach));
}

}  // namespace

int main() {
    against_a_deque();
    aborted_in_the_middle();
    time_outs();
    threads(1, 1, 1, 0, 0, 10000);
    threads(1, 1, 100, 64, 16, 20000);
    threads(2, 2, 3, 2, 0, 8000);
    threads(4, 4, 130, 0, 0, 8000);
    threads(3, 1, 64, 48, 12, 8000);
    for (auto policy : {RecordQueue::drop_newest, RecordQueue::drop_oldest, RecordQueue::latest}) dropping(policy);
    std::puts("ring_test: ok");
}
