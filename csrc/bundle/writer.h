// Writes a bundle: data files (shard_writer.h), and one index for all of them.
//
//    index       a table (table_builder.h): "" -> header, then key -> entry for each tensor (entry.h)
//
// A slice is stored like a tensor, under a key of its own (slice.h). The entry of the tensor that it belongs to
// lists the slices, shard by shard in the order given, and has neither place nor size.
//
// A shard keeps the entries of its tensors to itself until the index is written, so that threads which write to
// different shards have nothing to wait for.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bundle/shard_writer.h"
#include "bundle/tensor_memory.h"
#include "bundle/writer_state.h"
#include "io/output.h"

namespace trackckpt {

// After any error the writer is failed, and all calls but Abandon throw kWriterClosed, also those that are under
// way in other threads. Calls for one shard take turns. Keys that are there twice are found by Finish.
class BundleWriter {
 public:
  // Makes all files, empty; none may exist. With `durable`, they have been synced when their call returns.
  BundleWriter(const std::vector<std::string>& data_paths, const std::string& index_path, bool durable,
               size_t block_size, int64_t alignment);
  // Whatever it is that the files become.
  BundleWriter(std::vector<std::unique_ptr<Output>> data, std::unique_ptr<Output> index, size_t block_size,
               int64_t alignment);
  BundleWriter(const BundleWriter&) = delete;
  BundleWriter& operator=(const BundleWriter&) = delete;
  // Abandons what has not been finished.
  ~BundleWriter();

  // Says that at least so many bytes will be added to a shard, so that a durable one lies in one place of the disk.
  void Expect(size_t shard, uint64_t size);
  // Nothing of what is handed over is needed any more when these return.
  void Add(size_t shard, const std::vector<TensorBytes>& tensors);
  // Rows of a table; `keys` has one for each of `rows`, all of which are plain.
  void AddRows(size_t shard, const std::vector<std::string_view>& keys, const TensorMemoryTable& table,
               const std::vector<size_t>& rows);
  // Pieces of rows, which need not be plain; `keys` has one for each piece.
  void AddRowPieces(size_t shard, const std::vector<std::string_view>& keys, const TensorMemoryTable& table,
                    const std::vector<RowPiece>& pieces);
  void AddStrings(size_t shard, std::string_view key, std::vector<int64_t> shape,
                  const std::vector<std::string_view>& values);

  // These take the key and the shape of the whole tensor, and the bytes or the strings of the slice. A slice
  // that is all of the tensor is added as the tensor.
  void AddSlice(size_t shard, TensorBytes tensor, const TensorSlice& slice);
  void AddStringsSlice(size_t shard, std::string key, std::vector<int64_t> shape, const TensorSlice& slice,
                       const std::vector<std::string_view>& values);

  // Completes one data file, which then takes no more tensors.
  void FinishShard(size_t shard);
  // Completes what is not complete yet, and writes the index.
  void Finish();
  // Closes the writer because of an error outside of it.
  void Fail(const std::string& reason);
  // Removes all files, unless Finish has succeeded.
  void Abandon();

 private:
  struct Shard {
    Shard(std::unique_ptr<Output> output, int32_t shard_id, int64_t alignment, const WriterState& state)
        : writer(std::move(output), shard_id, alignment, state) {}
    std::mutex mutex;
    ShardWriter writer;
  };

  void AddShard(std::unique_ptr<Output> output);
  std::vector<std::unique_lock<std::mutex>> LockAll();
  void Run(size_t shard, const std::function<void(ShardWriter*)>& action);
  void RemoveFiles();
  void WriteIndex();

  const size_t block_size_;
  const int64_t alignment_;
  std::unique_ptr<Output> index_;
  const pid_t owner_;
  WriterState state_;
  std::vector<std::unique_ptr<Shard>> shards_;
  bool owns_files_ = true;  // until they are finished or removed; guarded by the locks of all shards
};

}  // namespace trackckpt
