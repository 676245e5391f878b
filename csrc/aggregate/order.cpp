#include "aggregate/order.hpp"

#include <cstdint>
#include <new>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "aggregate/network.hpp"
#include "common/dispatch.hpp"
#include "common/half.hpp"
#include "common/parallel.hpp"
#include "common/scratch.hpp"

#define EF_BODY "aggregate/order-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

namespace {

const OrderKernels* const kTables[kIsaCount] = EF_PER_ISA(kOrderTable);

constexpr int64_t kMostVectorBytes = 64;
constexpr int64_t kChunk = 1 << 15;  // coordinates handed to a thread at a time

// Chunks never cross tensors.
int64_t chunks_of(const TensorSpec* specs, int64_t tensors) {
    int64_t chunks = 0;
    for (int64_t t = 0; t < tensors; ++t) chunks += (specs[t].size + kChunk - 1) / kChunk;
    return chunks;
}

struct Walk {
    const TensorSpec* specs;
    int64_t tensors;
    int64_t chunks;
    int64_t next = 0;

    // body(t, offset, n) for runs of at most `tile` coordinates, chunk after chunk until none is left.
    template <class Body>
    void work(int64_t tile, Body&& body) {
        int64_t t = 0, before = 0;
        for (int64_t c; (c = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < chunks;) {
            for (;; ++t) {
                const int64_t mine = (specs[t].size + kChunk - 1) / kChunk;
                if (c < before + mine) break;
                before += mine;
            }
            const int64_t begin = (c - before) * kChunk;
            const int64_t end = specs[t].size - begin < kChunk ? specs[t].size : begin + kChunk;
            for (int64_t o = begin; o < end; o += tile) body(t, o, end - o < tile ? end - o : tile);
        }
    }
};

int64_t coordinates(const TensorSpec* specs, int64_t tensors) {
    int64_t total = 0;
    for (int64_t t = 0; t < tensors; ++t) total += specs[t].size;
    return total;
}

}  // namespace

const OrderKernels& order_kernels(Isa isa) noexcept { return *kTables[static_cast<int>(isa)]; }

int64_t item_size(DType dtype) noexcept {
    switch (dtype) {
        case DType::f64:
        case DType::i64:
        case DType::u64:
            return 8;
        case DType::f32:
        case DType::i32:
        case DType::u32:
            return 4;
        case DType::i8:
        case DType::u8:
        case DType::boolean:
            return 1;
        default:
            return 2;
    }
}

int64_t image_size(DType dtype) noexcept {
    switch (dtype) {
        case DType::f64:
        case DType::i64:
        case DType::u64:
        case DType::u32:
            return 8;
        case DType::f16:
        case DType::bf16:
            return 2;
        default:
            return 4;
    }
}

int64_t order_scratch(int64_t clients) noexcept {
    // A column of up to 32 lanes as doubles, and the staged columns: at least four.
    const int64_t stage = clients * kMostVectorBytes * 4;
    return clients * (kMostVectorBytes / 2) * 8 + (stage > (1 << 17) ? stage : (1 << 17));
}

OrderProgram::OrderProgram(int64_t clients, int64_t low, int64_t high) noexcept {
    // Levels p = 16, 32, ...: runs of p merged; comparators over a distance of p / 8 and more run in registers.
    const auto each = [clients](auto&& visit) {
        batcher(clients, [&](int64_t i, int64_t j, int64_t p) {
            if (p >= 16 && j - i < p / 8) visit(i, j, p);
        });
    };
    int64_t length = 0;
    each([&](int64_t, int64_t, int64_t) { ++length; });
    comparators_ = new (std::nothrow) Comparator[static_cast<size_t>(length + 1)];
    bool* const needed = new (std::nothrow) bool[static_cast<size_t>(clients)];
    if (!comparators_ || !needed) {
        delete[] comparators_;
        delete[] needed;
        comparators_ = nullptr;
        return;
    }
    int64_t n = 0, last_begin = 0, last = 0;
    each([&](int64_t i, int64_t j, int64_t p) {
        if (p != last) last_begin = n;
        last = p;
        comparators_[n++] = {static_cast<uint16_t>(i), static_cast<uint16_t>(j)};
    });
    // Backwards through the last level: a comparator is needed when one of its wires is read later on.
    for (int64_t k = 0; k < clients; ++k) needed[k] = k >= low && k < high;
    int64_t kept = length;
    for (int64_t c = length; c-- > last_begin;) {
        if (!needed[comparators_[c].low] && !needed[comparators_[c].high]) continue;
        needed[comparators_[c].low] = needed[comparators_[c].high] = true;
        comparators_[--kept] = comparators_[c];
    }
    for (int64_t c = kept; c < length; ++c) comparators_[c - kept + last_begin] = comparators_[c];
    delete[] needed;
    int64_t end = 0;
    int level = 0;
    for (int64_t p = 16; p < clients; p *= 2, ++level) {
        int64_t here = 0;
        each([&](int64_t, int64_t, int64_t q) { here += q == p; });
        end += here;
        ends_[level] = 2 * p < clients ? end : last_begin + length - kept;
    }
}

OrderProgram::~OrderProgram() { delete[] comparators_; }

RunStatus order_run(Isa isa, OrderJob job, void* const* outputs, int threads) noexcept {
    const OrderKernels& kernels = order_kernels(isa);
    const MeanKernels& means = mean_kernels(isa);
    const bool all = job.rule != OrderRule::ranks || job.nan == NanPolicy::propagate;
    const OrderProgram program(job.clients, all ? 0 : job.low, all ? job.clients : job.high);
    if (!program.ok()) return RunStatus::no_memory;
    program.give(job);
    const int useful = threads_for(coordinates(job.specs, job.tensors) * job.clients, int64_t(1) << 17, threads);
    Scratch scratch(useful, static_cast<size_t>(order_scratch(job.clients)));
    bool bad = false;
    if (scratch.ok()) {
        Walk walk = {job.specs, job.tensors, chunks_of(job.specs, job.tensors)};
        parallel_for(useful, useful, [&](int64_t thread) {
            bool found = false;
            double values[kOrderTile];
            walk.work(kOrderTile, [&](int64_t t, int64_t offset, int64_t n) {
                const TensorSpec spec = {job.specs[t].dtype, n};
                char* const target = static_cast<char*>(outputs[t]) + offset * item_size(spec.dtype);
                if (spec.dtype == DType::f32 && reinterpret_cast<uintptr_t>(target) % sizeof(float) == 0) {
                    found |= kernels.tile_f32(job, t, offset, n, scratch.of(thread), reinterpret_cast<float*>(target));
                    return;
                }
                found |= kernels.tile(job, t, offset, n, scratch.of(thread), values);
                const void* const sums = values;
                void* const out = target;
                means.finish(&sums, 1.0, &spec, 1, false, &out, 1);
            });
            if (found) __atomic_store_n(&bad, true, __ATOMIC_RELAXED);
        });
    }
    if (!scratch.ok()) return RunStatus::no_memory;
    return bad ? RunStatus::suspicious : RunStatus::fine;
}

void trim_push(Isa isa, const void* const* rows, bool from_images, const TensorSpec* specs, int64_t tensors,
               void* const* low, void* const* high, double* const* sums, int64_t trim, int stage, int threads) noexcept {
    const OrderKernels& kernels = order_kernels(isa);
    const int useful = threads_for(coordinates(specs, tensors) * (4 + 2 * trim), int64_t(1) << 18, threads);
    Walk walk = {specs, tensors, chunks_of(specs, tensors)};
    parallel_for(useful, useful, [&](int64_t) {
        walk.work(kChunk, [&](int64_t t, int64_t offset, int64_t n) {
            kernels.push(rows[t], from_images, specs[t].dtype, low[t], high[t], sums[t], trim, specs[t].size, offset, n,
                         stage);
        });
    });
}

}  // namespace ef
