// Weighted means of K model updates, read once and in place.
//
// A model is a list of tensors; every client's tensor t has the same dtype and size. Memory is contiguous; alignment
// to the element is not required. Outputs must not overlap inputs.
//
// Numerics: per coordinate sum = ((0 + w_0 x_0) + w_1 x_1) + ... in binary64, in the order of the clients, each product
// and each addition rounded once (no FMA), then one division by `total`, then one rounding to the dtype: to nearest
// even for floats (float16 and bfloat16 directly from binary64, subnormals kept), rint for integers, above one half for
// bool. With integer weights and float32, float16 or bfloat16 data the products are exact while weights stay below 2^29.
// Error before the last rounding: at most K * 2^-53 * sum |w_k x_k| / total.
// With `single`, tensors whose elements a binary32 holds (holds_single) are summed in binary32 instead: weights and
// total rounded to binary32, then as above with 2^-24 for 2^-53; the quotient is rounded from binary32 to the dtype.
// The result does not depend on SIMD level, threads or tiling. Thread-safety: no shared state.
#pragma once

#include <cstdint>

#include "common/isa.hpp"

namespace ef {

enum class DType : int { f16, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64, boolean, bf16 };

struct TensorSpec {
    DType dtype;
    int64_t size;
};

// Every value of the dtype is a binary32.
constexpr bool holds_single(DType d) {
    return d == DType::f16 || d == DType::bf16 || d == DType::f32 || d == DType::i8 || d == DType::i16 ||
           d == DType::u8 || d == DType::u16 || d == DType::boolean;
}

struct MeanKernels {
    // inputs[k * tensors + t], outputs[t]. True when some sum was not finite (results are written all the same).
    bool (*mean)(const void* const* inputs, const double* weights, int64_t clients, double total,
                 const TensorSpec* specs, int64_t tensors, bool single, void* const* outputs, int threads) noexcept;
    // sums[t][i] += w_0 x_0, then += w_1 x_1, ...; sums are doubles, floats where `single` and holds_single. What `fresh`
    // sums held before counts as 0 and is not read.
    void (*add)(const void* const* inputs, const double* weights, int64_t clients, const TensorSpec* specs,
                int64_t tensors, bool single, bool fresh, void* const* sums, int threads) noexcept;
    // outputs[t][i] = round(sums[t][i] / total)
    void (*finish)(const void* const* sums, double total, const TensorSpec* specs, int64_t tensors, bool single,
                   void* const* outputs, int threads) noexcept;
    bool (*all_finite)(const void* const* inputs, const TensorSpec* specs, int64_t tensors, int threads) noexcept;
};

const MeanKernels& mean_kernels(Isa isa) noexcept;

}  // namespace ef
