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

EF_INLINE V read(const double* p) { return load_as<V>(p); }
EF_INLINE V read(const float* p) { return to_doubles(load_as<vf32_half>(p)); }

// What is summed over pairs of rows.
struct Difference {
    typedef double Element;
    static constexpr int most = EF_VECTOR_BYTES == 64 ? 4 : 3;  // rows of a block of pairs, whose sums stay in registers
    EF_INLINE V add(V x, V y, V sum) {
        const V d = x - y;
        return sum + d * d;
    }
};
struct Product {
    typedef double Element;
    static constexpr int most = EF_VECTOR_BYTES == 64 ? 5 : 3;
    EF_INLINE V add(V x, V y, V sum) { return sum + x * y; }
};
struct ExactProduct {  // of binary32 values: a fused multiply-add gives the same bits
    typedef float Element;
    static constexpr int most = EF_VECTOR_BYTES == 64 ? 5 : 3;
    EF_INLINE V add(V x, V y, V sum) { return multiply_add_exact(x, y, sum); }
};

EF_INLINE double reduce(const double* l) { return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7])); }

// What comes next is fetched a few lines at a time all the way through the products, so that memory works meanwhile and
// never has more to do at once than it can have under way.
constexpr int64_t kGroup = 64;  // coordinates between two shares
struct Ahead {
    const char* const* next;
    int64_t clients, bytes, share;  // share: lines
    int64_t client, at;
    EF_INLINE void fetch(Ahead& a) {
        for (int64_t line = 0; line < a.share && a.client < a.clients; ++line) {
            __builtin_prefetch(a.next[a.client] + a.at, 0, 3);
            if ((a.at += 64) >= a.bytes) {
                a.at = 0;
                ++a.client;
            }
        }
    }
};

// Sums of rows a, ... (R of them) against rows b, ... (C), added to out (row length `stride`). With Diagonal a is b and
// R is C, and only the upper triangle is formed.
template <class Term, int R, int C, bool Diagonal>
static void block(const typename Term::Element* a, const typename Term::Element* b, int64_t n, double* out, int64_t stride,
                  Ahead& ahead) {
    double sums[R * C][kSumLanes];
    for (int part = 0; part < kParts; ++part) {
        V acc[R * C] = {};
        for (int64_t p = part * kLanes, end; p < n;) {
            Ahead::fetch(ahead);
            for (end = p + kGroup < n ? p + kGroup : n; p < end; p += kSumLanes) {
                V y[C];
#pragma GCC unroll 5
                for (int c = 0; c < C; ++c) y[c] = read(b + c * kSegment + p);
#pragma GCC unroll 5
                for (int r = 0; r < R; ++r) {
                    const V x = Diagonal ? y[r] : read(a + r * kSegment + p);
#pragma GCC unroll 5
                    for (int c = Diagonal ? r : 0; c < C; ++c) acc[r * C + c] = Term::add(x, y[c], acc[r * C + c]);
                }
            }
        }
#pragma GCC unroll 25
        for (int s = 0; s < R * C; ++s) store_as(&sums[s][part * kLanes], acc[s]);
    }
    for (int r = 0; r < R; ++r)
        for (int c = Diagonal ? r : 0; c < C; ++c) out[r * stride + c] += reduce(sums[r * C + c]);
}

template <class Term, int R, int C>
static void block_of(int64_t columns, const typename Term::Element* a, const typename Term::Element* b, int64_t n,
                     double* out, int64_t stride, Ahead& ahead) {
    if constexpr (C > 1) {
        if (columns < C) return block_of<Term, R, C - 1>(columns, a, b, n, out, stride, ahead);
    }
    block<Term, R, C, false>(a, b, n, out, stride, ahead);
}

// Of `count` rows in as few blocks of at most `most` as there can be, alike to one row: the rows of the first.
EF_INLINE int64_t share(int64_t count, int64_t most) {
    const int64_t blocks = (count + most - 1) / most;
    return (count + blocks - 1) / blocks;
}

// Rows i, ..., i + R - 1 against themselves and all that follow.
template <class Term, int R>
static void strip(int64_t rows, const typename Term::Element* a, int64_t after, int64_t n, double* out, int64_t stride,
                  Ahead& ahead) {
    if constexpr (R > 1) {
        if (rows < R) return strip<Term, R - 1>(rows, a, after, n, out, stride, ahead);
    }
    block<Term, R, R, true>(a, a, n, out, stride, ahead);
    for (int64_t j = R, here; j < R + after; j += here) {
        here = share(R + after - j, Term::most);
        block_of<Term, R, Term::most>(here, a, a + j * kSegment, n, out + j, stride, ahead);
    }
}

template <class Term>
static void triangle(const typename Term::Element* rows, int64_t clients, int64_t n, double* out, const char* const* next,
                     int64_t bytes) noexcept {
    const int64_t strips = (clients + Term::most - 1) / Term::most, blocks = strips * (strips + 1) / 2;
    const int64_t shares = blocks * kParts * ((n + kGroup - 1) / kGroup), lines = clients * ((bytes + 63) / 64);
    Ahead ahead = {next, next ? clients : 0, bytes, shares ? (lines + shares - 1) / shares : 0, 0, 0};
    for (int64_t i = 0, here; i < clients; i += here) {
        here = share(clients - i, Term::most);
        strip<Term, Term::most>(here, rows + i * kSegment, clients - i - here, n, out + i * clients + i, clients, ahead);
    }
}

static void widen_f32(const void* x, double* row) noexcept {
    const float* const from = static_cast<const float*>(x);
    for (int64_t p = 0; p < kSegment; p += kLanes) store_as(row + p, read(from + p));
}

static void half_difference(const void* x, const float* half_center, int64_t n, float* row) noexcept {
    const char* const bytes = static_cast<const char*>(x);
    int64_t p = 0;
    for (; p + kLanesF32 <= n; p += kLanesF32)
        store_as(row + p, load_as<vf32>(bytes + p * 4) * 0.5f - load_as<vf32>(half_center + p));
    for (; p < n; ++p) row[p] = element<float>(bytes + p * 4) * 0.5f - half_center[p];
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

static const ef::GramKernels kGram = {gram::triangle<gram::Difference>,
                                      gram::triangle<gram::Product>,
                                      gram::triangle<gram::ExactProduct>,
                                      gram::widen_f32,
                                      gram::half_difference,
                                      gram::subtract,
                                      gram::squares};
static const ef::GramKernels* const kGramTable = &kGram;

}  // namespace EF_ISA
}  // namespace ef
