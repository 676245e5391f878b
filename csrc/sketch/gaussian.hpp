// Normal entries from 16-bit draws, in integers: the same on every platform.
//
// Entry (output c, feature j) comes from 16-bit lane c % 16 of Philox block counter = (j + 1, c / 16, 0, 0), key =
// (seed, 4), low lane of word 0 first. The lane's lower 15 bits v pick a magnitude, the mean of |x| over one of 2^15
// bins of equal probability (P(|x| > magnitude) is about (v + 1/2) / 2^15) to within 4e-4 (in the bins next to 0),
// bit 15 the sign. The magnitude is a cubic in the fraction of 2 v + 1 within its octave, one cubic an octave, with
// every product below 2^31: 32-bit lanes suffice, and a vector of 16 holds the coefficients of all octaves.
// Unit 2^-16, largest 4.39; the variance is exactly kGaussianVariance.
#pragma once

#include <cstdint>

namespace ef {

constexpr float kGaussianUnit = 1.52587890625e-05f;                      // 2^-16
constexpr double kGaussianVariance = 140736649329751.0 / 140737488355328.0;  // the denominator is 2^47

constexpr int32_t kGaussianCubics[4][16] = {
    {287540, 267415, 262029, 251797, 240401, 228518, 216071, 202967, 189097, 174313, 158419, 141137, 122055, 100518,
     75365, 44178},
    {0, 0, -10737, -15767, -16446, -17205, -18072, -19078, -20264, -21690, -23446, -25679, -28640, -32811, -39260,
     -51023},
    {0, 0, 0, 5948, 6223, 6487, 6774, 7095, 7461, 7883, 8376, 8955, 9634, 10401, 11103, 10836},
    {0, 0, 0, -1575, -1655, -1725, -1799, -1881, -1974, -2081, -2205, -2351, -2524, -2734, -3021, -4008},
};

// The entry of a draw, in units of 2^-16. Shifts of negative numbers round down (every compiler we build with).
static inline __attribute__((always_inline)) int32_t gaussian_entry(uint32_t draw) {
    const uint32_t odd = 2 * (draw & 0x7fffu) + 1;
    const int octave = 31 - __builtin_clz(odd);
    const auto fraction = static_cast<int32_t>(((odd << (15 - octave)) & 0x7fffu) >> 1);
    int32_t y = kGaussianCubics[3][octave];
    y = (y * fraction >> 14) + kGaussianCubics[2][octave];
    y = (y * fraction >> 14) + kGaussianCubics[1][octave];
    y = (y * fraction >> 14) + kGaussianCubics[0][octave];
    return draw & 0x8000u ? -y : y;
}

}  // namespace ef
