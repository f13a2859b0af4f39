// Writes a table; format.h has the layout of the file, block_builder.h that of the blocks.
//
//    index block: for every data block, separator -> handle, where
//                 last key of the block <= separator < first key of the next block
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "io/byte_sink.h"
#include "table/block_builder.h"
#include "table/format.h"

namespace trackckpt {

class TableBuilder {
 public:
  // `sink` stays with the caller, has got nothing yet, and outlives the builder.
  TableBuilder(ByteSink* sink, size_t block_size) : sink_(sink), block_size_(block_size) {}

  // `key` is greater than all keys before it.
  void Add(std::string_view key, std::string_view value);
  // Writes what is left. Neither syncs nor closes anything.
  void Finish();

 private:
  void FlushDataBlock();
  void AddIndexEntry(std::string_view separator);
  BlockHandle WriteBlock(BlockBuilder* block);
  void WriteFooter(const Footer& footer);

  ByteSink* const sink_;
  const size_t block_size_;
  uint64_t offset_ = 0;
  BlockBuilder data_block_{kBlockRestartInterval};
  BlockBuilder index_block_{kIndexRestartInterval};
  std::string last_key_;

  // The index entry of a written block is held back until the next key is known, so that a short separator
  // can be chosen: between "the quick brown fox" and "the who", "the r". Then data_block_ is empty.
  bool pending_index_entry_ = false;
  BlockHandle pending_handle_;
};

}  // namespace trackckpt
