// Writes one data file, and gathers the entries of what lies in it.
//
//    data file   the bytes of the tensors in the order given (string_tensor.h: those of strings), each followed
//                by zeros up to a multiple of `alignment`; without gaps where that is 1
//
// Every byte goes through the processor's cache once: it is written right after its checksum was computed, small
// tensors by way of the file's buffer, large ones chunk by chunk from their own memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/entry.h"
#include "bundle/slice.h"
#include "bundle/string_tensor.h"
#include "bundle/tensor_memory.h"
#include "bundle/writer_state.h"
#include "io/output.h"

namespace trackckpt {

// One tensor of fixed-size elements, C-contiguous in memory.
struct TensorBytes {
  std::string key;
  int32_t dtype = 0;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  uint64_t size = 0;
};

// Throws unless a slice of this dtype, and of a tensor of this shape, is one of the tensor that has the entry.
void CheckOneTensor(const BundleEntry& entry, int32_t dtype, const std::vector<int64_t>& shape);

// For one thread at a time. After an error it is of no more use than to be discarded.
class ShardWriter {
 public:
  // Tensors that are stored in slices, each with the slices that lie in this shard.
  using SlicedTensors = std::map<std::string, BundleEntry>;

  // `state` outlives the writer; once it is closed, calls that are under way throw.
  ShardWriter(std::unique_ptr<Output> output, int32_t shard_id, int64_t alignment, const WriterState& state);

  // Says that at least so many bytes are going to be added.
  void Expect(uint64_t size) { Sink().Expect(size); }
  void Add(const TensorBytes& tensor);
  // A row of a table that holds it, and is plain.
  void AddRow(std::string_view key, const TensorMemoryTable& table, const TensorMemory& row);
  // Some of the bytes of a row, which need not be plain. The pieces of a row follow each other, from front to back.
  void AddRowPiece(std::string_view key, const TensorMemoryTable& table, const RowPiece& piece);
  void AddStrings(std::string_view key, std::vector<int64_t> shape,
                  const std::vector<std::string_view>& values);
  void AddSlice(TensorBytes tensor, const TensorSlice& slice);
  void AddStringsSlice(std::string key, std::vector<int64_t> shape, const TensorSlice& slice,
                       const std::vector<std::string_view>& values);

  // Completes the file. Nothing can be added any more; harmless if it was called before.
  void Complete();
  // Removes the file.
  void Discard() { output_->Discard(); }

  // What the index says of this shard: for each key a record, in the order of the file.
  const StringArray& keys() const { return keys_; }
  const StringArray& records() const { return records_; }
  const SlicedTensors& sliced() const { return sliced_; }

 private:
  Output& Sink();
  void BeginEntry(std::string_view key, int32_t dtype);
  void CheckNotPartial() const;
  void EndEntry(std::string_view key, uint64_t size, uint32_t crc);
  void EnterSlice(const TensorSlice& slice, int32_t dtype, std::string* key, std::vector<int64_t>* shape);
  uint32_t AppendChecked(uint32_t crc, const void* data, uint64_t size);
  void AppendPadding();

  const std::unique_ptr<Output> output_;
  const int32_t shard_id_;
  const int64_t alignment_;
  const WriterState& state_;
  bool is_complete_ = false;
  int64_t offset_ = 0;
  BundleEntry entry_;  // of the tensor that is being written; kept, so that the next costs no allocation
  std::string record_;
  size_t partial_row_ = 0;
  uint64_t partial_bytes_ = 0;  // that there are of a row; 0 between rows
  uint32_t partial_crc_ = 0;
  StringArray keys_;
  StringArray records_;
  SlicedTensors sliced_;
};

}  // namespace trackckpt
