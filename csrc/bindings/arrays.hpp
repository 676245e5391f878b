// Lists of arrays as kernels take them; each call checks dtype, size and contiguity again, for memory safety.
#pragma once

#include <vector>

#include "aggregate/mean.hpp"
#include "bindings/kernels.hpp"

namespace ef {

std::vector<TensorSpec> model_specs(const pybind11::list& model);
// Pointers of every update's arrays, update by update; all fit the model.
std::vector<const void*> model_inputs(const pybind11::list& rows, const pybind11::list& model,
                                      const std::vector<TensorSpec>& specs);
// Pointers of writeable arrays that fit the specs.
std::vector<void*> model_targets(const pybind11::list& arrays, const std::vector<TensorSpec>& specs);

}  // namespace ef
