// Reads a table from memory: the whole file is loaded at once and closed. format.h and block_builder.h have
// the layout. table_file.h is for tables that are too large for this.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/readable_file.h"
#include "table/format.h"

namespace trackckpt {

class TableReader {
 public:
  // Loads the file and checks its footer and its index block; the other blocks are checked when first
  // touched.
  explicit TableReader(const ReadableFile& file);
  // A file of this machine.
  explicit TableReader(const std::string& path);

  size_t file_size() const { return file_.size(); }

  // The value of `key`, valid as long as the reader. Any number of threads may ask at once.
  std::optional<std::string_view> Get(std::string_view key) const;

  // As Get, for each of the keys. Many of them are met on one way through the table.
  std::vector<std::optional<std::string_view>> GetMany(const std::vector<std::string_view>& keys) const;

  using Visitor = std::function<void(const std::string& key, std::string_view value)>;
  // Visits all entries in order.
  void ForEach(const Visitor& visit) const;

 private:
  // A block that has been checked.
  struct Block {
    std::string uncompressed;   // empty where the file holds the contents as they are
    std::string rebuilt;        // empty where they have enough restart points
    std::string_view contents;  // of one of these, or of the file
  };

  using Values = std::vector<std::optional<std::string_view>>;

  // False where that is of no use: there are few keys, or blocks are damaged that may hold none of them.
  bool GetInPassing(const std::vector<std::string_view>& keys, Values* values) const;
  [[noreturn]] void Corrupt(const char* what) const;
  std::string_view Sealed(const BlockHandle& handle) const;
  std::string_view DataBlock(const BlockHandle& handle) const;

  const std::string path_;
  std::string file_;
  Block index_block_;
  mutable std::mutex mutex_;
  // By offset and size. These two are guarded by mutex_.
  mutable std::map<std::pair<uint64_t, uint64_t>, std::unique_ptr<const Block>> blocks_;
  mutable uint64_t stored_bytes_ = 0;  // what the blocks take in the file
};

}  // namespace trackckpt
