#include "bundle/entry.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "encoding/coding.h"
#include "encoding/wire.h"

namespace trackckpt {

namespace {

// Negative numbers travel as their 64-bit two's complement.
uint64_t Unsigned(int64_t value) { return static_cast<uint64_t>(value); }

int32_t Int32(uint64_t number) { return static_cast<int32_t>(number); }

int64_t Int64(uint64_t number) { return static_cast<int64_t>(number); }

std::string EncodeShape(const std::vector<int64_t>& shape) {
  std::string encoded;
  for (int64_t dim : shape) {
    std::string encoded_dim;
    PutVarintField(&encoded_dim, 1, Unsigned(dim));
    PutBytesField(&encoded, 2, encoded_dim);
  }
  return encoded;
}

bool DecodeDim(std::string_view value, int64_t* size) {
  *size = 0;
  WireReader reader(value);
  while (reader.Next()) {
    if (reader.Is(1, WireType::kVarint)) *size = Int64(reader.number());
  }
  return reader.ok();
}

// A scalar is one slice, and no slice of a tensor is there twice: short messages of many would only cost memory.
bool AddSlice(std::string_view message, std::vector<TensorSlice>* slices) {
  TensorSlice slice;
  if (!slice.DecodeFrom(message)) return false;
  if (!slices->empty() && (slice.extents.empty() || slice == slices->back())) return false;
  slices->push_back(std::move(slice));
  return true;
}

uint8_t ByteAt(std::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

// The length of the UTF-8 sequence that a byte begins; 0 if it begins none.
size_t SequenceLength(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead < 0xe0) return 2;
  if (lead >= 0xe0 && lead < 0xf0) return 3;
  return lead >= 0xf0 && lead < 0xf5 ? 4 : 0;
}

bool IsContinuation(char c) { return (static_cast<uint8_t>(c) & 0xc0) == 0x80; }

// Overlong forms, surrogates, numbers past U+10FFFF and control characters all show in the second byte.
bool IsShownSecondByte(uint8_t lead, uint8_t second) {
  switch (lead) {
    case 0xc2:
      return second >= 0xa0;
    case 0xe0:
      return second >= 0xa0;
    case 0xed:
      return second < 0xa0;
    case 0xf0:
      return second >= 0x90;
    case 0xf4:
      return second < 0x90;
    default:
      return true;
  }
}

// The length of the printable character that `text` begins with; 0 if its first byte has to be escaped.
size_t PrintableLength(std::string_view text) {
  const uint8_t lead = ByteAt(text, 0);
  const size_t length = SequenceLength(lead);
  if (length == 0 || length > text.size()) return 0;
  if (length == 1) return lead >= 0x20 && lead != 0x7f ? 1 : 0;
  const std::string_view tail = text.substr(1, length - 1);
  const bool is_valid = std::all_of(tail.begin(), tail.end(), IsContinuation);
  return is_valid && IsShownSecondByte(lead, ByteAt(text, 1)) ? length : 0;
}

}  // namespace

void BundleHeader::EncodeTo(std::string* dst) const {
  std::string version;
  PutVarintField(&version, 1, Unsigned(producer));
  PutVarintField(&version, 2, Unsigned(min_consumer));
  std::string packed;
  for (int32_t consumer : bad_consumers) PutVarint64(&packed, Unsigned(consumer));
  if (!packed.empty()) PutBytesField(&version, 3, packed);
  PutVarintField(dst, 1, Unsigned(num_shards));
  PutVarintField(dst, 2, Unsigned(endianness));
  PutBytesField(dst, 3, version);
}

bool BundleHeader::DecodeFrom(std::string_view value) {
  *this = BundleHeader();
  WireReader reader(value);
  while (reader.Next()) {
    if (reader.Is(1, WireType::kVarint)) num_shards = Int32(reader.number());
    if (reader.Is(2, WireType::kVarint)) endianness = Int32(reader.number());
    if (reader.Is(3, WireType::kBytes) && !Version::DecodeFrom(reader.bytes())) return false;
  }
  return reader.ok();
}

void BundleEntry::Clear() {
  key.clear();
  shape.clear();
  slices.clear();
  dtype = shard_id = 0;
  offset = size = 0;
  crc32c = 0;
  is_unknown_rank = false;
}

void BundleEntry::EncodeTo(std::string* dst) const {
  PutVarintField(dst, 1, Unsigned(dtype));
  PutBytesField(dst, 2, EncodeShape(shape));
  PutVarintField(dst, 3, Unsigned(shard_id));
  PutVarintField(dst, 4, Unsigned(offset));
  PutVarintField(dst, 5, Unsigned(size));
  PutFixed32Field(dst, 6, crc32c);
  for (const TensorSlice& slice : slices) {
    std::string encoded;
    slice.EncodeTo(&encoded);
    PutBytesField(dst, 7, encoded);
  }
}

bool BundleEntry::DecodeFrom(std::string_view value, size_t max_slices) {
  WireReader reader(value);
  while (reader.Next()) {
    if (reader.Is(1, WireType::kVarint)) dtype = Int32(reader.number());
    if (reader.Is(2, WireType::kBytes) && !DecodeShape(reader.bytes(), this)) return false;
    if (reader.Is(3, WireType::kVarint)) shard_id = Int32(reader.number());
    if (reader.Is(4, WireType::kVarint)) offset = Int64(reader.number());
    if (reader.Is(5, WireType::kVarint)) size = Int64(reader.number());
    if (reader.Is(6, WireType::kFixed32)) crc32c = static_cast<uint32_t>(reader.number());
    if (reader.Is(7, WireType::kBytes) && !AddSlice(reader.bytes(), &slices)) return false;
    if (slices.size() > max_slices) return false;
  }
  return reader.ok();
}

bool DecodeShape(std::string_view message, BundleEntry* entry) {
  WireReader reader(message);
  while (reader.Next()) {
    if (reader.Is(2, WireType::kBytes)) {
      int64_t dim;
      if (!DecodeDim(reader.bytes(), &dim)) return false;
      if (entry->shape.size() <= kMaxRank) entry->shape.push_back(dim);  // one too many is enough to tell
    } else if (reader.Is(3, WireType::kVarint)) {
      entry->is_unknown_rank = reader.number() != 0;
    }
  }
  return reader.ok();
}

std::optional<uint64_t> NumElements(const std::vector<int64_t>& shape) {
  if (shape.size() > kMaxRank) return std::nullopt;
  int64_t count = 1;
  for (int64_t dim : shape) {
    if (dim < 0 || __builtin_mul_overflow(count, dim, &count)) return std::nullopt;
  }
  return Unsigned(count);
}

std::string DisplayKey(std::string_view key) {
  std::string text;
  while (!key.empty()) {
    const size_t printable = PrintableLength(key);
    if (printable > 0) {
      text.append(key.substr(0, printable));
    } else {
      char escaped[5];
      std::snprintf(escaped, sizeof(escaped), "\\x%02x", ByteAt(key, 0));
      text.append(escaped);
    }
    key.remove_prefix(std::max<size_t>(printable, 1));
  }
  return text;
}

}  // namespace trackckpt
