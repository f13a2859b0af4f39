// Reads the raw Snappy format, in which blocks of tables may be compressed.
//
//    stream:   varint length of what it stands for | element*
//    element:  tag (1 byte), whose two low bits say which
//      00 literal   the upper six bits are length - 1; 60 to 63 say that length - 1 follows in 1 to 4 bytes
//                   | the bytes
//      01 copy      bits 2 to 4 are length - 4; bits 5 to 7, then one byte: the offset (11 bits)
//      10 copy      the upper six bits are length - 1 | two bytes: the offset
//      11 copy      the upper six bits are length - 1 | four bytes: the offset
//
// A copy repeats bytes that begin `offset` before the end of the output so far. It may be longer than its offset,
// and then repeats what it has itself put out. Numbers of several bytes are little-endian.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace trackckpt {

// No stream stands for more than this many times its size: a copy of three bytes is at most 64 long.
constexpr uint64_t kMaxSnappyExpansion = 22;

// False, leaving `output` undefined, if `stream` is malformed. Takes memory for at most kMaxSnappyExpansion times
// the stream.
bool SnappyUncompress(std::string_view stream, std::string* output);

}  // namespace trackckpt
