#include "sketch/operators.hpp"

#include <cstdint>

#include "common/memory.hpp"
#include "common/parallel.hpp"
#include "common/philox.hpp"

#define EF_BODY "sketch/operators-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

const OperatorKernels<float>& operator_kernels_f32(Isa isa) noexcept { EF_PICK(isa, kOperatorsF32) }
const OperatorKernels<double>& operator_kernels_f64(Isa isa) noexcept { EF_PICK(isa, kOperatorsF64) }

}  // namespace ef
