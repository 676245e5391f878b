#include "aggregate/gram.hpp"

#include <cstdint>
#include <cstring>
#include <new>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/dispatch.hpp"
#include "common/parallel.hpp"
#include "common/scratch.hpp"

#define EF_BODY "aggregate/gram-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

namespace {

const GramKernels* const kTables[kIsaCount] = EF_PER_ISA(kGramTable);

constexpr int64_t kPartialBytes = int64_t{16} << 20;  // sums of chunks that wait to be added in order

int64_t chunk_count(const TensorSpec* specs, int64_t tensors) {
    int64_t chunks = 0;
    for (int64_t t = 0; t < tensors; ++t) chunks += (specs[t].size + kPairChunk - 1) / kPairChunk;
    return chunks;
}

struct Place {
    int64_t tensor, begin, end;
};
Place place_of(const TensorSpec* specs, int64_t chunk) {
    for (int64_t t = 0;; ++t) {
        const int64_t mine = (specs[t].size + kPairChunk - 1) / kPairChunk;
        if (chunk < mine) {
            const int64_t begin = chunk * kPairChunk;
            return {t, begin, specs[t].size - begin < kPairChunk ? specs[t].size : begin + kPairChunk};
        }
        chunk -= mine;
    }
}

int64_t total_size(const TensorSpec* specs, int64_t tensors) {
    int64_t total = 0;
    for (int64_t t = 0; t < tensors; ++t) total += specs[t].size;
    return total;
}

// Calls body(place, thread, partial) for every chunk and adds the partials (width doubles each) to total in order.
template <class Body>
bool sum_chunks(const TensorSpec* specs, int64_t tensors, int64_t width, int threads, double* total, Body&& body) {
    const int64_t chunks = chunk_count(specs, tensors);
    int64_t group = kPartialBytes / (width * int64_t{sizeof(double)});
    if (group < threads) group = threads;
    if (group > chunks) group = chunks;
    if (group == 0) return true;
    double* const partials = new (std::nothrow) double[static_cast<size_t>(group * width)];
    if (!partials) return false;
    for (int64_t first = 0; first < chunks; first += group) {
        const int64_t here = chunks - first < group ? chunks - first : group;
        std::memset(partials, 0, static_cast<size_t>(here * width) * sizeof(double));
        int64_t next = 0;
        parallel_for(threads, threads, [&](int64_t thread) {
            for (int64_t c; (c = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < here;)
                body(place_of(specs, first + c), thread, partials + c * width);
        });
        for (int64_t c = 0; c < here; ++c)
            for (int64_t w = 0; w < width; ++w) total[w] += partials[c * width + w];
    }
    delete[] partials;
    return true;
}

// Coordinates [offset, offset + n) of an update as doubles, padded with zeros to a multiple of 8.
void widen(Isa isa, const void* input, DType dtype, int64_t offset, int64_t n, double* row) {
    const void* const x = static_cast<const char*>(input) + offset * item_size(dtype);
    if (n == kSegment && dtype == DType::f32) return gram_kernels(isa).widen_f32(x, row);
    std::memset(row + n, 0, static_cast<size_t>((n + 7) / 8 * 8 - n) * sizeof(double));
    const TensorSpec spec = {dtype, n};
    constexpr double kOne = 1.0;
    void* const sums = row;
    mean_kernels(isa).add(&x, &kOne, 1, &spec, 1, false, true, &sums, 1);
}

// The types whose Gram matrix is formed from differences in binary32.
bool differs_in_single(DType dtype) { return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16; }

// Rows of halved differences to the coordinate-wise median in binary32, padded with zeros to a multiple of 8.
void half_differences(Isa isa, const OrderJob& median, int64_t t, int64_t offset, int64_t n, char* scratch, float* rows) {
    const DType dtype = median.specs[t].dtype;
    const void* const* const inputs = median.inputs + t;
    const int64_t n8 = (n + 7) / 8 * 8;
    if (dtype == DType::f32 && n == kSegment && median.clients <= kOrderStreams) {
        const char* x[kOrderStreams];
        for (int64_t k = 0; k < median.clients; ++k)
            x[k] = static_cast<const char*>(inputs[k * median.tensors]) + offset * item_size(dtype);
        order_kernels(isa).half_differences(x, median.clients, rows);
        return;
    }
    double center[kSegment], wide[kSegment];
    float half_center[kSegment], single[kSegment];
    order_kernels(isa).tile(median, t, offset, n, scratch, center);
    for (int64_t i = 0; i < n; ++i) half_center[i] = static_cast<float>(center[i] * 0.5);
    for (int64_t k = 0; k < median.clients; ++k) {
        const void* x = static_cast<const char*>(inputs[k * median.tensors]) + offset * item_size(dtype);
        if (dtype != DType::f32) {
            widen(isa, inputs[k * median.tensors], dtype, offset, n, wide);
            for (int64_t i = 0; i < n; ++i) single[i] = static_cast<float>(wide[i]);
            x = single;
        }
        float* const row = rows + k * kSegment;
        gram_kernels(isa).half_difference(x, half_center, n, row);
        for (int64_t i = n; i < n8; ++i) row[i] = 0;
    }
}

void differences(Isa isa, const OrderJob& median, int64_t t, int64_t offset, int64_t n, char* scratch, double* rows) {
    alignas(64) double center[kSegment] = {};
    order_kernels(isa).tile(median, t, offset, n, scratch, center);
    for (int64_t k = 0; k < median.clients; ++k) {
        double* const row = rows + k * kSegment;
        widen(isa, median.inputs[k * median.tensors + t], median.specs[t].dtype, offset, n, row);
        gram_kernels(isa).subtract(row, center, (n + 7) / 8 * 8);
    }
}

}  // namespace

const GramKernels& gram_kernels(Isa isa) noexcept { return *kTables[static_cast<int>(isa)]; }

bool pair_sums(Isa isa, const void* const* inputs, int64_t clients, const TensorSpec* specs, int64_t tensors,
               double* distances, double* products, int threads) noexcept {
    const GramKernels& kernels = gram_kernels(isa);
    const int64_t square = clients * clients;
    const int64_t width = square * ((distances ? 1 : 0) + (products ? 1 : 0));
    const int useful = threads_for(total_size(specs, tensors) * clients * (clients + 8), int64_t(1) << 20, threads);
    const int64_t row_bytes = clients * kSegment * int64_t{sizeof(double)};
    const int64_t next_bytes = clients * int64_t{sizeof(char*)};
    Scratch scratch(useful, static_cast<size_t>(row_bytes + (products ? order_scratch(clients) : 0) + next_bytes));
    OrderJob median = {inputs, clients, specs, tensors, OrderRule::ranks, (clients - 1) / 2, clients / 2 + 1,
                       NanPolicy::finite, nullptr, nullptr};
    const OrderProgram program(clients, median.low, median.high);
    program.give(median);
    double* const total = new (std::nothrow) double[static_cast<size_t>(width)]();
    bool fine = scratch.ok() && total && program.ok();
    if (fine) {
        fine = sum_chunks(specs, tensors, width, useful, total, [&](Place p, int64_t thread, double* partial) {
            double* const rows = reinterpret_cast<double*>(scratch.of(thread));
            char* const rest = scratch.of(thread) + row_bytes;
            const char** const next = reinterpret_cast<const char**>(rest + (products ? order_scratch(clients) : 0));
            for (int64_t o = p.begin; o < p.end; o += kSegment) {
                const int64_t n = p.end - o < kSegment ? p.end - o : kSegment, n8 = (n + 7) / 8 * 8;
                const DType dtype = specs[p.tensor].dtype;
                const int64_t after = p.end - o - n < kSegment ? p.end - o - n : kSegment, item = item_size(dtype);
                for (int64_t k = 0; after > 0 && k < clients; ++k)
                    next[k] = static_cast<const char*>(inputs[k * tensors + p.tensor]) + (o + n) * item;
                if (distances) {
                    for (int64_t k = 0; k < clients; ++k)
                        widen(isa, inputs[k * tensors + p.tensor], dtype, o, n, rows + k * kSegment);
                    kernels.distances(rows, clients, n8, partial, after > 0 ? next : nullptr, after * item);
                }
                if (products) {
                    double* const sums = partial + (distances ? square : 0);
                    const char* const* const fetched = after > 0 && !distances ? next : nullptr;
                    if (differs_in_single(dtype)) {
                        float* const singles = reinterpret_cast<float*>(rows);
                        half_differences(isa, median, p.tensor, o, n, rest, singles);
                        kernels.products_f32(singles, clients, n8, sums, fetched, after * item);
                    } else {
                        differences(isa, median, p.tensor, o, n, rest, rows);
                        kernels.products(rows, clients, n8, sums, fetched, after * item);
                    }
                }
            }
            if (products && differs_in_single(specs[p.tensor].dtype))
                for (int64_t i = width - square; i < width; ++i) partial[i] *= 4;
        });
    }
    for (int which = 0; fine && which < 2; ++which) {
        double* const out = which == 0 ? distances : products;
        const double* const from = total + (which == 1 && distances ? square : 0);
        for (int64_t i = 0; out && i < clients; ++i) {
            for (int64_t j = i; j < clients; ++j) {
                const double sum = out[i * clients + j] + from[i * clients + j];
                out[i * clients + j] = out[j * clients + i] = sum;
            }
        }
    }
    delete[] total;
    return fine;
}

bool square_norms(Isa isa, const void* const* inputs, int64_t clients, const void* const* center,
                  const TensorSpec* specs, int64_t tensors, double* sums, int threads) noexcept {
    const GramKernels& kernels = gram_kernels(isa);
    const int useful = threads_for(total_size(specs, tensors) * clients, int64_t(1) << 18, threads);
    Scratch scratch(useful, static_cast<size_t>(2 * kSegment) * sizeof(double));
    if (!scratch.ok()) return false;
    for (int64_t k = 0; k < clients; ++k) sums[k] = 0;
    return sum_chunks(specs, tensors, clients, useful, sums, [&](Place p, int64_t thread, double* partial) {
        double* const row = reinterpret_cast<double*>(scratch.of(thread));
        double* const middle = row + kSegment;
        const DType dtype = specs[p.tensor].dtype;
        for (int64_t o = p.begin; o < p.end; o += kSegment) {
            const int64_t n = p.end - o < kSegment ? p.end - o : kSegment, n8 = (n + 7) / 8 * 8;
            if (center) widen(isa, center[p.tensor], dtype, o, n, middle);
            for (int64_t k = 0; k < clients; ++k) {
                widen(isa, inputs[k * tensors + p.tensor], dtype, o, n, row);
                if (center) kernels.subtract(row, middle, n8);
                kernels.squares(row, n8, partial + k);
            }
        }
    });
}

bool mix(Isa isa, const void* const* inputs, int64_t clients, const int64_t* members, const double* weights,
         const int64_t* starts, const double* totals, int64_t sets, const TensorSpec* specs, int64_t tensors,
         void* const* outputs, int threads) noexcept {
    constexpr int64_t kTile = 4096;  // what is read for one set is still near when the next needs it
    const MeanKernels& means = mean_kernels(isa);
    const int64_t chunks = chunk_count(specs, tensors);
    const int useful = threads_for(total_size(specs, tensors) * clients, int64_t(1) << 18, threads);
    int64_t next = 0;
    Scratch scratch(useful, static_cast<size_t>(clients) * sizeof(void*));
    if (!scratch.ok()) return false;
    parallel_for(useful, useful, [&](int64_t thread) {
        const void** const x = reinterpret_cast<const void**>(scratch.of(thread));
        for (int64_t c; (c = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < chunks;) {
            const Place p = place_of(specs, c);
            const int64_t item = item_size(specs[p.tensor].dtype);
            for (int64_t o = p.begin; o < p.end; o += kTile) {
                const TensorSpec spec = {specs[p.tensor].dtype, p.end - o < kTile ? p.end - o : kTile};
                for (int64_t m = 0; m < sets; ++m) {
                    const int64_t count = starts[m + 1] - starts[m];
                    for (int64_t k = 0; k < count; ++k)
                        x[k] = static_cast<const char*>(inputs[members[starts[m] + k] * tensors + p.tensor]) + o * item;
                    void* const out = static_cast<char*>(outputs[m * tensors + p.tensor]) + o * item;
                    means.mean(x, weights + starts[m], count, totals[m], &spec, 1, false, &out, 1);
                }
            }
        }
    });
    return true;
}

}  // namespace ef
