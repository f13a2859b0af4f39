// The order of the bytes of a number, and turning it round.
#pragma once

#include <cstdint>

namespace trackckpt {

enum class ByteOrder : uint8_t { kLittle, kBig };

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
constexpr ByteOrder kNativeByteOrder = ByteOrder::kBig;
#else
constexpr ByteOrder kNativeByteOrder = ByteOrder::kLittle;
#endif

// Reverses the bytes of each number of `width` bytes: 1, 2, 4 or 8. `size` is a multiple of it. The memory
// need not be aligned.
void SwapBytes(void* data, uint64_t size, uint32_t width);

}  // namespace trackckpt
