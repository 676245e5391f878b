// Types of the numbers in somebody else's memory. Every one of them converts to the kernel's type without rounding:
// f16, i8, u8, i16 and u16 to float; i32, u32, and i64 and u64 up to 2^53, to double.
#pragma once

#include <cstdint>

namespace ef {

// `same` is the kernel's own type. bool is u8: numpy stores 0 and 1.
enum class ElementType : uint8_t { same, f16, i8, u8, i16, u16, i32, u32, i64, u64 };

inline int64_t element_size(ElementType type, int64_t same) noexcept {
    switch (type) {
        case ElementType::same: return same;
        case ElementType::i8:
        case ElementType::u8: return 1;
        case ElementType::f16:
        case ElementType::i16:
        case ElementType::u16: return 2;
        case ElementType::i32:
        case ElementType::u32: return 4;
        default: return 8;
    }
}

}  // namespace ef
