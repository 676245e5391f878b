// Batcher's odd-even merge sort as a list of comparators (Batcher, "Sorting networks and their applications", 1968;
// Knuth, TAOCP 3, 5.2.2): sizes that are no power of two leave out the wires that do not exist.
#pragma once

#include <cstdint>

namespace ef {

// Calls visit(i, j, p), i < j, for every comparator in order; those of one p merge sorted runs of p.
template <class Visit>
constexpr void batcher(int64_t wires, Visit&& visit) {
    int64_t size = 1;
    while (size < wires) size *= 2;
    for (int64_t p = 1; p < size; p *= 2)
        for (int64_t k = p; k >= 1; k /= 2)
            for (int64_t j = k % p; j + k < wires; j += 2 * k)
                for (int64_t i = 0; i < k && i + j + k < wires; ++i)
                    if ((i + j) / (2 * p) == (i + j + k) / (2 * p)) visit(i + j, i + j + k, p);
}

// The network of a small number of wires at compile time.
template <int Wires>
struct Network {
    int length = 0;
    int last_step = 0;  // where the comparators that merge the last two runs begin
    unsigned char low[Wires * Wires / 2 + 1] = {};
    unsigned char high[Wires * Wires / 2 + 1] = {};
    constexpr void add(int64_t i, int64_t j) {
        low[length] = static_cast<unsigned char>(i);
        high[length] = static_cast<unsigned char>(j);
        ++length;
    }
    constexpr Network() {
        struct Add {
            Network* self;
            constexpr void operator()(int64_t i, int64_t j, int64_t p) {
                if (2 * p < Wires) self->last_step = self->length + 1;
                self->add(i, j);
            }
        };
        batcher(Wires, Add{this});
    }
};

template <int Wires>
inline constexpr Network<Wires> kNetwork{};

}  // namespace ef
