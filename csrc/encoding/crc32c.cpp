// Three ways to the same number: tables on any processor, the crc32 instructions of x86-64, those of AArch64.
//
// The instructions have a latency of three cycles and a throughput of one, so the fast kernels run three
// streams over three adjacent parts of the data and join the results:
//
//    register(A B C) = register(A) * x^(8 * |B C|)  +  register(B) * x^(8 * |C|)  +  register(C)
//
// in polynomials modulo P, where only A starts from the running register and B and C start from zero. Values
// are reflected: bit 31 is the coefficient of x^0. Kernels work on the register, the inverse of the checksum.

#include "encoding/crc32c.h"

#include <array>
#include <cstring>

#include "encoding/coding.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__linux__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define TRACKCKPT_ARM_CRC 1
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace trackckpt {

namespace {

constexpr uint32_t kPolynomial = 0x82f63b78u;
constexpr uint32_t kOne = 0x80000000u;  // x^0

// a * x mod P
constexpr uint32_t TimesX(uint32_t a) { return (a >> 1) ^ ((a & 1) ? kPolynomial : 0); }

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

inline uint32_t PortableByte(uint32_t state, uint8_t byte) {
  return (state >> 8) ^ kTables[0][(state ^ byte) & 0xff];
}

inline uint32_t PortableEightBytes(uint32_t state, const char* p) {
  const uint32_t low = state ^ DecodeFixed32(p);
  const uint32_t high = DecodeFixed32(p + 4);
  return kTables[7][low & 0xff] ^ kTables[6][(low >> 8) & 0xff] ^ kTables[5][(low >> 16) & 0xff] ^
         kTables[4][low >> 24] ^ kTables[3][high & 0xff] ^ kTables[2][(high >> 8) & 0xff] ^
         kTables[1][(high >> 16) & 0xff] ^ kTables[0][high >> 24];
}

uint32_t ExtendPortable(uint32_t crc, const void* data, size_t n) {
  const char* p = static_cast<const char*>(data);
  uint32_t state = ~crc;
  for (; n >= 8; n -= 8, p += 8) state = PortableEightBytes(state, p);
  for (; n > 0; --n, ++p) state = PortableByte(state, static_cast<uint8_t>(*p));
  return ~state;
}

#if defined(__x86_64__) || defined(TRACKCKPT_ARM_CRC)

// Bytes per stream. Long ones make joining cheap, short ones let a few kilobytes profit as well.
constexpr size_t kLongStream = 4096;
constexpr size_t kShortStream = 256;

inline uint64_t LoadWord(const char* p) {
  uint64_t word;  // little-endian, as are the processors that get here
  std::memcpy(&word, p, sizeof(word));
  return word;
}

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

#endif

#if defined(__x86_64__)

#define TRACKCKPT_SSE42 __attribute__((target("sse4.2")))
#define TRACKCKPT_SSE42_PCLMUL __attribute__((target("sse4.2,pclmul")))

TRACKCKPT_SSE42 uint32_t StateAfter(uint32_t state, const char* p, size_t n) {
  uint64_t wide = state;
  for (; n >= 8; n -= 8, p += 8) wide = _mm_crc32_u64(wide, LoadWord(p));
  state = static_cast<uint32_t>(wide);
  for (; n > 0; --n, ++p) state = _mm_crc32_u8(state, static_cast<uint8_t>(*p));
  return state;
}

TRACKCKPT_SSE42 uint32_t ExtendSse42(uint32_t crc, const void* data, size_t n) {
  return ~StateAfter(~crc, static_cast<const char*>(data), n);
}

// state * x^(8 * kBytes) mod P. The carry-less product of two reflected 32-bit values is theirs times x, seen
// as a reflected 64-bit value, and the instruction multiplies by another x^32 while it reduces: hence the 33.
template <size_t kBytes>
TRACKCKPT_SSE42_PCLMUL inline uint64_t Shift(uint64_t state) {
  constexpr uint32_t kFactor = PowerOfX(8 * kBytes - 33);
  const __m128i product =
      _mm_clmulepi64_si128(_mm_cvtsi64_si128(static_cast<int64_t>(state)), _mm_cvtsi64_si128(kFactor), 0);
  return _mm_crc32_u64(0, static_cast<uint64_t>(_mm_cvtsi128_si64(product)));
}

template <size_t kStream>
TRACKCKPT_SSE42_PCLMUL inline uint32_t ThreeStreams(uint32_t state, const char** p, size_t* n) {
  while (*n >= 3 * kStream) {
    uint64_t a = state, b = 0, c = 0;
    for (size_t i = 0; i < kStream; i += 8) {
      a = _mm_crc32_u64(a, LoadWord(*p + i));
      b = _mm_crc32_u64(b, LoadWord(*p + kStream + i));
      c = _mm_crc32_u64(c, LoadWord(*p + 2 * kStream + i));
    }
    state = static_cast<uint32_t>(Shift<2 * kStream>(a) ^ Shift<kStream>(b) ^ c);
    *p += 3 * kStream;
    *n -= 3 * kStream;
  }
  return state;
}

TRACKCKPT_SSE42_PCLMUL uint32_t ExtendSse42Pclmul(uint32_t crc, const void* data, size_t n) {
  const char* p = static_cast<const char*>(data);
  uint32_t state = ThreeStreams<kLongStream>(~crc, &p, &n);
  state = ThreeStreams<kShortStream>(state, &p, &n);
  return ~StateAfter(state, p, n);
}

void AddHardwareKernels(std::vector<Crc32cImplementation>* kernels) {
  if (!__builtin_cpu_supports("sse4.2")) return;
  if (__builtin_cpu_supports("pclmul")) kernels->push_back({"sse4.2+pclmul", ExtendSse42Pclmul});
  kernels->push_back({"sse4.2", ExtendSse42});
}

#elif defined(TRACKCKPT_ARM_CRC)

#if defined(__clang__)
#define TRACKCKPT_CRC_TARGET __attribute__((target("crc")))
#else
#define TRACKCKPT_CRC_TARGET __attribute__((target("+crc")))
#endif

// kShiftTable<n>[k][b] = (b << 8k) * x^(8n) mod P: a multiplication by a constant, one byte at a time.
using ShiftTable = std::array<std::array<uint32_t, 256>, 4>;

constexpr ShiftTable MakeShiftTable(size_t bytes) {
  ShiftTable table{};
  const uint32_t factor = PowerOfX(8 * bytes);
  for (uint32_t k = 0; k < 4; ++k) {
    for (uint32_t byte = 0; byte < 256; ++byte) table[k][byte] = Multiply(byte << (8 * k), factor);
  }
  return table;
}

template <size_t kBytes>
constexpr ShiftTable kShiftTable = MakeShiftTable(kBytes);

template <size_t kBytes>
inline uint32_t Shift(uint32_t state) {
  constexpr const ShiftTable& table = kShiftTable<kBytes>;
  return table[0][state & 0xff] ^ table[1][(state >> 8) & 0xff] ^ table[2][(state >> 16) & 0xff] ^
         table[3][state >> 24];
}

template <size_t kStream>
TRACKCKPT_CRC_TARGET inline uint32_t ThreeStreams(uint32_t state, const char** p, size_t* n) {
  while (*n >= 3 * kStream) {
    uint32_t a = state, b = 0, c = 0;
    for (size_t i = 0; i < kStream; i += 8) {
      a = __crc32cd(a, LoadWord(*p + i));
      b = __crc32cd(b, LoadWord(*p + kStream + i));
      c = __crc32cd(c, LoadWord(*p + 2 * kStream + i));
    }
    state = Shift<2 * kStream>(a) ^ Shift<kStream>(b) ^ c;
    *p += 3 * kStream;
    *n -= 3 * kStream;
  }
  return state;
}

TRACKCKPT_CRC_TARGET uint32_t ExtendArm(uint32_t crc, const void* data, size_t n) {
  const char* p = static_cast<const char*>(data);
  uint32_t state = ThreeStreams<kLongStream>(~crc, &p, &n);
  state = ThreeStreams<kShortStream>(state, &p, &n);
  for (; n >= 8; n -= 8, p += 8) state = __crc32cd(state, LoadWord(p));
  for (; n > 0; --n, ++p) state = __crc32cb(state, static_cast<uint8_t>(*p));
  return ~state;
}

void AddHardwareKernels(std::vector<Crc32cImplementation>* kernels) {
  if (getauxval(AT_HWCAP) & HWCAP_CRC32) kernels->push_back({"armv8-crc", ExtendArm});
}

#else

void AddHardwareKernels(std::vector<Crc32cImplementation>*) {}

#endif

std::vector<Crc32cImplementation> FindImplementations() {
  std::vector<Crc32cImplementation> kernels;
  AddHardwareKernels(&kernels);
  kernels.push_back({"portable", ExtendPortable});
  return kernels;
}

}  // namespace

const std::vector<Crc32cImplementation>& Crc32cImplementations() {
  static const std::vector<Crc32cImplementation> kernels = FindImplementations();
  return kernels;
}

uint32_t Crc32cExtend(uint32_t crc, const void* data, size_t n) {
  static const auto extend = Crc32cImplementations().front().extend;
  return extend(crc, data, n);
}

}  // namespace trackckpt
