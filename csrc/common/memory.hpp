// Scratch memory and a flag for kernels: out of line, so that SIMD bodies instantiate nothing from the STL.
#pragma once

#include <cstddef>

namespace ef {

// Memory for one call, aligned for every register width; get() is null when bytes is 0 or there is none left.
class Scratch {
  public:
    explicit Scratch(size_t bytes) noexcept;
    ~Scratch() noexcept;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    void* get() const noexcept { return memory_; }

  private:
    void* memory_;
};

// A value several threads may set to the same thing; read after they were joined.
template <class T>
class Atomic {
  public:
    void set(T value) noexcept { __atomic_store_n(&value_, value, __ATOMIC_RELAXED); }
    T get() const noexcept { return __atomic_load_n(&value_, __ATOMIC_RELAXED); }

  private:
    T value_ = {};
};

}  // namespace ef
