#include "encoding/wire.h"

#include "encoding/coding.h"

namespace trackckpt {

namespace {

void PutTag(std::string* dst, uint32_t field, WireType type) {
  PutVarint64(dst, field << 3 | static_cast<uint32_t>(type));
}

}  // namespace

void PutVarintField(std::string* dst, uint32_t field, uint64_t value) {
  if (value == 0) return;
  PutTag(dst, field, WireType::kVarint);
  PutVarint64(dst, value);
}

void PutFixed32Field(std::string* dst, uint32_t field, uint32_t value) {
  if (value == 0) return;
  PutTag(dst, field, WireType::kFixed32);
  PutFixed32(dst, value);
}

void PutBytesField(std::string* dst, uint32_t field, std::string_view value) {
  PutTag(dst, field, WireType::kBytes);
  PutVarint64(dst, value.size());
  dst->append(value);
}

bool WireReader::Next() {
  if (!ok_ || rest_.empty()) return false;
  ok_ = ReadField();
  return ok_;
}

bool WireReader::ReadField() {
  uint32_t tag;
  if (!GetVarint32(&rest_, &tag)) return false;
  field_ = tag >> 3;
  type_ = static_cast<WireType>(tag & 7);
  return field_ != 0 && ReadValue();
}

bool WireReader::ReadValue() {
  switch (type_) {
    case WireType::kVarint:
      return GetVarint64(&rest_, &number_);
    case WireType::kFixed64:
      return GetFixed64(&rest_, &number_);
    case WireType::kBytes:
      return GetLengthPrefixed(&rest_, &bytes_);
    case WireType::kFixed32: {
      uint32_t value;
      if (!GetFixed32(&rest_, &value)) return false;
      number_ = value;
      return true;
    }
  }
  return false;  // groups, which these messages never had
}

}  // namespace trackckpt
