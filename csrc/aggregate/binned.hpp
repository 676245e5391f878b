// Reproducible sums of model updates: the same bits for any order, grouping, merge tree, thread count and SIMD level.
//
// Every coordinate has bins of its own on one fixed grid of units u_j = 2^(44 j - 1074), j >= 0. A term t = w x (one
// rounding to binary64) is cut, from the coarsest unit downwards, into q_j = (what is left of t, rounded to a multiple of
// u_j, ties to even), and what is left is exact in binary64. A coordinate keeps the sums of the q of only F consecutive
// bins, top, top - 1, ... : integers in multiples of their units, each |q_j| <= 2^43 u_j, in int64.
// F = 2, for elements of more than 32 bits or 32-bit integers 3 (binned_folds).
//
// Why the order cannot matter. top is the largest, over the terms, of the smallest j with |t| < 2^43 u_j = u_(j+1) / 2 (but
// at least F - 1): a maximum, hence a function of the set of terms. Above a term's own j all its slices are zero, because
// less than half a unit rounds to zero; so the slices of a term are a function of the term alone, whatever bins exist.
// Raising top drops the lowest sums and opens empty ones at the top: what remains is, for every bin kept, the sum of that
// bin's slices over all terms. Integer sums are associative and commutative and never overflow (at most
// kBinnedTerms = 2^20 - 1 terms of at most 2^43 units). Merging aligns two states to the larger top and adds. So the state
// is a function of the multiset of terms, and the result is a function of the state.
//
// Error. Terms lose at most u_(top-F+1) / 2 each, and u_top <= 2 max |t| when top is above its floor (at the floor nothing
// is lost: u_0 = 2^-1074). So, per coordinate, with its own max |w x| and no other's,
//     |sum - exact| <= K 2^(-44 (F - 1)) max |w_k x_k|  +  2^-53 sum |w_k x_k|  +  2^-51 |exact|
// the second from rounding the products, the third from the one conversion to binary64 and the division by the total.
//
// Without bins. The mean of elements with F = 2 has at most 24 bits, and the plain sum p of its terms, in any order, mostly
// settles them; the kernel forms the bins where it does not, so the bits are those of the bins. Let X be the largest |x|
// of the coordinate, x the smallest above zero, W the largest weight, and D the quotient, in binary64, that the bins give.
//   - |D - p / total| <= slack = (K W X / total) (2^-43 + K 2^-52), p / total rounded: the bins lose at most
//     K 2^-44 W X, p at most K^2 2^-53 W X (1 + 2^-30), and the roundings of sum and quotient 2^-51 K W X. Twice that
//     leaves room for the rounding of slack itself. Rounding is monotone: if p / total - slack and p / total + slack
//     round to one element, that is the element of D.
//   - That fails around every tie between two elements, and with two or four equal weights a tie is common. But let 2^b
//     divide all weights, W < 2^(b + 29), K <= 512, and W X <= 2^(b + 20) 2^e with 2^e <= x < 2^(e + 1). Then all products
//     are exact multiples of g = 2^(b + e - 23) (elements have at most 24 bits), every partial sum is at most 2^52 g, so p
//     is exact; and u_(top-1) <= 2^-43 W X <= g, so the bins lose nothing and D = p / total.
//   - Values that are not finite, and weights from 2^864 on, always take the bins.
//
// Terms of 2^993 and more count as infinite. Non-finite terms turn the coordinate's index into a flag (kPlusInfinity,
// kMinusInfinity, kNan; both infinities make kNan), its sums into zero: flags too are order-free.
//
// State: bins int64 [F][size] (top first), index uint8 [size] (top, or a flag); empty: index F - 1, bins zero.
// Memory may be unaligned. Thread-safety: no shared state; threads own disjoint coordinates.
#pragma once

#include <cstdint>

#include "aggregate/mean.hpp"

namespace ef {

constexpr int kBinBits = 44;
constexpr int64_t kBinnedTerms = (int64_t(1) << 20) - 1;
constexpr int kTopBin = 46;
constexpr int kPlusInfinity = 253, kMinusInfinity = 254, kNan = 255;

constexpr int binned_folds(DType d) {
    return d == DType::f64 || d == DType::i32 || d == DType::i64 || d == DType::u32 || d == DType::u64 ? 3 : 2;
}

struct BinnedState {
    int64_t* bins;
    uint8_t* index;
};

struct BinnedKernels {
    // inputs[k * tensors + t]; clients <= kBinnedTerms. True when some coordinate has a flag (results are written).
    bool (*mean)(const void* const* inputs, const double* weights, int64_t clients, double total,
                 const TensorSpec* specs, int64_t tensors, void* const* outputs, int threads) noexcept;
    void (*add)(const void* const* inputs, double weight, const TensorSpec* specs, int64_t tensors,
                const BinnedState* states, int threads) noexcept;
    // states += others
    void (*merge)(const BinnedState* others, const TensorSpec* specs, int64_t tensors, const BinnedState* states,
                  int threads) noexcept;
    void (*finish)(const BinnedState* states, double total, const TensorSpec* specs, int64_t tensors,
                   void* const* outputs, int threads) noexcept;
};

const BinnedKernels& binned_kernels(Isa isa) noexcept;

}  // namespace ef
