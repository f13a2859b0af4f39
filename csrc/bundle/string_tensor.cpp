#include "bundle/string_tensor.h"

#include "bundle/stored_value.h"
#include "encoding/coding.h"
#include "encoding/crc32c.h"

namespace trackckpt {

namespace {

constexpr size_t kPendingBytes = 4096;

Error BadLengths(const ValueStream& stream) {
  return DamagedValue("String lengths longer than expected offset, or shorter", stream.value(),
                      stream.file());
}

uint32_t DecodeOrdered32(std::string_view bytes, ByteOrder order) {
  const uint32_t number = DecodeFixed32(bytes.data());
  return order == ByteOrder::kBig ? __builtin_bswap32(number) : number;
}

// Takes everything before the string bytes. Returns the checksum so far.
uint32_t DecodeHeader(ValueStream* stream, uint64_t num_elements, ByteOrder order, StringArray* strings) {
  LengthChecksum lengths(order);
  uint64_t total = 0;
  bool fits = true;
  for (uint64_t i = 0; i < num_elements; ++i) {
    uint64_t length;
    if (!stream->GetVarint64(&length)) throw BadLengths(*stream);
    lengths.Add(length);
    fits &= !__builtin_add_overflow(total, length, &total);
    if (strings != nullptr) strings->AddLength(length);
  }
  std::string_view checksum;
  if (!stream->GetBytes(kLengthChecksumSize, &checksum)) throw BadLengths(*stream);
  const uint32_t stored = UnmaskCrc(DecodeOrdered32(checksum, order));
  CheckChecksum("The length checksum", stored, lengths.Get(), stream->value(), stream->file());
  if (!fits || total != stream->remaining()) throw BadLengths(*stream);
  return Crc32cExtend(lengths.Get(), checksum.data(), checksum.size());
}

}  // namespace

void LengthChecksum::Add(uint64_t length) {
  const bool is_short = length <= UINT32_MAX;
  if (order_ == ByteOrder::kBig) length = is_short ? __builtin_bswap32(length) : __builtin_bswap64(length);
  if (is_short) {
    PutFixed32(&pending_, static_cast<uint32_t>(length));
  } else {
    PutFixed64(&pending_, length);
  }
  if (pending_.size() >= kPendingBytes) Get();
}

uint32_t LengthChecksum::Get() {
  crc_ = Crc32cExtend(crc_, pending_.data(), pending_.size());
  pending_.clear();
  return crc_;
}

std::string EncodeStringHeader(const std::vector<std::string_view>& values, uint32_t* crc) {
  std::string header;
  LengthChecksum lengths(ByteOrder::kLittle);
  for (std::string_view value : values) {
    PutVarint64(&header, value.size());
    lengths.Add(value.size());
  }
  PutFixed32(&header, MaskCrc(lengths.Get()));
  const size_t checksum_begin = header.size() - kLengthChecksumSize;
  *crc = Crc32cExtend(lengths.Get(), header.data() + checksum_begin, kLengthChecksumSize);
  return header;
}

void DecodeStrings(ValueStream* stream, ByteOrder order, StringArray* strings) {
  const BundleEntry& value = stream->value();
  const uint64_t num_elements = *NumElements(value.shape);
  uint32_t crc = 0;
  if (value.size > 0) {  // some producers leave the checksum of nothing out
    if (strings != nullptr) strings->ReserveStrings(num_elements);
    crc = DecodeHeader(stream, num_elements, order, strings);
  }
  if (strings != nullptr) strings->ReserveBytes(stream->remaining());
  while (stream->remaining() > 0) {
    const std::string_view portion = stream->Take(StreamBytes(stream->file()));
    crc = Crc32cExtend(crc, portion.data(), portion.size());
    if (strings != nullptr) strings->AddBytes(portion);
  }
  CheckChecksum(crc, value, stream->file());
}

}  // namespace trackckpt
