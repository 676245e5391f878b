// Sketches of compressed sparse rows. Work is proportional to the stored entries (srht: to the padded length of a
// row); the matrix is never expanded, a thread holds one row of outputs at most.
//
// Numerics: those of the dense kernels (stack.hpp, rademacher.hpp, hadamard.hpp), whose sums skip nothing but +-0
// terms here. As every sum begins at +0, adding a zero changes no bit of it: the output bytes are those of the dense
// matrix with the same values, NaN and infinities included.
// Requires a matrix check_compressed called canonical. Feature j of the operator is column j - first: `first` is what
// a block of rows in S X needs, where X's rows are features. Aliasing: out must not overlap x. Thread-safety: pure.
#pragma once

#include <cstdint>

#include "common/isa.hpp"
#include "sketch/compressed.hpp"

namespace ef {

struct CsrStackJob {
    CompressedMatrix x;
    const uint32_t* table;  // (columns, nnz) packed entries from feature `first` on, or null: drawn where needed
    uint64_t seed;
    int64_t first;
    int64_t components;
    int nnz;
    double scale;
    char* out;  // rows * components, contiguous
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
};

// False when scratch memory could not be had; nothing has been written then.
template <class T>
bool csr_stack_transform(Isa isa, const CsrStackJob& job, int num_threads) noexcept;
template <class T>
bool csr_srht_transform(Isa isa, const CsrSrhtJob& job, int num_threads) noexcept;
template <class T>
bool csr_rademacher_transform(Isa isa, const CsrRademacherJob& job, int num_threads) noexcept;

}  // namespace ef
