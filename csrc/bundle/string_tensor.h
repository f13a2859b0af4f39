// How a tensor of strings lies in a data file.
//
//    varint(len 0) .. varint(len n-1) | length_checksum (uint32) | bytes 0 .. bytes n-1
//
//    L               crc32c of all lengths, each as uint32, or as uint64 where it needs more than 32 bits
//    length_checksum masked L
//    entry.crc32c    masked: L continued over the four bytes of length_checksum, then over all string bytes
//
// A tensor without elements is just the length checksum of nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trackckpt {

constexpr size_t kLengthChecksumSize = 4;

// Many strings in two blocks of memory.
class StringArray {
 public:
  void Append(std::string_view value) {
    bytes_.append(value);
    ends_.push_back(bytes_.size());
  }
  size_t size() const { return ends_.size(); }
  std::string_view operator[](size_t i) const {
    const uint64_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(bytes_).substr(begin, ends_[i] - begin);
  }

 private:
  std::string bytes_;
  std::vector<uint64_t> ends_;
};

// What comes before the string bytes. Sets `crc` to the checksum so far, unmasked.
std::string EncodeStringHeader(const std::vector<std::string_view>& values, uint32_t* crc);

// What comes before the string bytes, as it was read. Checksums are unmasked.
struct StringHeader {
  std::vector<uint64_t> lengths;
  uint32_t stored_length_crc = 0;
  uint32_t computed_length_crc = 0;
  uint32_t crc = 0;  // that of the entry is this, continued over the string bytes

  // Takes the header off the front of `data`. False if it runs past the end.
  bool DecodeFrom(std::string_view* data, uint64_t num_elements);
};

// Cuts `data` into strings. False unless they fill it exactly.
bool SplitStrings(const std::vector<uint64_t>& lengths, std::string_view data,
                  std::vector<std::string_view>* values);

}  // namespace trackckpt
