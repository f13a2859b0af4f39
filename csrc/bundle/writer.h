// Writes a bundle of one shard: a data file and an index.
//
//    data file   the bytes of the tensors in the order given (string_tensor.h: those of strings), each followed
//                by zeros up to a multiple of `alignment`; without gaps where that is 1
//
//    index       a table (table_builder.h): "" -> header, then key -> entry for each tensor (entry.h)
//
// A slice is stored like a tensor, under a key of its own (slice.h). The entry of the tensor that it belongs to
// lists the slices in the order given, and has neither place nor size.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/entry.h"
#include "bundle/slice.h"
#include "io/file.h"

namespace trackckpt {

// One tensor of fixed-size elements, C-contiguous in memory.
struct TensorBytes {
  std::string key;
  int32_t dtype = 0;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  uint64_t size = 0;
};

// After any error the writer is failed, and all calls but Abandon throw kWriterClosed. Calls from several
// threads take turns.
class BundleWriter {
 public:
  // Creates both files; neither may exist. With `durable`, Finish syncs both.
  BundleWriter(const std::string& data_path, const std::string& index_path, bool durable, size_t block_size,
               int64_t alignment);
  BundleWriter(const BundleWriter&) = delete;
  BundleWriter& operator=(const BundleWriter&) = delete;
  // Abandons what has not been finished.
  ~BundleWriter();

  // The bytes have been handed to the operating system when these return.
  void Add(const std::vector<TensorBytes>& tensors);
  void AddStrings(std::string key, std::vector<int64_t> shape, const std::vector<std::string_view>& values);

  // These take the key and the shape of the whole tensor, and the bytes or the strings of the slice. A slice
  // that is all of the tensor is added as the tensor.
  void AddSlice(TensorBytes tensor, const TensorSlice& slice);
  void AddStringsSlice(std::string key, std::vector<int64_t> shape, const TensorSlice& slice,
                       const std::vector<std::string_view>& values);

  void Finish();
  // Closes the writer because of an error outside of it.
  void Fail(const std::string& reason);
  // Removes both files, unless Finish has succeeded.
  void Abandon();

 private:
  void Run(const std::function<void()>& action);
  void AddTensor(const TensorBytes& tensor);
  void AddStringTensor(std::string key, std::vector<int64_t> shape,
                       const std::vector<std::string_view>& values);
  void EnterSlice(const TensorSlice& slice, int32_t dtype, std::string* key, std::vector<int64_t>* shape);
  BundleEntry* SlicedEntry(const std::string& key, int32_t dtype, const std::vector<int64_t>& shape);
  uint32_t AppendChecked(uint32_t crc, const void* data, uint64_t size);
  void AppendPadding();
  BundleEntry BeginEntry(std::string key, int32_t dtype, std::vector<int64_t> shape) const;
  void EndEntry(BundleEntry entry, uint64_t size, uint32_t crc);
  void WriteIndex();
  void Complete(WritableFile* file);

  const bool durable_;
  const size_t block_size_;
  const int64_t alignment_;
  WritableFile data_file_;
  WritableFile index_file_;
  const pid_t owner_;

  std::mutex mutex_;
  std::string closed_because_;  // empty while the writer takes tensors
  bool owns_files_ = true;      // until they are finished or removed
  int64_t offset_ = 0;
  std::map<std::string, BundleEntry> entries_;  // the key of an entry is here alone
};

}  // namespace trackckpt
