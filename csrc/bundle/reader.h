// Reads a bundle of any number of shards. The index is in memory from the start; data files are open only
// within a call. All bytes may be hostile: sizes and offsets are checked before they are used.
//
//    index.h         the entries               stored_value.h   a value as it lies in a file
//    locator.h       where a tensor lies       fixed_reader.h   its bytes on their way to memory
//    string_parts.h  its strings
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/data_files.h"
#include "bundle/entry.h"
#include "bundle/fixed_reader.h"
#include "bundle/index.h"
#include "bundle/locator.h"
#include "bundle/string_parts.h"

namespace trackckpt {

// Where the value of `key`, whose size the caller has worked out, is wanted.
struct ReadRequest {
  std::string key;
  void* destination = nullptr;
  uint64_t size = 0;
};

// Any number of threads may use one reader at once.
class BundleReader {
 public:
  BundleReader(const std::string& index_path, std::string data_prefix,
               std::vector<std::string> data_suffixes);

  int32_t num_shards() const { return index_.num_shards(); }
  bool is_big_endian() const { return index_.byte_order() == ByteOrder::kBig; }
  std::string DataPath(int64_t shard_id) const;

  // In key order, without the header and without the entries of slices.
  std::vector<BundleEntry> Entries() const { return index_.Entries(); }
  std::optional<BundleEntry> Find(std::string_view key) const { return index_.Find(key); }

  // Checks sizes against dtypes and shapes, that every value lies inside its data file, and that slices make up
  // the whole of their tensor.
  void Check(const std::vector<std::string>& keys) const;
  // Reads the values and checks their checksums.
  void Verify(const std::vector<std::string>& keys) const;

  // Checks all requests like Check, then serves them in order. A value of at most 1 MiB in one piece is checked
  // before its destination is touched. `progress` holds even when this throws.
  void Read(const std::vector<ReadRequest>& requests, ReadProgress* progress) const;

  // Reads a part. With `verify`, the stored values that hold it are checked before the destination is touched;
  // otherwise only what is needed is read, and only values that are needed whole are checked.
  void ReadSlice(const ReadRequest& request, const TensorSlice& slice, bool verify) const;

  // All elements, or those of a part.
  std::unique_ptr<StringParts> ReadStrings(std::string_view key,
                                           const std::optional<TensorSlice>& slice) const;
  // Serialised VariantTensorDataProto messages.
  std::unique_ptr<StringParts> ReadVariants(std::string_view key) const;

 private:
  BundleIndex index_;
  DataFileNames data_names_;
};

}  // namespace trackckpt
