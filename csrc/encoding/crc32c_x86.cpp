// CRC-32C on x86-64: by folding in registers of 512 bits, and by the crc32 instructions of SSE4.2.
//
// Streams. crc32 has a latency of three cycles and a throughput of one, so three streams run over three adjacent
// parts of the data, and are joined:
//
//    register(A B C) = register(A) * x^(8 * |B C|)  +  register(B) * x^(8 * |C|)  +  register(C)
//
// Folding. The data is a polynomial, and modulo P a part of it may be replaced by any other polynomial that is
// congruent to it: 16 bytes are moved forward over D bits by two carry-less multiplications, one for each half,
//
//    (high * x^64 + low) * x^D  =  high * (x^(D + 64) mod P)  +  low * (x^D mod P)
//
// whose sum has less than 16 bytes and is added to the 16 bytes that stand there. A register of 512 bits, here
// a block, does this for four lanes of 16 bytes at once; several blocks at once hide the multiplication's latency.
// Only the last block, which stands for all the data, goes through the crc32 instructions.

#include "encoding/crc32c_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "encoding/crc32c_polynomial.h"

#define TRACKCKPT_SSE42 __attribute__((target("sse4.2")))
#define TRACKCKPT_SSE42_PCLMUL __attribute__((target("sse4.2,pclmul")))
#define TRACKCKPT_AVX512 __attribute__((target("avx512f,avx512bw,avx512vbmi,vpclmulqdq,avx2,sse4.2,pclmul")))

namespace trackckpt {

namespace {

// --- one stream ------------------------------------------------------------------------------------------

template <typename Word>
inline Word Load(const char* p) {
  Word word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

// The register after the last n bytes of `word`, 0 < n < 8. They and the part of the state that they meet stand
// at the end of a word of zeros, which leave a register of zero as it is; the rest of the state moves up.
TRACKCKPT_SSE42 inline uint64_t AfterEnd(uint64_t state, uint64_t word, size_t n) {
  const size_t before = 64 - 8 * n;
  return _mm_crc32_u64(0, (word >> before << before) ^ (state << before)) ^ (state >> (8 * n));
}

// Sizes are hard to predict, and one wrong branch costs more than the instructions for 30 bytes: what is left after
// the words is taken from the word that ends with it, in one step.
TRACKCKPT_SSE42 inline uint32_t StateAfter(uint32_t state, const char* p, size_t n) {
  if (n >= 8) {
    const uint64_t last_word = Load<uint64_t>(p + n - 8);
    uint64_t wide = state;
    for (; n >= 8; n -= 8, p += 8) wide = _mm_crc32_u64(wide, Load<uint64_t>(p));
    return static_cast<uint32_t>(n == 0 ? wide : AfterEnd(wide, last_word, n));
  }
  if (n & 4) {
    state = _mm_crc32_u32(state, Load<uint32_t>(p));
    p += 4;
  }
  if (n & 2) {
    state = _mm_crc32_u16(state, Load<uint16_t>(p));
    p += 2;
  }
  if (n & 1) state = _mm_crc32_u8(state, Load<uint8_t>(p));
  return state;
}

TRACKCKPT_SSE42 uint32_t ExtendSse42(uint32_t crc, const void* data, size_t n) {
  return ~StateAfter(~crc, static_cast<const char*>(data), n);
}

// --- three streams ---------------------------------------------------------------------------------------

// Bytes per stream. Long ones make joining cheap, short ones let a few kilobytes profit as well.
constexpr size_t kLongStream = 4096;
constexpr size_t kShortStream = 256;

// state * x^(8 * kBytes) mod P
template <size_t kBytes>
TRACKCKPT_SSE42_PCLMUL inline uint64_t Shift(uint64_t state) {
  constexpr uint32_t kFactor = CarrylessFactor(8 * kBytes);
  const __m128i product =
      _mm_clmulepi64_si128(_mm_cvtsi64_si128(static_cast<int64_t>(state)), _mm_cvtsi64_si128(kFactor), 0);
  return _mm_crc32_u64(0, static_cast<uint64_t>(_mm_cvtsi128_si64(product)));
}

template <size_t kStream>
TRACKCKPT_SSE42_PCLMUL inline uint32_t ThreeStreams(uint32_t state, const char** p, size_t* n) {
  while (*n >= 3 * kStream) {
    uint64_t a = state, b = 0, c = 0;
    for (size_t i = 0; i < kStream; i += 8) {
      a = _mm_crc32_u64(a, Load<uint64_t>(*p + i));
      b = _mm_crc32_u64(b, Load<uint64_t>(*p + kStream + i));
      c = _mm_crc32_u64(c, Load<uint64_t>(*p + 2 * kStream + i));
    }
    state = static_cast<uint32_t>(Shift<2 * kStream>(a) ^ Shift<kStream>(b) ^ c);
    *p += 3 * kStream;
    *n -= 3 * kStream;
  }
  return state;
}

TRACKCKPT_SSE42_PCLMUL uint32_t ExtendSse42Pclmul(uint32_t crc, const void* data, size_t n) {
  const char* p = static_cast<const char*>(data);
  if (n < 3 * kShortStream) return ~StateAfter(~crc, p, n);
  uint32_t state = ThreeStreams<kLongStream>(~crc, &p, &n);
  state = ThreeStreams<kShortStream>(state, &p, &n);
  return ~StateAfter(state, p, n);
}

// --- folding ---------------------------------------------------------------------------------------------

constexpr size_t kBlock = 64;

// So many blocks at once keep the multiplier busy, measured on Zen 5: 8 or 16 are no faster, and take longer
// to begin and to join.
constexpr size_t kMostBlocks = 4;

// Below this a single stream of crc32 is done before the blocks are joined.
constexpr size_t kLeastFolded = 128;

TRACKCKPT_AVX512 inline __m512i LoadBlock(const char* p) { return _mm512_loadu_si512(p); }

// The factors of a lane, which move it forward by `bits`: the half that comes first in memory is the high one.
constexpr int64_t FirstHalf(uint64_t bits) { return CarrylessFactor(bits + 64); }
constexpr int64_t SecondHalf(uint64_t bits) { return CarrylessFactor(bits); }

// block * x^(512 * kBlocks) + next
template <size_t kBlocks>
TRACKCKPT_AVX512 inline __m512i Fold(__m512i block, __m512i next) {
  constexpr int64_t kFirst = FirstHalf(8 * kBlock * kBlocks);
  constexpr int64_t kSecond = SecondHalf(8 * kBlock * kBlocks);
  const __m512i factors = _mm512_set4_epi64(kSecond, kFirst, kSecond, kFirst);
  constexpr int kSumOfThree = 0x96;
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(block, factors, 0x00),
                                   _mm512_clmulepi64_epi128(block, factors, 0x11), next, kSumOfThree);
}

// The register after a block, started from zero: its lanes are moved to where the last one is, which itself moves
// by nothing but is brought to the form of the others.
TRACKCKPT_AVX512 inline uint32_t StateAfterBlock(__m512i block) {
  constexpr int64_t kFactors[] = {FirstHalf(384), SecondHalf(384), FirstHalf(256), SecondHalf(256),
                                  FirstHalf(128), SecondHalf(128), FirstHalf(0),   SecondHalf(0)};
  const __m512i factors = _mm512_set_epi64(kFactors[7], kFactors[6], kFactors[5], kFactors[4], kFactors[3],
                                           kFactors[2], kFactors[1], kFactors[0]);
  const __m512i lanes = _mm512_xor_si512(_mm512_clmulepi64_epi128(block, factors, 0x00),
                                         _mm512_clmulepi64_epi128(block, factors, 0x11));
  alignas(kBlock) uint64_t halves[8];
  _mm512_store_si512(halves, lanes);
  const uint64_t state = _mm_crc32_u64(0, halves[0] ^ halves[2] ^ halves[4] ^ halves[6]);
  return static_cast<uint32_t>(_mm_crc32_u64(state, halves[1] ^ halves[3] ^ halves[5] ^ halves[7]));
}

using ByteNumbers = std::array<uint8_t, kBlock>;

constexpr ByteNumbers MakeByteNumbers() {
  ByteNumbers numbers{};
  for (size_t i = 0; i < kBlock; ++i) numbers[i] = static_cast<uint8_t>(i);
  return numbers;
}

alignas(kBlock) constexpr ByteNumbers kByteNumbers = MakeByteNumbers();

// The block that stands for `block` and the n bytes after it, 0 < n < 64. These 64 + n bytes are cut anew: the
// first n of them, behind zeros, which change nothing, are folded into the last 64.
TRACKCKPT_AVX512 inline __m512i FoldTail(__m512i block, const char* p, size_t n) {
  const __mmask64 first_n = ~uint64_t{0} >> (kBlock - n);
  const __mmask64 last_n = ~uint64_t{0} << (kBlock - n);
  const __m512i tail = _mm512_maskz_loadu_epi8(first_n, p);
  const __m512i numbers = _mm512_load_si512(kByteNumbers.data());
  const __m512i n_further = _mm512_add_epi8(numbers, _mm512_set1_epi8(static_cast<char>(n)));
  const __m512i front = _mm512_maskz_permutexvar_epi8(last_n, n_further, block);
  return Fold<1>(front, _mm512_permutex2var_epi8(block, n_further, tail));
}

// The register after the kBlocks adjacent blocks, which stand for all the data so far, and the n bytes after them:
// steps of so many blocks as long as there are data, then half as many blocks with half the steps, down to one.
template <size_t kBlocks>
TRACKCKPT_AVX512 inline uint32_t FoldAll(const __m512i (&blocks)[kBlocks], const char* p, size_t n) {
  __m512i folded[kBlocks];
  for (size_t i = 0; i < kBlocks; ++i) folded[i] = blocks[i];
  for (; n >= kBlocks * kBlock; p += kBlocks * kBlock, n -= kBlocks * kBlock) {
    for (size_t i = 0; i < kBlocks; ++i) folded[i] = Fold<kBlocks>(folded[i], LoadBlock(p + i * kBlock));
  }
  if constexpr (kBlocks > 1) {
    constexpr size_t kHalf = kBlocks / 2;
    __m512i half[kHalf];
    for (size_t i = 0; i < kHalf; ++i) half[i] = Fold<kHalf>(folded[i], folded[kHalf + i]);
    return FoldAll<kHalf>(half, p, n);
  } else {
    return StateAfterBlock(n == 0 ? folded[0] : FoldTail(folded[0], p, n));
  }
}

// The same of a register and n >= 64 * kBlocks bytes. A register is added to the first four of them.
template <size_t kBlocks>
TRACKCKPT_AVX512 inline uint32_t FoldFrom(uint32_t state, const char* p, size_t n) {
  __m512i blocks[kBlocks];
  for (size_t i = 0; i < kBlocks; ++i) blocks[i] = LoadBlock(p + i * kBlock);
  const __m128i start = _mm_cvtsi32_si128(static_cast<int>(state));
  blocks[0] = _mm512_xor_si512(blocks[0], _mm512_zextsi128_si512(start));
  return FoldAll(blocks, p + kBlocks * kBlock, n - kBlocks * kBlock);
}

TRACKCKPT_AVX512 uint32_t ExtendAvx512(uint32_t crc, const void* data, size_t n) {
  const char* p = static_cast<const char*>(data);
  if (n < kLeastFolded) return ~StateAfter(~crc, p, n);
  if (n < kMostBlocks * kBlock) return ~FoldFrom<kLeastFolded / kBlock>(~crc, p, n);
  return ~FoldFrom<kMostBlocks>(~crc, p, n);
}

// The builtin asks CPUID, and XGETBV whether the operating system keeps the registers of 512 bits.
bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("vpclmulqdq") &&
         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("pclmul") &&
         __builtin_cpu_supports("sse4.2");
}

}  // namespace

void AddX86Crc32cKernels(std::vector<Crc32cImplementation>* kernels) {
  if (HasAvx512()) kernels->push_back({"avx512+vpclmulqdq", ExtendAvx512});
  if (!__builtin_cpu_supports("sse4.2")) return;
  if (__builtin_cpu_supports("pclmul")) kernels->push_back({"sse4.2+pclmul", ExtendSse42Pclmul});
  kernels->push_back({"sse4.2", ExtendSse42});
}

}  // namespace trackckpt

#else

namespace trackckpt {
void AddX86Crc32cKernels(std::vector<Crc32cImplementation>*) {}
}  // namespace trackckpt

#endif
