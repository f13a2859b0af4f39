// How a tensor of strings lies in a data file.
//
//    varint(len 0) .. varint(len n-1) | length_checksum (uint32) | bytes 0 .. bytes n-1
//
//    L               crc32c of all lengths, each as uint32, or as uint64 where it needs more than 32 bits
//    length_checksum masked L
//    entry.crc32c    masked: L continued over the four bytes of length_checksum, then over all string bytes
//
// Lengths and the length checksum are in the byte order of the file. A tensor without elements is just the length
// checksum of nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "encoding/byte_order.h"

namespace trackckpt {

class ValueStream;

constexpr size_t kLengthChecksumSize = 4;

// Many strings in two blocks of memory.
class StringArray {
 public:
  void Append(std::string_view value) {
    AddLength(value.size());
    AddBytes(value);
  }
  size_t size() const { return ends_.size(); }
  std::string_view operator[](size_t i) const {
    const uint64_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(bytes_).substr(begin, ends_[i] - begin);
  }

  // Lengths and bytes may come apart, and the bytes in any portions. Strings are there when both have come.
  void AddLength(uint64_t length) { ends_.push_back((ends_.empty() ? 0 : ends_.back()) + length); }
  void AddBytes(std::string_view portion) { bytes_.append(portion); }
  void ReserveStrings(uint64_t count) { ends_.reserve(count); }
  void ReserveBytes(uint64_t count) { bytes_.reserve(count); }

 private:
  std::string bytes_;
  std::vector<uint64_t> ends_;
};

// The checksum of lengths, which is gathered length by length.
class LengthChecksum {
 public:
  explicit LengthChecksum(ByteOrder order) : order_(order) {}

  void Add(uint64_t length);
  uint32_t Get();

 private:
  const ByteOrder order_;
  uint32_t crc_ = 0;
  std::string pending_;  // lengths as they enter the checksum, in portions that are worth a call
};

// What comes before the string bytes. Sets `crc` to the checksum so far, unmasked.
std::string EncodeStringHeader(const std::vector<std::string_view>& values, uint32_t* crc);

// Takes a string tensor out of `stream` and checks it. The strings go to `strings`, unless that is null.
void DecodeStrings(ValueStream* stream, ByteOrder order, StringArray* strings);

}  // namespace trackckpt
