// The same output bytes on every platform and SIMD level: hashes of kernel results for inputs made of integers. The
// constants hold for x86-64 and AArch64 alike (`make aarch64` runs this under emulation).
#include <cinttypes>
#include <cstring>
#include <vector>

#include "aggregate/mean.hpp"
#include "aggregate/quantize.hpp"
#include "check.hpp"
#include "common/half.hpp"
#include "common/philox.hpp"
#include "sketch/hadamard.hpp"
#include "sketch/rademacher.hpp"
#include "sketch/stack.hpp"

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
        for (const uint32_t* t : {static_cast<const uint32_t*>(table.data()), static_cast<const uint32_t*>(nullptr)}) {
            ef::StackJob job = {view, t, 7, k, 8, 0.35355339059327373, out};
            CHECK(ef::stack_transform<T>(isa, job, 3));
            hash = fnv(out, y.size() * sizeof(T), hash);
        }
        std::vector<uint64_t> signs(8);
        std::vector<int64_t> index(static_cast<size_t>(k));
        for (size_t i = 0; i < signs.size(); ++i) signs[i] = ef::philox4x64(i + 1, 0, 0, 0, 7, 5).word[0];
        for (int64_t i = 0; i < k; ++i) index[static_cast<size_t>(i)] = (i * 37 + 11) % length;
        ef::SrhtJob srht = {view, signs.data(), index.data(), k, length, 0.11952286093343936, out};
        CHECK(ef::srht_transform<T>(isa, srht, 2));
        hash = fnv(out, y.size() * sizeof(T), hash);
        ef::RademacherJob rademacher = {view, 7, k, 0.11952286093343936, out};
        CHECK(ef::rademacher_transform<T>(isa, rademacher, 2));
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
    }
}

}  // namespace

int main() {
    known_answers();
    constexpr ef::Isa levels[] = {ef::Isa::scalar, ef::Isa::avx2, ef::Isa::avx512, ef::Isa::neon};
    bool same = true;
    for (ef::Isa isa : levels) {
        if (!ef::isa_supported(isa)) continue;
        const uint64_t f32 = sketches<float>(isa), f64 = sketches<double>(isa), mean = means(isa);
        const uint64_t quant = compressed(isa);
        std::printf("%-7s sketch f32 %016" PRIx64 "  f64 %016" PRIx64 "  mean %016" PRIx64
                    "  quantize %016" PRIx64 "\n",
                    ef::isa_name(isa), f32, f64, mean, quant);
        same = same && f32 == 0xcedbac627380ecddull && f64 == 0xbd33beb9bf10181bull && mean == 0xb415baebb9a42c75ull &&
               quant == 0xe1315fce9b24e33dull;
    }
    CHECK(same);
    std::puts("golden_test: ok");
}
