// Compressed tensors: blocks of small integers, and rotated blocks on Lloyd-Max centroids (DRIVE, EDEN).
//
// A tensor of n coordinates is cut into blocks of `block` coordinates (a power of two, 64 to 4096; the last may be
// short), each with one binary32 scale. Values are read as binary32 (binary64 is rounded to it). Code bytes of block b
// start at b * block * bits / 8.
//
// Integers (bits 8 or 4, Q = 127 or 7): scale = the smallest absmax / Q with 16 significant bits that is not below the
// rounded quotient (one such step lower where Q * scale would overflow); code = x / scale, rounded to nearest even or,
// `stochastic`, up with the probability of the fraction (to 2^-24), within +-Q. bits 8: two's complement bytes. bits 4:
// code + 8, the even coordinate in the low half of the byte, 8 in the unused half of the last. decode: code * scale,
// exact in binary32. Error: at most scale / 2, stochastic below scale.
//
// EDEN (bits 1 to 4): the block, zero-padded to a power of two d >= 8, divided by the power of two of its largest
// magnitude, with random signs, y = its Hadamard transform (sketch/hadamard.hpp) in binary32. With rms^2 = sum y^2 / d the
// code is the index m of the centroid nearest to |y| / rms (m thresholds lie below |y|; threshold = midpoint * rms, rounded
// to binary32), plus 2^(bits - 1) where y < 0; codes follow each other from the lowest bit of the first byte. scale =
// sum y^2 / (d sum c y) times that power of two; <decode, x> = |x|^2 up to rounding. decode: Hadamard transform of the signed
// centroids, times scale, signs; for float16 held within +-65504. Sums: binary64, products exact, 8 partial sums of the
// coordinates equal modulo 8, in order, then ((0+4)+(2+6)) + ((1+5)+(3+7)). Magnitudes of 2^108 and more are refused.
//
// Random numbers: Philox4x64-10, key (seed, stream), counter (1 + index, tensor, nonce, 0). Signs: stream 0x71, coordinate
// j has bit j % 256 of block j / 256. Stochastic rounding: stream 0x72, coordinate j has 32-bit lane j % 8 of block j / 8;
// its upper 24 bits are the uniform number.
//
// Decoded values are rounded to the dtype. add and mean give the bits of mean.hpp's on the decoded update: fused
// multiply-add only where the product is exact, another order only where no sum is rounded. Results depend on neither
// SIMD level nor threads nor tiling.
// Alignment: none needed. Outputs must not overlap inputs. Thread-safety: no shared state.
#pragma once

#include <cstdint>

#include "aggregate/mean.hpp"
#include "common/isa.hpp"

namespace ef {

struct QuantSpec {
    bool rotated;  // EDEN
    int bits;
    int64_t block;
    uint64_t tensor;
};

struct QuantInput {
    const uint8_t* codes;
    const char* scales;  // binary32, little-endian as everywhere we run, not aligned
    uint64_t seed, nonce;
    double weight;
};

constexpr int64_t kQuantTile = 4096;

constexpr int64_t eden_length(int64_t n) {
    int64_t d = 8;
    while (d < n) d *= 2;
    return d;
}
constexpr int64_t quant_scales(const QuantSpec& s, int64_t n) { return (n + s.block - 1) / s.block; }
constexpr int64_t quant_bytes(const QuantSpec& s, int64_t n) {
    const int64_t whole = n / s.block, rest = n % s.block;
    return whole * (s.block * s.bits / 8) +
           (rest == 0 ? 0 : s.rotated ? eden_length(rest) * s.bits / 8 : (rest * s.bits + 7) / 8);
}

struct QuantKernels {
    // False when a value is not finite, or too large; codes and scales are undefined then.
    bool (*encode)(const QuantSpec& spec, bool stochastic, uint64_t seed, uint64_t nonce, const void* x, DType dtype,
                   int64_t n, uint8_t* codes, float* scales, int threads) noexcept;
    void (*decode)(const QuantSpec& spec, const QuantInput& input, DType dtype, int64_t n, void* out,
                   int threads) noexcept;
    // sums += w_0 x_0, then += w_1 x_1, ...; what `fresh` sums held counts as 0 and is not read.
    void (*add)(const QuantSpec& spec, const QuantInput* inputs, int64_t clients, DType dtype, int64_t n, bool fresh,
                double* sums, int threads) noexcept;
    // out = round(sum / total); true when some sum was not finite.
    bool (*mean)(const QuantSpec& spec, const QuantInput* inputs, int64_t clients, double total, DType dtype, int64_t n,
                 void* out, int threads) noexcept;
};

const QuantKernels& quant_kernels(Isa isa) noexcept;

}  // namespace ef
