// Reads a bundle of any number of shards. The index is in memory from the start; data files are open only
// within a call. All bytes may be hostile: sizes and offsets are checked before they are used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/data_files.h"
#include "bundle/entry.h"
#include "table/table_reader.h"

namespace trackckpt {

// Where the value of `key`, whose size the caller has worked out, is wanted.
struct ReadRequest {
  std::string key;
  void* destination = nullptr;
  uint64_t size = 0;
};

struct ReadProgress {
  size_t completed = 0;  // requests that were served
  bool touched = false;  // memory of the request after these was written to
};

// Any number of threads may use one reader at once.
class BundleReader {
 public:
  BundleReader(const std::string& index_path, std::string data_prefix,
               std::vector<std::string> data_suffixes);

  int32_t num_shards() const { return data_names_.num_shards; }

  // In key order, without the header.
  std::vector<BundleEntry> Entries() const;
  std::optional<BundleEntry> Find(std::string_view key) const;

  // Checks sizes against dtypes and shapes, and that every value lies inside its data file.
  void Check(const std::vector<std::string>& keys) const;
  // Reads the values and checks their checksums.
  void Verify(const std::vector<std::string>& keys) const;

  // Checks all requests like Check, then serves them in order. A value of at most kMaxBufferedBytes is
  // checked before its destination is touched. `progress` holds even when this throws.
  static constexpr uint64_t kMaxBufferedBytes = 1 << 20;
  void Read(const std::vector<ReadRequest>& requests, ReadProgress* progress) const;

  // In row-major order.
  std::vector<std::string> ReadStrings(std::string_view key) const;

 private:
  // The place of a value that has been checked against its data file.
  struct Value {
    BundleEntry entry;
    void* destination = nullptr;

    uint64_t offset() const { return static_cast<uint64_t>(entry.offset); }
    uint64_t size() const { return static_cast<uint64_t>(entry.size); }
  };

  void ReadHeader();
  BundleEntry DecodeEntry(std::string_view key, std::string_view record) const;
  Value Locate(std::string_view key, DataFiles* files) const;
  void CheckFormat(const BundleEntry& entry) const;
  Value CheckRequest(const ReadRequest& request, DataFiles* files) const;

  static size_t EndOfNeighbours(const std::vector<Value>& values, size_t begin);
  void ReadNeighbours(const std::vector<Value>& values, DataFiles* files, std::string* buffer,
                      ReadProgress* progress) const;
  void ReadInPlace(const Value& value, DataFiles* files, ReadProgress* progress) const;
  void VerifyFixed(const Value& value, DataFiles* files, std::string* buffer) const;
  std::vector<std::string_view> LoadStrings(const Value& value, DataFiles* files, std::string* data) const;

  std::string index_path_;
  TableReader index_;
  DataFileNames data_names_;
};

}  // namespace trackckpt
