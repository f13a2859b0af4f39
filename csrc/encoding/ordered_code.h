// Codes whose bytes sort as what they stand for. The keys of slices are made of them; nothing decodes them,
// because the records beside the keys say the same in plain fields.
//
//    number   n (1 byte) | the value in n bytes, big-endian; n is the least that holds it, 0 for 0
//    string   00 -> 00 ff, ff -> ff 00, other bytes as they are | 00 01
//    signed   big-endian two's complement in as few bytes as hold it beside a header of as many bits as there
//             are bytes: the header's bits are inverted for negative values
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace trackckpt {

void PutOrderedNumber(std::string* dst, uint64_t value);
void PutOrderedString(std::string* dst, std::string_view value);
void PutOrderedSigned(std::string* dst, int64_t value);

}  // namespace trackckpt
