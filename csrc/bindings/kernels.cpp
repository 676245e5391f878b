// Module edgefast._native: array kernels. The only file that knows every capability.
#include "bindings/kernels.hpp"

#include <string>
#include <thread>

namespace py = pybind11;

namespace {

ef::Kernels make_kernels(const std::string& simd) {
    ef::Isa isa;
    if (!ef::isa_from_name(simd.c_str(), &isa)) throw py::value_error("unknown SIMD level '" + simd + "'");
    if (!ef::isa_supported(isa)) throw py::value_error("SIMD level '" + simd + "' is not available on this machine");
    return {isa};
}

py::dict build_config() {
    py::dict d;
#if defined(__clang__)
    d["compiler"] = std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
    d["compiler"] = std::string("gcc ") + __VERSION__;
#else
    d["compiler"] = "unknown";
#endif
    d["cpp_standard"] = static_cast<long>(__cplusplus);
#if defined(NDEBUG)
    d["debug"] = false;
#else
    d["debug"] = true;
#endif
#if defined(__SANITIZE_ADDRESS__)
    d["sanitizer"] = "address";
#elif defined(__SANITIZE_THREAD__)
    d["sanitizer"] = "thread";
#else
    d["sanitizer"] = py::none();
#endif
    return d;
}

}  // namespace

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
    m.doc() = "edgefast's array kernels; use them through edgefast.backends";
    m.attr("__version__") = EDGEFAST_VERSION;
    m.def("build_config", &build_config);
    m.def("simd_levels", [] {
        // Fastest first.
        py::list levels;
        for (ef::Isa isa : {ef::Isa::avx512, ef::Isa::avx2, ef::Isa::neon, ef::Isa::scalar})
            if (ef::isa_supported(isa)) levels.append(ef::isa_name(isa));
        return levels;
    });
    ef::KernelsClass kernels(m, "Kernels");
    kernels.def(py::init(&make_kernels), py::arg("simd"));
    kernels.def_property_readonly("simd", [](const ef::Kernels& k) { return ef::isa_name(k.isa); });
    ef::register_sketch(kernels);
    ef::register_sketch_inputs(kernels);
    ef::register_sketch_state(kernels);
    ef::register_aggregate(m, kernels);
    ef::register_aggregate_robust(kernels);
    ef::register_quantize(kernels);
}
