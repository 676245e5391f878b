// Order statistics of K model updates, coordinate by coordinate: median, trimmed mean, mean around the median, and the
// exact streaming form of the trimmed mean. Layout and restrictions of the arrays as in aggregate/mean.hpp.
//
// Order: values are compared as integers (their images) in which -0 < +0, -inf is least, +inf is greatest and every
// NaN comes after +inf. Images: floats, with the bits below the sign flipped for negatives; integers, themselves.
// The order is total, so the sorted column, and with it every result here, does not depend on the order of the updates.
//
// Numerics: the chosen values, in ascending order, are added in binary64, each addition rounded once; one division by
// their number; clamping to the least and the greatest of them (so equal values give that value, -0 included); one
// rounding to the dtype. A sum of finite values that overflows is formed again from the values times 2^-32.
// Results do not depend on SIMD level, threads or tiling. Thread-safety: no shared state.
#pragma once

#include <cstdint>

#include "aggregate/mean.hpp"
#include "common/isa.hpp"

namespace ef {

// finite: the caller promises finite values; others are noticed and the result is then meaningless.
// rank: NaN counts as a value above +inf. propagate: NaN in a column makes its result NaN.
enum class NanPolicy : int { finite = 0, rank = 1, propagate = 2 };
// ranks: mean of the sorted values [low, high). near_median: mean of the `high` values nearest to the median, the
// median being the mean in binary64 of the middle two; of two equally near ones the lower is taken.
enum class OrderRule : int { ranks = 0, near_median = 1 };

struct Comparator {
    uint16_t low, high;
};

struct OrderJob {
    const void* const* inputs;  // inputs[k * tensors + t]
    int64_t clients;
    const TensorSpec* specs;
    int64_t tensors;
    OrderRule rule;
    int64_t low, high;
    NanPolicy nan;
    // Set by OrderProgram.
    const Comparator* program;
    const int64_t* program_ends;
};

// The comparators that order_tile's sort takes from a list (see order-inl.hpp), without those that ranks [low, high) do
// not depend on; ends[l]: where level l ends.
class OrderProgram {
public:
    OrderProgram(int64_t clients, int64_t low, int64_t high) noexcept;
    ~OrderProgram();
    OrderProgram(const OrderProgram&) = delete;
    OrderProgram& operator=(const OrderProgram&) = delete;
    bool ok() const noexcept { return comparators_ != nullptr; }
    void give(OrderJob& job) const noexcept {
        job.program = comparators_;
        job.program_ends = ends_;
    }

private:
    Comparator* comparators_ = nullptr;
    int64_t ends_[16] = {};
};

constexpr int64_t kOrderTile = 1024;     // coordinates at most in one call of order_tile
constexpr int64_t kOrderStreams = 16;    // clients at most in one call of half_differences
constexpr int64_t kSegment = 512;        // coordinates at most in one call of half_differences
constexpr int64_t kMaxClients = 65536;   // wires of a network fit uint16_t

struct OrderKernels {
    // Unrounded results of coordinates [offset, offset + n) of tensor t into values; true when something was not
    // finite (NanPolicy::finite only). scratch: order_scratch() bytes, 64-byte aligned.
    bool (*tile)(const OrderJob& job, int64_t t, int64_t offset, int64_t n, char* scratch, double* values) noexcept;
    // The same rounded to float32 at once, for tensors of that dtype.
    bool (*tile_f32)(const OrderJob& job, int64_t t, int64_t offset, int64_t n, char* scratch, float* out) noexcept;
    // rows[k * kSegment + i] = x_k[i] / 2 - h[i] in binary32, h half the median (in binary64) rounded, for kSegment
    // float32 values of any alignment. Values that are not finite leave their own differences not finite.
    void (*half_differences)(const char* const* x, int64_t clients, float* rows) noexcept;
    // Streaming trimmed mean. For every coordinate `low` (trim rows, ascending) and `high` (trim rows, descending) are
    // images; `row` is a tensor of values, or of images when from_images. stage 0 fills low, 1 fills high (what leaves
    // low goes there), 2 adds what leaves high to sums.
    void (*push)(const void* row, bool from_images, DType dtype, void* low, void* high, double* sums, int64_t trim,
                 int64_t size, int64_t offset, int64_t n, int stage) noexcept;
};
const OrderKernels& order_kernels(Isa isa) noexcept;

// Bytes of scratch one thread needs.
int64_t order_scratch(int64_t clients) noexcept;
enum class RunStatus : int { fine = 0, suspicious = 1, no_memory = -1 };
// The whole model; outputs[t] as in mean.hpp.
RunStatus order_run(Isa isa, OrderJob job, void* const* outputs, int threads) noexcept;
// One row pushed into the state of every tensor.
void trim_push(Isa isa, const void* const* rows, bool from_images, const TensorSpec* specs, int64_t tensors,
               void* const* low, void* const* high, double* const* sums, int64_t trim, int stage, int threads) noexcept;

int64_t item_size(DType dtype) noexcept;
// Bytes of one image of a value of this dtype: 2, 4 or 8.
int64_t image_size(DType dtype) noexcept;

}  // namespace ef
