#include "bundle/string_tensor.h"

#include "encoding/coding.h"
#include "encoding/crc32c.h"

namespace trackckpt {

namespace {

uint32_t ExtendByLength(uint32_t crc, uint64_t length) {
  std::string fixed;
  if (length <= UINT32_MAX) {
    PutFixed32(&fixed, static_cast<uint32_t>(length));
  } else {
    PutFixed64(&fixed, length);
  }
  return Crc32cExtend(crc, fixed.data(), fixed.size());
}

}  // namespace

std::string EncodeStringHeader(const std::vector<std::string_view>& values, uint32_t* crc) {
  std::string header;
  uint32_t length_crc = 0;
  for (std::string_view value : values) {
    PutVarint64(&header, value.size());
    length_crc = ExtendByLength(length_crc, value.size());
  }
  PutFixed32(&header, MaskCrc(length_crc));
  const size_t checksum_begin = header.size() - kLengthChecksumSize;
  *crc = Crc32cExtend(length_crc, header.data() + checksum_begin, kLengthChecksumSize);
  return header;
}

bool StringHeader::DecodeFrom(std::string_view* data, uint64_t num_elements) {
  if (num_elements == 0 && data->empty()) return true;  // some producers leave the checksum of nothing out
  if (num_elements > data->size()) return false;        // a length takes at least a byte
  lengths.resize(num_elements);
  for (uint64_t& length : lengths) {
    if (!GetVarint64(data, &length)) return false;
    computed_length_crc = ExtendByLength(computed_length_crc, length);
  }
  if (data->size() < kLengthChecksumSize) return false;
  stored_length_crc = UnmaskCrc(DecodeFixed32(data->data()));
  crc = Crc32cExtend(computed_length_crc, data->data(), kLengthChecksumSize);
  data->remove_prefix(kLengthChecksumSize);
  return true;
}

bool SplitStrings(const std::vector<uint64_t>& lengths, std::string_view data,
                  std::vector<std::string_view>* values) {
  values->reserve(lengths.size());
  for (uint64_t length : lengths) {
    if (length > data.size()) return false;
    values->push_back(data.substr(0, length));
    data.remove_prefix(length);
  }
  return data.empty();
}

}  // namespace trackckpt
