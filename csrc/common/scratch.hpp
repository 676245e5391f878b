// Working memory of one call: a slice per thread, 64-byte aligned, allocated once before the threads start.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace ef {

class Scratch {
public:
    Scratch(int threads, size_t bytes) noexcept : stride_((bytes + 127) / 64 * 64) {
        if (bytes == 0) return;
        memory_ = static_cast<char*>(std::malloc(stride_ * static_cast<size_t>(threads) + 64));
        ok_ = memory_ != nullptr;
    }
    ~Scratch() { std::free(memory_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    bool ok() const noexcept { return ok_; }
    char* of(int64_t thread) const noexcept {
        if (!memory_) return nullptr;
        char* aligned = memory_ + (64 - reinterpret_cast<uintptr_t>(memory_) % 64);
        return aligned + static_cast<size_t>(thread) * stride_;
    }

private:
    char* memory_ = nullptr;
    size_t stride_;
    bool ok_ = true;
};

}  // namespace ef
