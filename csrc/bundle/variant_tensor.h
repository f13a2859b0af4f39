// How a tensor of variants lies in a data file: each element on its own, as a message.
//
//    element  varint(length) | VariantTensorDataProto | checksum (uint32)
//
//    checksum       masked crc32c of all lengths (as uint64), messages and checksums so far
//    entry.crc32c   masked: the same, the last checksum included
#pragma once

#include <cstdint>

namespace trackckpt {

class StringArray;
class ValueStream;

constexpr uint64_t kMinVariantSize = 5;

// Takes a variant tensor out of `stream` and checks it. The messages go to `messages`, unless that is null.
void DecodeVariants(ValueStream* stream, StringArray* messages);

}  // namespace trackckpt
