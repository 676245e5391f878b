#include "aggregate/mean.hpp"

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/dispatch.hpp"
#include "common/half.hpp"
#include "common/parallel.hpp"

#define EF_BODY "aggregate/mean-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

namespace {
const MeanKernels* const kTables[kIsaCount] = EF_PER_ISA(kMeanTable);
}

const MeanKernels& mean_kernels(Isa isa) noexcept { return *kTables[static_cast<int>(isa)]; }

}  // namespace ef
