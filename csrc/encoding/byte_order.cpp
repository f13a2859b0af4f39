#include "encoding/byte_order.h"

#include <cstring>

namespace trackckpt {

namespace {

uint16_t Swapped(uint16_t number) { return __builtin_bswap16(number); }
uint32_t Swapped(uint32_t number) { return __builtin_bswap32(number); }
uint64_t Swapped(uint64_t number) { return __builtin_bswap64(number); }

// Simple enough for the compiler to swap a register full of numbers at a time.
template <typename T>
void SwapAll(char* data, uint64_t size) {
  for (uint64_t at = 0; at < size; at += sizeof(T)) {
    T number;
    std::memcpy(&number, data + at, sizeof(T));
    number = Swapped(number);
    std::memcpy(data + at, &number, sizeof(T));
  }
}

}  // namespace

void SwapBytes(void* data, uint64_t size, uint32_t width) {
  char* bytes = static_cast<char*>(data);
  if (width == 2) SwapAll<uint16_t>(bytes, size);
  if (width == 4) SwapAll<uint32_t>(bytes, size);
  if (width == 8) SwapAll<uint64_t>(bytes, size);
}

}  // namespace trackckpt
