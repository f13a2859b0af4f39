// The index of a bundle, in memory from the start: the header, and what is said of each tensor. All bytes may
// be hostile; what is said of the place of a value is checked when the value is located (locator.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/entry.h"
#include "encoding/byte_order.h"
#include "table/table_reader.h"

namespace trackckpt {

// Any number of threads may use one index at once.
class BundleIndex {
 public:
  // Reads the whole file and checks the header.
  explicit BundleIndex(const std::string& path);

  const std::string& path() const { return path_; }
  int32_t num_shards() const { return num_shards_; }
  // Of the numbers in the data files.
  ByteOrder byte_order() const { return byte_order_; }

  // In key order, without the header and without the entries of slices.
  std::vector<BundleEntry> Entries() const;
  std::optional<BundleEntry> Find(std::string_view key) const;

 private:
  void ReadHeader();
  BundleEntry DecodeEntry(std::string_view key, std::string_view record) const;
  void CheckPlace(const BundleEntry& entry) const;

  const std::string path_;
  const TableReader table_;
  int32_t num_shards_ = 0;
  ByteOrder byte_order_ = ByteOrder::kLittle;
};

}  // namespace trackckpt
