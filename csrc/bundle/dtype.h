// TensorFlow's DataType numbers, as far as the bytes of a tensor depend on them.
#pragma once

#include <cstdint>

namespace trackckpt {

constexpr int32_t kDtypeUint8 = 4;
constexpr int32_t kDtypeInt8 = 6;
constexpr int32_t kDtypeString = 7;
constexpr int32_t kDtypeComplex64 = 8;
constexpr int32_t kDtypeBool = 10;
constexpr int32_t kDtypeComplex128 = 18;
constexpr int32_t kDtypeResource = 20;
constexpr int32_t kDtypeVariant = 21;

// Bytes per element; 0 for types without a fixed size and for numbers that are no known type. Types of less
// than eight bits take a whole byte per element.
uint32_t ItemSize(int32_t dtype);

// Bytes per number inside an element: half an element where it is complex.
uint32_t ComponentSize(int32_t dtype);

}  // namespace trackckpt
