// SharedQueue in one process: every operation against a deque, then from many threads and handles at once, then on
// segments that somebody writes into. Run it under TSan and ASan; processes that die are shared_crash's.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "queue_check.hpp"
#include "queues/shared_queue.hpp"

namespace {

using ef::EDGEFAST_DAMAGED;
using ef::EDGEFAST_DETACHED;
using ef::RecordQueue;
using ef::SharedConfig;
using ef::SharedError;
using ef::SharedFailure;
using ef::SharedQueue;

SharedConfig config_of(RecordQueue::Policy policy, uint64_t capacity, uint64_t itemsize = sizeof(Record)) {
    SharedConfig c;
    c.kind = ef::shared_records;
    c.policy = policy;
    c.capacity = capacity;
    c.itemsize = itemsize;
    c.participants = 8;
    return c;
}

void must(bool ok, const SharedFailure& f) {
    if (ok) return;
    std::fprintf(stderr, "shared_test: %s\n", f.text);
    std::exit(1);
}

// Created and without a name at once: nothing is left behind.
void make(SharedQueue& q, const SharedConfig& config) {
    const std::string path = path_of("own");
    SharedFailure f;
    must(q.create(path.c_str(), config, 0600, &f), f);
    unlink(path.c_str());
}

// As ring_test does with RecordQueue: the two have one behaviour.
void against_a_deque() {
    Random random{88172645463325252ull};
    for (int round = 0; round < 300; ++round) {
        const int64_t capacity = static_cast<int64_t>(random(4) ? 1 + random(9) : 60 + random(80));
        const int64_t limit = static_cast<int64_t>(1 + random(static_cast<uint64_t>(capacity)));
        const auto policy = static_cast<RecordQueue::Policy>(random(5));
        const bool latest = policy == RecordQueue::latest;
        const int64_t high = latest || random(2) ? 0 : static_cast<int64_t>(1 + random(static_cast<uint64_t>(limit)));
        const int64_t low = high ? static_cast<int64_t>(random(static_cast<uint64_t>(high))) : 0;
        SharedQueue q;
        make(q, config_of(policy, static_cast<uint64_t>(capacity)));
        q.configure(limit, high, low);
        const int64_t bound = latest ? 1 : high ? high : limit;
        std::deque<uint64_t> model;
        bool closed = false;
        uint64_t value = 0;
        int64_t dropped_new = 0, dropped_old = 0, refused = 0, cleared = 0;
        std::vector<Record> buffer(200);
        for (int step = 0; step < 400; ++step) {
            const int64_t n = static_cast<int64_t>(1 + random(6));
            int status;
            const auto size = [&] { return static_cast<int64_t>(model.size()); };
            if (random(2)) {
                for (int64_t i = 0; i < n; ++i) buffer[static_cast<size_t>(i)] = Record::of(value + static_cast<uint64_t>(i));
                const int64_t accepted = q.put(buffer.data(), nullptr, n, random(2) ? ef::kDontBlock : ef::kTry, &status);
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
                void* slots;
                const void* records;
                uint64_t ticket;
                if (!closed && size() < bound) {
                    const int64_t k = q.reserve(n, ef::kDontBlock, &slots, &ticket, &status);
                    CHECK(k >= 1 && k <= n && status == EDGEFAST_OK);
                    for (int64_t i = 0; i < k; ++i) static_cast<Record*>(slots)[i] = Record::of(value + static_cast<uint64_t>(i));
                    CHECK(q.counters().in_hands == k);
                    if (random(2)) {
                        q.abort(ticket, k);
                    } else {
                        CHECK(q.commit(ticket, k, nullptr, ef::kDontBlock, &status) == k && status == EDGEFAST_OK);
                        for (int64_t i = 0; i < k; ++i) model.push_back(value + static_cast<uint64_t>(i));
                    }
                    value += static_cast<uint64_t>(k);
                    if (high && size() >= high) closed = true;
                    // What is not reserved (any more) is refused, and nothing happens.
                    CHECK(q.commit(ticket, k, nullptr, ef::kDontBlock, &status) == 0 && status == EDGEFAST_DAMAGED);
                    q.abort(ticket, k);
                    q.release(ticket, k);
                }
                const int64_t k = q.view(n, ef::kDontBlock, &records, nullptr, &ticket, &status);
                CHECK((k > 0) == !model.empty());
                for (int64_t i = 0; i < k; ++i) {
                    CHECK(static_cast<const Record*>(records)[i].value == model.front());
                    model.pop_front();
                }
                if (k) q.release(ticket, k);
            } else if (random(50) == 0) {
                CHECK(q.clear() == size());
                cleared += size();
                model.clear();
            } else {
                const int64_t k = q.get(buffer.data(), nullptr, n, 1, random(2) ? ef::kDontBlock : ef::kTry, 0, &status);
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
        CHECK(c.dropped_newest == dropped_new && c.dropped_oldest == dropped_old && c.cleared == cleared && c.peak <= bound);
        CHECK(c.puts - c.gets - c.dropped_oldest - c.cleared == c.size && c.in_hands == 0);
        if (policy == RecordQueue::error) CHECK(c.refused == refused);
        q.shut_down(true);
        int status;
        CHECK(q.size() == 0 && q.put(buffer.data(), nullptr, 1, ef::kForever, &status) == 0 && status == EDGEFAST_SHUT_DOWN);
        CHECK(q.get(buffer.data(), nullptr, 1, 1, ef::kForever, 0, &status) == 0 && status == EDGEFAST_SHUT_DOWN);
        CHECK(q.await(ef::kForever, &status) == 0 && status == EDGEFAST_SHUT_DOWN);
        CHECK(q.writable(ef::kForever) == EDGEFAST_SHUT_DOWN);
    }
}

// Messages of every length, in batches and in place; a batch that needs memory for its slots.
void messages() {
    SharedConfig config = config_of(RecordQueue::block, 1000, 37);
    config.kind = ef::shared_bytes;
    SharedQueue q;
    make(q, config);
    CHECK(q.stride() == 40);
    int status;
    std::string texts[38];
    const void* data[38];
    uint32_t lengths[38];
    for (uint32_t n = 0; n <= 37; ++n) {
        texts[n] = std::string(n, static_cast<char>('a' + n % 26));
        data[n] = texts[n].data();
        lengths[n] = n;
        CHECK(q.put_bytes(data[n], n, ef::kDontBlock, &status) == 1);
    }
    CHECK(q.put_each(data, lengths, 38, ef::kDontBlock, &status) == 38);
    for (int round = 0; round < 2; ++round) {
        std::vector<char> out(38 * 37);
        uint32_t got[38];
        CHECK(q.get(out.data(), got, 38, 1, ef::kDontBlock, 0, &status) == 38);
        for (uint32_t n = 0; n <= 37; ++n) CHECK(got[n] == n && std::memcmp(out.data() + n * 37, data[n], n) == 0);
    }
    void* slots;
    uint64_t ticket;
    CHECK(q.reserve(3, ef::kDontBlock, &slots, &ticket, &status) == 3);
    for (uint32_t n = 0; n < 3; ++n) std::memcpy(static_cast<char*>(slots) + n * q.stride(), data[n + 5], n + 5);
    CHECK(q.commit(ticket, 3, lengths + 5, ef::kDontBlock, &status) == 3);
    const void* records;
    uint32_t got[3];
    CHECK(q.view(9, ef::kDontBlock, &records, got, &ticket, &status) == 3);
    for (uint32_t n = 0; n < 3; ++n)
        CHECK(got[n] == n + 5 && std::memcmp(static_cast<const char*>(records) + n * q.stride(), data[n + 5], n + 5) == 0);
    q.release(ticket, 3);
    std::vector<char> many(1000 * 37, 'x'), back(1000 * 37);
    std::vector<uint32_t> long_ones(1000);
    CHECK(q.put(many.data(), nullptr, 1000, ef::kDontBlock, &status) == 1000);
    CHECK(q.get(back.data(), long_ones.data(), 2000, 1, ef::kDontBlock, 0, &status) == 1000 && back == many && long_ones[999] == 37);
}

void time_outs() {
    SharedQueue q;
    make(q, config_of(RecordQueue::block, 1, 8));
    q.configure(1, 1, 0);
    uint64_t value = 1, two[2];
    int status;
    const int64_t start = ef::now_ns();
    CHECK(q.get(&value, nullptr, 1, 1, start + 2000000, 0, &status) == 0 && status == EDGEFAST_EMPTY);
    CHECK(q.put(&value, nullptr, 1, ef::kForever, &status) == 1);
    CHECK(q.put(&value, nullptr, 1, ef::now_ns() + 2000000, &status) == 0 && status == EDGEFAST_FULL);
    CHECK(q.writable(ef::now_ns() + 2000000) == EDGEFAST_FULL);
    CHECK(q.get(two, nullptr, 2, 2, ef::kForever, 2000000, &status) == 1);  // lingers for the second
    CHECK(ef::now_ns() - start >= 8000000);
    CHECK(q.writable(ef::kDontBlock) == EDGEFAST_OK);
}

// Every slot in somebody's hands: nothing waits for them, nothing is written over; full until one comes back.
void all_slots_held() {
    SharedConfig config = config_of(RecordQueue::block, 2, 8);
    config.spare = 1;
    SharedQueue q;
    make(q, config);
    uint64_t value = 1, tickets[3];
    const void* records[3];
    int status;
    for (int i = 0; i < 3; ++i) {
        CHECK(q.put(&value, nullptr, 1, ef::kDontBlock, &status) == 1);
        ++value;
        CHECK(q.view(1, ef::kDontBlock, &records[i], nullptr, &tickets[i], &status) == 1);
    }
    CHECK(q.size() == 0 && q.counters().in_hands == 3);
    CHECK(q.put(&value, nullptr, 1, ef::kDontBlock, &status) == 0 && status == EDGEFAST_FULL);
    CHECK(q.put(&value, nullptr, 1, ef::now_ns() + 1000000, &status) == 0 && status == EDGEFAST_FULL);
    for (uint64_t i = 0; i < 3; ++i) CHECK(*static_cast<const uint64_t*>(records[i]) == i + 1);
    std::thread later([&] {
        usleep(2000);
        q.release(tickets[1], 1);
    });
    CHECK(q.put(&value, nullptr, 1, ef::kForever, &status) == 1);
    later.join();
    q.release(tickets[0], 1);
    q.release(tickets[2], 1);
    CHECK(q.get(&value, nullptr, 1, 1, ef::kDontBlock, 0, &status) == 1 && value == 4);
}

// A reservation waits at its commit, if others filled the queue meanwhile.
void late_commits() {
    SharedQueue q;
    make(q, config_of(RecordQueue::block, 2, 8));
    void* slots;
    uint64_t ticket, value = 7;
    int status;
    CHECK(q.reserve(2, ef::kDontBlock, &slots, &ticket, &status) == 2);
    static_cast<uint64_t*>(slots)[0] = 1;
    static_cast<uint64_t*>(slots)[1] = 2;
    CHECK(q.put(&value, nullptr, 1, ef::kDontBlock, &status) == 1);
    CHECK(q.commit(ticket, 2, nullptr, ef::now_ns() + 1000000, &status) == 1 && status == EDGEFAST_FULL);
    CHECK(q.get(&value, nullptr, 1, 1, ef::kDontBlock, 0, &status) == 1 && value == 7);
    CHECK(q.commit(ticket + 1, 1, nullptr, ef::kDontBlock, &status) == 1 && status == EDGEFAST_OK);
    CHECK(q.size() == 2 && q.counters().in_hands == 0);
    CHECK(q.reserve(1, ef::kDontBlock, &slots, &ticket, &status) == 0 && status == EDGEFAST_FULL);
    CHECK(q.get(&value, nullptr, 1, 1, ef::kDontBlock, 0, &status) == 1 && value == 1);
    CHECK(q.reserve(1, ef::kDontBlock, &slots, &ticket, &status) == 1);
    q.shut_down(false);
    CHECK(q.commit(ticket, 1, nullptr, ef::kForever, &status) == 0 && status == EDGEFAST_SHUT_DOWN);
    q.abort(ticket, 1);
    CHECK(q.get(&value, nullptr, 1, 1, ef::kForever, 0, &status) == 1 && value == 2);
}

// Handles come and go; the table has an end; who has left is told so.
void participants() {
    const std::string path = path_of("table");
    SharedConfig config = config_of(RecordQueue::block, 4, 8);
    config.participants = 3;
    SharedFailure f;
    SharedQueue q, second, third, fourth;
    must(q.create(path.c_str(), config, 0640, &f), f);
    struct stat s;
    CHECK(stat(path.c_str(), &s) == 0 && (s.st_mode & 0777) == 0640);
    CHECK(!second.create(path.c_str(), config, 0600, &f) && f.error == SharedError::exists);
    must(second.attach(path.c_str(), 0, &f), f);
    must(third.attach(path.c_str(), 0, &f), f);
    CHECK(!fourth.attach(path.c_str(), 0, &f) && f.error == SharedError::crowded);
    SharedQueue::Participant list[4];
    CHECK(q.participants(list, 4) == 3 && list[0].self && list[2].alive && list[1].pid == getpid() && list[1].start_time > 0);
    uint64_t value = 5, ticket;
    const void* records;
    void* slots;
    int status;
    CHECK(q.put(&value, nullptr, 1, ef::kDontBlock, &status) == 1);
    CHECK(second.view(1, ef::kDontBlock, &records, nullptr, &ticket, &status) == 1);
    CHECK(second.reserve(1, ef::kDontBlock, &slots, &ticket, &status) == 1);
    CHECK(q.recover().participants == 0);
    second.close();
    CHECK(second.put(&value, nullptr, 1, ef::kForever, &status) == 0 && status == EDGEFAST_DETACHED);
    CHECK(second.get(&value, nullptr, 1, 1, ef::kForever, 0, &status) == 0 && status == EDGEFAST_DETACHED);
    CHECK(second.view(1, ef::kForever, &records, nullptr, &ticket, &status) == 0 && status == EDGEFAST_DETACHED);
    CHECK(second.reserve(1, ef::kForever, &slots, &ticket, &status) == 0 && status == EDGEFAST_DETACHED);
    CHECK(second.await(ef::kForever, &status) == 0 && status == EDGEFAST_DETACHED);
    const auto c = q.counters();
    CHECK(c.participants == 2 && c.lost == 0 && c.redelivered == 1 && c.in_hands == 0 && c.puts == 1 && c.gets == 0);
    must(fourth.attach(path.c_str(), 0, &f), f);
    CHECK(fourth.get(&value, nullptr, 1, 1, ef::kDontBlock, 0, &status) == 1 && value == 5);
    bool in_use = false;
    CHECK(SharedQueue::inspect(path.c_str(), 0, &config, &in_use, &f) && in_use && config.capacity == 4);
    q.close(), third.close(), fourth.close();
    CHECK(SharedQueue::inspect(path.c_str(), 0, &config, &in_use, &f) && !in_use);
    unlink(path.c_str());
    CHECK(!q.attach(path.c_str(), 0, &f) && f.error == SharedError::missing);
}

void bad_configurations() {
    const std::string path = path_of("bad");
    const auto refused = [&](auto change) {
        SharedConfig config = config_of(RecordQueue::block, 4, 8);
        change(config);
        SharedFailure f;
        SharedQueue q;
        CHECK(!q.create(path.c_str(), config, 0600, &f));
        CHECK((f.error == SharedError::bad_config || f.error == SharedError::no_space) && f.text[0]);
        CHECK(access(path.c_str(), F_OK) != 0);
    };
    refused([](SharedConfig& c) { c.capacity = 0; });
    refused([](SharedConfig& c) { c.capacity = uint64_t{1} << 24; });
    refused([](SharedConfig& c) { c.capacity = UINT64_MAX; });
    refused([](SharedConfig& c) { c.spare = UINT64_MAX; });
    refused([](SharedConfig& c) { c.itemsize = 0; });
    refused([](SharedConfig& c) { c.itemsize = uint64_t{1} << 32; });
    refused([](SharedConfig& c) { c.participants = 0; });
    refused([](SharedConfig& c) { c.participants = 1024; });
    refused([](SharedConfig& c) { c.policy = 5; });
    refused([](SharedConfig& c) { c.kind = 2; });
    refused([](SharedConfig& c) { c.capacity = 1 << 22, c.itemsize = UINT32_MAX; });  // more than any machine has
}

#if defined(__SANITIZE_THREAD__)
// Two handles are two mappings: it does not know that an atomic operation on the one is seen in the other.
constexpr bool kTsan = true;
#else
constexpr bool kTsan = false;
#endif

// Producers and consumers with every operation and random time-outs, then shutdown; `handles` of the same queue.
void threads(int producers, int consumers, int handles, uint64_t capacity, int64_t high, int64_t low, uint64_t each) {
    const std::string path = path_of("threads");
    SharedFailure f;
    if (kTsan) handles = 1;
    std::vector<SharedQueue> queues(static_cast<size_t>(handles));
    must(queues[0].create(path.c_str(), config_of(RecordQueue::block, capacity), 0600, &f), f);
    for (size_t i = 1; i < queues.size(); ++i) must(queues[i].attach(path.c_str(), 0, &f), f);
    unlink(path.c_str());
    queues[0].configure(static_cast<int64_t>(capacity), high, low);
    std::vector<std::vector<uint64_t>> got(static_cast<size_t>(consumers));
    std::vector<std::thread> makers, takers;
    for (int p = 0; p < producers; ++p)
        makers.emplace_back([&, p] {
            SharedQueue& q = queues[static_cast<size_t>(p % handles)];
            Random random{0x9e3779b97f4a7c15ull * static_cast<uint64_t>(p + 1)};
            Record batch[5];
            for (uint64_t i = 0; i < each;) {
                const uint64_t first = static_cast<uint64_t>(p) * each + i;
                int64_t n = static_cast<int64_t>(1 + random(5));
                if (static_cast<uint64_t>(n) > each - i) n = static_cast<int64_t>(each - i);
                const int64_t deadline = random(3) ? ef::kForever : ef::now_ns() + static_cast<int64_t>(random(2) * 20000);
                int status;
                if (random(4)) {
                    for (int64_t k = 0; k < n; ++k) batch[k] = Record::of(first + static_cast<uint64_t>(k));
                    i += static_cast<uint64_t>(q.put(batch, nullptr, n, deadline, &status));
                } else {
                    void* slots;
                    uint64_t ticket;
                    n = q.reserve(n, deadline, &slots, &ticket, &status);
                    if (n == 0) continue;
                    for (int64_t k = 0; k < n; ++k) static_cast<Record*>(slots)[k] = Record::of(first + static_cast<uint64_t>(k));
                    const int64_t done = random(8) ? q.commit(ticket, n, nullptr, deadline, &status) : 0;
                    if (done < n) q.abort(ticket + static_cast<uint64_t>(done), n - done);
                    i += static_cast<uint64_t>(done);
                }
                if (random(64) == 0) q.writable(ef::now_ns() + 10000);
                if (random(64) == 0) q.configure(1 + static_cast<int64_t>(random(capacity)), 0, 0);
                if (random(64) == 0) q.configure(static_cast<int64_t>(capacity), high, low);
                if (random(64) == 0) CHECK(q.size() <= static_cast<int64_t>(capacity));
                if (random(256) == 0) CHECK(q.counters().peak <= static_cast<int64_t>(capacity) && q.recover().participants == 0);
            }
        });
    for (int c = 0; c < consumers; ++c)
        takers.emplace_back([&, c] {
            SharedQueue& q = queues[static_cast<size_t>((c + 1) % handles)];
            auto& mine = got[static_cast<size_t>(c)];
            Random random{0xd1342543de82ef95ull * static_cast<uint64_t>(c + 1)};
            Record batch[7];
            for (;;) {
                const int64_t n = static_cast<int64_t>(1 + random(7));
                const int64_t deadline = random(3) ? ef::kForever : ef::now_ns() + static_cast<int64_t>(random(2) * 20000);
                int status = EDGEFAST_OK;
                int64_t k;
                if (random(3) == 0) {
                    const void* records;
                    uint64_t ticket;
                    k = q.view(n, deadline, &records, nullptr, &ticket, &status);
                    for (int64_t i = 0; i < k; ++i) batch[i] = static_cast<const Record*>(records)[i];
                    if (k) q.release(ticket, k);
                } else if (random(2)) {
                    k = q.get(batch, nullptr, n, n, ef::now_ns() + 100000, 20000, &status);
                } else {
                    k = q.get(batch, nullptr, n, 1, deadline, 0, &status);
                }
                for (int64_t i = 0; i < k; ++i) {
                    batch[i].check();
                    mine.push_back(batch[i].value);
                }
                CHECK(status != EDGEFAST_DAMAGED);
                if (status == EDGEFAST_SHUT_DOWN) return;
            }
        });
    for (auto& t : makers) t.join();
    queues[0].configure(static_cast<int64_t>(capacity), high, low);
    queues[0].shut_down(false);
    for (auto& t : takers) t.join();
    each_once_and_in_order(got, producers, each);
    const auto c = queues[0].counters();
    CHECK(c.size == 0 && c.in_hands == 0 && c.puts == c.gets && c.peak <= static_cast<int64_t>(capacity));
}

// Producers that drop: what is got is in order, and what is missing was counted.
void dropping(RecordQueue::Policy policy) {
    constexpr uint64_t kEach = 10000;
    SharedQueue q;
    make(q, config_of(policy, 8));
    std::vector<uint64_t> got;
    std::thread maker[2];
    for (uint64_t p = 0; p < 2; ++p)
        maker[p] = std::thread([&, p] {
            int status;
            for (uint64_t i = 0; i < kEach; i += 2) {
                const Record two[] = {Record::of(p * kEach + i), Record::of(p * kEach + i + 1)};
                q.put(two, nullptr, 2, ef::kForever, &status);
                CHECK(status == EDGEFAST_OK);
            }
        });
    std::thread taker([&] {
        int status;
        for (Record r; q.get(&r, nullptr, 1, 1, ef::kForever, 0, &status) == 1;) {
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

// ---- hostile segments ----------------------------------------------------------------------------------------------

struct File {
    std::string path;
    std::vector<char> bytes;

    File(const char* name, uint32_t kind) : path(path_of(name)) {
        SharedFailure f;
        SharedConfig config = config_of(RecordQueue::block, 12, 24);
        config.kind = kind;
        config.spare = 5;
        config.participants = 3;
        SharedQueue q;
        must(q.create(path.c_str(), config, 0600, &f), f);
        char record[24] = {};
        int status;
        for (int i = 0; i < 40; ++i) {
            q.put_bytes(record, static_cast<size_t>(i % 24), ef::kDontBlock, &status);
            if (i % 3) q.get(record, nullptr, 1, 1, ef::kDontBlock, 0, &status);
        }
        q.close();
        bytes.resize(static_cast<size_t>(segment_size()));
        const int fd = open(path.c_str(), O_RDONLY);
        CHECK(pread(fd, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
        ::close(fd);
    }
    ~File() { unlink(path.c_str()); }
    off_t segment_size() const {
        struct stat s;
        CHECK(stat(path.c_str(), &s) == 0);
        return s.st_size;
    }
    void write(const std::vector<char>& with) const {
        const int fd = open(path.c_str(), O_WRONLY | O_TRUNC);
        CHECK(fd >= 0 && ::write(fd, with.data(), with.size()) == static_cast<ssize_t>(with.size()));
        ::close(fd);
    }
};

// Everything there is to call, without waiting. Results may be anything; memory must not be.
void exercise(SharedQueue& q, Random& random) {
    const uint64_t itemsize = q.config().itemsize;
    std::vector<char> out(64 * itemsize);
    uint32_t lengths[64];
    void* slots;
    const void* records;
    uint64_t ticket;
    int status;
    for (int i = 0; i < 12; ++i) {
        const int64_t n = static_cast<int64_t>(1 + random(6));
        int64_t k;
        switch (random(10)) {
            case 0:
            case 1: q.put(out.data(), nullptr, n, ef::kDontBlock, &status); break;
            case 2:
            case 3:
                k = q.get(out.data(), lengths, n, 1, ef::kDontBlock, 0, &status);
                CHECK(k >= 0 && k <= n);
                for (int64_t j = 0; j < k; ++j) CHECK(lengths[j] <= itemsize);
                break;
            case 4:
                k = q.reserve(n, ef::kDontBlock, &slots, &ticket, &status);
                CHECK(k >= 0 && k <= n);
                if (k) std::memset(slots, 1, static_cast<size_t>(k) * q.stride());
                if (k && random(2)) q.commit(ticket, k, nullptr, ef::kDontBlock, &status);
                else if (k) q.abort(ticket, k);
                break;
            case 5:
                k = q.view(n, ef::kDontBlock, &records, lengths, &ticket, &status);
                CHECK(k >= 0 && k <= n);
                for (int64_t j = 0; j < k; ++j) {
                    CHECK(lengths[j] <= itemsize);
                    std::memcpy(out.data(), static_cast<const char*>(records) + static_cast<uint64_t>(j) * q.stride(), lengths[j]);
                }
                if (k) q.release(ticket, k);
                break;
            case 6: q.recover(); break;
            case 7: q.counters(), q.size(), q.room(), q.closed(); break;
            case 8: {
                SharedQueue::Participant list[3];
                q.participants(list, 3);
                q.configure(static_cast<int64_t>(1 + random(12)), 0, 0);
                break;
            }
            default:
                if (random(4) == 0) q.shut_down(random(2));
                else if (random(4) == 0) q.clear();
        }
    }
}

// A number that makes trouble in that place: near the ends, near what is there.
uint64_t nasty(Random& random, uint64_t before) {
    const uint64_t values[] = {0,
                               1,
                               UINT64_MAX,
                               uint64_t{1} << 63,
                               (uint64_t{1} << 62) - 1,
                               uint64_t{1} << random(64),
                               before + 1,
                               before - 1,
                               before ^ uint64_t{1} << random(64),
                               before + random(40),
                               (before & ~uint64_t{0xffffff}) | random(0x1000000),
                               (before & ~uint64_t{15}) | random(16)};
    return values[random(sizeof values / sizeof *values)];
}

void mutated_headers(int rounds) {
    File file("headers", ef::shared_bytes);
    Random random{0x853c49e6748fea9bull};
    int attached = 0;
    for (int round = 0; round < rounds; ++round) {
        std::vector<char> bytes = file.bytes;
        // Any change of the header's bytes is found, the truth of its checksum restored or not.
        const size_t at = random(sizeof(ef::SharedHeader));
        const char before = bytes[at];
        bytes[at] = static_cast<char>(random(256));
        if (random(4) == 0) bytes.resize(random(bytes.size()));
        if (random(16) == 0) bytes.resize(bytes.size() + 4096);
        const bool same = bytes == file.bytes || (bytes.size() == file.bytes.size() && bytes[at] == before);
        if (bytes.size() >= sizeof(ef::SharedHeader) && random(2)) {
            ef::SharedHeader h;
            std::memcpy(&h, bytes.data(), sizeof h);
            h.checksum = ef::SharedSegment::checksum(h);
            std::memcpy(bytes.data(), &h, sizeof h);
        }
        file.write(bytes);
        SharedFailure f;
        SharedQueue q;
        SharedConfig config;
        bool in_use;
        SharedQueue::inspect(file.path.c_str(), 0, &config, &in_use, &f);
        if (q.attach(file.path.c_str(), 0, &f)) {
            // Only with a checksum that says that this is what the creator meant; and then the sizes fit.
            ++attached;
            exercise(q, random);
        } else {
            CHECK(!same && f.error != SharedError::none && f.text[0]);
        }
    }
    CHECK(attached > 0 || rounds == 0);
}

void mutated_words(int rounds) {
    Random random{0xda3e39cb94b95bdbull};
    for (const uint32_t kind : {uint32_t{ef::shared_bytes}, uint32_t{ef::shared_records}}) {
        File file("words", kind);
        for (int round = 0; round < rounds; ++round) {
            std::vector<char> bytes = file.bytes;
            const size_t from = 1024, words = (bytes.size() - from) / 8;
            for (uint64_t changes = 1 + random(5); changes > 0; --changes) {
                // Mostly where the words are that mean something.
                const size_t at = from + 8 * (random(4) ? random(640 / 8 + 3 * 32 + 64 + 17 * 4) : random(words));
                uint64_t word;
                std::memcpy(&word, bytes.data() + at, 8);
                word = nasty(random, word);
                std::memcpy(bytes.data() + at, &word, 8);
            }
            file.write(bytes);
            SharedFailure f;
            SharedQueue q, other;
            if (!q.attach(file.path.c_str(), 0, &f)) {
                CHECK(f.error == SharedError::crowded);
                continue;
            }
            exercise(q, random);
            if (other.attach(file.path.c_str(), 0, &f)) exercise(other, random);
            exercise(q, random);
        }
    }
}

// Somebody writes into the words while they are used.
void mutation_under_way(int rounds) {
    File file("live", ef::shared_bytes);
    Random random{0x94d049bb133111ebull};
    for (int round = 0; round < rounds; ++round) {
        file.write(file.bytes);
        SharedFailure f;
        SharedQueue q;
        must(q.attach(file.path.c_str(), 0, &f), f);
        const int fd = open(file.path.c_str(), O_RDWR);
        std::atomic<bool> stop{false};
        void* memory = mmap(nullptr, file.bytes.size(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CHECK(memory != MAP_FAILED);
        std::thread enemy([&, seed = random(UINT64_MAX) | 1] {
            Random theirs{seed};
            auto* words = static_cast<std::atomic<uint64_t>*>(memory);
            while (!stop.load()) {
                auto& word = words[1024 / 8 + theirs(theirs(4) ? 640 / 8 + 3 * 32 + 64 + 17 * 4 : (file.bytes.size() - 1024) / 8)];
                word.store(nasty(theirs, word.load(std::memory_order_relaxed)), std::memory_order_relaxed);
                if (theirs(8) == 0) usleep(1);
            }
        });
        for (int i = 0; i < 10; ++i) exercise(q, random);
        int status;
        char out[24];
        for (int i = 0; i < 3; ++i) q.get(out, nullptr, 1, 1, ef::now_ns() + 200000, 0, &status);
        stop.store(true);
        enemy.join();
        munmap(memory, file.bytes.size());
        ::close(fd);
    }
}

// What is no queue at all.
void other_files() {
    const std::string path = path_of("other"), link = path_of("link");
    SharedFailure f;
    SharedQueue q;
    CHECK(!q.attach("/dev/null", 0, &f) && (f.error == SharedError::not_a_queue || f.error == SharedError::not_allowed));
    CHECK(!q.attach("/dev/shm", 0, &f) && f.error != SharedError::none);
    CHECK(symlink("/dev/null", link.c_str()) == 0);
    CHECK(!q.attach(link.c_str(), 0, &f) && f.error == SharedError::not_allowed);
    CHECK(!q.create(link.c_str(), config_of(RecordQueue::block, 4), 0600, &f) && f.error == SharedError::exists);
    unlink(link.c_str());
    const int fd = open(path.c_str(), O_CREAT | O_RDWR, 0600);
    CHECK(fd >= 0);
    CHECK(!q.attach(path.c_str(), 0, &f) && f.error == SharedError::not_ready);
    CHECK(ftruncate(fd, 100) == 0 && !q.attach(path.c_str(), 0, &f) && f.error == SharedError::not_a_queue);
    CHECK(ftruncate(fd, 100000) == 0 && !q.attach(path.c_str(), 0, &f) && f.error == SharedError::not_ready);
    CHECK(pwrite(fd, "notaqueue", 9, 0) == 9 && !q.attach(path.c_str(), 0, &f) && f.error == SharedError::not_a_queue);
    ::close(fd);
    if (geteuid() == 0) {
        // Another user's, though we could open it.
        SharedQueue own;
        unlink(path.c_str());
        must(own.create(path.c_str(), config_of(RecordQueue::block, 4), 0600, &f), f);
        CHECK(chown(path.c_str(), 12345, 12345) == 0);
        CHECK(!q.attach(path.c_str(), 0, &f) && f.error == SharedError::not_allowed);
        CHECK(q.attach(path.c_str(), SharedQueue::kAnyOwner, &f));
    }
    unlink(path.c_str());
}

}  // namespace

int main(int argc, char** argv) {
    int more = argc > 1 ? std::atoi(argv[1]) : 1;  // times as much fuzzing
    against_a_deque();
    messages();
    time_outs();
    all_slots_held();
    late_commits();
    participants();
    bad_configurations();
    threads(1, 1, 1, 1, 0, 0, 5000);
    threads(1, 1, 2, 100, 64, 16, 20000);
    threads(2, 2, 1, 3, 2, 0, 5000);
    threads(2, 2, 3, 3, 2, 0, 5000);
    threads(4, 4, 1, 130, 0, 0, 5000);
    threads(3, 1, 2, 64, 48, 12, 5000);
    for (auto policy : {RecordQueue::drop_newest, RecordQueue::drop_oldest, RecordQueue::latest}) dropping(policy);
    other_files();
    if (kTsan) more = 0;
    mutated_headers(2000 * more);
    mutated_words(1500 * more);
    mutation_under_way(20 * more);
    std::puts("shared_test: ok");
}
