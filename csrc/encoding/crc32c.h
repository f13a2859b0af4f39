// CRC-32C (Castagnoli), the checksum of blocks and tensors: reflected polynomial 0x82f63b78, register and
// result inverted. The checksum of "123456789" is 0xe3069283.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trackckpt {

// The checksum of A followed by `data`, where `crc` is the checksum of A; 0 is the checksum of nothing.
uint32_t Crc32cExtend(uint32_t crc, const void* data, size_t n);

// The checksum of A B, where `crc_a` and `crc_b` are those of A and of B, and B has `size_b` bytes: parts may be
// checksummed apart from each other. Costs one multiplication for each bit that is set in `size_b`.
uint32_t Crc32cCombine(uint32_t crc_a, uint32_t crc_b, uint64_t size_b);

// Files hold masked checksums: the checksum of a string that itself contains checksums would be weak.
constexpr uint32_t kCrcMaskDelta = 0xa282ead8u;
constexpr uint32_t MaskCrc(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + kCrcMaskDelta; }
constexpr uint32_t UnmaskCrc(uint32_t masked) {
  const uint32_t rotated = masked - kCrcMaskDelta;
  return (rotated >> 17) | (rotated << 15);
}

struct Crc32cImplementation {
  const char* name;
  uint32_t (*extend)(uint32_t crc, const void* data, size_t n);
};

// The kernels that run on this processor, fastest first; the last is "portable".
const std::vector<Crc32cImplementation>& Crc32cImplementations();

}  // namespace trackckpt
