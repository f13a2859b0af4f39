// The records of a bundle's index: a header under the empty key, and an entry for every tensor.
//
//    BundleHeaderProto { 1 num_shards int32 | 2 endianness enum | 3 version VersionDef (version.h) }
//    BundleEntryProto  { 1 dtype enum | 2 shape TensorShapeProto | 3 shard_id int32 | 4 offset int64
//                        5 size int64 | 6 crc32c fixed32, masked | 7 repeated slices TensorSliceProto }
//    TensorShapeProto  { 2 repeated dim { 1 size int64 | 2 name } | 3 unknown_rank bool }
//
// Fields are written in ascending order and left out when 0; `shape` is always there. The entry of a tensor that
// is stored in slices has its whole shape and lists the slices (slice.h), whose bytes have entries of their own,
// each with the slice's shape, under slice keys.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/slice.h"
#include "bundle/version.h"

namespace trackckpt {

struct BundleHeader : Version {
  int32_t num_shards = 0;
  int32_t endianness = 0;  // 0 little, 1 big

  void EncodeTo(std::string* dst) const;
  bool DecodeFrom(std::string_view value);
};

struct BundleEntry {
  std::string key;
  int32_t dtype = 0;
  std::vector<int64_t> shape;
  int32_t shard_id = 0;
  int64_t offset = 0;
  int64_t size = 0;
  uint32_t crc32c = 0;  // masked
  std::vector<TensorSlice> slices;
  bool is_unknown_rank = false;

  // Keeps the memory that it has, for the next one.
  void Clear();
  // The key is not part of the record.
  void EncodeTo(std::string* dst) const;
  // Into an entry that is empty. False as well if more than `max_slices` are listed.
  bool DecodeFrom(std::string_view value, size_t max_slices = SIZE_MAX);
};

// Nothing for a shape that no tensor can have: a negative dimension, too many of them, or too many elements.
std::optional<uint64_t> NumElements(const std::vector<int64_t>& shape);

// Adds the dimensions of a TensorShapeProto to `entry`. False if the message is malformed.
bool DecodeShape(std::string_view message, BundleEntry* entry);

// A key for a message: UTF-8 as it is, control characters and other bytes as \xNN.
std::string DisplayKey(std::string_view key);

}  // namespace trackckpt
