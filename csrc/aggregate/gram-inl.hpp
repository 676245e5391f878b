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
// A block of pairs: its sums stay in registers.
constexpr int kRows = EF_VECTOR_BYTES == 64 ? 4 : 3;
constexpr int kColumns = EF_VECTOR_BYTES == 64 ? 4 : 3;

EF_INLINE double reduce(const double* l) { return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7])); }

// Sums of rows a, ... (R of them) against rows b, ... (C), added to out (row length `stride`). With Diagonal a is b and
// R is C, and only the upper triangle is formed.
template <bool Difference, int R, int C, bool Diagonal>
static void block(const double* a, const double* b, int64_t n, double* out, int64_t stride) {
    double sums[R * C][kSumLanes];
    for (int part = 0; part < kParts; ++part) {
        V acc[R * C] = {};
        for (int64_t p = part * kLanes; p < n; p += kSumLanes) {
            V y[C];
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) y[c] = load_as<V>(b + c * kSegment + p);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const V x = Diagonal ? y[r] : load_as<V>(a + r * kSegment + p);
#pragma GCC unroll 4
                for (int c = Diagonal ? r : 0; c < C; ++c) {
                    if constexpr (Difference) {
                        const V d = x - y[c];
                        acc[r * C + c] += d * d;
                    } else {
                        acc[r * C + c] += x * y[c];
                    }
                }
            }
        }
#pragma GCC unroll 16
        for (int s = 0; s < R * C; ++s) store_as(&sums[s][part * kLanes], acc[s]);
    }
    for (int r = 0; r < R; ++r)
        for (int c = Diagonal ? r : 0; c < C; ++c) out[r * stride + c] += reduce(sums[r * C + c]);
}

// Fetches a share of what comes next; between blocks, so that memory works while they are computed.
struct Ahead {
    const char* const* next;
    int64_t bytes, clients, client, offset, lines;
    EF_INLINE void fetch(Ahead& a) {
        for (int64_t i = 0; i < a.lines && a.client < a.clients; ++i) {
            __builtin_prefetch(a.next[a.client] + a.offset, 0, 2);
            a.offset += 64;
            if (a.offset >= a.bytes) {
                a.offset = 0;
                ++a.client;
            }
        }
    }
};

template <bool Difference, int R, int C>
static void block_of(int64_t columns, const double* a, const double* b, int64_t n, double* out, int64_t stride) {
    if constexpr (C > 1) {
        if (columns < C) return block_of<Difference, R, C - 1>(columns, a, b, n, out, stride);
    }
    block<Difference, R, C, false>(a, b, n, out, stride);
}

// Rows i, ..., i + R - 1 against themselves and all that follow.
template <bool Difference, int R>
static void strip(int64_t rows, const double* a, int64_t after, int64_t n, double* out, int64_t stride, Ahead& ahead) {
    if constexpr (R > 1) {
        if (rows < R) return strip<Difference, R - 1>(rows, a, after, n, out, stride, ahead);
    }
    Ahead::fetch(ahead);
    block<Difference, R, R, true>(a, a, n, out, stride);
    for (int64_t j = R; j < R + after; j += kColumns) {
        Ahead::fetch(ahead);
        block_of<Difference, R, kColumns>(R + after - j, a, a + j * kSegment, n, out + j, stride);
    }
}

template <bool Difference>
static void triangle(const double* rows, int64_t clients, int64_t n, double* out, const char* const* next, int64_t bytes) {
    const int64_t strips = (clients + kRows - 1) / kRows, blocks = strips * (strips + 1) / 2;
    Ahead ahead = {next, bytes, next ? clients : 0, 0, 0, (clients * (bytes / 64 + 1) + blocks - 1) / blocks};
    for (int64_t i = 0; i < clients; i += kRows) {
        const int64_t here = clients - i < kRows ? clients - i : kRows;
        strip<Difference, kRows>(here, rows + i * kSegment, clients - i - here, n, out + i * clients + i, clients, ahead);
    }
}

static void pairs(const double* rows, int64_t clients, int64_t n, double* distances, double* products,
                  const char* const* next, int64_t next_bytes) noexcept {
    if (distances) triangle<true>(rows, clients, n, distances, next, next_bytes);
    if (products) triangle<false>(rows, clients, n, products, next, next_bytes);
}

static void widen_f32(const void* x, const double* center, double* row) noexcept {
    const char* const bytes = static_cast<const char*>(x);
    for (int64_t p = 0; p < kSegment; p += kLanes) {
#if defined(EF_TARGET_AVX512)
        V v = (V)_mm512_cvtps_pd((__m256)load_as<vf32_half>(bytes + p * 4));
#elif defined(EF_TARGET_AVX2)
        V v = (V)_mm256_cvtps_pd((__m128)load_as<vf32_half>(bytes + p * 4));
#else
        V v = __builtin_convertvector(load_as<vf32_half>(bytes + p * 4), V);
#endif
        if (center) v -= load_as<V>(center + p);
        store_as(row + p, v);
    }
}

static void subtract(double* row, const double* center, int64_t n) noexcept {
    for (int64_t p = 0; p < n; p += kLanes) store_as(row + p, load_as<V>(row + p) - load_as<V>(center + p));
}

static void squares(const double* row, int64_t n, double* sum) noexcept {
    V acc[kParts] = {};
    for (int64_t p = 0; p < n; p += kSumLanes)
        for (int part = 0; part < kParts; ++part) {
            const V x = load_as<V>(row + p + part * kLanes);
            acc[part] += x * x;
        }
    double lanes[kSumLanes];
    for (int part = 0; part < kParts; ++part) store_as(lanes + part * kLanes, acc[part]);
    *sum += reduce(lanes);
}

}  // namespace gram

static const ef::GramKernels kGram = {gram::pairs, gram::widen_f32, gram::subtract, gram::squares};
static const ef::GramKernels* const kGramTable = &kGram;

}  // namespace EF_ISA
}  // namespace ef
