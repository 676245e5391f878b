#include "aggregate/quantize.hpp"

#include <cmath>
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/dispatch.hpp"
#include "common/half.hpp"
#include "common/parallel.hpp"
#include "common/philox.hpp"
#include "sketch/hadamard.hpp"

namespace ef {
namespace {
// Lloyd-Max quantisers of the standard normal distribution (J. Max 1960): magnitudes for 1 to 4 bits. Part of the wire
// format, as are the midpoints, taken in binary64.
constexpr float kCentroids[4][8] = {
    {0.797884561f},
    {0.452780035f, 1.51041761f},
    {0.245094179f, 0.756005281f, 1.34390928f, 2.1519457f},
    {0.12839503f, 0.388048299f, 0.656759119f, 0.942340456f, 1.2562312f, 1.61804639f, 2.06901723f, 2.73258957f},
};
}  // namespace
}  // namespace ef

#define EF_BODY "aggregate/quantize-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

namespace {
const QuantKernels* const kTables[kIsaCount] = EF_PER_ISA(kQuantTable);
}

const QuantKernels& quant_kernels(Isa isa) noexcept { return *kTables[static_cast<int>(isa)]; }

}  // namespace ef
