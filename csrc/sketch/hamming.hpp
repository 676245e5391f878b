// Packed binary codes: signs of numbers to bits, Hamming distances, nearest codes, a filter of near-duplicates.
//
// A code is `bytes` bytes, bit b % 8 of byte b / 8 being bit b (LSB first). Everything here is integer arithmetic: one
// answer, whatever the SIMD level and the threads.
// Alignment: none needed, except the 8-byte words of the filter's ring. Aliasing: outputs overlap nothing.
// Thread-safety: pure functions, except that hamming_filter changes the ring it is given.
#pragma once

#include <cstdint>

#include "common/isa.hpp"

namespace ef {

// out[i] gets ceil(columns / 8) bytes at out + i * out_stride: bit c is x[i][c] >= 0, spare bits are 0. -0 counts as 0,
// NaN gives 0. x is contiguous.
void sign_bits(Isa isa, const float* x, int64_t rows, int64_t columns, uint8_t* out, int64_t out_stride) noexcept;
void sign_bits(Isa isa, const double* x, int64_t rows, int64_t columns, uint8_t* out, int64_t out_stride) noexcept;

struct Codes {
    const uint8_t* data;
    int64_t count;
    int64_t stride;  // bytes from a code to the next
};

// out[i * b.count + j] = distance of a[i] and b[j]; bytes <= 8191, so that it fits.
void hamming_pairs(Isa isa, const Codes& a, const Codes& b, int64_t bytes, uint16_t* out, int num_threads) noexcept;

// The nearest code of every query, the first one on ties; index -1 and distance 65535 when there are no codes.
void hamming_nearest(Isa isa, const Codes& queries, const Codes& codes, int64_t bytes, int64_t* index,
                     uint16_t* distance, int num_threads) noexcept;

// Codes [begin, end) within `radius` of one query, ascending: up to `room` indices and distances. Stops when there is no
// more room. Returns the number written; *next is where to go on, or `end`.
int64_t hamming_within(Isa isa, const uint8_t* query, const Codes& codes, int64_t bytes, int radius, int64_t begin,
                       int64_t end, int64_t room, int64_t* index, uint16_t* distance, int64_t* next) noexcept;

// The last codes kept, word by word: word w of the code in slot s is ring[w * capacity + s]; capacity is a multiple of 8.
struct Ring {
    uint64_t* words;
    int64_t word_count;  // ceil(bytes / 8); spare bytes of the last word are 0
    int64_t capacity;
    int64_t window;  // slots in use at most, <= capacity
    int64_t filled;  // slots in use
    int64_t next;    // slot the next code is written to
};

// keep[i] = 0 when a code in the ring is within `radius` of code i, else 1, and the code enters the ring.
void hamming_filter(Isa isa, const Codes& codes, int64_t bytes, int radius, Ring* ring, uint8_t* keep) noexcept;

}  // namespace ef
