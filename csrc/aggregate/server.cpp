#include "aggregate/server.hpp"

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/dispatch.hpp"
#include "common/half.hpp"
#include "common/parallel.hpp"

#define EF_BODY "aggregate/server-inl.hpp"
#include "common/foreach_isa.hpp"

namespace ef {

namespace {
const ServerKernels* const kTables[kIsaCount] = EF_PER_ISA(kServerTable);
}

const ServerKernels& server_kernels(Isa isa) noexcept { return *kTables[static_cast<int>(isa)]; }

}  // namespace ef
