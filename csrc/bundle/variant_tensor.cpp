#include "bundle/variant_tensor.h"

#include "bundle/stored_value.h"
#include "bundle/string_tensor.h"
#include "encoding/coding.h"
#include "encoding/crc32c.h"

namespace trackckpt {

namespace {

constexpr size_t kChecksumSize = 4;

Error BadLength(const ValueStream& stream) {
  return DamagedValue("Variant length longer than expected offset, or shorter", stream.value(),
                      stream.file());
}

uint32_t ExtendByLength(uint32_t crc, uint64_t length) {
  std::string fixed;
  PutFixed64(&fixed, length);
  return Crc32cExtend(crc, fixed.data(), fixed.size());
}

// Takes one element. Returns the checksum so far.
uint32_t DecodeElement(ValueStream* stream, uint32_t crc, StringArray* messages) {
  uint64_t length;
  if (!stream->GetVarint64(&length) || length > stream->remaining()) throw BadLength(*stream);
  crc = ExtendByLength(crc, length);
  if (messages != nullptr) messages->AddLength(length);
  while (length > 0) {
    const std::string_view portion = stream->Take(length);
    crc = Crc32cExtend(crc, portion.data(), portion.size());
    if (messages != nullptr) messages->AddBytes(portion);
    length -= portion.size();
  }
  std::string_view checksum;
  if (!stream->GetBytes(kChecksumSize, &checksum)) throw BadLength(*stream);
  const uint32_t stored = UnmaskCrc(DecodeFixed32(checksum.data()));
  CheckChecksum("The checksum of a variant", stored, crc, stream->value(), stream->file());
  return Crc32cExtend(crc, checksum.data(), checksum.size());
}

}  // namespace

void DecodeVariants(ValueStream* stream, StringArray* messages) {
  const uint64_t num_elements = *NumElements(stream->value().shape);
  if (messages != nullptr) {
    messages->ReserveStrings(num_elements);
    messages->ReserveBytes(stream->remaining());
  }
  uint32_t crc = 0;
  for (uint64_t i = 0; i < num_elements; ++i) crc = DecodeElement(stream, crc, messages);
  if (stream->remaining() > 0) throw BadLength(*stream);
  CheckChecksum(crc, stream->value(), stream->file());
}

}  // namespace trackckpt
