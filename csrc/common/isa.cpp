#include "common/isa.hpp"

#include <cstring>

namespace ef {

namespace {
constexpr const char* kNames[kIsaCount] = {"scalar", "avx2", "avx512", "neon"};
}

const char* isa_name(Isa isa) noexcept { return kNames[static_cast<int>(isa)]; }

bool isa_from_name(const char* name, Isa* out) noexcept {
    for (int i = 0; i < kIsaCount; ++i) {
        if (std::strcmp(name, kNames[i]) == 0) {
            *out = static_cast<Isa>(i);
            return true;
        }
    }
    return false;
}

bool isa_supported(Isa isa) noexcept {
    switch (isa) {
        case Isa::scalar:
            return true;
#if defined(__x86_64__)
        // The builtin also checks that the operating system saves the wide registers (XCR0).
        case Isa::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        case Isa::avx512:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && isa_supported(Isa::avx2);
        case Isa::neon:
            return false;
#elif defined(__aarch64__)
        case Isa::neon:
            return true;
        case Isa::avx2:
        case Isa::avx512:
            return false;
#else
        default:
            return false;
#endif
    }
    return false;
}

Isa isa_best() noexcept {
    constexpr Isa kFastestFirst[] = {Isa::avx512, Isa::avx2, Isa::neon};
    for (Isa isa : kFastestFirst) {
        if (isa_supported(isa)) return isa;
    }
    return Isa::scalar;
}

bool prefers_prefetch() noexcept {
#if defined(__x86_64__)
    return __builtin_cpu_is("intel");
#else
    return false;
#endif
}

}  // namespace ef
