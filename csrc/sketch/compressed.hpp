// Sparse matrices in compressed form (CSR, or CSC read as the CSR of the transpose), in somebody else's memory.
//
// check_compressed has to accept a matrix before any other function may touch it: everything after it trusts the
// indices. Nothing here rounds; the order of the entries is the only thing decided.
// Thread-safety: pure functions of their arguments.
#pragma once

#include <cstdint>

#include "common/isa.hpp"
#include "sketch/element.hpp"

namespace ef {

struct CompressedMatrix {
    const char* data;  // entries of `type`, contiguous
    ElementType type;
    const void* indices;  // int32_t, or int64_t when `wide`
    bool wide;
    const int64_t* indptr;  // rows + 1
    int64_t rows, columns;
};

enum class Compressed : int {
    canonical = 0,  // indices of every row ascend strictly
    unsorted = 1,   // valid, but some row is unsorted or holds a column twice
    bad_indptr = 2,
    bad_index = 3,
};

// `entries` is how many of data and indices there are. *row: the first offending row of a bad one.
Compressed check_compressed(const CompressedMatrix& x, int64_t entries, int num_threads, int64_t* row) noexcept;

// counts[c] += entries of column c.
void count_columns(const CompressedMatrix& x, int64_t* counts) noexcept;

// Columns [begin, end) of a canonical matrix as compressed rows: for column c, places[c - begin] is where its next
// entry goes in out_rows and out_data (entries are `size` bytes). cursors (one a row, first entry not yet taken; the
// rows' beginnings at first) move on, so that blocks taken in order visit every entry once. Rows ascend in a column.
void take_columns(const CompressedMatrix& x, int64_t begin, int64_t end, int64_t size, int64_t* cursors, int64_t* places,
                  int32_t* out_rows, char* out_data) noexcept;
void take_columns(const CompressedMatrix& x, int64_t begin, int64_t end, int64_t size, int64_t* cursors, int64_t* places,
                  int64_t* out_rows, char* out_data) noexcept;

}  // namespace ef
