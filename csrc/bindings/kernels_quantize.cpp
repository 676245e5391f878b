// Kernels of compressed tensors. The Python layer has validated values; what memory safety needs is checked again here.
#include <cstdint>
#include <tuple>
#include <vector>

#include "aggregate/quantize.hpp"
#include "bindings/kernels.hpp"

namespace py = pybind11;

namespace ef {

namespace {

// rotated, bits, block, tensor
using Spec = std::tuple<bool, int, int64_t, uint64_t>;
// codes, scales, seed, nonce
using Input = std::tuple<py::array, py::array, uint64_t, uint64_t>;

QuantSpec spec_of(const Spec& spec) {
    const auto [rotated, bits, block, tensor] = spec;
    if (block < 64 || block > kQuantTile || (block & (block - 1)) != 0 ||
        (rotated ? bits < 1 || bits > 4 : bits != 8 && bits != 4))
        throw py::value_error("unknown format");
    return {rotated, bits, block, tensor};
}

DType float_dtype(const py::array& a) {
    if (!(a.flags() & py::array::c_style)) throw py::value_error("expected a contiguous array");
    const char kind = a.dtype().kind();
    const auto size = a.itemsize();
    if (kind == 'f' && size == 2) return DType::f16;
    if (kind == 'f' && size == 4) return DType::f32;
    if (kind == 'f' && size == 8) return DType::f64;
    if (kind == 'V' && size == 2) return DType::bf16;
    throw py::value_error("expected floats");
}

void check(const py::array& codes, const py::array& scales, const QuantSpec& spec, int64_t n) {
    if (!(codes.flags() & py::array::c_style) || codes.itemsize() != 1 || codes.size() != quant_bytes(spec, n) ||
        !(scales.flags() & py::array::c_style) || scales.dtype().kind() != 'f' || scales.itemsize() != 4 ||
        scales.size() != quant_scales(spec, n))
        throw py::value_error("codes or scales do not fit the tensor");
}

std::vector<QuantInput> inputs_of(const std::vector<Input>& rows, const std::vector<double>& weights,
                                  const QuantSpec& spec, int64_t n) {
    if (rows.empty() || rows.size() != weights.size()) throw py::value_error("expected one weight per update");
    std::vector<QuantInput> inputs;
    inputs.reserve(rows.size());
    for (size_t k = 0; k < rows.size(); ++k) {
        const auto& [codes, scales, seed, nonce] = rows[k];
        check(codes, scales, spec, n);
        inputs.push_back({static_cast<const uint8_t*>(codes.data()), static_cast<const char*>(scales.data()), seed, nonce,
                          weights[k]});
    }
    return inputs;
}

bool quant_encode(const Kernels& self, const py::array& x, const Spec& packed, bool stochastic, uint64_t seed,
                  uint64_t nonce, py::array& codes, py::array& scales, int threads) {
    const QuantSpec spec = spec_of(packed);
    const DType dtype = float_dtype(x);
    const auto n = static_cast<int64_t>(x.size());
    check(codes, scales, spec, n);
    auto* const c = static_cast<uint8_t*>(codes.mutable_data());
    auto* const s = static_cast<float*>(scales.mutable_data());
    const void* const data = x.data();
    py::gil_scoped_release release;
    return quant_kernels(self.isa).encode(spec, stochastic, seed, nonce, data, dtype, n, c, s, threads);
}

void quant_decode(const Kernels& self, const Input& input, const Spec& packed, py::array& out, int threads) {
    const QuantSpec spec = spec_of(packed);
    const DType dtype = float_dtype(out);
    const auto n = static_cast<int64_t>(out.size());
    const auto inputs = inputs_of({input}, {1.0}, spec, n);
    void* const data = out.mutable_data();
    py::gil_scoped_release release;
    quant_kernels(self.isa).decode(spec, inputs[0], dtype, n, data, threads);
}

// Of `like` only dtype and size are looked at.
void quant_add(const Kernels& self, const std::vector<Input>& rows, const std::vector<double>& weights,
               const Spec& packed, const py::array& like, bool fresh, py::array& sums, int threads) {
    const QuantSpec spec = spec_of(packed);
    const auto n = static_cast<int64_t>(sums.size());
    const char kind = like.dtype().kind();
    const auto size = like.itemsize();
    const DType dtype = kind == 'V' ? DType::bf16 : size == 2 ? DType::f16 : size == 4 ? DType::f32 : DType::f64;
    if ((kind != 'f' && kind != 'V') || float_dtype(sums) != DType::f64 || like.size() != sums.size())
        throw py::value_error("sums do not fit the tensor");
    const auto inputs = inputs_of(rows, weights, spec, n);
    auto* const data = static_cast<double*>(sums.mutable_data());
    py::gil_scoped_release release;
    quant_kernels(self.isa).add(spec, inputs.data(), static_cast<int64_t>(inputs.size()), dtype, n, fresh, data, threads);
}

bool quant_mean(const Kernels& self, const std::vector<Input>& rows, const std::vector<double>& weights, double total,
                const Spec& packed, py::array& out, int threads) {
    const QuantSpec spec = spec_of(packed);
    const DType dtype = float_dtype(out);
    const auto n = static_cast<int64_t>(out.size());
    const auto inputs = inputs_of(rows, weights, spec, n);
    void* const data = out.mutable_data();
    py::gil_scoped_release release;
    return quant_kernels(self.isa).mean(spec, inputs.data(), static_cast<int64_t>(inputs.size()), total, dtype, n, data,
                                        threads);
}

}  // namespace

void register_quantize(KernelsClass& kernels) {
    kernels.def("quant_encode", &quant_encode);
    kernels.def("quant_decode", &quant_decode);
    kernels.def("quant_add", &quant_add);
    kernels.def("quant_mean", &quant_mean);
}

}  // namespace ef
