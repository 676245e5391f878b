// The same output bytes on every platform and SIMD level: hashes of kernel results for inputs made of integers. The
// constants hold for x86-64 and AArch64 alike (`make aarch64` runs this under emulation).
#include <cinttypes>
#include <cstring>
#include <vector>

#include "aggregate/binned.hpp"
#include "aggregate/mean.hpp"
#include "aggregate/quantize.hpp"
#include "check.hpp"
#include "common/half.hpp"
#include "common/philox.hpp"
#include "sketch/dense.hpp"
#include "sketch/gaussian.hpp"
#include "sketch/count_sketch.hpp"
#include "sketch/hadamard.hpp"
#include "sketch/hadamard_axis.hpp"
#include "sketch/hamming.hpp"
#include "sketch/row_sketch.hpp"
#include "sketch/hash.hpp"

namespace {

uint64_t fnv(const void* data, size_t bytes, uint64_t hash) {
    const auto* p = static_cast<const unsigned char*>(data);
    for (size_t i = 0; i < bytes; ++i) hash = (hash ^ p[i]) * 1099511628211ull;
    return hash;
}
constexpr uint64_t kStart = 14695981039346656037ull;

// Numbers with full mantissas and exponents between 2^-8 and 2^8, from integers alone.
template <class T>
std::vector<T> numbers(size_t n, uint64_t key) {
    std::vector<T> out(n);
    for (size_t i = 0; i < n; ++i) {
        const ef::PhiloxBlock b = ef::philox4x64(i + 1, 0, 0, 0, key, 99);
        const double mantissa = static_cast<double>(static_cast<int64_t>(b.word[0] >> 11) - (int64_t{1} << 52));
        double scale = 1.0 / (int64_t{1} << 52);
        for (uint64_t e = b.word[1] % 17; e > 8; --e) scale *= 2;
        for (uint64_t e = b.word[1] % 17; e < 8; ++e) scale *= 0.5;
        out[i] = static_cast<T>(mantissa * scale);
    }
    return out;
}

template <class T>
uint64_t sketches(ef::Isa isa) {
    uint64_t hash = kStart;
    for (int64_t rows : {1, 2, 5, 37, 130}) {
        const int64_t d = 301, k = 70, length = 512;
        const std::vector<T> x = numbers<T>(static_cast<size_t>(rows * d), static_cast<uint64_t>(rows));
        std::vector<T> y(static_cast<size_t>(rows * k));
        const ef::StridedMatrix view = {reinterpret_cast<const char*>(x.data()), rows, d, d * int64_t{sizeof(T)}, sizeof(T)};
        char* out = reinterpret_cast<char*>(y.data());
        std::vector<uint32_t> table(static_cast<size_t>(d * 8));
        ef::stack_table(7, k, 8, 0, d, table.data());
        for (const int64_t cut : {d, int64_t{100}}) {  // all features in one call, or in two
            for (int64_t first = 0; first < d; first += cut) {
                const int64_t count = first == 0 ? cut : d - cut;
                const ef::StridedMatrix part = {view.data + first * int64_t{sizeof(T)}, rows, count, view.row_stride,
                                                view.column_stride};
                const ef::HashJob job = {part, table.data() + first * 8, nullptr, 8, k, 0.35355339059327373, first > 0,
                                         first + count == d, out};
                CHECK(ef::hash_transform<T>(isa, job, 3));
                if (first) break;
            }
            hash = fnv(out, y.size() * sizeof(T), hash);
        }
        std::vector<uint64_t> signs(8);
        std::vector<int64_t> index(static_cast<size_t>(k));
        for (size_t i = 0; i < signs.size(); ++i) signs[i] = ef::philox4x64(i + 1, 0, 0, 0, 7, 5).word[0];
        for (int64_t i = 0; i < k; ++i) index[static_cast<size_t>(i)] = (i * 37 + 11) % length;
        ef::SrhtJob srht = {view, signs.data(), index.data(), k, length, 0.11952286093343936, out};
        CHECK(ef::srht_transform<T>(isa, srht, 2));
        hash = fnv(out, y.size() * sizeof(T), hash);
        ef::DenseJob dense = {view, 7, k, 0.11952286093343936, out};
        CHECK(ef::rademacher_transform<T>(isa, dense, 2));
        hash = fnv(out, y.size() * sizeof(T), hash);
    }
    for (int64_t length : {1, 2, 4, 8, 16, 64, 1024, 65536}) {
        std::vector<T> x = numbers<T>(static_cast<size_t>(3 * length), 5), y(x.size());
        ef::fwht<T>(isa, x.data(), y.data(), 3, length, 1.0, 2);
        ef::fwht<T>(isa, x.data(), x.data(), 3, length, 1.0, 1);
        CHECK(std::memcmp(x.data(), y.data(), x.size() * sizeof(T)) == 0);
        hash = fnv(y.data(), y.size() * sizeof(T), hash);
    }
    return hash;
}

// countsketch, sparse (with and without many entries), rotation both ways, srht in pieces.
template <class T>
uint64_t more_sketches(ef::Isa isa) {
    uint64_t hash = kStart;
    const int64_t d = 403, k = 70;
    std::vector<uint32_t> single(static_cast<size_t>(d));
    ef::countsketch_table(7, k, 0, d, single.data());
    hash = fnv(single.data(), single.size() * 4, hash);
    for (int64_t rows : {1, 2, 5, 37, 300}) {
        const std::vector<T> x = numbers<T>(static_cast<size_t>(rows * d), static_cast<uint64_t>(rows));
        const ef::StridedMatrix view = {reinterpret_cast<const char*>(x.data()), rows, d, d * int64_t{sizeof(T)}, sizeof(T)};
        std::vector<T> y(static_cast<size_t>(rows * k)), z(x.size());
        char* out = reinterpret_cast<char*>(y.data());
        CHECK(ef::hash_transform<T>(isa, {view, single.data(), nullptr, 1, k, 1.0, false, true, out}, 3));
        hash = fnv(out, y.size() * sizeof(T), hash);
        for (uint64_t s : {3u, 20u}) {
            std::vector<uint64_t> thresholds;
            for (uint64_t left = uint64_t{1} << 63, i = 0; i < static_cast<uint64_t>(k); ++i) {
                left -= left / s;  // a density of about 1/s
                thresholds.push_back(left);
            }
            std::vector<int64_t> starts(static_cast<size_t>(d + 1));
            ef::sparse_table(7, k, thresholds.data(), k, 0, d, starts.data(), nullptr);
            std::vector<uint32_t> entries(static_cast<size_t>(starts.back()));
            ef::sparse_table(7, k, thresholds.data(), k, 0, d, starts.data(), entries.data());
            CHECK(ef::hash_transform<T>(isa, {view, entries.data(), starts.data(), 0, k, 0.5, false, true, out}, 2));
            hash = fnv(out, y.size() * sizeof(T), hash);
        }
        for (int64_t width : {int64_t{1}, int64_t{2}, int64_t{97}, int64_t{256}, d}) {
            const ef::StridedMatrix part = {view.data, rows, width, view.row_stride, view.column_stride};
            std::vector<uint64_t> signs(48);
            for (size_t i = 0; i < signs.size(); ++i) signs[i] = ef::philox4x64(i + 1, 0, 0, 0, 7, 6).word[0];
            z.assign(static_cast<size_t>(rows * width), 0);
            ef::rotate<T>(isa, {part, signs.data(), false, reinterpret_cast<char*>(z.data())}, 2);
            hash = fnv(z.data(), z.size() * sizeof(T), hash);
            const ef::StridedMatrix self = {reinterpret_cast<const char*>(z.data()), rows, width,
                                            width * int64_t{sizeof(T)}, sizeof(T)};
            ef::rotate<T>(isa, {self, signs.data(), true, reinterpret_cast<char*>(z.data())}, 1);
            hash = fnv(z.data(), z.size() * sizeof(T), hash);
        }
    }
    // Few outputs of a long row come from pieces, many from the whole row: the same bits.
    const int64_t wide = 700001, length = int64_t{1} << 20;
    const std::vector<T> x = numbers<T>(static_cast<size_t>(wide), 5);
    std::vector<uint64_t> signs(static_cast<size_t>(wide / 64 + 4));
    for (size_t i = 0; i < signs.size(); ++i) signs[i] = ef::philox4x64(i + 1, 0, 0, 0, 7, 5).word[0];
    std::vector<int64_t> index(static_cast<size_t>(length));
    for (int64_t i = 0; i < length; ++i) index[static_cast<size_t>(i)] = (i * 1013 + 11) % length;
    std::vector<T> few(50), all(static_cast<size_t>(length));
    const ef::StridedMatrix view = {reinterpret_cast<const char*>(x.data()), 1, wide, 0, sizeof(T)};
    CHECK(ef::srht_transform<T>(isa, {view, signs.data(), index.data(), 50, length, 0.25, reinterpret_cast<char*>(few.data())}, 1));
    CHECK(ef::srht_transform<T>(isa, {view, signs.data(), index.data(), length, length, 0.25, reinterpret_cast<char*>(all.data())}, 1));
    CHECK(std::memcmp(few.data(), all.data(), few.size() * sizeof(T)) == 0);
    return fnv(few.data(), few.size() * sizeof(T), hash);
}

// Unit rows give the entries themselves; then a product.
template <class T>
uint64_t gaussians(ef::Isa isa) {
    const int64_t d = 403, k = 300;
    std::vector<T> x(static_cast<size_t>(d * d)), y(static_cast<size_t>(d * k));
    for (int64_t j = 0; j < d; ++j) x[static_cast<size_t>(j * (d + 1))] = 1;
    ef::DenseJob job = {{reinterpret_cast<const char*>(x.data()), d, d, d * int64_t{sizeof(T)}, sizeof(T)}, 7, k, 65536,
                        reinterpret_cast<char*>(y.data())};
    CHECK(ef::gaussian_transform<T>(isa, job, 2));
    for (int64_t j = 0; j < d; ++j)
        for (int64_t c = 0; c < k; ++c) {
            const ef::PhiloxBlock b =
                ef::philox4x64(static_cast<uint64_t>(j) + 1, static_cast<uint64_t>(c / 16), 0, 0, 7, 4);
            const auto draw = static_cast<uint16_t>(b.word[c % 16 / 4] >> (c % 4 * 16));
            CHECK(y[static_cast<size_t>(j * k + c)] == static_cast<T>(ef::gaussian_entry(draw)));
        }
    const std::vector<T> z = numbers<T>(static_cast<size_t>(37 * d), 3);
    job.x = {reinterpret_cast<const char*>(z.data()), 37, d, d * int64_t{sizeof(T)}, sizeof(T)};
    job.scale = 0.057735026918962574;
    CHECK(ef::gaussian_transform<T>(isa, job, 2));
    return fnv(y.data(), 37 * k * sizeof(T), kStart);
}

template <class T>
uint64_t states(ef::Isa isa, ef::RowSketchTypes rows, ef::CountTypes counts) {
    uint64_t hash = kStart;
    for (int64_t columns : {1, 7, 16, 33, 300}) {
        const int64_t n = 150, k = 40;
        const std::vector<T> x = numbers<T>(static_cast<size_t>(n * columns), static_cast<uint64_t>(columns));
        const ef::StridedMatrix view = {reinterpret_cast<const char*>(x.data()), n, columns, columns * int64_t{sizeof(T)},
                                        sizeof(T)};
        for (int kind : {1, 2, 3}) {
            std::vector<T> acc(static_cast<size_t>(k * columns));
            const ef::RowSketchJob job = {view, kind, 7, kind == 1 ? 1 : kind == 2 ? 8 : 40, k, int64_t{3} << 40, acc.data()};
            CHECK(ef::row_sketch_add(isa, job, rows, 2));
            hash = fnv(acc.data(), acc.size() * sizeof(T), hash);
        }
        std::vector<T> table(5 * 37), estimates(static_cast<size_t>(n * columns));
        const ef::CountTable counters = {table.data(), 7, 5, 37};
        CHECK(ef::count_sketch_add(isa, counters, counts, x.data(), nullptr, int64_t{1} << 40, n * columns, 2));
        CHECK(ef::count_sketch_estimate(isa, counters, counts, nullptr, int64_t{1} << 40, n * columns, estimates.data(), 2));
        hash = fnv(table.data(), table.size() * sizeof(T), hash);
        hash = fnv(estimates.data(), estimates.size() * sizeof(T), hash);
        std::vector<T> y(static_cast<size_t>(128 * columns));
        CHECK(ef::fwht_axis<T>(isa, x.data(), y.data(), 1, 128, columns, 0.5, 2));
        hash = fnv(y.data(), y.size() * sizeof(T), hash);
        const int64_t bytes = (columns + 7) / 8;
        std::vector<uint8_t> codes(static_cast<size_t>(n * bytes)), keep(static_cast<size_t>(n));
        ef::sign_bits(isa, x.data(), n, columns, codes.data(), bytes);
        hash = fnv(codes.data(), codes.size(), hash);
        const ef::Codes all = {codes.data(), n, bytes};
        std::vector<uint16_t> pairs(static_cast<size_t>(n * n)), distance(static_cast<size_t>(n));
        std::vector<int64_t> index(static_cast<size_t>(n));
        ef::hamming_pairs(isa, all, all, bytes, pairs.data(), 2);
        hash = fnv(pairs.data(), pairs.size() * sizeof(uint16_t), hash);
        ef::hamming_nearest(isa, {codes.data() + bytes, n - 1, bytes}, {codes.data(), 100, bytes}, bytes, index.data(),
                            distance.data(), 2);
        hash = fnv(index.data(), static_cast<size_t>(n - 1) * sizeof(int64_t), hash);
        std::vector<uint64_t> words(static_cast<size_t>((bytes + 7) / 8 * 24));
        ef::Ring ring = {words.data(), (bytes + 7) / 8, 24, 19, 0, 0};
        ef::hamming_filter(isa, all, bytes, static_cast<int>(columns / 3), &ring, keep.data());
        hash = fnv(keep.data(), keep.size(), fnv(words.data(), words.size() * sizeof(uint64_t), hash));
    }
    return hash;
}

uint64_t means(ef::Isa isa) {
    uint64_t hash = kStart;
    for (size_t clients : {1u, 3u, 17u}) {
        const size_t n = 5003;
        std::vector<std::vector<float>> singles;
        std::vector<std::vector<uint16_t>> halves;
        std::vector<const void*> inputs;
        std::vector<double> weights;
        double total = 0;
        for (size_t k = 0; k < clients; ++k) {
            singles.push_back(numbers<float>(n, k));
            halves.emplace_back(n);
            for (size_t i = 0; i < n; ++i) halves[k][i] = ef::double_to_half(singles[k][i]);
            weights.push_back(static_cast<double>(k * 7 + 1));
            total += weights.back();
        }
        for (size_t k = 0; k < clients; ++k) {
            inputs.push_back(singles[k].data());
            inputs.push_back(halves[k].data());
        }
        std::vector<float> a(n);
        std::vector<uint16_t> b(n);
        void* outputs[] = {a.data(), b.data()};
        const ef::TensorSpec specs[] = {{ef::DType::f32, static_cast<int64_t>(n)}, {ef::DType::f16, static_cast<int64_t>(n)}};
        CHECK(!ef::mean_kernels(isa).mean(inputs.data(), weights.data(), static_cast<int64_t>(clients), total, specs, 2,
                                          false, outputs, 2));
        hash = fnv(a.data(), n * sizeof(float), hash);
        hash = fnv(b.data(), n * sizeof(uint16_t), hash);
    }
    return hash;
}

// Reproducible means at once and by two accumulators in opposite orders; 0 when the two differ.
uint64_t binned(ef::Isa isa) {
    uint64_t hash = kStart;
    const ef::BinnedKernels& kernels = ef::binned_kernels(isa);
    for (size_t clients : {1u, 3u, 17u}) {
        const size_t n = 1003;
        std::vector<std::vector<float>> singles;
        std::vector<std::vector<uint16_t>> brains;
        std::vector<std::vector<double>> doubles;
        std::vector<const void*> inputs;
        std::vector<double> weights;
        double total = 0;
        for (size_t k = 0; k < clients; ++k) {
            singles.push_back(numbers<float>(n, k));
            doubles.push_back(numbers<double>(n, k + 50));
            brains.emplace_back(n);
            for (size_t i = 0; i < n; ++i) {
                brains[k][i] = ef::double_to_brain(doubles[k][i]);
                for (size_t e = 0; e < (i * 7 + k * 13) % 60; ++e) doubles[k][i] *= 32;
            }
            weights.push_back(static_cast<double>(k * 7 + 1) / 3);
            total += weights.back();
        }
        for (size_t k = 0; k < clients; ++k) {
            inputs.push_back(singles[k].data());
            inputs.push_back(brains[k].data());
            inputs.push_back(doubles[k].data());
        }
        const auto size = static_cast<int64_t>(n);
        const ef::TensorSpec specs[] = {{ef::DType::f32, size}, {ef::DType::bf16, size}, {ef::DType::f64, size}};
        std::vector<float> a(n), a2(n);
        std::vector<uint16_t> b(n), b2(n);
        std::vector<double> c(n), c2(n);
        void* outputs[] = {a.data(), b.data(), c.data()};
        void* again[] = {a2.data(), b2.data(), c2.data()};
        CHECK(!kernels.mean(inputs.data(), weights.data(), static_cast<int64_t>(clients), total, specs, 3, outputs, 2));
        std::vector<int64_t> bins[2][3];
        std::vector<uint8_t> index[2][3];
        ef::BinnedState states[2][3];
        for (int s = 0; s < 2; ++s) {
            for (int t = 0; t < 3; ++t) {
                const int folds = ef::binned_folds(specs[t].dtype);
                bins[s][t].assign(n * static_cast<size_t>(folds), 0);
                index[s][t].assign(n, static_cast<uint8_t>(folds - 1));
                states[s][t] = {bins[s][t].data(), index[s][t].data()};
            }
        }
        for (size_t k = clients; k-- > 0;) kernels.add(&inputs[3 * k], weights[k], specs, 3, states[k % 2], 1);
        kernels.merge(states[1], specs, 3, states[0], 1);
        kernels.finish(states[0], total, specs, 3, again, 1);
        if (a != a2 || b != b2 || std::memcmp(c.data(), c2.data(), n * sizeof(double)) != 0) return 0;
        hash = fnv(a.data(), n * sizeof(float), hash);
        hash = fnv(b.data(), n * sizeof(uint16_t), hash);
        hash = fnv(c.data(), n * sizeof(double), hash);
    }
    return hash;
}

// Codes, scales, decoded values and means of every format, of float32 and float16, short last blocks included.
uint64_t compressed(ef::Isa isa) {
    uint64_t hash = kStart;
    const auto& kernels = ef::quant_kernels(isa);
    for (int format = 0; format < 7; ++format) {
        const bool rotated = format > 2;
        const ef::QuantSpec spec = {rotated, rotated ? format - 2 : format == 1 ? 4 : 8, 256, 3};
        for (int64_t n : {1, 97, 5003}) {
            const auto size = static_cast<size_t>(n);
            const auto x = numbers<float>(size, 1);
            std::vector<uint16_t> h(size);
            for (size_t i = 0; i < size; ++i) h[i] = ef::double_to_half(x[i]);
            for (ef::DType dtype : {ef::DType::f32, ef::DType::f16}) {
                const void* source = dtype == ef::DType::f32 ? static_cast<const void*>(x.data()) : h.data();
                std::vector<uint8_t> codes(static_cast<size_t>(ef::quant_bytes(spec, n)));
                std::vector<float> scales(static_cast<size_t>(ef::quant_scales(spec, n))), back(size);
                CHECK(kernels.encode(spec, format == 2, 5, 6, source, dtype, n, codes.data(), scales.data(), 2));
                hash = fnv(codes.data(), codes.size(), hash);
                hash = fnv(scales.data(), scales.size() * sizeof(float), hash);
                const auto* raw = reinterpret_cast<const char*>(scales.data());
                const ef::QuantInput inputs[] = {{codes.data(), raw, 5, 6, 0.3}, {codes.data(), raw, 5, 7, 3}};
                kernels.decode(spec, inputs[0], ef::DType::f32, n, back.data(), 2);
                hash = fnv(back.data(), back.size() * sizeof(float), hash);
                std::vector<uint32_t> mean(size);
                CHECK(!kernels.mean(spec, inputs, 2, 3.3, dtype, n, mean.data(), 2));
                hash = fnv(mean.data(), mean.size() * sizeof(uint32_t), hash);
                std::vector<double> sums(size);
                kernels.add(spec, inputs + 1, 1, dtype, n, true, sums.data(), 2);
                kernels.add(spec, inputs, 2, dtype, n, false, sums.data(), 2);
                hash = fnv(sums.data(), sums.size() * sizeof(double), hash);
            }
        }
    }
    return hash;
}

void known_answers() {
    const ef::PhiloxBlock zero = ef::philox4x64(0, 0, 0, 0, 0, 0);
    CHECK(zero.word[0] == 0x16554d9eca36314cull && zero.word[3] == 0x7e68b68aec7ba23bull);
    for (uint32_t h = 0; h < 0x10000; ++h) {
        const bool nan = (h & 0x7c00) == 0x7c00 && (h & 0x3ff);
        const uint16_t back = ef::double_to_half(ef::half_to_double(static_cast<uint16_t>(h)));
        CHECK(nan ? (back & 0x7fff) > 0x7c00 : back == h);
        const bool not_brain = (h & 0x7f80) == 0x7f80 && (h & 0x7f);
        const uint16_t brain = ef::double_to_brain(ef::brain_to_double(static_cast<uint16_t>(h)));
        CHECK(not_brain ? (brain & 0x7fff) > 0x7f80 : brain == h);
    }
}

}  // namespace

int main() {
    known_answers();
    constexpr ef::Isa levels[] = {ef::Isa::scalar, ef::Isa::avx2, ef::Isa::avx512, ef::Isa::neon};
    bool same = true;
    for (ef::Isa isa : levels) {
        if (!ef::isa_supported(isa)) continue;
        const uint64_t f32 = sketches<float>(isa), f64 = sketches<double>(isa), mean = means(isa), exact = binned(isa);
        std::printf("%-7s sketch f32 %016" PRIx64 "  f64 %016" PRIx64 "  mean %016" PRIx64 "  binned %016" PRIx64 "\n",
                    ef::isa_name(isa), f32, f64, mean, exact);
        const uint64_t m32 = more_sketches<float>(isa), m64 = more_sketches<double>(isa);
        std::printf("        countsketch, sparse, rotation f32 %016" PRIx64 "  f64 %016" PRIx64 "\n", m32, m64);
        same = same && m32 == 0x2437bbb502c63a0cull && m64 == 0x79841d0069ed1fabull;
        const uint64_t g32 = gaussians<float>(isa), g64 = gaussians<double>(isa);
        std::printf("        gaussian f32 %016" PRIx64 "  f64 %016" PRIx64 "\n", g32, g64);
        const uint64_t s32 = states<float>(isa, ef::RowSketchTypes::f32, ef::CountTypes::f32);
        const uint64_t s64 = states<double>(isa, ef::RowSketchTypes::f64, ef::CountTypes::f64);
        std::printf("        states f32 %016" PRIx64 "  f64 %016" PRIx64 "\n", s32, s64);
        same = same && s32 == 0x1c78a4c18f00f2fbull && s64 == 0xa2dd401381f078b4ull;
        // Two sets of bits: fused multiply-add, or a rounding for the product and one for the sum.
        same = same && g32 == (isa == ef::Isa::scalar ? 0x69f81e420fdc9728ull : 0x51c249a5fc9e7019ull) &&
               g64 == (isa == ef::Isa::scalar ? 0x366b85edc7beaee7ull : 0x4f97f54746048e5full);
        same = same && f32 == 0xcedbac627380ecddull && f64 == 0xbd33beb9bf10181bull && mean == 0xb415baebb9a42c75ull &&
               exact == 0x259e3b324ec9432full;
        const uint64_t quant = compressed(isa);
        std::printf("        quantize %016" PRIx64 "\n", quant);
        same = same && quant == 0xe1315fce9b24e33dull;
    }
    CHECK(same);
    std::puts("golden_test: ok");
}
