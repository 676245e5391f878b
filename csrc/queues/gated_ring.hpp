// A growable ring of pointers with an exact limit and a hysteresis gate.
//
// The gate is the backpressure rule: it closes when the ring holds `high` items and reopens when it is down to `low`.
// Not synchronised: the caller serialises access (the GIL, a critical section, a mutex). FIFO; positions only grow, so
// counts come from their difference and cannot drift.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace ef {

template <class T>
class GatedRing {
public:
    GatedRing() = default;
    ~GatedRing() { std::free(slots_); }
    GatedRing(const GatedRing&) = delete;
    GatedRing& operator=(const GatedRing&) = delete;

    int64_t size() const noexcept { return static_cast<int64_t>(tail_ - head_); }
    bool empty() const noexcept { return tail_ == head_; }
    uint64_t put_position() const noexcept { return tail_; }
    uint64_t get_position() const noexcept { return head_; }
    bool closed() const noexcept { return closed_; }
    int64_t limit() const noexcept { return limit_; }
    int64_t high() const noexcept { return high_; }
    int64_t low() const noexcept { return low_; }

    // limit 0: none; high 0: no gate. The caller has checked 0 <= low < high <= limit.
    void configure(int64_t limit, int64_t high, int64_t low) noexcept {
        limit_ = limit;
        high_ = high;
        low_ = low;
        if (high_ == 0) closed_ = false;
    }

    // Items that may be pushed now.
    int64_t room() const noexcept {
        if (closed_) return 0;
        int64_t n = INT64_MAX;
        if (limit_ > 0) n = limit_ - size();
        if (high_ > 0 && high_ - size() < n) n = high_ - size();
        return n > 0 ? n : 0;
    }

    // False when there is no memory; the ring is then unchanged.
    bool reserve(int64_t more) noexcept {
        const uint64_t needed = static_cast<uint64_t>(size() + more);
        if (needed <= capacity_) return true;
        uint64_t grown = capacity_ ? capacity_ : 16;
        while (grown < needed) grown *= 2;
        return resize(grown);
    }

    // After reserve. True when this push closed the gate.
    bool push(T item) noexcept {
        slots_[tail_++ & (capacity_ - 1)] = item;
        if (high_ > 0 && !closed_ && size() >= high_) {
            closed_ = true;
            return true;
        }
        return false;
    }

    // Not empty. *reopened is set (never cleared) when this pop opened the gate.
    T pop(bool* reopened) noexcept {
        T item = slots_[head_++ & (capacity_ - 1)];
        if (closed_ && size() <= low_) {
            closed_ = false;
            *reopened = true;
        }
        // A burst of an unbounded queue must not keep its memory for ever.
        if (head_ == tail_ && capacity_ > kKeep) resize(kKeep);
        return item;
    }

    const T& at(int64_t i) const noexcept { return slots_[(head_ + static_cast<uint64_t>(i)) & (capacity_ - 1)]; }

private:
    static constexpr uint64_t kKeep = uint64_t{1} << 16;

    bool resize(uint64_t capacity) noexcept {
        if (capacity > SIZE_MAX / sizeof(T)) return false;
        T* slots = static_cast<T*>(std::malloc(static_cast<size_t>(capacity) * sizeof(T)));
        if (!slots) return false;
        for (uint64_t p = head_; p != tail_; ++p) slots[p & (capacity - 1)] = slots_[p & (capacity_ - 1)];
        std::free(slots_);
        slots_ = slots;
        capacity_ = capacity;
        return true;
    }

    T* slots_ = nullptr;
    uint64_t capacity_ = 0;  // a power of two
    uint64_t head_ = 0, tail_ = 0;
    int64_t limit_ = 0, high_ = 0, low_ = 0;
    bool closed_ = false;
};

}  // namespace ef
