// Reads a bundle of any number of shards. The index is in memory from the start; data files are open only
// within a call. All bytes may be hostile: sizes and offsets are checked before they are used.
//
//    index.h         the entries               parallel_reader.h  many values on their way to memory
//    locator.h       where a tensor lies       fixed_reader.h     a single one, or a part
//    string_parts.h  its strings               stored_value.h     a value as it lies in a file
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/data_files.h"
#include "bundle/entry.h"
#include "bundle/index.h"
#include "bundle/locator.h"
#include "bundle/string_parts.h"
#include "io/file.h"

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
  BundleReader(const std::string& index_path, std::string data_prefix, std::vector<std::string> data_suffixes,
               std::shared_ptr<const FilePlace> place = std::make_shared<LocalPlace>());

  int32_t num_shards() const { return index_.num_shards(); }
  bool is_big_endian() const { return index_.byte_order() == ByteOrder::kBig; }
  std::string DataPath(int64_t shard_id) const;
  const BundleIndex& index() const { return index_; }
  const DataFileNames& data_names() const { return data_names_; }

  // In key order, without the header and without the entries of slices.
  std::vector<BundleEntry> Entries() const { return index_.Entries(); }
  EntryColumns Columns() const { return index_.Columns(); }
  bool ForEachUnsliced(const std::function<void(const BundleEntry& entry)>& visit) const {
    return index_.ForEachUnsliced(visit);
  }
  std::optional<BundleEntry> Find(std::string_view key) const { return index_.Find(key); }

  // Checks sizes against dtypes and shapes, that every value lies inside its data file, and that slices make up
  // the whole of their tensor.
  void Check(const std::vector<std::string>& keys) const;
  // Reads the values and checks their checksums.
  void Verify(const std::vector<std::string>& keys, size_t num_threads) const;

  // Checks all requests like Check, then serves them in the order of the files. A value of at most 1 MiB in one piece
  // is checked before its destination is touched. When this throws, `touched` are the requests whose destinations
  // were, or may have been, written to.
  void Read(const std::vector<ReadRequest>& requests, size_t num_threads, std::vector<size_t>* touched) const;

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
