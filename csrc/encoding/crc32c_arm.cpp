// CRC-32C on AArch64, by the crc32c instructions of ARMv8.
//
// They have a latency of two or three cycles and a throughput of one, so three streams run over three adjacent parts
// of the data, and are joined:
//
//    register(A B C) = register(A) * x^(8 * |B C|)  +  register(B) * x^(8 * |C|)  +  register(C)
//
// The multiplication is a carry-less one where the processor has that (PMULL), and a look-up by bytes elsewhere.

#include "encoding/crc32c_kernels.h"

#if defined(__aarch64__) && defined(__linux__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__

#include <asm/hwcap.h>
#include <sys/auxv.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "encoding/crc32c_polynomial.h"

// Clang's headers offered the intrinsics only to files that are compiled for such processors as a whole, for many
// years, but its builtins to any function with the target.
#if defined(__clang__)
#define TRACKCKPT_CRC __attribute__((target("crc")))
#define TRACKCKPT_CRC_PMULL __attribute__((target("crc,aes")))
#define TRACKCKPT_CRC32C(size) __builtin_arm_crc32c##size
#define TRACKCKPT_PMULL __builtin_neon_vmull_p64
#else
#include <arm_acle.h>
#include <arm_neon.h>
#define TRACKCKPT_CRC __attribute__((target("+crc")))
#define TRACKCKPT_CRC_PMULL __attribute__((target("+crc+crypto")))
#define TRACKCKPT_CRC32C(size) __crc32c##size
#define TRACKCKPT_PMULL vmull_p64
#endif

namespace trackckpt {

namespace {

// --- one stream ------------------------------------------------------------------------------------------

template <typename Word>
inline Word Load(const char* p) {
  Word word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

TRACKCKPT_CRC inline uint32_t AfterWord(uint32_t state, uint64_t word) {
  return TRACKCKPT_CRC32C(d)(state, word);
}

// The register after the last n bytes of `word`, 0 < n < 8. They and the part of the state that they meet stand
// at the end of a word of zeros, which leave a register of zero as it is; the rest of the state moves up.
TRACKCKPT_CRC inline uint32_t AfterEnd(uint64_t state, uint64_t word, size_t n) {
  const size_t before = 64 - 8 * n;
  const uint64_t end = (word >> before << before) ^ (state << before);
  return AfterWord(0, end) ^ static_cast<uint32_t>(state >> (8 * n));
}

// Sizes are hard to predict: what is left after the words is taken from the word that ends with it, in one step.
TRACKCKPT_CRC inline uint32_t StateAfter(uint32_t state, const char* p, size_t n) {
  if (n >= 8) {
    const uint64_t last_word = Load<uint64_t>(p + n - 8);
    for (; n >= 8; n -= 8, p += 8) state = AfterWord(state, Load<uint64_t>(p));
    return n == 0 ? state : AfterEnd(state, last_word, n);
  }
  if (n & 4) {
    state = TRACKCKPT_CRC32C(w)(state, Load<uint32_t>(p));
    p += 4;
  }
  if (n & 2) {
    state = TRACKCKPT_CRC32C(h)(state, Load<uint16_t>(p));
    p += 2;
  }
  if (n & 1) state = TRACKCKPT_CRC32C(b)(state, Load<uint8_t>(p));
  return state;
}

// --- joining ---------------------------------------------------------------------------------------------

// Both give state * x^(8 * kBytes) mod P.

struct ByProduct {
  template <size_t kBytes>
  TRACKCKPT_CRC_PMULL static uint32_t Shift(uint32_t state) {
    constexpr uint32_t kFactor = CarrylessFactor(8 * kBytes);
    return AfterWord(0, static_cast<uint64_t>(TRACKCKPT_PMULL(state, kFactor)));
  }
};

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

struct ByTable {
  template <size_t kBytes>
  static uint32_t Shift(uint32_t state) {
    constexpr const ShiftTable& table = kShiftTable<kBytes>;
    return table[0][state & 0xff] ^ table[1][(state >> 8) & 0xff] ^ table[2][(state >> 16) & 0xff] ^
           table[3][state >> 24];
  }
};

// --- three streams ---------------------------------------------------------------------------------------

// Bytes per stream. Long ones make joining cheap, short ones let a few kilobytes profit as well.
constexpr size_t kLongStream = 4096;
constexpr size_t kShortStream = 256;

template <size_t kStream, typename Join>
TRACKCKPT_CRC inline uint32_t ThreeStreams(uint32_t state, const char** p, size_t* n) {
  while (*n >= 3 * kStream) {
    uint32_t a = state, b = 0, c = 0;
    for (size_t i = 0; i < kStream; i += 8) {
      a = AfterWord(a, Load<uint64_t>(*p + i));
      b = AfterWord(b, Load<uint64_t>(*p + kStream + i));
      c = AfterWord(c, Load<uint64_t>(*p + 2 * kStream + i));
    }
    state = Join::template Shift<2 * kStream>(a) ^ Join::template Shift<kStream>(b) ^ c;
    *p += 3 * kStream;
    *n -= 3 * kStream;
  }
  return state;
}

template <typename Join>
TRACKCKPT_CRC uint32_t Extend(uint32_t crc, const void* data, size_t n) {
  const char* p = static_cast<const char*>(data);
  uint32_t state = ThreeStreams<kLongStream, Join>(~crc, &p, &n);
  state = ThreeStreams<kShortStream, Join>(state, &p, &n);
  return ~StateAfter(state, p, n);
}

}  // namespace

void AddArmCrc32cKernels(std::vector<Crc32cImplementation>* kernels) {
  const unsigned long capabilities = getauxval(AT_HWCAP);
  if (!(capabilities & HWCAP_CRC32)) return;
  if (capabilities & HWCAP_PMULL) kernels->push_back({"armv8-crc+pmull", Extend<ByProduct>});
  kernels->push_back({"armv8-crc", Extend<ByTable>});
}

}  // namespace trackckpt

#else

namespace trackckpt {
void AddArmCrc32cKernels(std::vector<Crc32cImplementation>*) {}
}  // namespace trackckpt

#endif
