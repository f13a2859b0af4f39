// The frame of a table file.
//
//    file:   data block*, metaindex block, index block, footer
//    block:  contents | type (1 byte) | masked crc32c of contents and type (uint32)
//    handle: varint64 offset of a block | varint64 size of its contents
//    footer: metaindex handle | index handle | zeros up to 40 bytes | magic (uint64)
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace trackckpt {

constexpr uint64_t kTableMagicNumber = 0xdb4775248b80fb57ull;
constexpr size_t kBlockTrailerSize = 5;
constexpr size_t kDefaultBlockSize = 262144;
constexpr int kBlockRestartInterval = 16;
constexpr int kIndexRestartInterval = 1;

enum class BlockType : uint8_t { kStored = 0, kSnappy = 1 };

struct BlockHandle {
  uint64_t offset = 0;
  uint64_t size = 0;  // without the trailer

  void EncodeTo(std::string* dst) const;
  bool DecodeFrom(std::string_view* input);
};

struct Footer {
  static constexpr size_t kEncodedLength = 48;

  BlockHandle metaindex_handle;
  BlockHandle index_handle;

  void EncodeTo(std::string* dst) const;
  // `path` is for the message: throws if the bytes are no footer.
  void DecodeFrom(std::string_view input, const std::string& path);
};

// The trailer of a block that is stored as it is.
std::string EncodeBlockTrailer(std::string_view contents);

// The contents of the block at `handle` in the bytes of a whole file, without the trailer.
std::string_view ReadBlock(std::string_view file, const BlockHandle& handle, bool verify_checksum,
                           const std::string& path);

}  // namespace trackckpt
