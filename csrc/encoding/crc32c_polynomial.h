// Polynomials over GF(2) modulo P, that of CRC-32C, computed at compile time for the constants of the kernels.
//
// A register is a polynomial of degree below 32, reflected: bit 31 is the coefficient of x^0, bit 0 that of
// x^31. A zero byte takes register r to r * x^8, and a concatenation is
//
//    register(A B) = register(A) * x^(8 * |B|)  +  register(B)
//
// where only A starts from the running register and B starts from zero. Everything fast comes from this line:
// streams, folding and the joining of checksums all move a part forward over what follows it.
#pragma once

#include <cstdint>

namespace trackckpt {

constexpr uint32_t kPolynomial = 0x82f63b78u;
constexpr uint32_t kOne = 0x80000000u;  // x^0

// a * x mod P
constexpr uint32_t TimesX(uint32_t a) { return (a >> 1) ^ ((a & 1) ? kPolynomial : 0); }

// a * b mod P
constexpr uint32_t Multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = kOne; bit != 0; bit >>= 1) {
    if (a & bit) product ^= b;
    b = TimesX(b);
  }
  return product;
}

// x^exponent mod P
constexpr uint32_t PowerOfX(uint64_t exponent) {
  uint32_t result = kOne;
  for (uint32_t square = TimesX(kOne); exponent != 0; exponent >>= 1) {
    if (exponent & 1) result = Multiply(result, square);
    square = Multiply(square, square);
  }
  return result;
}

// The powers of x repeat after this many, so there are negative ones too.
constexpr uint64_t kOrderOfX = 0x7fffffff;
static_assert(PowerOfX(kOrderOfX) == kOne);

// The factor by which a processor's carry-less multiplication does "times x^bits".
//
// The instruction knows nothing of reflection, so a product stands too low in the register that holds it:
//   64 bits times this factor in 128 bits:  degree 63 + 31 stands where 127 would be, which is x^33 too much;
//   32 bits times this factor in 64 bits:   31 + 31 stands at 63, x too much, and the crc32 instruction, which
//                                           then reduces the 64 bits, multiplies by another x^32.
constexpr uint32_t CarrylessFactor(uint64_t bits) { return PowerOfX(kOrderOfX + bits - 33); }

}  // namespace trackckpt
