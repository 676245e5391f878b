#include "sketch/hadamard.hpp"

#include <cstdint>

#include "common/parallel.hpp"

#define EF_BODY "sketch/hadamard-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

const HadamardKernels& hadamard_kernels(Isa isa) noexcept { EF_PICK(isa, kHadamard) }

}  // namespace ef
