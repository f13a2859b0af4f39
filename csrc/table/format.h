// The frame of a table file.
//
//    file:   data block*, metaindex block, index block, footer
//    block:  contents, maybe compressed | type (1 byte) | masked crc32c of both as they lie there (uint32)
//    handle: varint64 offset of a block | varint64 size of its contents as they lie there
//    footer: metaindex handle | index handle | zeros up to 40 bytes | magic (uint64)
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "io/file.h"

namespace trackckpt {

constexpr uint64_t kTableMagicNumber = 0xdb4775248b80fb57ull;
constexpr size_t kBlockTrailerSize = 5;
constexpr size_t kDefaultBlockSize = 262144;
constexpr int kBlockRestartInterval = 16;
constexpr int kIndexRestartInterval = 1;

// Sharing lets a few bytes stand for a long key, and compression lets fewer do so. Sixteen entries between restart
// points, the usual number, give a factor of at most 16, and Snappy one of at most 22. A file whose keys go beyond
// both is made to exhaust whoever lists it.
constexpr uint64_t kMaxKeyExpansion = 16 * 22;

enum class BlockType : uint8_t { kStored = 0, kSnappy = 1 };

struct BlockHandle {
  uint64_t offset = 0;
  uint64_t size = 0;  // without the trailer

  void EncodeTo(std::string* dst) const;
  bool DecodeFrom(std::string_view* input);
  bool operator==(const BlockHandle& other) const { return offset == other.offset && size == other.size; }
};

struct Footer {
  static constexpr size_t kEncodedLength = 48;

  BlockHandle metaindex_handle;
  BlockHandle index_handle;

  void EncodeTo(std::string* dst) const;
  // The magic number is the caller's to check.
  bool DecodeFrom(std::string_view input);
};

// The trailer of a block that is stored as it is.
std::string EncodeBlockTrailer(std::string_view contents);

// Reads the last bytes of the file. Throws if it is no table; the message names a Git LFS pointer as such.
Footer ReadFooter(const ReadableFile& file);

// Throws unless the block and its trailer lie inside a file of `file_size` bytes.
void CheckInside(const BlockHandle& handle, uint64_t file_size, const std::string& path);

// The contents of a block from its bytes with the trailer, whose checksum is checked. What was compressed is put
// into `uncompressed`, which the result then is a view of; otherwise it is a view of `sealed`.
std::string_view OpenBlock(std::string_view sealed, const std::string& path, std::string* uncompressed);

}  // namespace trackckpt
