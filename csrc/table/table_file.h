// Reads a table that may be larger than memory: the index block is loaded at once, a data block when a value of it
// is asked for. format.h and block_builder.h have the layout. table_reader.h is for small tables.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "io/file.h"
#include "table/format.h"

namespace trackckpt {

class TableFile {
 public:
  // Checks the footer and the index block, and closes the file.
  explicit TableFile(const std::string& path);

  const std::string& path() const { return path_; }
  uint64_t size() const { return state_.size; }

  // Opens the file again. Throws kDataLoss if it is no longer the one that the index block was read from.
  LocalFile Open() const;

  // The data block that was read last.
  class LastBlock {
   public:
    // The contents of the block at `handle`, valid until the next call.
    std::string_view Load(const LocalFile& file, const BlockHandle& handle);

   private:
    void Clear();

    std::optional<FileState> file_;  // which the block was read from, if any was
    BlockHandle handle_;
    std::string sealed_;
    std::string uncompressed_;
    std::string rebuilt_;
    std::string_view contents_;
  };

  // The value of `key`, valid until `block` loads another. `file` is from Open. Any number of
  // threads may ask at once, each with a file and a block of its own.
  std::optional<std::string_view> Get(const LocalFile& file, std::string_view key, LastBlock* block) const;

 private:
  std::string path_;
  FileState state_;
  std::string index_block_;
};

}  // namespace trackckpt
