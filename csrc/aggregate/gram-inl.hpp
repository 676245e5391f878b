// Body of aggregate/gram.hpp; see there for numerics.
namespace ef {
namespace EF_ISA {
namespace gram {

#include "common/simd-inl.hpp"
#include "common/lanes-inl.hpp"

typedef vf64 V;
constexpr int kLanes = kLanesF64;
constexpr int kSumLanes = 8;               // lanes of the specified order
constexpr int kParts = kSumLanes / kLanes;  // vectors that hold them
constexpr int kColumns = EF_VECTOR_BYTES == 64 ? 4 : 2;  // of a block of pairs: its sums stay in registers

EF_INLINE double reduce(const double* l) { return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7])); }

// Sums over rows i, ..., i + 3 against j, ..., j + kColumns - 1.
template <bool Difference>
static void block(const double* a, const double* b, int64_t n, double* out) {
    double sums[4 * kColumns][kSumLanes];
    for (int part = 0; part < kParts; ++part) {
        V acc[4 * kColumns] = {};
        for (int64_t p = part * kLanes; p < n; p += kSumLanes) {
            V y[kColumns];
#pragma GCC unroll 4
            for (int c = 0; c < kColumns; ++c) y[c] = load_as<V>(b + c * kSegment + p);
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r) {
                const V x = load_as<V>(a + r * kSegment + p);
#pragma GCC unroll 4
                for (int c = 0; c < kColumns; ++c) {
                    if constexpr (Difference) {
                        const V d = x - y[c];
                        acc[r * kColumns + c] += d * d;
                    } else {
                        acc[r * kColumns + c] += x * y[c];
                    }
                }
            }
        }
        for (int s = 0; s < 4 * kColumns; ++s) store_as(&sums[s][part * kLanes], acc[s]);
    }
    for (int s = 0; s < 4 * kColumns; ++s) out[s] = reduce(sums[s]);
}

template <bool Difference>
static void triangle(const double* rows, int64_t clients, int64_t n, double* out) {
    double found[4 * kColumns];
    for (int64_t i = 0; i < clients; i += 4) {
        for (int64_t j = i; j < clients; j += kColumns) {
            block<Difference>(rows + i * kSegment, rows + j * kSegment, n, found);
            for (int64_t r = 0; r < 4; ++r)
                for (int64_t c = 0; c < kColumns; ++c)
                    if (i + r <= j + c && j + c < clients) out[(i + r) * clients + j + c] += found[r * kColumns + c];
        }
    }
}

static void pairs(const double* rows, int64_t clients, int64_t n, double* distances, double* products) noexcept {
    if (distances) triangle<true>(rows, clients, n, distances);
    if (products) triangle<false>(rows, clients, n, products);
}

static void subtract(double* rows, int64_t clients, const double* center, int64_t n) noexcept {
    for (int64_t k = 0; k < clients; ++k) {
        double* const row = rows + k * kSegment;
        for (int64_t p = 0; p < n; p += kLanes) store_as(row + p, load_as<V>(row + p) - load_as<V>(center + p));
    }
}

static void squares(const double* rows, int64_t clients, int64_t n, double* sums) noexcept {
    for (int64_t k = 0; k < clients; ++k) {
        const double* const row = rows + k * kSegment;
        V acc[kParts] = {};
        for (int64_t p = 0; p < n; p += kSumLanes)
            for (int part = 0; part < kParts; ++part) {
                const V x = load_as<V>(row + p + part * kLanes);
                acc[part] += x * x;
            }
        double lanes[kSumLanes];
        for (int part = 0; part < kParts; ++part) store_as(lanes + part * kLanes, acc[part]);
        sums[k] += reduce(lanes);
    }
}

}  // namespace gram

static const ef::GramKernels kGram = {gram::pairs, gram::subtract, gram::squares};
static const ef::GramKernels* const kGramTable = &kGram;

}  // namespace EF_ISA
}  // namespace ef
