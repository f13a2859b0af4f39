// Stored values and the tensors in memory that they go to: found and compared first, then checked, then read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "bundle/data_files.h"
#include "bundle/index.h"
#include "bundle/parallel_reader.h"
#include "bundle/tensor_memory.h"

namespace trackckpt {

// A row that is a box of the stored tensor, which has this shape.
struct RowBox {
  size_t row = 0;
  std::vector<int64_t> shape;
  std::vector<int64_t> start;
};

// To be used by one thread at a time. Data files stay open from the first that is asked of them.
class RowPlan {
 public:
  // The value of keys[i] goes to row i of the table, if that row is plain, or is one of those that `land` (ascending),
  // whose values the caller takes on. Rows of `boxes` (ascending) take a box of their value. All stay with the caller
  // and outlive this.
  RowPlan(const BundleIndex& index, const DataFileNames& names, const std::vector<std::string_view>& keys,
          const TensorMemoryTable& table, std::vector<size_t> land, std::vector<RowBox> boxes);

  // The rows in the plan whose key is not there, or holds a value of another type or shape. With any, nothing is read.
  const std::vector<size_t>& misfits() const { return misfits_; }
  // The rows among those that would land that are not in the plan, because they take several stored parts, or a part of
  // one.
  const std::vector<size_t>& left_out() const { return left_out_; }
  // Of the rows that fit.
  uint64_t num_bytes() const { return num_bytes_; }

  // Checks that all values lie inside of their files, and slices make up their tensors.
  void Check();
  // Reads all values and checks their checksums; as all that follows, it does Check first. Stored values of which only
  // a part is needed are read whole, or not at all.
  void Verify(size_t num_threads, bool with_parts);
  // Reads about `max_bytes` of what has not been read yet, and returns how many; 0 when all is in memory.
  uint64_t Read(size_t num_threads, uint64_t max_bytes, const Landing& landing, std::vector<Landed>* landed);
  // The rows whose memory was, or may have been, written to.
  std::vector<size_t> Touched() const;
  // The bytes of the files that Read has read, with what lies between them.
  uint64_t NumRead() const { return reader_.NumRead(); }

 private:
  bool Lands(size_t row) const;
  const RowBox* BoxOf(size_t row) const;
  // What a row takes of its value.
  Box Request(size_t row) const;
  bool Fits(const BundleEntry& entry, size_t row) const;
  void Place(std::string_view key, const BundleEntry& entry, size_t row);
  void CheckPlace(const PlacedValue& value);
  void PlaceParts(size_t row);

  const BundleIndex& index_;
  const std::vector<std::string_view>& keys_;
  const TensorMemoryTable& table_;
  const std::vector<size_t> land_;
  const std::vector<RowBox> boxes_;
  DataFiles files_;
  ParallelReader reader_;
  std::vector<size_t> misfits_;
  std::vector<size_t> left_out_;
  std::vector<PlacedValue> in_one_piece_;
  std::vector<size_t> in_parts_;  // rows
  uint64_t num_bytes_ = 0;
  bool is_checked_ = false;
  std::shared_ptr<const ReadableFile> file_;  // of the shard that was looked at last
  int32_t file_shard_ = -1;
};

}  // namespace trackckpt
