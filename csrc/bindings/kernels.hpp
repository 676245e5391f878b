// The Python view of one SIMD level: an object whose methods are the kernels compiled for that level.
// Each capability adds its methods in kernels_<capability>.cpp.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/isa.hpp"
#include "sketch/element.hpp"

namespace ef {

struct Kernels {
    Isa isa;
};

using KernelsClass = pybind11::class_<Kernels>;

// `same` is the item size of the kernel's own floating-point type.
ElementType element_type(const pybind11::array& x, int64_t same);

void register_sketch(KernelsClass& kernels);
void register_sketch_inputs(KernelsClass& kernels);
void register_sketch_state(KernelsClass& kernels);
void register_aggregate(pybind11::module_& module, KernelsClass& kernels);
void register_aggregate_robust(KernelsClass& kernels);
void register_quantize(KernelsClass& kernels);

}  // namespace ef
