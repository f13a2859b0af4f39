// The choice among the kernels, and the joining of checksums.

#include "encoding/crc32c.h"

#include <array>

#include "encoding/crc32c_kernels.h"
#include "encoding/crc32c_polynomial.h"

namespace trackckpt {

namespace {

std::vector<Crc32cImplementation> FindImplementations() {
  std::vector<Crc32cImplementation> kernels;
  AddX86Crc32cKernels(&kernels);
  AddArmCrc32cKernels(&kernels);
  AddPortableCrc32cKernel(&kernels);
  return kernels;
}

// kOverBytes[i] moves a checksum forward over 2^i bytes: x^(8 * 2^i) mod P.
using Powers = std::array<uint32_t, 64>;

constexpr Powers MakePowers() {
  Powers powers{};
  powers[0] = PowerOfX(8);
  for (size_t i = 1; i < powers.size(); ++i) powers[i] = Multiply(powers[i - 1], powers[i - 1]);
  return powers;
}

constexpr Powers kOverBytes = MakePowers();

}  // namespace

const std::vector<Crc32cImplementation>& Crc32cImplementations() {
  static const std::vector<Crc32cImplementation> kernels = FindImplementations();
  return kernels;
}

uint32_t Crc32cExtend(uint32_t crc, const void* data, size_t n) {
  static const auto extend = Crc32cImplementations().front().extend;
  return extend(crc, data, n);
}

// Registers join as crc32c_polynomial.h says. A checksum is its register plus F, all ones, and B's register was
// started from F as well: both F * x^(8 * size_b) cancel, and one F remains, which the result needs.
uint32_t Crc32cCombine(uint32_t crc_a, uint32_t crc_b, uint64_t size_b) {
  for (size_t i = 0; size_b != 0; ++i, size_b >>= 1) {
    if (size_b & 1) crc_a = Multiply(crc_a, kOverBytes[i]);
  }
  return crc_a ^ crc_b;
}

}  // namespace trackckpt
