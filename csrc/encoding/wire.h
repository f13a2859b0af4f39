// The part of the protocol buffer wire format that the bundle's messages need.
//
//    message: field*
//    field:   tag (varint: field number << 3 | wire type), then by wire type
//             0 varint | 1 eight bytes | 2 varint length, bytes | 5 four bytes (fixed widths little-endian)
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace trackckpt {

enum class WireType : uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

// As proto3 serialises: a field of value 0 is left out.
void PutVarintField(std::string* dst, uint32_t field, uint64_t value);
void PutFixed32Field(std::string* dst, uint32_t field, uint32_t value);
// Sub-messages are present even when empty.
void PutBytesField(std::string* dst, uint32_t field, std::string_view value);

// Goes through the fields of a message in the order in which they lie:
//
//    WireReader reader(message);
//    while (reader.Next()) {
//      if (reader.Is(1, WireType::kVarint)) size = reader.number();
//    }
//    return reader.ok();
class WireReader {
 public:
  explicit WireReader(std::string_view message) : rest_(message) {}

  // Reads the next field with its value. False at the end of the message, and where it is malformed.
  bool Next();
  bool ok() const { return ok_; }

  // A known field with another wire type counts as an unknown one, as in libprotobuf.
  bool Is(uint32_t field, WireType type) const { return field_ == field && type_ == type; }
  uint64_t number() const { return number_; }
  std::string_view bytes() const { return bytes_; }

 private:
  bool ReadField();
  bool ReadValue();

  std::string_view rest_;
  bool ok_ = true;
  uint32_t field_ = 0;
  WireType type_ = WireType::kVarint;
  uint64_t number_ = 0;
  std::string_view bytes_;
};

}  // namespace trackckpt
