namespace ef {
namespace EF_ISA {
namespace {
#include "common/simd-inl.hpp"
#include "common/lanes-inl.hpp"

typedef int64_t vi64 __attribute__((vector_size(EF_VECTOR_BYTES)));

// A term type X, an accumulator type A: vectors of A, loaded from X exactly.
template <class X, class A>
struct Term;
template <>
struct Term<float, float> {
    typedef vf32 V;
    typedef vu32 Mask;
    EF_INLINE V load(const float* p) { return load_as<V>(p); }
    EF_INLINE Mask mask(uint32_t entry) { return (Mask{} + entry) & 0x80000000u; }
    EF_INLINE V signed_term(V v, Mask m) { return (V)((Mask)v ^ m); }
    EF_INLINE float signed_term(float x, uint32_t entry) { return flip(x, entry); }
};
template <>
struct Term<double, double> {
    typedef vf64 V;
    typedef vu64 Mask;
    EF_INLINE V load(const double* p) { return load_as<V>(p); }
    EF_INLINE Mask mask(uint32_t entry) { return Mask{} + (static_cast<uint64_t>(entry & 0x80000000u) << 32); }
    EF_INLINE V signed_term(V v, Mask m) { return (V)((Mask)v ^ m); }
    EF_INLINE double signed_term(double x, uint32_t entry) { return flip(x, entry); }
};
template <>
struct Term<float, double> : Term<double, double> {
    EF_INLINE V load(const float* p) { return __builtin_convertvector(load_as<vf32_half>(p), V); }
};
template <>
struct Term<int64_t, int64_t> {
    typedef vu64 V;
    typedef vu64 Mask;
    EF_INLINE V load(const int64_t* p) { return load_as<V>(p); }
    EF_INLINE Mask mask(uint32_t entry) { return Mask{} - static_cast<uint64_t>(entry >> 31); }
    EF_INLINE V signed_term(V v, Mask m) { return (v ^ m) - m; }
    EF_INLINE int64_t signed_term(int64_t x, uint32_t entry) {
        const uint64_t m = uint64_t{0} - (entry >> 31);
        return static_cast<int64_t>((static_cast<uint64_t>(x) ^ m) - m);
    }
};

EF_INLINE float plus(float a, float b) { return a + b; }
EF_INLINE double plus(double a, double b) { return a + b; }
EF_INLINE int64_t plus(int64_t a, int64_t b) {
    return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}

// One row to `kNnz` outputs at once: x is read once, and the outputs are distinct, so nothing waits for a store.
template <class X, class A, int kNnz>
EF_INLINE void add_row(const X* x, int width, int vectors, const uint32_t* entry, A* acc, int64_t stride) {
    typedef Term<X, A> Of;
    typedef typename Of::V V;
    constexpr int L = EF_VECTOR_BYTES / static_cast<int>(sizeof(A));
    A* to[kNnz];
    typename Of::Mask mask[kNnz];
#pragma GCC unroll 8
    for (int e = 0; e < kNnz; ++e) {
        to[e] = acc + static_cast<int64_t>(entry[e] & 0x7fffffffu) * stride;
        mask[e] = Of::mask(entry[e]);
    }
    for (int c = 0; c < vectors; ++c) {
        const V v = Of::load(x + c * L);
#pragma GCC unroll 8
        for (int e = 0; e < kNnz; ++e) store_as(to[e] + c * L, load_as<V>(to[e] + c * L) + Of::signed_term(v, mask[e]));
    }
    for (int c = vectors * L; c < width; ++c)
        for (int e = 0; e < kNnz; ++e)
            to[e][c] = plus(to[e][c], Of::signed_term(static_cast<A>(x[c]), entry[e]));
}

// Rows [0, rows) of x, `width` columns from byte `x_offset` on, to acc[bucket * stride + column].
template <class X, class A>
void add_rows(const RowSketchJob& job, int64_t row, int64_t rows, int64_t column, int width, const uint32_t* entry,
              A* acc, int64_t stride, bool padded) {
    constexpr int L = EF_VECTOR_BYTES / static_cast<int>(sizeof(A));
    alignas(64) X copy[kRowSketchColumns + 16];
    const int whole = (width + L - 1) / L * L;
    const int vectors = padded ? whole / L : width / L;
    const bool direct = job.x.column_stride == static_cast<int64_t>(sizeof(X)) && (!padded || whole == width);
    if (!direct) __builtin_memset(copy, 0, sizeof copy);
    const int width_used = padded ? whole : width;
    const char* source = job.x.data + row * job.x.row_stride + column * job.x.column_stride;
    // Unaligned pointers to X are only ever handed to memcpy-like loads, except in the scalar tail, which is copied.
    const bool aligned = reinterpret_cast<uintptr_t>(source) % sizeof(X) == 0 && job.x.row_stride % static_cast<int64_t>(sizeof(X)) == 0;
    for (int64_t i = 0; i < rows; ++i, source += job.x.row_stride) {
        const X* x = copy;
        if (direct && aligned) {
            x = reinterpret_cast<const X*>(source);
        } else if (job.x.column_stride == static_cast<int64_t>(sizeof(X))) {
            __builtin_memcpy(copy, source, static_cast<size_t>(width) * sizeof(X));
        } else {
            for (int c = 0; c < width; ++c) copy[c] = element<X>(source + c * job.x.column_stride);
        }
        int e = 0;
        for (; e + 8 <= job.nnz; e += 8) add_row<X, A, 8>(x, width_used, vectors, entry + e, acc, stride);
        if (e + 4 <= job.nnz) {
            add_row<X, A, 4>(x, width_used, vectors, entry + e, acc, stride);
            e += 4;
        }
        if (e + 2 <= job.nnz) {
            add_row<X, A, 2>(x, width_used, vectors, entry + e, acc, stride);
            e += 2;
        }
        if (e < job.nnz) add_row<X, A, 1>(x, width_used, vectors, entry + e, acc, stride);
        entry += job.nnz;
    }
}

}  // namespace

static void row_sketch_f32(const RowSketchJob& job, int64_t row, int64_t rows, int64_t column, int width,
                           const uint32_t* entry, void* acc, int64_t stride, bool padded) noexcept {
    add_rows<float, float>(job, row, rows, column, width, entry, static_cast<float*>(acc), stride, padded);
}
static void row_sketch_f32_to_f64(const RowSketchJob& job, int64_t row, int64_t rows, int64_t column, int width,
                                  const uint32_t* entry, void* acc, int64_t stride, bool padded) noexcept {
    add_rows<float, double>(job, row, rows, column, width, entry, static_cast<double*>(acc), stride, padded);
}
static void row_sketch_f64(const RowSketchJob& job, int64_t row, int64_t rows, int64_t column, int width,
                           const uint32_t* entry, void* acc, int64_t stride, bool padded) noexcept {
    add_rows<double, double>(job, row, rows, column, width, entry, static_cast<double*>(acc), stride, padded);
}
static void row_sketch_i64(const RowSketchJob& job, int64_t row, int64_t rows, int64_t column, int width,
                           const uint32_t* entry, void* acc, int64_t stride, bool padded) noexcept {
    add_rows<int64_t, int64_t>(job, row, rows, column, width, entry, static_cast<int64_t*>(acc), stride, padded);
}

}  // namespace EF_ISA
}  // namespace ef
