#include "encoding/coding.h"

namespace trackckpt {

namespace {

template <typename T>
void PutFixed(std::string* dst, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) dst->push_back(static_cast<char>((value >> (8 * i)) & 0xff));
}

template <typename T>
T DecodeFixed(const char* src) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= T{static_cast<uint8_t>(src[i])} << (8 * i);
  return value;
}

template <typename T>
bool GetFixed(std::string_view* input, T* value) {
  if (input->size() < sizeof(T)) return false;
  *value = DecodeFixed<T>(input->data());
  input->remove_prefix(sizeof(T));
  return true;
}

}  // namespace

void PutFixed32(std::string* dst, uint32_t value) { PutFixed(dst, value); }

void PutFixed64(std::string* dst, uint64_t value) { PutFixed(dst, value); }

uint32_t DecodeFixed32(const char* src) { return DecodeFixed<uint32_t>(src); }

uint64_t DecodeFixed64(const char* src) { return DecodeFixed<uint64_t>(src); }

bool GetFixed32(std::string_view* input, uint32_t* value) { return GetFixed(input, value); }

bool GetFixed64(std::string_view* input, uint64_t* value) { return GetFixed(input, value); }

void PutVarint64(std::string* dst, uint64_t value) {
  for (; value >= 0x80; value >>= 7) dst->push_back(static_cast<char>(value | 0x80));
  dst->push_back(static_cast<char>(value));
}

bool GetVarint64(std::string_view* input, uint64_t* value) {
  *value = 0;
  for (unsigned shift = 0; shift < 64; shift += 7) {
    if (input->empty()) return false;
    const uint8_t byte = static_cast<uint8_t>(input->front());
    input->remove_prefix(1);
    *value |= uint64_t{byte & 0x7fu} << shift;
    if (byte < 0x80) return shift < 63 || byte <= 1;  // the tenth byte holds only bit 63
  }
  return false;
}

bool GetVarint32(std::string_view* input, uint32_t* value) {
  uint64_t wide;
  if (!GetVarint64(input, &wide) || wide > UINT32_MAX) return false;
  *value = static_cast<uint32_t>(wide);
  return true;
}

bool GetLengthPrefixed(std::string_view* input, std::string_view* value) {
  uint64_t length;
  if (!GetVarint64(input, &length) || length > input->size()) return false;
  *value = input->substr(0, length);
  input->remove_prefix(length);
  return true;
}

}  // namespace trackckpt
