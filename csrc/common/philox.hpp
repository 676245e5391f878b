// Philox4x64-10, the counter-based generator every random integer of edgefast comes from.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11. numpy ships the same
// generator with a stream guarantee; numpy.random.Philox(key=k, counter=c).random_raw() returns the words of blocks
// c+1, c+2, ..., which is what keeps the pure-Python backend on the same stream.
//
// Thread-safe, stateless: block(counter, key) may be called for any counter in any order.
#pragma once

#include <cstdint>

namespace ef {

struct PhiloxBlock {
    uint64_t word[4];
};

namespace detail {
static inline __attribute__((always_inline)) uint64_t mulhilo(uint64_t a, uint64_t b, uint64_t* low) {
    __extension__ typedef unsigned __int128 u128;
    const u128 product = static_cast<u128>(a) * b;
    *low = static_cast<uint64_t>(product);
    return static_cast<uint64_t>(product >> 64);
}
}  // namespace detail

static inline __attribute__((always_inline)) PhiloxBlock philox4x64(uint64_t c0, uint64_t c1, uint64_t c2, uint64_t c3,
                                                                    uint64_t k0, uint64_t k1) {
    constexpr uint64_t kMul0 = 0xD2E7470EE14C6C93ULL, kMul1 = 0xCA5A826395121157ULL;
    constexpr uint64_t kWeyl0 = 0x9E3779B97F4A7C15ULL, kWeyl1 = 0xBB67AE8584CAA73BULL;
    for (int round = 0; round < 10; ++round) {
        if (round) {
            k0 += kWeyl0;
            k1 += kWeyl1;
        }
        uint64_t low0, low1;
        const uint64_t high0 = detail::mulhilo(kMul0, c0, &low0);
        const uint64_t high1 = detail::mulhilo(kMul1, c2, &low1);
        const uint64_t n0 = high1 ^ c1 ^ k0, n2 = high0 ^ c3 ^ k1;
        c0 = n0;
        c1 = low1;
        c2 = n2;
        c3 = low0;
    }
    return {{c0, c1, c2, c3}};
}

}  // namespace ef
