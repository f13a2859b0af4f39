// CRC-32C by tables, eight bytes at a time, on any processor.

#include <array>
#include <cstddef>
#include <cstdint>

#include "encoding/crc32c_kernels.h"
#include "encoding/crc32c_polynomial.h"

namespace trackckpt {

namespace {

// Slicing by eight: kTables[k][b] is the register after byte b and k zero bytes, started from zero.
using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables MakeTables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = TimesX(value);
    tables[0][byte] = value;
  }
  for (size_t k = 1; k < tables.size(); ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t previous = tables[k - 1][byte];
      tables[k][byte] = (previous >> 8) ^ tables[0][previous & 0xff];
    }
  }
  return tables;
}

constexpr Tables kTables = MakeTables();

inline uint32_t AfterByte(uint32_t state, uint8_t byte) {
  return (state >> 8) ^ kTables[0][(state ^ byte) & 0xff];
}

// Byte by byte, since the order of bytes in a word is the processor's; compilers make one load of it.
inline uint32_t LoadLittleEndian(const uint8_t* p) {
  return p[0] | (uint32_t{p[1]} << 8) | (uint32_t{p[2]} << 16) | (uint32_t{p[3]} << 24);
}

inline uint32_t AfterEightBytes(uint32_t state, const uint8_t* p) {
  const uint32_t low = state ^ LoadLittleEndian(p);
  const uint32_t high = LoadLittleEndian(p + 4);
  return kTables[7][low & 0xff] ^ kTables[6][(low >> 8) & 0xff] ^ kTables[5][(low >> 16) & 0xff] ^
         kTables[4][low >> 24] ^ kTables[3][high & 0xff] ^ kTables[2][(high >> 8) & 0xff] ^
         kTables[1][(high >> 16) & 0xff] ^ kTables[0][high >> 24];
}

uint32_t ExtendPortable(uint32_t crc, const void* data, size_t n) {
  const uint8_t* p = static_cast<const uint8_t*>(data);
  uint32_t state = ~crc;
  for (; n >= 8; n -= 8, p += 8) state = AfterEightBytes(state, p);
  for (; n > 0; --n, ++p) state = AfterByte(state, *p);
  return ~state;
}

}  // namespace

void AddPortableCrc32cKernel(std::vector<Crc32cImplementation>* kernels) {
  kernels->push_back({"portable", ExtendPortable});
}

}  // namespace trackckpt
