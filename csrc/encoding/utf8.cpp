#include "encoding/utf8.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace trackckpt {

namespace {

// Eight bytes at once, because names are ASCII as a rule.
bool AreAscii(const char* p) {
  uint64_t word;
  std::memcpy(&word, p, sizeof(word));
  return (word & 0x8080808080808080u) == 0;
}

// The length of the sequence that begins at `p`; 0 where there is none.
size_t SequenceLength(const unsigned char* p, size_t available) {
  const unsigned char first = p[0];
  if (first < 0x80) return 1;
  const size_t length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  if (first < 0xc2 || first > 0xf4 || available < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((p[i] & 0xc0) != 0x80) return 0;
  }
  // The second byte says what could be shorter, is a surrogate, or lies beyond the last character.
  if ((first == 0xe0 && p[1] < 0xa0) || (first == 0xed && p[1] > 0x9f) || (first == 0xf0 && p[1] < 0x90) ||
      (first == 0xf4 && p[1] > 0x8f)) {
    return 0;
  }
  return length;
}

}  // namespace

bool IsUtf8(std::string_view bytes) {
  for (size_t i = 0; i < bytes.size();) {
    if (bytes.size() - i >= 8 && AreAscii(bytes.data() + i)) {
      i += 8;
      continue;
    }
    const size_t length =
        SequenceLength(reinterpret_cast<const unsigned char*>(bytes.data()) + i, bytes.size() - i);
    if (length == 0) return false;
    i += length;
  }
  return true;
}

}  // namespace trackckpt
