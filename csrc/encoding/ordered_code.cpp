#include "encoding/ordered_code.h"

namespace trackckpt {

namespace {

constexpr int kBitsInOneByte = 6;  // beside the sign and the header of a signed number of one byte

// The header of a signed number of `length` bytes, as the first two of them: `length` ones.
constexpr uint16_t SignedHeader(int length) { return static_cast<uint16_t>(0xffff << (16 - length)); }

int BitLength(uint64_t value) { return value == 0 ? 0 : 64 - __builtin_clzll(value); }

}  // namespace

void PutOrderedNumber(std::string* dst, uint64_t value) {
  const int length = (BitLength(value) + 7) / 8;
  dst->push_back(static_cast<char>(length));
  for (int i = length - 1; i >= 0; --i) dst->push_back(static_cast<char>(value >> (8 * i)));
}

void PutOrderedString(std::string* dst, std::string_view value) {
  for (char c : value) {
    dst->push_back(c);
    if (c == '\0') dst->push_back('\xff');
    if (c == '\xff') dst->push_back('\0');
  }
  dst->push_back('\0');
  dst->push_back('\x01');
}

void PutOrderedSigned(std::string* dst, int64_t value) {
  const int bits = BitLength(static_cast<uint64_t>(value < 0 ? ~value : value));
  if (bits <= kBitsInOneByte) {
    dst->push_back(static_cast<char>(0x80 ^ (value & 0xff)));
    return;
  }
  const int length = bits / 7 + 1;
  const size_t begin = dst->size();
  for (int i = length - 1; i >= 0; --i) {
    // A number of nine or ten bytes begins with copies of its sign.
    dst->push_back(static_cast<char>(value >> (i < 8 ? 8 * i : 63)));
  }
  const uint16_t header = SignedHeader(length);
  (*dst)[begin] = static_cast<char>((*dst)[begin] ^ (header >> 8));
  (*dst)[begin + 1] = static_cast<char>((*dst)[begin + 1] ^ (header & 0xff));
}

}  // namespace trackckpt
