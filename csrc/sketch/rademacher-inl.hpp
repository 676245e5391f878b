namespace ef {
namespace EF_ISA {
namespace {
#include "common/simd-inl.hpp"
#include "common/lanes-inl.hpp"

// Register block: kRows rows times kVectors vectors of outputs, all sums of a block in registers.
#if defined(EF_TARGET_AVX512)
constexpr int kRows = 6, kVectors = 4;
#elif defined(EF_TARGET_NEON)
constexpr int kRows = 6, kVectors = 4;
#elif defined(EF_TARGET_AVX2)
constexpr int kRows = 6, kVectors = 2;
#else
constexpr int kRows = 4, kVectors = 2;
#endif

// +-1 for `count` features times kRademacherOutputs outputs.
template <class T>
void expand_signs(const RademacherJob& job, int64_t first, int count, int64_t output, T* panel) {
    typedef typename Lanes<T>::V V;
    typedef typename Lanes<T>::U U;
    typedef typename Lanes<T>::Bits Bits;
    constexpr int L = Lanes<T>::count, kTop = 8 * sizeof(T) - 1;
    U shift;
    for (int i = 0; i < L; ++i) shift[i] = static_cast<Bits>(kTop - i);
    const U top = U{} + (static_cast<Bits>(1) << kTop);
    const U one = (U)broadcast<V>(static_cast<T>(1));
    for (int j = 0; j < count; ++j) {
        const PhiloxBlock block = philox4x64(static_cast<uint64_t>(first + j) + 1,
                                             static_cast<uint64_t>(output / kRademacherOutputs), 0, 0, job.seed, 3);
        T* to = panel + j * kRademacherOutputs;
        for (int i = 0; i < kRademacherOutputs; i += L) {
            const Bits bits = static_cast<Bits>(block.word[i / 64] >> (i % 64)) & ((Bits{1} << L) - 1);
            store_as(to + i, (V)((((U{} + bits) << shift) & top) ^ one));
        }
    }
}

// Normal entries for `count` features times kRademacherOutputs outputs.
template <class T>
void expand_gaussian(const RademacherJob& job, int64_t first, int count, int64_t output, T* panel) {
    for (int j = 0; j < count; ++j) {
        uint16_t draws[kRademacherOutputs];
        for (int b = 0; b < kRademacherOutputs / 16; ++b) {
            const PhiloxBlock block = philox4x64(static_cast<uint64_t>(first + j) + 1,
                                                 static_cast<uint64_t>(output / 16 + b), 0, 0, job.seed, 4);
            for (int lane = 0; lane < 16; ++lane)
                draws[16 * b + lane] = static_cast<uint16_t>(block.word[lane / 4] >> (16 * (lane % 4)));
        }
        T* to = panel + j * kRademacherOutputs;
        for (int i = 0; i < kRademacherOutputs; ++i)
            to[i] = static_cast<T>(gaussian_entry(draws[i])) * static_cast<T>(kGaussianUnit);
    }
}

template <class T>
void multiply_tile(const T* x, const T* panel, int count, int rows, T* acc) {
    typedef typename Lanes<T>::V V;
    constexpr int L = Lanes<T>::count;
    for (int i = 0; i < kRademacherOutputs; i += kVectors * L) {
        for (int r0 = 0; r0 < rows; r0 += kRows) {
            // x and acc have room for a whole block of rows; what the surplus rows hold is never read.
            V sum[kRows][kVectors];
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v)
                    sum[r][v] = load_as<V>(acc + (r0 + r) * kRademacherOutputs + i + v * L);
            const T* xs = x + r0 * kRademacherFeatures;
            for (int j = 0; j < count; ++j) {
                V sign[kVectors];
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) sign[v] = load_as<V>(panel + j * kRademacherOutputs + i + v * L);
#pragma GCC unroll 8
                for (int r = 0; r < kRows; ++r) {
                    const V value = broadcast<V>(xs[r * kRademacherFeatures + j]);
#pragma GCC unroll 4
                    for (int v = 0; v < kVectors; ++v) sum[r][v] = multiply_add_exact(value, sign[v], sum[r][v]);
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v)
                    store_as(acc + (r0 + r) * kRademacherOutputs + i + v * L, sum[r][v]);
        }
    }
}

template <class T>
void rademacher_rows_of(const RademacherJob& job, int64_t begin, int64_t end, T* work) {
    static_assert(kRademacherSpare >= kRows - 1 && kRademacherOutputs % (kVectors * Lanes<T>::count) == 0);
    constexpr int kRoom = kRademacherRows + kRademacherSpare;
    T* panel = work;
    T* acc = panel + kRademacherFeatures * kRademacherOutputs;
    T* x = acc + kRoom * kRademacherOutputs;
    __builtin_memset(x, 0, sizeof(T) * kRoom * kRademacherFeatures);
    const int rows = static_cast<int>(end - begin);
    const T scale = static_cast<T>(job.scale);
    for (int64_t output = 0; output < job.components; output += kRademacherOutputs) {
        __builtin_memset(acc, 0, sizeof(T) * kRoom * kRademacherOutputs);
        for (int64_t first = 0; first < job.x.columns; first += kRademacherFeatures) {
            const int64_t left = job.x.columns - first;
            const int count = left < kRademacherFeatures ? static_cast<int>(left) : kRademacherFeatures;
            if (job.gaussian) expand_gaussian(job, first, count, output, panel);
            else expand_signs(job, first, count, output, panel);
            for (int r = 0; r < rows; ++r) {
                const char* source = job.x.data + (begin + r) * job.x.row_stride + first * job.x.column_stride;
                T* to = x + r * kRademacherFeatures;
                if (job.x.column_stride == static_cast<int64_t>(sizeof(T)))
                    __builtin_memcpy(to, source, sizeof(T) * static_cast<size_t>(count));
                else
                    for (int j = 0; j < count; ++j) to[j] = element<T>(source + j * job.x.column_stride);
            }
            multiply_tile(x, panel, count, rows, acc);
        }
        const int64_t left = job.components - output;
        const int64_t width = left < kRademacherOutputs ? left : kRademacherOutputs;
        for (int r = 0; r < rows; ++r) {
            T* out = reinterpret_cast<T*>(job.out) + (begin + r) * job.components + output;
            for (int64_t c = 0; c < width; ++c) out[c] = canonical(acc[r * kRademacherOutputs + c] * scale);
        }
    }
}

}  // namespace

static void rademacher_rows_f32(const RademacherJob& job, int64_t begin, int64_t end, void* work) noexcept {
    rademacher_rows_of<float>(job, begin, end, static_cast<float*>(work));
}
static void rademacher_rows_f64(const RademacherJob& job, int64_t begin, int64_t end, void* work) noexcept {
    rademacher_rows_of<double>(job, begin, end, static_cast<double*>(work));
}

}  // namespace EF_ISA
}  // namespace ef
