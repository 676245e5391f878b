// A growable ring of pointers with an exact limit and a hysteresis gate.
//
// The gate is the backpressure rule: it closes when the ring holds `high` items and reopens when it is down to `low`.
// Not synchronised: the caller serialises access (the GIL, a critical section, a mutex). FIFO; positions only grow, so
// counts come from their difference and cannot drift.
//
// A metered ring keeps the bytes and the time of every item beside it, and has a limit of bytes as well.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace ef {

struct Meter {
    int64_t bytes;
    int64_t stamp;  // when the item was put, in the caller's clock
};

template <class T>
class GatedRing {
public:
    GatedRing() = default;
    ~GatedRing() {
        std::free(slots_);
        std::free(meters_);
    }
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

    // Once, while empty. max_bytes 0: none.
    void meter(int64_t max_bytes) noexcept {
        metered_ = true;
        max_bytes_ = max_bytes;
    }
    bool metered() const noexcept { return metered_; }
    int64_t bytes() const noexcept { return bytes_; }
    int64_t max_bytes() const noexcept { return max_bytes_; }
    const Meter& meter_at(int64_t i) const noexcept { return meters_[(head_ + static_cast<uint64_t>(i)) & (capacity_ - 1)]; }

    // Whether an item of so many bytes may be pushed now.
    bool fits(int64_t bytes) const noexcept { return room() > 0 && (max_bytes_ == 0 || bytes <= max_bytes_ - bytes_); }

    // How many of the oldest must go before an item of so many bytes, at most max_bytes, may be pushed. A closed gate
    // lets nothing in that does not replace something.
    int64_t excess(int64_t bytes) const noexcept {
        int64_t n = closed_ ? 1 : 0;
        if (limit_ > 0 && size() + 1 - limit_ > n) n = size() + 1 - limit_;
        if (high_ > 0 && size() + 1 - high_ > n) n = size() + 1 - high_;
        if (max_bytes_ == 0) return n < size() ? n : size();
        int64_t gone = 0, left = bytes_;
        while (gone < size() && (gone < n || bytes > max_bytes_ - left)) left -= meter_at(gone++).bytes;
        return gone;
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
        append(item);
        return settle() == Gate::closed;
    }

    // Not empty. *reopened is set (never cleared) when this pop opened the gate.
    T pop(bool* reopened) noexcept {
        T item = remove();
        if (closed_ && size() <= low_) {
            closed_ = false;
            *reopened = true;
        }
        return item;
    }

    // The parts of push and pop, for operations of several steps whose net effect moves the gate: settle() last.
    void append(T item) noexcept { slots_[tail_++ & (capacity_ - 1)] = item; }
    void append(T item, Meter meter) noexcept {
        meters_[tail_ & (capacity_ - 1)] = meter;
        bytes_ += meter.bytes;
        append(item);
    }
    T remove() noexcept {
        if (metered_) bytes_ -= meters_[head_ & (capacity_ - 1)].bytes;
        T item = slots_[head_++ & (capacity_ - 1)];
        // A burst of an unbounded queue must not keep its memory for ever.
        if (head_ == tail_ && capacity_ > kKeep) resize(kKeep);
        return item;
    }
    // At most size(); an unmetered ring.
    void remove(T* items, int64_t n) noexcept {
        const uint64_t count = static_cast<uint64_t>(n), at = head_ & (capacity_ - 1);
        const uint64_t first = count < capacity_ - at ? count : capacity_ - at;  // up to the end of the array
        if (count == 0) return;
        std::memcpy(items, slots_ + at, static_cast<size_t>(first) * sizeof(T));
        if (count > first) std::memcpy(items + first, slots_, static_cast<size_t>(count - first) * sizeof(T));
        head_ += count;
        if (head_ == tail_ && capacity_ > kKeep) resize(kKeep);
    }
    enum class Gate { unchanged, closed, reopened };
    Gate settle() noexcept {
        if (high_ == 0) return Gate::unchanged;
        if (!closed_ && size() >= high_) {
            closed_ = true;
            return Gate::closed;
        }
        if (closed_ && size() <= low_) {
            closed_ = false;
            return Gate::reopened;
        }
        return Gate::unchanged;
    }

    const T& at(int64_t i) const noexcept { return slots_[(head_ + static_cast<uint64_t>(i)) & (capacity_ - 1)]; }

private:
    static constexpr uint64_t kKeep = uint64_t{1} << 16;

    bool resize(uint64_t capacity) noexcept {
        if (capacity > SIZE_MAX / sizeof(T)) return false;
        T* slots = static_cast<T*>(std::malloc(static_cast<size_t>(capacity) * sizeof(T)));
        if (!slots) return false;
        if (metered_) {
            Meter* meters = capacity > SIZE_MAX / sizeof(Meter)
                                ? nullptr
                                : static_cast<Meter*>(std::malloc(static_cast<size_t>(capacity) * sizeof(Meter)));
            if (!meters) {
                std::free(slots);
                return false;
            }
            for (uint64_t p = head_; p != tail_; ++p) meters[p & (capacity - 1)] = meters_[p & (capacity_ - 1)];
            std::free(meters_);
            meters_ = meters;
        }
        for (uint64_t p = head_; p != tail_; ++p) slots[p & (capacity - 1)] = slots_[p & (capacity_ - 1)];
        std::free(slots_);
        slots_ = slots;
        capacity_ = capacity;
        return true;
    }

    T* slots_ = nullptr;
    Meter* meters_ = nullptr;
    uint64_t capacity_ = 0;  // a power of two
    uint64_t head_ = 0, tail_ = 0;
    int64_t limit_ = 0, high_ = 0, low_ = 0;
    int64_t bytes_ = 0, max_bytes_ = 0;
    bool metered_ = false;
    bool closed_ = false;
};

}  // namespace ef
