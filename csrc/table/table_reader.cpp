#include "table/table_reader.h"

#include "error.h"
#include "io/file.h"
#include "table/block_reader.h"

namespace trackckpt {

TableReader::TableReader(const std::string& path) : path_(path) {
  const ReadableFile file(path);
  const Footer footer = ReadFooter(file);  // refuses a wrong file of many gigabytes before it is loaded
  file_.resize(file.size());
  file.Read(0, file_.data(), file_.size());
  const std::string_view contents = OpenBlock(Sealed(footer.index_handle), path_, &index_block_.uncompressed);
  index_block_.contents = WithRestartPoints(contents, path_, &index_block_.rebuilt);
}

std::optional<std::string_view> TableReader::Get(std::string_view key) const {
  const auto handle = FindDataBlock(index_block_.contents, key, path_);
  if (!handle) return std::nullopt;
  return FindInBlock(DataBlock(*handle), key, path_);
}

void TableReader::ForEach(const Visitor& visit) const {
  bool is_first = true;
  uint64_t key_bytes = 0;
  std::string bound;  // all keys of the blocks before, and the separator behind them, are not greater
  BlockIterator index(index_block_.contents, path_);
  for (index.SeekToFirst(); index.Valid(); index.Next()) {
    BlockIterator block(DataBlock(DecodeHandle(index.value(), path_)), path_);
    block.SeekToFirst();
    if (block.Valid() && !is_first && block.key() <= bound) {
      Corrupt("blocks out of order");
    }
    for (; block.Valid(); block.Next()) {
      if (block.key() > index.key()) Corrupt("key behind its separator");
      key_bytes += block.key().size();
      if (key_bytes / kMaxKeyExpansion > file_.size()) Corrupt("keys too long for the size of the file");
      visit(block.key(), block.value());
    }
    is_first = false;
    bound = index.key();
  }
}

void TableReader::Corrupt(const char* what) const {
  throw Error(ErrorKind::kDataLoss, std::string(what) + ": " + path_);
}

// The block with its trailer.
std::string_view TableReader::Sealed(const BlockHandle& handle) const {
  CheckInside(handle, file_.size(), path_);
  return std::string_view(file_).substr(handle.offset, handle.size + kBlockTrailerSize);
}

std::string_view TableReader::DataBlock(const BlockHandle& handle) const {
  const std::string_view sealed = Sealed(handle);
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto id = std::make_pair(handle.offset, handle.size);
  const auto found = blocks_.find(id);
  if (found != blocks_.end()) return found->second->contents;
  // A made-up index could have blocks overlap, each of them as large as the file.
  if (stored_bytes_ + sealed.size() > file_.size()) Corrupt("blocks overlap");
  auto block = std::make_unique<Block>();
  const std::string_view contents = OpenBlock(sealed, path_, &block->uncompressed);
  block->contents = WithRestartPoints(contents, path_, &block->rebuilt);
  stored_bytes_ += sealed.size();
  return blocks_.emplace(id, std::move(block)).first->second->contents;
}

}  // namespace trackckpt
