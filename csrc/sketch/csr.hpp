// Sketches of compressed sparse rows. Work is proportional to the stored entries (srht: to the padded length of a
// row); the matrix is never expanded, a thread holds one row at most.
//
// Numerics: those of the dense kernels (hash kinds, rademacher, srht), whose sums skip nothing but +-0
// terms here. As every sum begins at +0, adding a zero changes no bit of it: the output bytes are those of the dense
// matrix with the same values, NaN and infinities included. gaussian: each product and each sum is rounded once, features
// ascending; within (d + 1) * eps * sum |x * entry|, as the dense kernel.
// Requires a matrix check_compressed called canonical. Feature j of the operator is column j - first: `first` is what
// a block of rows in S X needs, where X's rows are features; with `accumulate` and scale 1, block after block gives the
// bytes of all rows at once. Aliasing: out must not overlap x. Thread-safety: pure.
#pragma once

#include <cstdint>

#include "common/isa.hpp"
#include "sketch/compressed.hpp"

namespace ef {

// The entries +-1 of features, packed: bucket | negative << 31; those of a feature ascend and hit different buckets.
struct HashEntries {
    const uint32_t* packed;  // (features, nnz), or by `starts`; null: drawn where needed, of sparse_stack or countsketch
    const int64_t* starts;   // (features + 1), or null: nnz entries each
    int nnz;
};

struct CsrHashJob {
    CompressedMatrix x;
    int64_t begin, end;   // the columns whose entries these are; the others are left out
    HashEntries entries;  // of columns begin, begin + 1, ...
    int kind;             // for drawing: the operator's kind number and seed, and the feature of column 0
    uint64_t seed;
    int64_t first;
    int64_t components;
    double scale;
    char* out;        // rows * components, contiguous
    bool accumulate;  // the sums begin at what is in `out`
    bool finish;      // scale them and make NaN results the one quiet NaN
};

struct CsrSrhtJob {
    CompressedMatrix x;
    int64_t first;
    const uint64_t* signs;  // as in SrhtJob, from feature 0 on
    const int64_t* index;
    int64_t components;
    int64_t length;
    double scale;
    char* out;
};

struct CsrRademacherJob {
    CompressedMatrix x;
    uint64_t seed;
    int64_t first;
    int64_t components;
    double scale;
    char* out;
    bool accumulate;
};

struct CsrGaussianJob {
    CompressedMatrix x;
    const int32_t* table;  // the entry of every 16-bit draw, in units of 2^-16
    uint64_t seed;
    int64_t first;
    int64_t components;
    double scale;
    char* out;
    bool accumulate;
};

// False when scratch memory could not be had; nothing has been written then.
template <class T>
bool csr_hash_transform(Isa isa, const CsrHashJob& job, int num_threads) noexcept;
template <class T>
bool csr_srht_transform(Isa isa, const CsrSrhtJob& job, int num_threads) noexcept;
template <class T>
bool csr_rademacher_transform(Isa isa, const CsrRademacherJob& job, int num_threads) noexcept;
template <class T>
bool csr_gaussian_transform(Isa isa, const CsrGaussianJob& job, int num_threads) noexcept;

}  // namespace ef
