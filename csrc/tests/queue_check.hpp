// What the tests of the queues of records have in common.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <string>
#include <vector>

#include "check.hpp"

struct Random {
    uint64_t state;
    uint64_t operator()(uint64_t n) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return state % n;
    }
};

struct Record {
    uint64_t value, copies[3];
    static Record of(uint64_t v) { return {v, {v, ~v, v * 3}}; }
    void check() const { CHECK(copies[0] == value && copies[1] == ~value && copies[2] == value * 3); }
};

// got[c]: what consumer c got, of producers p that put p * each to (p + 1) * each - 1.
inline void each_once_and_in_order(const std::vector<std::vector<uint64_t>>& got, int producers, uint64_t each) {
    std::vector<int> seen(static_cast<size_t>(producers) * each, 0);
    for (const auto& one : got) {
        std::vector<int64_t> last(static_cast<size_t>(producers), -1);
        for (uint64_t v : one) {
            ++seen[v];
            CHECK(static_cast<int64_t>(v) > last[v / each]);
            last[v / each] = static_cast<int64_t>(v);
        }
    }
    for (int n : seen) CHECK(n == 1);
}

inline std::string path_of(const char* name) { return "/dev/shm/edgefast-test-" + std::to_string(getpid()) + "-" + name; }
