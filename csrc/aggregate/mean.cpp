#include "aggregate/mean.hpp"

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/half.hpp"
#include "common/memory.hpp"
#include "common/parallel.hpp"

#define EF_BODY "aggregate/mean-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

const MeanKernels& mean_kernels(Isa isa) noexcept { EF_PICK(isa, kMean) }

}  // namespace ef
