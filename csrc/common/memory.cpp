#include "common/memory.hpp"

#include <cstdlib>

namespace ef {

Scratch::Scratch(size_t bytes) noexcept : memory_(nullptr) {
    constexpr size_t kAlignment = 64;
    if (bytes == 0 || bytes > static_cast<size_t>(-1) / 2) return;
    memory_ = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
}

Scratch::~Scratch() noexcept { std::free(memory_); }

}  // namespace ef
