#include "bundle/stored_value.h"

#include <algorithm>
#include <cstdio>

#include "bundle/dtype.h"
#include "bundle/string_tensor.h"
#include "bundle/variant_tensor.h"
#include "encoding/coding.h"
#include "encoding/crc32c.h"
#include "io/git_lfs.h"

namespace trackckpt {

namespace {

constexpr size_t kMaxVarintBytes = 10;
constexpr uint64_t kStreamBytes = 512 << 10;

Error DataLoss(const std::string& message) { return Error(ErrorKind::kDataLoss, message); }

std::string Hex(uint32_t number) {
  char text[11];
  std::snprintf(text, sizeof(text), "0x%08x", number);
  return text;
}

std::string LfsRemark(const ReadableFile& file) {
  if (!IsGitLfsPointer(file)) return "";
  return " (the file is a Git LFS pointer, not the data itself: run `git lfs pull`)";
}

bool IsPossibleSize(const BundleEntry& entry, uint64_t expected) {
  const uint64_t stored = static_cast<uint64_t>(entry.size);
  if (stored == expected) return true;
  if (ItemSize(entry.dtype) > 0) return false;
  if (*NumElements(entry.shape) > 0) return stored > expected;
  return stored == 0;  // no strings: some producers leave the checksum out
}

void CheckSize(const BundleEntry& entry) {
  const auto expected = ExpectedSize(entry);
  if (!expected) throw DataLoss("Invalid tensor shape: " + DisplayKey(entry.key));
  if (IsPossibleSize(entry, *expected)) return;
  throw DataLoss("Invalid size in bundle entry: key " + DisplayKey(entry.key) + "; stored size " +
                 std::to_string(entry.size) + "; expected size " +
                 (ItemSize(entry.dtype) == 0 ? "at least " : "") + std::to_string(*expected));
}

void CheckInside(const BundleEntry& entry, const ReadableFile& file) {
  const uint64_t offset = static_cast<uint64_t>(entry.offset);
  const uint64_t size = static_cast<uint64_t>(entry.size);
  if (offset <= file.size() && size <= file.size() - offset) return;
  throw DataLoss(file.path() + ": Read less bytes than requested: key " + DisplayKey(entry.key) +
                 " lies at offset " + std::to_string(offset) + ", size " + std::to_string(size) +
                 ", but the file has " + std::to_string(file.size()) + " bytes" + LfsRemark(file));
}

}  // namespace

uint64_t StreamBytes(const ReadableFile& file) { return std::max(kStreamBytes, file.grain().request_bytes); }

std::optional<uint64_t> ExpectedSize(const BundleEntry& entry) {
  const uint64_t num_elements = *NumElements(entry.shape);
  if (entry.dtype == kDtypeString) return num_elements + kLengthChecksumSize;
  const uint64_t item_size = entry.dtype == kDtypeVariant ? kMinVariantSize : ItemSize(entry.dtype);
  uint64_t size;
  if (__builtin_mul_overflow(num_elements, item_size, &size)) return std::nullopt;
  return size;
}

void CheckStored(const BundleEntry& value, const ReadableFile& file) {
  CheckSize(value);
  CheckInside(value, file);
}

Error DamagedValue(const std::string& what, const BundleEntry& value, const ReadableFile& file,
                   const std::string& detail) {
  return DataLoss(what + ": key " + DisplayKey(value.key) + ", file " + file.path() + ", offset " +
                  std::to_string(value.offset) + ", size " + std::to_string(value.size) + detail +
                  LfsRemark(file));
}

void CheckChecksum(const char* what, uint32_t stored, uint32_t computed, const BundleEntry& value,
                   const ReadableFile& file) {
  if (stored == computed) return;
  throw DamagedValue(std::string(what) + " does not match", value, file,
                     ": stored " + Hex(stored) + " but computed " + Hex(computed));
}

void CheckChecksum(uint32_t computed, const BundleEntry& value, const ReadableFile& file) {
  CheckChecksum("Checksum", UnmaskCrc(value.crc32c), computed, value, file);
}

std::string_view ValueStream::Take(uint64_t n) {
  Prepare(1);
  const std::string_view taken = rest_.substr(0, n);
  rest_.remove_prefix(taken.size());
  return taken;
}

bool ValueStream::GetVarint64(uint64_t* number) {
  Prepare(kMaxVarintBytes);
  return trackckpt::GetVarint64(&rest_, number);
}

bool ValueStream::GetBytes(size_t n, std::string_view* bytes) {
  Prepare(n);
  if (rest_.size() < n) return false;
  *bytes = Take(n);
  return true;
}

void ValueStream::Prepare(size_t n) {
  if (rest_.size() >= n || unread() == 0) return;
  const size_t kept = rest_.size();
  const size_t added = std::min(unread(), StreamBytes(file_));
  if (kept > 0) {  // a few bytes: the rest of a number
    const std::string saved(rest_);
    buffer_->replace(0, kept, saved);
  }
  if (buffer_->size() < kept + added) buffer_->resize(kept + added);
  file_.Read(static_cast<uint64_t>(value_.offset) + read_, buffer_->data() + kept, added);
  read_ += added;
  rest_ = std::string_view(*buffer_).substr(0, kept + added);
}

}  // namespace trackckpt
