#include "sketch/compressed.hpp"

#include <atomic>
#include <cstring>
#include <type_traits>

#include "common/parallel.hpp"

namespace ef {

namespace {
constexpr int64_t kGrain = int64_t{1} << 20;  // indices worth a thread
constexpr int64_t kStep = 1024;               // rows handed out at a time

template <class I>
Compressed check_rows(const CompressedMatrix& x, int64_t begin, int64_t end, int64_t* row) noexcept {
    typedef typename std::conditional<sizeof(I) == 4, uint32_t, uint64_t>::type U;
    const I* indices = static_cast<const I*>(x.indices);
    bool unsorted = false;
    for (int64_t r = begin; r < end; ++r) {
        const int64_t first = x.indptr[r], last = x.indptr[r + 1];
        if (first == last) continue;
        bool outside = static_cast<U>(indices[first]) >= static_cast<uint64_t>(x.columns), descends = false;
        for (int64_t p = first + 1; p < last; ++p) {
            outside |= static_cast<U>(indices[p]) >= static_cast<uint64_t>(x.columns);
            descends |= indices[p] <= indices[p - 1];
        }
        if (outside) {
            *row = r;
            return Compressed::bad_index;
        }
        unsorted |= descends;
    }
    return unsorted ? Compressed::unsorted : Compressed::canonical;
}

template <class I>
void count(const CompressedMatrix& x, int64_t* counts) noexcept {
    const I* indices = static_cast<const I*>(x.indices);
    for (int64_t p = x.indptr[0]; p < x.indptr[x.rows]; ++p) ++counts[indices[p]];
}

template <int kSize, class I, class O>
void take_sized(const CompressedMatrix& x, int64_t begin, int64_t end, int64_t* cursors, int64_t* places, O* out_rows,
                char* out_data) noexcept {
    const I* indices = static_cast<const I*>(x.indices);
    for (int64_t r = 0; r < x.rows; ++r) {
        int64_t p = cursors[r];
        const int64_t last = x.indptr[r + 1];
        for (; p < last && indices[p] < end; ++p) {
            const int64_t to = places[indices[p] - begin]++;
            out_rows[to] = static_cast<O>(r);
            std::memcpy(out_data + to * kSize, x.data + p * kSize, kSize);
        }
        cursors[r] = p;
    }
}

template <class I, class O>
void take(const CompressedMatrix& x, int64_t begin, int64_t end, int64_t size, int64_t* cursors, int64_t* places,
          O* out_rows, char* out_data) noexcept {
    switch (size) {
        case 1: return take_sized<1, I>(x, begin, end, cursors, places, out_rows, out_data);
        case 2: return take_sized<2, I>(x, begin, end, cursors, places, out_rows, out_data);
        case 4: return take_sized<4, I>(x, begin, end, cursors, places, out_rows, out_data);
        default: return take_sized<8, I>(x, begin, end, cursors, places, out_rows, out_data);
    }
}
}  // namespace

Compressed check_compressed(const CompressedMatrix& x, int64_t entries, int num_threads, int64_t* row) noexcept {
    *row = 0;
    if (x.indptr[0] != 0) return Compressed::bad_indptr;
    for (int64_t r = 0; r < x.rows; ++r) {
        if (x.indptr[r + 1] < x.indptr[r] || x.indptr[r + 1] > entries) {
            *row = r;
            return Compressed::bad_indptr;
        }
    }
    const int threads = threads_for(x.indptr[x.rows], kGrain, num_threads);
    std::atomic<int> worst{0};
    std::atomic<int64_t> first_bad{x.rows};
    parallel_for((x.rows + kStep - 1) / kStep, threads, [&](int64_t chunk) noexcept {
        const int64_t begin = chunk * kStep, end = begin + kStep < x.rows ? begin + kStep : x.rows;
        int64_t bad = 0;
        const Compressed found =
            x.wide ? check_rows<int64_t>(x, begin, end, &bad) : check_rows<int32_t>(x, begin, end, &bad);
        int seen = worst.load(std::memory_order_relaxed);
        while (seen < static_cast<int>(found) &&
               !worst.compare_exchange_weak(seen, static_cast<int>(found), std::memory_order_relaxed)) {
        }
        if (found == Compressed::bad_index) {
            int64_t least = first_bad.load(std::memory_order_relaxed);
            while (bad < least && !first_bad.compare_exchange_weak(least, bad, std::memory_order_relaxed)) {
            }
        }
    });
    const auto result = static_cast<Compressed>(worst.load());
    if (result == Compressed::bad_index) *row = first_bad.load();
    return result;
}

void count_columns(const CompressedMatrix& x, int64_t* counts) noexcept {
    x.wide ? count<int64_t>(x, counts) : count<int32_t>(x, counts);
}

void take_columns(const CompressedMatrix& x, int64_t begin, int64_t end, int64_t size, int64_t* cursors, int64_t* places,
                  int32_t* out_rows, char* out_data) noexcept {
    x.wide ? take<int64_t>(x, begin, end, size, cursors, places, out_rows, out_data)
           : take<int32_t>(x, begin, end, size, cursors, places, out_rows, out_data);
}

void take_columns(const CompressedMatrix& x, int64_t begin, int64_t end, int64_t size, int64_t* cursors, int64_t* places,
                  int64_t* out_rows, char* out_data) noexcept {
    x.wide ? take<int64_t>(x, begin, end, size, cursors, places, out_rows, out_data)
           : take<int32_t>(x, begin, end, size, cursors, places, out_rows, out_data);
}

}  // namespace ef
