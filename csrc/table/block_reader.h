// Reads the contents of one block; block_builder.h has the layout. The bytes may be anything: what is wrong
// with them is found where it is met, and thrown with the path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "table/format.h"

namespace trackckpt {

// A position in a block. The contents and the path stay with the caller and outlive it.
class BlockIterator {
 public:
  BlockIterator(std::string_view contents, const std::string& path);

  // These three leave the iterator invalid when there is no such entry.
  void SeekToFirst();
  // To the first entry whose key is not less than `target`.
  void Seek(std::string_view target);
  // Requires Valid(). Checks that the keys increase.
  void Next();

  bool Valid() const { return valid_; }
  // The key is valid until the iterator moves, the value as long as the contents.
  const std::string& key() const { return key_; }
  std::string_view value() const { return value_; }

 private:
  void SeekToRestart(uint32_t index);
  void ParseNextEntry(bool is_restart);
  uint32_t LastRestartBefore(std::string_view target);

  std::string_view entries_;   // the block up to the restart points
  std::string_view restarts_;  // four bytes each
  uint32_t num_restarts_;
  const std::string* path_;

  bool valid_ = false;
  std::string_view rest_;  // the entries behind the current one
  std::string key_;
  std::string_view value_;
};

// Contents with restart points that are close enough together for lookups. Where a writer left many entries without
// any, every lookup would go through all of them; the block is then built anew in `rebuilt`, of which the result is a
// view. Otherwise the result is `contents`.
std::string_view WithRestartPoints(std::string_view contents, const std::string& path, std::string* rebuilt);

// The value of `key` in a data block.
std::optional<std::string_view> FindInBlock(std::string_view contents, std::string_view key,
                                            const std::string& path);

// The handle of the only data block that may hold `key`. `contents` are those of the index block.
std::optional<BlockHandle> FindDataBlock(std::string_view contents, std::string_view key,
                                         const std::string& path);

BlockHandle DecodeHandle(std::string_view encoded, const std::string& path);

}  // namespace trackckpt
