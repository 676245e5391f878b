// Server optimizers: one step of a global model towards the mean of its clients, in one pass over the parameters.
//
// A model is a list of tensors as in aggregate/mean.hpp; only floating-point ones have state and are stepped. Memory is
// contiguous; `out` may be `x` itself, nothing else overlaps.
//
// Numerics, per coordinate, everything in binary64 with one rounding an operation (no FMA), in this order:
//   a = the mean: `sums / total` rounded to the dtype (total > 0), or the array `mean` (total = 0)
//   d = a - x
//   average    x' = x + lr d
//   momentum   v' = [mu v + (x - a)];                                 x' = x - lr v'
//   nesterov   v' = [mu v + (x - a)];                                 x' = x - lr ((x - a) + mu v')
//   adaptive   m' = [beta1 m + (1 - beta1) d];  v' = [...];           x' = x + lr m' / (sqrt(v') + tau)
//              or, with tau inside the root,                          x' = x + lr m' / sqrt(v' + tau)
//     adagrad  v' = [v + d d]
//     adam     v' = [beta2 v + (1 - beta2) d d]
//     yogi     v' = [v - (1 - beta2) d d sign(v - d d)]
// [.] rounds to the state's type, binary64 for float64 tensors and binary32 for the rest; x' is computed from what was
// stored and rounded to the dtype once. The result does not depend on SIMD level, threads or tiling; sqrt and division
// are correctly rounded everywhere. Thread-safety: no shared state.
#pragma once

#include <cstdint>

#include "aggregate/mean.hpp"

namespace ef {

enum class ServerRule : int { average, momentum, nesterov, adagrad, adam, yogi };

struct ServerStep {
    ServerRule rule;
    double lr, beta1, rest1, beta2, rest2, tau;  // beta1 is mu for momentum; rest = 1 - beta
    bool tau_inside;
};

struct ServerTensor {
    const void* x;
    const void* sums;  // binary64 sums where total > 0, else the mean in the tensor's dtype
    void* m;           // momentum of the adaptive rules, else null
    void* v;           // null for average
    void* out;
};

struct ServerKernels {
    void (*step)(const ServerStep& step, double total, const ServerTensor* tensors, const TensorSpec* specs,
                 int64_t count, int threads) noexcept;
};

const ServerKernels& server_kernels(Isa isa) noexcept;

}  // namespace ef
