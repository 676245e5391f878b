// A matrix in somebody else's memory: any byte strides (negative and zero ones too), any alignment.
#pragma once

#include <cstdint>

#include "sketch/element.hpp"

namespace ef {

struct StridedMatrix {
    const char* data;
    int64_t rows, columns;
    int64_t row_stride, column_stride;  // bytes
    ElementType type = ElementType::same;
};

}  // namespace ef
