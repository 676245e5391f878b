// SharedQueue when its processes die or stop: at every step of every operation, then at random.
//
//     shared_crash               each operation once per crash point it passes, killed there, then stopped there; a short soak
//     shared_crash soak [kills]  random kills and stops of producers and consumers, with exact accounting
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <functional>
#include <set>
#include <string>
#include <vector>

namespace {

// Where the watched child strikes, and what it passed. In memory that all processes share.
struct Script {
    static constexpr int kMost = 2048;
    int at = -1;          // at this crash point, counted from 0
    char name[32] = {};   // or at the first of this name
    int signal = 0;
    int passed = 0;
    bool struck = false;
    char names[kMost][32];
};
Script* script = nullptr;
bool watched = false;  // this process is the watched child

void crash_point(const char* name) {
    if (!watched) return;
    const int i = script->passed;
    if (i == Script::kMost) std::abort();
    std::strncpy(script->names[i], name, sizeof script->names[i] - 1);
    script->passed = i + 1;
    if (i != script->at && std::strcmp(name, script->name) != 0) return;
    script->name[0] = 0;
    script->struck = true;
    kill(getpid(), script->signal);  // goes on after SIGSTOP and SIGCONT
}

}  // namespace

#define EDGEFAST_CRASH_POINT(name) crash_point(name)
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
using Policy = RecordQueue::Policy;

struct Wide {
    uint64_t value, copies[7];
    static Wide of(uint64_t v) { return {v, {v, ~v, v * 3, v, v, v + 1, ~v}}; }
    bool whole() const { return copies[0] == value && copies[1] == ~value && copies[2] == value * 3 && copies[6] == ~value; }
};

template <class T>
T* shared(size_t n = 1) {
    void* memory = mmap(nullptr, sizeof(T) * n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED);
    return static_cast<T*>(memory);
}

SharedConfig config_of(Policy policy, uint64_t capacity, bool drop_of_dead) {
    SharedConfig c;
    c.kind = ef::shared_records;
    c.policy = policy;
    c.capacity = capacity;
    c.itemsize = sizeof(Wide);
    c.drop_of_dead = drop_of_dead;
    c.participants = 16;
    c.spare = 8;
    return c;
}

void must(bool ok, const SharedFailure& f) {
    if (ok) return;
    std::fprintf(stderr, "shared_crash: %s\n", f.text);
    std::exit(1);
}

// A child that waits for `go`, so that it inherits no handle of what the parent makes meanwhile.
struct Child {
    pid_t pid;
    std::atomic<int>* go;

    template <class F>
    explicit Child(F run) : go(shared<std::atomic<int>>()) {
        pid = fork();
        CHECK(pid >= 0);
        if (pid != 0) return;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (go->load() == 0) usleep(20);
        run();
        _exit(0);
    }
    // The status of its end or stop.
    int run() {
        go->store(1);
        return wait();
    }
    int wait() {
        int status = 0;
        CHECK(waitpid(pid, &status, WUNTRACED) == pid);
        return status;
    }
    ~Child() { munmap(go, sizeof *go); }
};

// ---- every step ----------------------------------------------------------------------------------------------------

constexpr uint64_t kChilds = 1000;  // values from here on are the watched child's
constexpr uint64_t kParents = 500;  // and from here on the parent's while the child is dead or stopped

struct Operation {
    const char* name;
    Policy policy;
    uint64_t capacity;
    int64_t before;  // records in the queue when it begins
    std::function<void(SharedQueue&, std::vector<uint64_t>*)> run;
    // life: attach and close, too; closing: leaves while it holds something; wreckage: after other deaths.
    enum Watch { operation, life, closing, wreckage } watch = operation;
    bool takes_for_itself = true;                                 // what it takes and frees is got, not dropped or cleared
    bool waited_for = false;                                      // somebody waits for records
};

void put(SharedQueue& q, uint64_t value, int64_t n) {
    Wide records[16];
    for (int64_t i = 0; i < n; ++i) records[i] = Wide::of(value + static_cast<uint64_t>(i));
    int status;
    CHECK(q.put(records, nullptr, n, ef::kForever, &status) == n && status == EDGEFAST_OK);
}
int64_t get(SharedQueue& q, int64_t most, std::vector<uint64_t>* got, int64_t deadline = ef::kDontBlock) {
    Wide records[64];
    int status;
    const int64_t n = q.get(records, nullptr, most, 1, deadline, 0, &status);
    CHECK((n > 0) == (status == EDGEFAST_OK));
    for (int64_t i = 0; i < n; ++i) {
        CHECK(records[i].whole());
        got->push_back(records[i].value);
    }
    return n;
}
void put_in_place(SharedQueue& q, uint64_t value, bool commits) {
    void* slots;
    uint64_t ticket;
    int status;
    const int64_t n = q.reserve(2, ef::kForever, &slots, &ticket, &status);
    CHECK(n == 2);
    for (int64_t i = 0; i < n; ++i) static_cast<Wide*>(slots)[i] = Wide::of(value + static_cast<uint64_t>(i));
    EDGEFAST_CRASH_POINT("in_place.written");
    if (commits) CHECK(q.commit(ticket, n, nullptr, ef::kForever, &status) == n);
    else q.abort(ticket, n);
}
void get_in_place(SharedQueue& q, std::vector<uint64_t>* got) {
    const void* records;
    uint64_t ticket;
    int status;
    const int64_t n = q.view(2, ef::kDontBlock, &records, nullptr, &ticket, &status);
    if (n == 0) return;
    std::vector<uint64_t> mine;
    for (int64_t i = 0; i < n; ++i) {
        EDGEFAST_CRASH_POINT("in_place.read");
        CHECK(static_cast<const Wide*>(records)[i].whole());
        got->push_back(static_cast<const Wide*>(records)[i].value);
    }
    q.release(ticket, n);
}

const std::vector<Operation>& operations() {
    using Got = std::vector<uint64_t>*;
    static const std::vector<Operation> all = {
        {"put", RecordQueue::block, 16, 3, [](SharedQueue& q, Got) { put(q, kChilds, 1); }},
        {"put, somebody waits", RecordQueue::block, 16, 0, [](SharedQueue& q, Got) { put(q, kChilds, 1); },
         Operation::operation, true, true},
        {"put many", RecordQueue::block, 16, 3, [](SharedQueue& q, Got) { put(q, kChilds, 3); }},
        {"get", RecordQueue::block, 16, 3, [](SharedQueue& q, Got g) { get(q, 1, g); }},
        {"get many", RecordQueue::block, 16, 5, [](SharedQueue& q, Got g) { get(q, 3, g); }},
        {"get, nothing there", RecordQueue::block, 16, 0, [](SharedQueue& q, Got g) { get(q, 1, g, ef::now_ns() + 1000000); }},
        {"reserve, commit", RecordQueue::block, 16, 3, [](SharedQueue& q, Got) { put_in_place(q, kChilds, true); }},
        {"reserve, abort", RecordQueue::block, 16, 3, [](SharedQueue& q, Got) { put_in_place(q, kChilds, false); }},
        {"view, release", RecordQueue::block, 16, 4, [](SharedQueue& q, Got g) { get_in_place(q, g); }},
        {"put, full, drop_oldest", RecordQueue::drop_oldest, 4, 4, [](SharedQueue& q, Got) { put(q, kChilds, 2); },
         Operation::operation, false},
        {"put, latest", RecordQueue::latest, 4, 1, [](SharedQueue& q, Got) { put(q, kChilds, 1); }, Operation::operation, false},
        {"clear", RecordQueue::block, 16, 5, [](SharedQueue& q, Got) { q.clear(); }, Operation::operation, false},
        {"attach, close", RecordQueue::block, 16, 3, [](SharedQueue&, Got) {}, Operation::life},
        {"close with a view and a reservation", RecordQueue::block, 16, 5, [](SharedQueue& q, Got) {
             const void* records;
             void* slots;
             uint64_t ticket;
             int status;
             q.view(2, ef::kDontBlock, &records, nullptr, &ticket, &status);
             CHECK(q.reserve(1, ef::kForever, &slots, &ticket, &status) == 1);
             q.close();
         }, Operation::closing},
        {"recover", RecordQueue::block, 16, 8, [](SharedQueue& q, Got) { q.recover(); }, Operation::wreckage},
    };
    return all;
}

// Dies at the first crash point of that name.
template <class F>
void die_at(const std::string& path, const char* point, F run) {
    *script = {};
    std::strncpy(script->name, point, sizeof script->name - 1);
    script->signal = SIGKILL;
    Child child([&] {
        SharedFailure f;
        SharedQueue q;
        must(q.attach(path.c_str(), 0, &f), f);
        watched = true;
        run(q);
    });
    CHECK(WIFSIGNALED(child.run()));
}

std::set<std::string> seen_points;

int64_t passed(const char* name) {
    int64_t n = 0;
    for (int i = 0; i < script->passed; ++i) n += std::strcmp(script->names[i], name) == 0;
    return n;
}

// Returns how many crash points there are; -1 for `at` strikes nowhere.
int strike(const Operation& op, int at, int signal, bool drop_of_dead) {
    const std::string path = path_of("crash");
    auto* got = shared<uint64_t[64]>();
    *script = {};
    Child child([&] {
        SharedFailure f;
        SharedQueue q;
        std::vector<uint64_t> mine;
        watched = op.watch == Operation::life;
        must(q.attach(path.c_str(), 0, &f), f);
        watched = true;
        op.run(q, &mine);
        watched = op.watch == Operation::life;
        q.close();
        watched = false;
        for (size_t i = 0; i < mine.size(); ++i) (*got)[i] = mine[i] + 1;
    });
    SharedFailure f;
    SharedQueue q;
    must(q.create(path.c_str(), config_of(op.policy, op.capacity, drop_of_dead), 0600, &f), f);
    std::vector<uint64_t> mine, none;
    if (op.waited_for) CHECK(get(q, 1, &none, ef::now_ns() + 1000000) == 0);  // leaves its mark
    for (int64_t i = 0; i < op.before; ++i) put(q, static_cast<uint64_t>(i), 1);
    int64_t lost = 0, returned = 0, cleared = 0;
    if (op.watch == Operation::wreckage) {
        die_at(path, "claim.taken", [](SharedQueue& other) { put(other, 900, 1); });
        die_at(path, "publish.ready", [](SharedQueue& other) { put(other, 901, 1); });
        die_at(path, "get.read", [](SharedQueue& other) {
            std::vector<uint64_t> theirs;
            get(other, 2, &theirs);
        });
        die_at(path, "take.taken", [](SharedQueue& other) { other.clear(); });
        lost = 2, returned = 2, cleared = 1;
    }
    *script = {};
    script->at = at;
    script->signal = signal;
    int status = child.run();
    if (!script->struck) {
        CHECK(at < 0 || drop_of_dead);  // dropping takes fewer steps than putting again
        at = -1;
    }
    CHECK(at < 0 ? WIFEXITED(status) && WEXITSTATUS(status) == 0
                 : signal == SIGKILL ? WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL : WIFSTOPPED(status));
    const int points = script->passed;
    for (int i = 0; i < points; ++i) seen_points.insert(script->names[i]);

    // Whatever happened to the child: others get what is there and put, without waiting.
    const int64_t takes = passed("take.taken"), frees = passed("free.freed"), claims = passed("claim.taken");
    const int64_t puts = op.watch == Operation::wreckage || op.watch == Operation::closing ? 0 : passed("publish.in_ring");
    const bool gets = op.takes_for_itself;
    int64_t parents = 0;
    if (!q.is_down()) {
        if (op.policy == RecordQueue::block) {
            put(q, kParents, 1), ++parents;
            CHECK(q.size() >= 1);
        }
        while (get(q, 3, &mine)) {
        }
        const int64_t there = op.before + parents + puts - takes - returned - cleared;
        CHECK(static_cast<int64_t>(mine.size()) >= there - op.before * (op.watch != Operation::operation));
        put(q, kParents + 1, 1), ++parents;
        CHECK(get(q, 1, &mine) == 1);
    }
    if (at >= 0 && signal == SIGSTOP) {
        if (op.watch != Operation::wreckage) CHECK(q.recover().participants == 0);  // not robbed
        kill(child.pid, SIGCONT);
        status = child.wait();
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    const bool died = at >= 0 && signal == SIGKILL;
    const auto report = q.recover();
    CHECK(!report.damaged && q.recover().participants == 0);
    while (get(q, 3, &mine)) {
    }
    std::multiset<uint64_t> all(mine.begin(), mine.end());
    int64_t from_child = 0;
    for (int i = 0; i < 64 && (*got)[i]; ++i) all.insert((*got)[i] - 1), ++from_child;
    for (uint64_t v : all) CHECK(all.count(v) == 1);
    const auto c = q.counters();
    CHECK(c.size == 0 && c.in_hands == 0 && c.participants == 1);
    CHECK(c.puts == c.gets + c.cleared + c.dropped_oldest + c.dropped_dead);
    if (died) {
        // The steps passed say what must have become of everything.
        if (op.watch != Operation::wreckage) {
            CHECK(c.puts == op.before + parents + puts);
            const int64_t kept = takes - frees;
            if (gets) {
                CHECK((drop_of_dead ? c.dropped_dead : c.redelivered) == kept);
                CHECK(c.gets == static_cast<int64_t>(mine.size()) + frees);
            } else {
                CHECK(c.cleared + c.dropped_oldest == takes && c.gets == static_cast<int64_t>(mine.size()));
            }
            // A reservation that close gives up is not lost.
            lost = claims - puts - passed("give_back.freed");
            if (op.watch == Operation::closing) CHECK(c.lost <= lost);
            else CHECK(c.lost == lost);
        }
    } else {
        CHECK(c.gets == static_cast<int64_t>(mine.size()) + from_child);
    }
    if (op.watch == Operation::wreckage) {
        CHECK(c.lost == lost && c.cleared == cleared && c.puts == op.before + parents);
        CHECK(c.redelivered == (drop_of_dead ? 0 : returned) && c.dropped_dead == (drop_of_dead ? returned : 0));
        CHECK(c.gets == static_cast<int64_t>(mine.size()));
    }
    unlink(path.c_str());
    munmap(got, sizeof *got);
    return points;
}

void every_step() {
    int strikes = 0;
    for (const Operation& op : operations()) {
        const int points = strike(op, -1, 0, false);
        CHECK(points > 0);
        for (int at = 0; at < points; ++at) {
            strike(op, at, SIGKILL, false);
            strike(op, at, SIGKILL, true);
            strike(op, at, SIGSTOP, false);
            strikes += 3;
        }
    }
    for (const char* name :
         {"attach.opened", "attach.mapped", "attach.locked", "attach.entered", "claim.taken", "put.written", "publish.ready",
          "publish.in_ring", "publish.moved_tail", "notify.looked", "notify.taken", "notify.woken", "take.taken", "take.moved_head",
          "get.read", "in_place.written", "in_place.read", "free.counted", "free.freed", "give_back.freed", "wait.prepared", "wait.woken",
          "recover.locked", "recover.counted_lost", "recover.freed_lost", "recover.moved_head", "recover.counted_redelivered",
          "recover.returning", "recover.counted_dropping", "recover.freed_dropping", "recover.entry_free", "recover.unlocked",
          "recover.counted_dropped", "recover.freed_dropped", "close.recovered", "close.entry_free", "close.unlocked"}) {
        if (seen_points.count(name)) continue;
        std::fprintf(stderr, "shared_crash: no operation passes %s\n", name);
        std::exit(1);
    }
    std::printf("shared_crash: %d deaths and stops at %zu places\n", strikes, seen_points.size());
}

// A creator that dies leaves a file that nobody takes for a queue, and that is known to be nobody's.
void creation() {
    const std::string path = path_of("create");
    int points = 1;
    for (int at = -1; at < points; ++at)
        for (const int signal : {SIGKILL, SIGSTOP}) {
            *script = {};
            script->at = at;
            script->signal = signal;
            Child child([&] {
                SharedFailure f;
                SharedQueue q;
                watched = true;
                must(q.create(path.c_str(), config_of(RecordQueue::block, 16, false), 0600, &f), f);
                watched = false;
                put(q, 1, 1);
            });
            int status = child.run();
            if (at < 0) points = script->passed;
            SharedFailure f;
            SharedQueue q;
            SharedConfig config;
            bool in_use = false;
            const bool finished = passed("create.magic") > 0;
            CHECK(q.attach(path.c_str(), 0, &f) == finished);
            CHECK(finished || f.error == SharedError::not_ready);
            SharedQueue::inspect(path.c_str(), 0, &config, &in_use, &f);
            CHECK(in_use == (finished || (WIFSTOPPED(status) && passed("create.locked"))));
            if (WIFSTOPPED(status)) {
                kill(child.pid, SIGCONT);
                status = child.wait();
                CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
                SharedQueue again;
                must(again.attach(path.c_str(), 0, &f), f);
                std::vector<uint64_t> got;
                CHECK(get(again, 1, &got) == 1 && got[0] == 1);
            }
            q.close();
            unlink(path.c_str());
        }
}

// Shutdown that dies at any step: once anybody is told that the queue is down, nothing is put any more, and what was put
// before comes.
void shutdown_dies() {
    const std::string path = path_of("down");
    int points = 1;
    for (int at = -1; at < points; ++at)
        for (const int signal : {SIGKILL, SIGSTOP}) {
            *script = {};
            script->at = at;
            script->signal = signal;
            Child child([&] {
                SharedFailure f;
                SharedQueue q;
                must(q.attach(path.c_str(), 0, &f), f);
                watched = true;
                q.shut_down(false);
                watched = false;
            });
            SharedFailure f;
            SharedQueue q;
            must(q.create(path.c_str(), config_of(RecordQueue::block, 16, false), 0600, &f), f);
            put(q, 1, 2);
            const int ended = child.run();
            if (at < 0) points = script->passed;
            std::vector<uint64_t> got;
            CHECK(get(q, 5, &got) == 2);
            Wide r = Wide::of(3);
            int status;
            CHECK(q.put(&r, nullptr, 1, ef::kForever, &status) == 0 && status == EDGEFAST_SHUT_DOWN);
            CHECK(q.get(&r, nullptr, 1, 1, ef::kForever, 0, &status) == 0 && status == EDGEFAST_SHUT_DOWN);
            if (WIFSTOPPED(ended)) {
                kill(child.pid, SIGCONT);
                CHECK(WIFEXITED(child.wait()));
            }
            unlink(path.c_str());
        }
}

// A record in the hands of a consumer that dies wakes one that sleeps, shutdown or not; and one that lives is left alone.
void sleepers_get_what_the_dead_held() {
    for (const bool down : {false, true}) {
        const std::string path = path_of("sleep");
        auto* held = shared<std::atomic<int>>();
        Child holder([&] {
            SharedFailure f;
            SharedQueue q;
            must(q.attach(path.c_str(), 0, &f), f);
            const void* records;
            uint64_t ticket;
            int status;
            CHECK(q.view(1, ef::kForever, &records, nullptr, &ticket, &status) == 1);
            held->store(1);
            for (;;) pause();
        });
        SharedFailure f;
        SharedQueue q;
        must(q.create(path.c_str(), config_of(RecordQueue::block, 16, false), 0600, &f), f);
        put(q, 7, 1);
        holder.go->store(1);
        while (!held->load()) usleep(100);
        std::vector<uint64_t> got;
        if (down) q.shut_down(false);
        CHECK(get(q, 1, &got, ef::now_ns() + 300000000) == 0);  // longer than between two looks for the dead
        kill(holder.pid, SIGKILL);
        holder.wait();
        if (down) q.recover();
        CHECK(get(q, 1, &got, ef::kForever) == 1 && got[0] == 7);
        if (down) {
            Wide r;
            int status;
            CHECK(q.get(&r, nullptr, 1, 1, ef::kForever, 0, &status) == 0 && status == EDGEFAST_SHUT_DOWN);
            CHECK(q.put(&r, nullptr, 1, ef::kForever, &status) == 0 && status == EDGEFAST_SHUT_DOWN);
        }
        unlink(path.c_str());
        munmap(held, sizeof *held);
    }
}

// A forked child is a participant of its own, also of a file without a name; the death of the parent, whose mapping it
// inherited, is noticed though the child lives on.
void forks() {
    const std::string path = path_of("fork");
    auto* phase = shared<std::atomic<int>>();
    Child creator([&] {
        SharedFailure f;
        SharedQueue q, other;
        must(q.create(path.c_str(), config_of(RecordQueue::block, 16, false), 0600, &f), f);
        must(other.attach(path.c_str(), 0, &f), f);
        void* slots;
        uint64_t ticket;
        int status;
        CHECK(q.reserve(1, ef::kForever, &slots, &ticket, &status) == 1);
        if (fork() == 0) {
            must(q.after_fork_in_child(&f), f);
            other.forget_in_child();
            CHECK(other.put(slots, nullptr, 1, ef::kForever, &status) == 0 && status == EDGEFAST_DETACHED);
            phase->store(1);
            while (phase->load() != 2) usleep(100);
            put(q, 3, 1);
            q.close();
            phase->store(3);
            _exit(0);
        }
        for (;;) pause();
    });
    creator.go->store(1);
    while (phase->load() != 1) usleep(100);
    SharedFailure f;
    SharedQueue q;
    must(q.attach(path.c_str(), 0, &f), f);
    unlink(path.c_str());
    CHECK(q.counters().participants == 4 && q.recover().participants == 0);
    kill(creator.pid, SIGKILL);
    creator.wait();
    const auto report = q.recover();
    CHECK(report.participants == 2 && report.lost == 1);
    phase->store(2);
    while (phase->load() != 3) usleep(100);
    std::vector<uint64_t> got;
    CHECK(get(q, 1, &got) == 1 && got[0] == 3);
    CHECK(q.recover().participants == 0 && q.counters().participants == 1);
    munmap(phase, sizeof *phase);
}

// ---- at random -----------------------------------------------------------------------------------------------------

// Each producer process puts values of its own: {number of the process : 24 | sequence : 40}.
struct Life {
    std::atomic<uint64_t> begun, acknowledged;  // a producer's sequence numbers
    std::atomic<uint64_t> open;                 // a consumer's records between its call and the log
};
struct Log {
    std::atomic<uint64_t> progress, torn;
};

struct Soak {
    static constexpr uint64_t kLives = 1 << 15, kEach = 1 << 14;
    Life* lives = shared<Life>(kLives);
    std::atomic<uint8_t>* seen = shared<std::atomic<uint8_t>>(kLives * kEach);
    Log* log = shared<Log>();
    std::string path = path_of("soak");

    void produce(uint64_t life) {
        SharedFailure f;
        SharedQueue q;
        must(q.attach(path.c_str(), 0, &f), f);
        Random random{life * 0x9e3779b97f4a7c15ull + 1};
        Life& me = lives[life];
        for (uint64_t next = 0; next < kEach;) {
            uint64_t n = 1 + random(6);
            if (n > kEach - next) n = kEach - next;
            Wide batch[6];
            for (uint64_t i = 0; i < n; ++i) batch[i] = Wide::of(life << 40 | (next + i));
            me.begun.store(next + n);
            int status;
            int64_t done = 0;
            if (random(3)) {
                done = q.put(batch, nullptr, static_cast<int64_t>(n), random(2) ? ef::kForever : ef::now_ns() + 100000, &status);
            } else {
                void* slots;
                uint64_t ticket;
                done = q.reserve(static_cast<int64_t>(n), ef::now_ns() + 1000000, &slots, &ticket, &status);
                if (done) {
                    std::memcpy(slots, batch, static_cast<size_t>(done) * sizeof(Wide));
                    int64_t out = 0;
                    while (out < done) {
                        out += q.commit(ticket + static_cast<uint64_t>(out), done - out, nullptr, ef::kForever, &status);
                        if (status == EDGEFAST_SHUT_DOWN) break;
                    }
                    if (out < done) q.abort(ticket + static_cast<uint64_t>(out), done - out);
                    done = out;
                }
            }
            CHECK(status != EDGEFAST_DAMAGED && status != EDGEFAST_DETACHED);
            next += static_cast<uint64_t>(done);
            me.acknowledged.store(next);
            if (status == EDGEFAST_SHUT_DOWN) return;
            if (random(512) == 0) usleep(static_cast<useconds_t>(random(300)));
        }
    }
    void note(const Wide& r) {
        if (!r.whole()) log->torn.fetch_add(1);
        const uint64_t life = r.value >> 40, sequence = r.value & ((uint64_t{1} << 40) - 1);
        CHECK(life < kLives && sequence < lives[life].begun.load());  // not invented
        seen[life * kEach + sequence].fetch_add(1);
        log->progress.fetch_add(1);
    }
    void consume(uint64_t life) {
        SharedFailure f;
        SharedQueue q;
        must(q.attach(path.c_str(), 0, &f), f);
        Random random{life * 0xd1342543de82ef95ull + 1};
        Life& me = lives[life];
        for (;;) {
            Wide batch[7];
            int status;
            const int64_t n = static_cast<int64_t>(1 + random(7));
            const int64_t deadline = random(2) ? ef::kForever : ef::now_ns() + 100000;
            int64_t k;
            if (random(3)) {
                me.open.store(static_cast<uint64_t>(n));
                k = q.get(batch, nullptr, n, 1, deadline, 0, &status);
            } else {
                const void* records;
                uint64_t ticket;
                k = q.view(n, deadline, &records, nullptr, &ticket, &status);
                if (k) std::memcpy(batch, records, static_cast<size_t>(k) * sizeof(Wide));
                if (random(64) == 0) usleep(static_cast<useconds_t>(random(300)));
                me.open.store(static_cast<uint64_t>(k));
                if (k) q.release(ticket, k);
            }
            CHECK(status != EDGEFAST_DAMAGED && status != EDGEFAST_DETACHED);
            for (int64_t i = 0; i < k; ++i) {
                note(batch[i]);
                me.open.fetch_sub(1);
            }
            me.open.store(0);
            if (status == EDGEFAST_SHUT_DOWN) return;
        }
    }
    ~Soak() {
        munmap(lives, sizeof *lives * kLives);
        munmap(seen, sizeof *seen * kLives * kEach);
        munmap(log, sizeof *log);
    }
    void run(const char* name, Policy policy, bool drop_of_dead, uint64_t kills) {
        SharedFailure f;
        SharedQueue q;
        SharedConfig config = config_of(policy, 64, drop_of_dead);
        config.participants = 64;
        config.spare = 64;
        must(q.create(path.c_str(), config, 0600, &f), f);
        constexpr int kProcesses = 8;  // even: producers
        struct Running {
            pid_t pid;
            uint64_t life;
            bool stopped;
        } running[kProcesses];
        uint64_t lives_begun = 1, struck = 0, stops = 0, unsure_puts = 0, unsure_gets = 0;
        const auto start = [&](int i) {
            const uint64_t life = lives_begun++;
            CHECK(life < kLives);
            const pid_t pid = fork();
            CHECK(pid >= 0);
            if (pid == 0) {
                // The handle is the parent's: a process that attaches by name should not depend on it.
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                q.forget_in_child();
                if (i % 2 == 0) produce(life);
                else consume(life);
                _exit(0);
            }
            running[i] = {pid, life, false};
        };
        const auto ended = [&](int i) {
            // How many of its records nobody can know about but the queue.
            const Life& l = lives[running[i].life];
            unsure_puts += l.begun.load() - l.acknowledged.load();
            unsure_gets += l.open.load();
        };
        for (int i = 0; i < kProcesses; ++i) start(i);
        Random random{0x2545f4914f6cdd1dull};
        int64_t moved_at = ef::now_ns();
        uint64_t moved = 0;
        while (struck < kills) {
            usleep(static_cast<useconds_t>(random(1500)));
            const int i = static_cast<int>(random(kProcesses));
            // At least one of each side runs, so something must move, whatever the others are.
            const auto runs = [&](int side) {
                int n = 0;
                for (int k = side; k < kProcesses; k += 2) n += !running[k].stopped;
                return n;
            };
            if (running[i].stopped) {
                if (random(3)) {
                    CHECK(kill(running[i].pid, SIGCONT) == 0);
                    running[i].stopped = false;
                    continue;
                }
            } else if (random(3) == 0) {
                if (runs(i % 2) < 2) continue;
                CHECK(kill(running[i].pid, SIGSTOP) == 0);
                running[i].stopped = true;
                ++stops;
                continue;
            }
            kill(running[i].pid, SIGKILL);
            int status;
            CHECK(waitpid(running[i].pid, &status, 0) == running[i].pid);
            CHECK(WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
            struck += WIFSIGNALED(status);
            ended(i);
            start(i);
            const uint64_t now = log->progress.load();
            if (now != moved) moved = now, moved_at = ef::now_ns();
            CHECK(ef::now_ns() - moved_at < int64_t{20} * 1000000000);
        }
        // The end: producers stop, consumers take what is left.
        for (const Running& r : running) kill(r.pid, SIGCONT);
        q.shut_down(false);
        for (int i = 0; i < kProcesses; ++i) {
            int status;
            CHECK(waitpid(running[i].pid, &status, 0) == running[i].pid);
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            ended(i);
        }
        while (q.recover().participants) {
        }
        Wide r;
        int status;
        while (q.get(&r, nullptr, 1, 1, ef::kDontBlock, 0, &status) == 1) note(r);
        CHECK(status == EDGEFAST_SHUT_DOWN);
        const auto c = q.counters();
        uint64_t acknowledged = 0, once = 0, unseen = 0;
        for (uint64_t life = 1; life < lives_begun; ++life) {
            const uint64_t sure = lives[life].acknowledged.load(), maybe = lives[life].begun.load();
            acknowledged += sure;
            for (uint64_t s = 0; s < maybe; ++s) {
                const int n = seen[life * kEach + s].load();
                CHECK(n <= 1);  // not twice
                once += static_cast<uint64_t>(n);
                unseen += n == 0 && s < sure;
            }
        }
        CHECK(log->torn.load() == 0 && c.size == 0 && c.in_hands == 0 && c.participants == 1);
        // put = got + dropped (+ queued, which is 0 now; lost was never put). What nobody has seen was got by consumers that died
        // before they said so.
        const auto puts = static_cast<uint64_t>(c.puts), gets = static_cast<uint64_t>(c.gets);
        const auto dropped = static_cast<uint64_t>(c.dropped_oldest + c.dropped_dead);
        CHECK(puts == gets + dropped && c.cleared == 0);
        CHECK(policy == RecordQueue::drop_oldest || c.dropped_oldest == 0);
        CHECK((drop_of_dead ? c.redelivered : c.dropped_dead) == 0);
        CHECK(puts >= acknowledged && puts <= acknowledged + unsure_puts);
        CHECK(gets >= once && gets <= once + unsure_gets);
        CHECK(unseen <= gets - once + dropped);
        const auto u = [](auto n) { return static_cast<unsigned long long>(n); };
        std::printf("shared_crash: %s: %llu kills, %llu stops: %llu put = %llu got (%llu by the dead) + %llu dropped; "
                    "%llu lost unfinished, %llu redelivered\n",
                    name, u(struck), u(stops), u(c.puts), u(c.gets), u(gets - once), u(dropped), u(c.lost), u(c.redelivered));
        unlink(path.c_str());
    }
};

}  // namespace

int main(int argc, char** argv) {
    const bool soak = argc > 1 && std::strcmp(argv[1], "soak") == 0;
    script = shared<Script>();
    if (!soak) {
        every_step();
        creation();
        shutdown_dies();
        sleepers_get_what_the_dead_held();
        forks();
    }
    const uint64_t kills = soak ? (argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 12000) : 400;
    Soak().run("block", RecordQueue::block, false, kills / 2);
    Soak().run("block, the dead's dropped", RecordQueue::block, true, kills / 4);
    Soak().run("drop_oldest", RecordQueue::drop_oldest, false, kills / 4);
    std::puts("shared_crash: ok");
}
