// The index of a bundle, in memory from the start: the header, and what is said of each tensor. All bytes may
// be hostile; what is said of the place of a value is checked when the value is located (locator.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/entry.h"
#include "bundle/entry_columns.h"
#include "encoding/byte_order.h"
#include "table/table_reader.h"

namespace trackckpt {

// Any number of threads may use one index at once.
class BundleIndex {
 public:
  // Reads the whole file and checks the header.
  explicit BundleIndex(const ReadableFile& file);

  const std::string& path() const { return path_; }
  int32_t num_shards() const { return num_shards_; }
  // Of the numbers in the data files.
  ByteOrder byte_order() const { return byte_order_; }

  // In key order, without the header and without the entries of slices.
  std::vector<BundleEntry> Entries() const;
  EntryColumns Columns() const;
  // The same, one after the other, each valid until `visit` returns. False where entries of slices are among them, which
  // only Entries can tell from others: `visit` may have been called before that is known.
  bool ForEachUnsliced(const std::function<void(const BundleEntry& entry)>& visit) const;
  std::optional<BundleEntry> Find(std::string_view key) const;
  // Calls `visit` with the position of each key, in order, and its entry, which is a null pointer where there is none
  // and valid until `visit` returns.
  using EntryVisitor = std::function<void(size_t position, const BundleEntry* entry)>;
  void FindMany(const std::vector<std::string_view>& keys, const EntryVisitor& visit) const;

 private:
  void ReadHeader();
  // Whatever was in `entry` before; its memory is used again.
  void DecodeEntry(std::string_view key, std::string_view record, BundleEntry* entry) const;
  void CheckPlace(const BundleEntry& entry) const;

  const std::string path_;
  const TableReader table_;
  int32_t num_shards_ = 0;
  ByteOrder byte_order_ = ByteOrder::kLittle;
};

}  // namespace trackckpt
