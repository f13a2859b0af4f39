// Tables whose frames are sound, whatever their content is: random changes would hardly ever get past a checksum.
//
//    table:   how (1 byte, by its remainder of 3)
//      0 file     the bytes of the file
//      1 blocks   block chunk*: the block's type (1 byte) | its contents   the index block is made of them
//      2 entries  key chunk, value chunk, ...                              sorted; the last value of a key counts
#pragma once

#include <map>
#include <string>

#include "fuzz/input.h"

namespace trackckpt::fuzz {

using Entries = std::map<std::string, std::string>;

enum class TableKind : uint8_t { kFile = 0, kBlocks = 1, kEntries = 2 };
TableKind ReadTableKind(Input* input);

// What follows the kind, each up to the end of the input.
std::string BlocksTable(Input input);
Entries ReadEntries(Input input);

// Writes a scratch file, whose path is returned.
std::string WriteEntries(const std::string& name, const Entries& entries);
std::string WriteTable(const std::string& name, Input input);

}  // namespace trackckpt::fuzz
