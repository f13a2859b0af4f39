// Numbers as bytes: fixed-width little-endian integers, and varints.
//
//    varint: 7 bits a byte, low bits first; the top bit is set on every byte but the last. At most 10 bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace trackckpt {

void PutFixed32(std::string* dst, uint32_t value);
void PutFixed64(std::string* dst, uint64_t value);
void PutVarint64(std::string* dst, uint64_t value);

// The caller has made sure that four, or eight, bytes are there.
uint32_t DecodeFixed32(const char* src);
uint64_t DecodeFixed64(const char* src);

// Take a number off the front of `input`. False, leaving `input` undefined, if it is cut or does not fit.
bool GetFixed32(std::string_view* input, uint32_t* value);
bool GetFixed64(std::string_view* input, uint64_t* value);
bool GetVarint32(std::string_view* input, uint32_t* value);
bool GetVarint64(std::string_view* input, uint64_t* value);

// Takes a varint and that many bytes off the front of `input`.
bool GetLengthPrefixed(std::string_view* input, std::string_view* value);

}  // namespace trackckpt
