// Weighted means of K model updates, read once and in place.
//
// A model is a list of tensors; every client's tensor t has the same dtype and size. Memory is contiguous; alignment
// to the element is not required. Outputs must not overlap inputs.
//
// Numerics: per coordinate sum = ((0 + w_0 x_0) + w_1 x_1) + ... in binary64, in the order of the clients, each product
// and each addition rounded once (no FMA), then one division by `total`, then one rounding to the dtype: to nearest
// even for floats (float16 directly from binary64, subnormals kept), rint for integers, above one half for bool.
// With integer weights and float32 or float16 data the products are exact while weights stay below 2^29.
// Error before the last rounding: at most K * 2^-53 * sum |w_k x_k| / total.
// The result does not depend on SIMD level, threads or tiling. Thread-safety: no shared state.
#pragma once

#include <cstdint>

#include "common/isa.hpp"

namespace ef {

enum class DType : int { f16, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64, boolean };

struct TensorSpec {
    DType dtype;
    int64_t size;
};

struct MeanKernels {
    // inputs[k * tensors + t], outputs[t]. True when some sum was not finite (results are written all the same).
    bool (*mean)(const void* const* inputs, const double* weights, int64_t clients, double total,
                 const TensorSpec* specs, int64_t tensors, void* const* outputs, int threads) noexcept;
    // sums[t][i] += weight * inputs[t][i]
    void (*add)(const void* const* inputs, double weight, const TensorSpec* specs, int64_t tensors, double* const* sums,
                int threads) noexcept;
    // outputs[t][i] = round(sums[t][i] / total)
    void (*finish)(const double* const* sums, double total, const TensorSpec* specs, int64_t tensors,
                   void* const* outputs, int threads) noexcept;
    bool (*all_finite)(const void* const* inputs, const TensorSpec* specs, int64_t tensors, int threads) noexcept;
};

const MeanKernels& mean_kernels(Isa isa) noexcept;

}  // namespace ef
