// IEEE 754 binary16 and bfloat16 in integers, for levels without conversion instructions. Exact both ways: to nearest
// even, once, subnormals, infinities and NaN included, as numpy's casts do (NaN payloads are not kept).
#pragma once

#include <cstdint>
#include <cstring>

namespace ef {

static inline double half_to_double(uint16_t h) {
    const uint64_t sign = static_cast<uint64_t>(h & 0x8000u) << 48;
    const unsigned exponent = (h >> 10) & 31u;
    const uint64_t fraction = h & 1023u;
    uint64_t bits;
    if (exponent == 31) {
        bits = sign | 0x7ff0000000000000ull | (fraction ? 0x0008000000000000ull : 0);
    } else if (exponent != 0) {
        bits = sign | (static_cast<uint64_t>(exponent + 1008) << 52) | (fraction << 42);
    } else {
        const double v = static_cast<double>(fraction) * 5.9604644775390625e-08;  // 2^-24
        std::memcpy(&bits, &v, sizeof(bits));
        bits |= sign;
    }
    double d;
    std::memcpy(&d, &bits, sizeof(d));
    return d;
}

static inline uint16_t double_to_half(double d) {
    uint64_t bits;
    std::memcpy(&bits, &d, sizeof(bits));
    const uint16_t sign = static_cast<uint16_t>((bits >> 48) & 0x8000u);
    const uint64_t magnitude = bits & 0x7fffffffffffffffull;
    if (magnitude > 0x7ff0000000000000ull) return sign | 0x7e00u;   // NaN
    if (magnitude >= 0x40effe0000000000ull) return sign | 0x7c00u;  // 65520 and above round to infinity
    const int exponent = static_cast<int>(magnitude >> 52) - 1023;
    if (exponent < -25) return sign;  // below half the smallest subnormal
    uint64_t fraction = magnitude & 0x000fffffffffffffull;
    int shift = 42;
    uint64_t base = 0;
    if (exponent >= -14) {
        base = static_cast<uint64_t>(exponent + 15) << 10;
    } else {
        fraction |= 0x0010000000000000ull;
        shift = 42 + (-14 - exponent);
    }
    const uint64_t kept = fraction >> shift, rest = fraction & ((1ull << shift) - 1), half = 1ull << (shift - 1);
    uint64_t result = base + kept;  // a carry out of the fraction is the next exponent, as it should be
    if (rest > half || (rest == half && (kept & 1))) ++result;
    return static_cast<uint16_t>(sign | result);
}

static inline double brain_to_double(uint16_t b) {
    const uint32_t bits = static_cast<uint32_t>(b) << 16;
    float f;
    std::memcpy(&f, &bits, sizeof(f));
    return f;
}

static inline uint16_t double_to_brain(double d) {
    // To float32 rounded to odd first: the second rounding then sees what lay below.
    float f = static_cast<float>(d);
    uint32_t bits;
    std::memcpy(&bits, &f, sizeof(bits));
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16 & 0x8000u) | 0x7fc0u);  // NaN
    const double back = f;
    if (back != d) {
        const double magnitude = d < 0 ? -d : d, reached = back < 0 ? -back : back;
        if (reached > magnitude) --bits;
        bits |= 1;
    }
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace ef
