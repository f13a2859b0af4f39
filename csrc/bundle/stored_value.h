// A value, or a slice of one, as it lies in a data file in one piece: what is checked of it, and its bytes from
// front to back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "bundle/entry.h"
#include "error.h"
#include "io/readable_file.h"

namespace trackckpt {

// How much of a value is read at once: so little that it is still in the cache when its checksum is computed right
// after that, unless the file asks for more.
uint64_t StreamBytes(const ReadableFile& file);

// The bytes of all elements of a fixed size; for others, the least that they can take. Nothing if no file is
// that large. The shape is one that NumElements accepts.
std::optional<uint64_t> ExpectedSize(const BundleEntry& entry);

// Throws kDataLoss unless the size fits dtype and shape, and the value lies inside of `file`.
void CheckStored(const BundleEntry& value, const ReadableFile& file);

// `what` is wrong with the bytes of a value. Says so if the file is no data file at all.
Error DamagedValue(const std::string& what, const BundleEntry& value, const ReadableFile& file,
                   const std::string& detail = "");

// Throws unless both are the same; they are unmasked. `what` begins the message.
void CheckChecksum(const char* what, uint32_t stored, uint32_t computed, const BundleEntry& value,
                   const ReadableFile& file);
// The checksum of the entry.
void CheckChecksum(uint32_t computed, const BundleEntry& value, const ReadableFile& file);

// The bytes of a value from front to back, through a buffer of one chunk.
class ValueStream {
 public:
  // All are used as long as the stream. The value has been checked with CheckStored.
  ValueStream(const BundleEntry& value, const ReadableFile& file, std::string* buffer)
      : value_(value), file_(file), buffer_(buffer) {}

  const BundleEntry& value() const { return value_; }
  const ReadableFile& file() const { return file_; }
  // How many bytes have not been taken yet.
  uint64_t remaining() const { return rest_.size() + unread(); }

  // Takes at most `n` bytes, and at least one unless none are left. They are valid until the next call.
  std::string_view Take(uint64_t n);
  // Takes a number. False if the value ends in the midst of it, or it does not fit.
  bool GetVarint64(uint64_t* number);
  // Takes `n` bytes, a small number. False if there are fewer.
  bool GetBytes(size_t n, std::string_view* bytes);

 private:
  uint64_t unread() const { return static_cast<uint64_t>(value_.size) - read_; }
  // Sees to it that `n` bytes, a small number, are in the buffer, or all that are left.
  void Prepare(size_t n);

  const BundleEntry& value_;
  const ReadableFile& file_;
  std::string* const buffer_;
  uint64_t read_ = 0;      // bytes that have been in the buffer
  std::string_view rest_;  // what of the buffer has not been taken
};

}  // namespace trackckpt
