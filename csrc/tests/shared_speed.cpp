// What the core of SharedQueue costs between two processes, without Python: nanoseconds a record from the first to the
// last, bytes a second in place against memcpy, and a blocked round trip against a bare futex.
//     shared_speed [times as many = 1]
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "check.hpp"
#include "queues/shared_queue.hpp"

namespace {

using ef::SharedConfig;
using ef::SharedFailure;
using ef::SharedQueue;

std::string path() { return "/dev/shm/edgefast-speed-" + std::to_string(getpid()); }

SharedConfig config_of(uint64_t itemsize, uint64_t capacity, uint32_t kind) {
    SharedConfig c;
    c.kind = kind;
    c.capacity = capacity;
    c.itemsize = itemsize;
    return c;
}

double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
}

// Seconds for n records, one process putting `batch` at a time and this one taking as many.
double stream(uint64_t itemsize, uint64_t capacity, uint32_t kind, int64_t n, int64_t batch) {
    const std::string name = path();
    SharedFailure f;
    SharedQueue q;
    CHECK(q.create(name.c_str(), config_of(itemsize, capacity, kind), 0600, &f));
    const pid_t child = fork();
    if (child == 0) {
        CHECK(q.after_fork_in_child(&f));
        std::vector<char> data(itemsize * static_cast<size_t>(batch), 1);
        int status;
        for (int64_t i = 0; i < n;) i += q.put(data.data(), nullptr, batch < n - i ? batch : n - i, ef::kForever, &status);
        q.close();
        _exit(0);
    }
    std::vector<char> out(itemsize * static_cast<size_t>(batch));
    std::vector<uint32_t> lengths(static_cast<size_t>(batch));
    int status;
    int64_t got = q.get(out.data(), lengths.data(), 1, 1, ef::kForever, 0, &status);
    const int64_t start = ef::now_ns();
    while (got < n) got += q.get(out.data(), lengths.data(), batch, 1, ef::kForever, 0, &status);
    const double seconds = static_cast<double>(ef::now_ns() - start) * 1e-9;
    waitpid(child, nullptr, 0);
    unlink(name.c_str());
    return seconds;
}

// The producer fills slots in place from its own array, the consumer copies out of them.
double in_place(uint64_t itemsize, uint64_t capacity, int64_t n) {
    const std::string name = path();
    SharedFailure f;
    SharedQueue q;
    CHECK(q.create(name.c_str(), config_of(itemsize, capacity, ef::shared_records), 0600, &f));
    const pid_t child = fork();
    if (child == 0) {
        CHECK(q.after_fork_in_child(&f));
        std::vector<char> data(itemsize, 1);
        int status;
        for (int64_t i = 0; i < n; ++i) {
            void* slot;
            uint64_t ticket;
            CHECK(q.reserve(1, ef::kForever, &slot, &ticket, &status) == 1);
            std::memcpy(slot, data.data(), itemsize);
            CHECK(q.commit(ticket, 1, nullptr, ef::kForever, &status) == 1);
        }
        q.close();
        _exit(0);
    }
    int64_t start = 0;
    uint64_t sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        const void* slot;
        uint64_t ticket;
        int status;
        CHECK(q.view(1, ef::kForever, &slot, nullptr, &ticket, &status) == 1);
        if (i == 0) start = ef::now_ns();
        for (uint64_t k = 0; k < itemsize; k += 4096) sum += static_cast<const unsigned char*>(slot)[k];
        q.release(ticket, 1);
    }
    const double seconds = static_cast<double>(ef::now_ns() - start) * 1e-9;
    CHECK(sum > 0);
    waitpid(child, nullptr, 0);
    unlink(name.c_str());
    return seconds * static_cast<double>(n) / static_cast<double>(n - 1);
}

double copy(uint64_t itemsize, int64_t n) {
    std::vector<char> from(itemsize, 1), to(itemsize * 16, 0);
    const int64_t start = ef::now_ns();
    for (int64_t i = 0; i < n; ++i) {
        std::memcpy(to.data() + static_cast<uint64_t>(i % 16) * itemsize, from.data(), itemsize);
        asm volatile("" ::"r"(to.data()) : "memory");
    }
    return static_cast<double>(ef::now_ns() - start) * 1e-9;
}

double round_trip(int64_t trips, bool spins) {
    const std::string name = path();
    SharedFailure f;
    SharedQueue there, back;
    CHECK(there.create(name.c_str(), config_of(16, 16, ef::shared_records), 0600, &f));
    unlink(name.c_str());
    CHECK(back.create(name.c_str(), config_of(16, 16, ef::shared_records), 0600, &f));
    unlink(name.c_str());
    if (!spins) there.set_spin(0), back.set_spin(0);
    const pid_t child = fork();
    if (child == 0) {
        CHECK(there.after_fork_in_child(&f) && back.after_fork_in_child(&f));
        char record[16];
        int status;
        for (int64_t i = 0; i < trips; ++i) {
            there.get(record, nullptr, 1, 1, ef::kForever, 0, &status);
            back.put(record, nullptr, 1, ef::kForever, &status);
        }
        _exit(0);
    }
    char record[16] = {};
    int status;
    const int64_t start = ef::now_ns();
    for (int64_t i = 0; i < trips; ++i) {
        there.put(record, nullptr, 1, ef::kForever, &status);
        back.get(record, nullptr, 1, 1, ef::kForever, 0, &status);
    }
    const double seconds = static_cast<double>(ef::now_ns() - start) * 1e-9;
    waitpid(child, nullptr, 0);
    return seconds / static_cast<double>(trips);
}

// The limit of that: two processes that hand a futex word back and forth.
double bare_round_trip(int64_t trips) {
    void* memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    auto& futex = *new (memory) ef::SharedFutex;
    const auto pass = [&](uint32_t to) {
        futex.word.store(to, std::memory_order_release);
        futex.wake(1);
    };
    const auto await = [&](uint32_t mine) {
        for (uint32_t turn; (turn = futex.word.load(std::memory_order_acquire)) != mine;) futex.wait(turn, ef::kForever);
    };
    const pid_t child = fork();
    if (child == 0) {
        for (int64_t i = 0; i < trips; ++i) await(1), pass(0);
        _exit(0);
    }
    const int64_t start = ef::now_ns();
    for (int64_t i = 0; i < trips; ++i) pass(1), await(0);
    const double seconds = static_cast<double>(ef::now_ns() - start) * 1e-9;
    waitpid(child, nullptr, 0);
    munmap(memory, 4096);
    return seconds / static_cast<double>(trips);
}

// In this process: what the operations cost without the other's cache misses.
double alone(int64_t n, int64_t batch) {
    const std::string name = path();
    SharedFailure f;
    SharedQueue q;
    CHECK(q.create(name.c_str(), config_of(16, 1024, ef::shared_records), 0600, &f));
    unlink(name.c_str());
    std::vector<char> data(16 * static_cast<size_t>(batch), 1);
    int status;
    const int64_t start = ef::now_ns();
    for (int64_t i = 0; i < n; i += batch) {
        q.put(data.data(), nullptr, batch, ef::kForever, &status);
        q.get(data.data(), nullptr, batch, 1, ef::kForever, 0, &status);
    }
    return static_cast<double>(ef::now_ns() - start) * 1e-9;
}

template <class F>
double median_of(int rounds, F f) {
    std::vector<double> v;
    for (int i = 0; i < rounds; ++i) v.push_back(f());
    return median(v);
}

}  // namespace

int main(int argc, char** argv) {
    const int64_t k = argc > 1 ? std::atoll(argv[1]) : 1;
    const auto each = [](double seconds, int64_t n) { return seconds * 1e9 / static_cast<double>(n); };
    std::printf("{\n");
    std::printf("  \"alone, 16 B, singly, ns\": %.1f,\n", each(median_of(3, [&] { return alone(2000000 * k, 1); }), 2000000 * k));
    std::printf("  \"alone, 16 B, by 256, ns\": %.1f,\n", each(median_of(3, [&] { return alone(2560000 * k, 256); }), 2560000 * k));
    for (const uint64_t capacity : {uint64_t{64}, uint64_t{1024}}) {
        std::printf("  \"16 B records, capacity %d, singly, ns\": %.1f,\n", static_cast<int>(capacity),
                    each(median_of(3, [&] { return stream(16, capacity, ef::shared_records, 2000000 * k, 1); }), 2000000 * k));
        std::printf("  \"1 KiB messages, capacity %d, singly, ns\": %.1f,\n", static_cast<int>(capacity),
                    each(median_of(3, [&] { return stream(1024, capacity, ef::shared_bytes, 1000000 * k, 1); }), 1000000 * k));
        std::printf("  \"16 B records, capacity %d, by 256, ns\": %.1f,\n", static_cast<int>(capacity),
                    each(median_of(3, [&] { return stream(16, capacity, ef::shared_records, 8000000 * k, 256); }), 8000000 * k));
        std::printf("  \"1 KiB records, capacity %d, by 256, ns\": %.1f,\n", static_cast<int>(capacity),
                    each(median_of(3, [&] { return stream(1024, capacity, ef::shared_records, 1000000 * k, 256); }), 1000000 * k));
    }
    std::printf("  \"1 MiB in place, GB/s\": %.2f,\n", 1.048576e-3 * 2000 / median_of(3, [&] { return in_place(1 << 20, 16, 2000); }));
    std::printf("  \"1 MiB memcpy, GB/s\": %.2f,\n", 1.048576e-3 * 2000 / median_of(3, [&] { return copy(1 << 20, 2000); }));
    std::printf("  \"round trip, us\": %.2f,\n", 1e6 * median_of(3, [&] { return round_trip(20000 * k, true); }));
    std::printf("  \"round trip, both asleep, us\": %.2f,\n", 1e6 * median_of(5, [&] { return round_trip(20000 * k, false); }));
    std::printf("  \"bare futex round trip, us\": %.2f\n}\n", 1e6 * median_of(5, [&] { return bare_round_trip(20000 * k); }));
}
