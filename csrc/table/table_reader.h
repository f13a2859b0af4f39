// Reads a table from memory: the whole file is loaded at once and closed. format.h and block_builder.h have
// the layout.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "table/format.h"

namespace trackckpt {

class TableReader {
 public:
  // Loads the file and checks its footer and its index block; the other blocks are checked when first
  // touched.
  explicit TableReader(const std::string& path);

  // The value of `key`, valid as long as the reader. Any number of threads may ask at once.
  std::optional<std::string_view> Get(std::string_view key) const;

  using Visitor = std::function<void(const std::string& key, std::string_view value)>;
  // Visits all entries in order.
  void ForEach(const Visitor& visit) const;

 private:
  [[noreturn]] void Corrupt(const char* what) const;
  std::string_view DataBlock(std::string_view encoded_handle) const;

  const std::string path_;
  std::string contents_;
  std::string_view index_block_;
  mutable std::mutex mutex_;
  mutable std::set<std::pair<uint64_t, uint64_t>> verified_blocks_;  // offset and size; guarded by mutex_
};

}  // namespace trackckpt
