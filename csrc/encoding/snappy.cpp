#include "encoding/snappy.h"

#include <cstdint>
#include <cstring>

#include "encoding/coding.h"

namespace trackckpt {

namespace {

constexpr uint32_t kMaxShortLiteral = 60;

enum class ElementType : uint8_t { kLiteral = 0, kCopy1 = 1, kCopy2 = 2, kCopy4 = 3 };

// Takes a little-endian number of `width` bytes, at most 4, off the front of `input`.
bool GetNumber(std::string_view* input, size_t width, uint32_t* number) {
  if (input->size() < width) return false;
  *number = 0;
  for (size_t i = 0; i < width; ++i) *number |= uint32_t{static_cast<uint8_t>((*input)[i])} << (8 * i);
  input->remove_prefix(width);
  return true;
}

// Memory of the announced size, filled from front to back.
class Output {
 public:
  explicit Output(std::string* memory) : begin_(memory->data()), size_(memory->size()) {}

  bool AppendLiteral(std::string_view bytes) {
    if (bytes.size() > size_ - done_) return false;
    if (!bytes.empty()) std::memcpy(begin_ + done_, bytes.data(), bytes.size());
    done_ += bytes.size();
    return true;
  }

  bool AppendCopy(size_t offset, size_t length) {
    if (offset == 0 || offset > done_ || length > size_ - done_) return false;
    char* const to = begin_ + done_;
    const char* const from = to - offset;
    if (offset >= length) {
      std::memcpy(to, from, length);
    } else {
      for (size_t i = 0; i < length; ++i) to[i] = from[i];  // the copy repeats what it has just made
    }
    done_ += length;
    return true;
  }

  bool is_full() const { return done_ == size_; }

 private:
  char* const begin_;
  const size_t size_;
  size_t done_ = 0;
};

bool ReadLiteral(uint8_t tag, std::string_view* rest, Output* output) {
  uint32_t length_minus_1 = tag >> 2;
  if (length_minus_1 >= kMaxShortLiteral &&
      !GetNumber(rest, length_minus_1 - kMaxShortLiteral + 1, &length_minus_1)) {
    return false;
  }
  const uint64_t length = uint64_t{length_minus_1} + 1;
  if (length > rest->size() || !output->AppendLiteral(rest->substr(0, length))) return false;
  rest->remove_prefix(length);
  return true;
}

bool ReadElement(std::string_view* rest, Output* output) {
  const uint8_t tag = static_cast<uint8_t>(rest->front());
  rest->remove_prefix(1);
  uint32_t offset;
  switch (static_cast<ElementType>(tag & 3)) {
    case ElementType::kLiteral:
      return ReadLiteral(tag, rest, output);
    case ElementType::kCopy1:
      return GetNumber(rest, 1, &offset) && output->AppendCopy((tag >> 5) << 8 | offset, (tag >> 2 & 7) + 4);
    case ElementType::kCopy2:
      return GetNumber(rest, 2, &offset) && output->AppendCopy(offset, (tag >> 2) + 1);
    case ElementType::kCopy4:
      return GetNumber(rest, 4, &offset) && output->AppendCopy(offset, (tag >> 2) + 1);
  }
  return false;
}

}  // namespace

bool SnappyUncompress(std::string_view stream, std::string* output) {
  uint32_t size;
  if (!GetVarint32(&stream, &size) || size > stream.size() * kMaxSnappyExpansion) return false;
  output->resize(size);
  Output filled(output);
  while (!stream.empty()) {
    if (!ReadElement(&stream, &filled)) return false;
  }
  return filled.is_full();
}

}  // namespace trackckpt
