// The limit of a blocked wake-up: two threads, or two processes, that hand one futex word back and forth and sleep in
// between. Prints {"threads": seconds per round trip, "processes": ...}: the median of the rounds' means.
//     futex_pingpong [round trips = 20000] [rounds = 5] [cpu of the one, cpu of the other]
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#include "check.hpp"
#include "queues/parker.hpp"

namespace {

struct Board {
    std::atomic<uint32_t> turn{0};
};

void pass(Board& board, uint32_t to, int private_flag) {
    board.turn.store(to, std::memory_order_release);
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&board.turn), FUTEX_WAKE | private_flag, 1, nullptr, nullptr, 0);
}

void await(Board& board, uint32_t mine, int private_flag) {
    for (uint32_t turn; (turn = board.turn.load(std::memory_order_acquire)) != mine;)
        syscall(SYS_futex, reinterpret_cast<uint32_t*>(&board.turn), FUTEX_WAIT | private_flag, turn, nullptr, nullptr, 0);
}

// Where the kernel puts the two decides between 5 and 25 microseconds; a negative cpu leaves it to the kernel.
void pin(int cpu) {
    if (cpu < 0) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    CHECK(sched_setaffinity(0, sizeof(set), &set) == 0);
}

void answer(Board& board, int64_t trips, int private_flag, int cpu) {
    pin(cpu);
    for (int64_t i = 0; i < trips; ++i) {
        await(board, 1, private_flag);
        pass(board, 0, private_flag);
    }
}

double ask(Board& board, int64_t trips, int private_flag) {
    const int64_t start = ef::now_ns();
    for (int64_t i = 0; i < trips; ++i) {
        pass(board, 1, private_flag);
        await(board, 0, private_flag);
    }
    return static_cast<double>(ef::now_ns() - start) * 1e-9 / static_cast<double>(trips);
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
    const int64_t trips = argc > 1 ? std::atoll(argv[1]) : 20000;
    const int rounds = argc > 2 ? std::atoi(argv[2]) : 5;
    const int mine = argc > 4 ? std::atoi(argv[3]) : -1, others = argc > 4 ? std::atoi(argv[4]) : -1;
    CHECK(trips > 0 && rounds > 0);
    pin(mine);
    void* const memory = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    Board& board = *new (memory) Board;
    std::vector<double> threads, processes;
    for (int r = 0; r < rounds; ++r) {
        std::thread other(answer, std::ref(board), trips, FUTEX_PRIVATE_FLAG, others);
        threads.push_back(ask(board, trips, FUTEX_PRIVATE_FLAG));
        other.join();
        const pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            answer(board, trips, 0, others);
            _exit(0);
        }
        processes.push_back(ask(board, trips, 0));
        int status = 0;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    std::printf("{\"threads\": %.9f, \"processes\": %.9f}\n", median(threads), median(processes));
}
