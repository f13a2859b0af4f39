#include "table/table_reader.h"

#include "error.h"
#include "io/file.h"
#include "table/block_reader.h"

namespace trackckpt {

namespace {

// Sharing lets a few bytes stand for a long key. Sixteen entries between restart points, the usual number,
// give a factor of at most 16; a file that goes far beyond is made to exhaust the memory of whoever lists it.
constexpr uint64_t kMaxKeyExpansion = 256;

// Comes before the contents are loaded: a wrong file of many gigabytes is refused after 48 bytes.
Footer ReadFooter(const ReadableFile& file) {
  if (file.size() < Footer::kEncodedLength) {
    throw Error(ErrorKind::kDataLoss, "file is too short to be an sstable (" + std::to_string(file.size()) +
                                          " bytes): " + file.path());
  }
  std::string encoded(Footer::kEncodedLength, '\0');
  file.Read(file.size() - encoded.size(), encoded.data(), encoded.size());
  Footer footer;
  footer.DecodeFrom(encoded, file.path());
  return footer;
}

}  // namespace

TableReader::TableReader(const std::string& path) : path_(path) {
  const ReadableFile file(path);
  const Footer footer = ReadFooter(file);
  contents_.resize(file.size());
  file.Read(0, contents_.data(), contents_.size());
  index_block_ = ReadBlock(contents_, footer.index_handle, true, path_);
}

std::optional<std::string_view> TableReader::Get(std::string_view key) const {
  BlockIterator index(index_block_, path_);
  index.Seek(key);
  if (!index.Valid()) return std::nullopt;
  BlockIterator block(DataBlock(index.value()), path_);
  block.Seek(key);
  if (!block.Valid() || block.key() != key) return std::nullopt;
  return block.value();
}

void TableReader::ForEach(const Visitor& visit) const {
  bool is_first = true;
  uint64_t key_bytes = 0;
  std::string bound;  // all keys of the blocks before, and the separator behind them, are not greater
  BlockIterator index(index_block_, path_);
  for (index.SeekToFirst(); index.Valid(); index.Next()) {
    BlockIterator block(DataBlock(index.value()), path_);
    block.SeekToFirst();
    if (block.Valid() && !is_first && block.key() <= bound) {
      Corrupt("blocks out of order");
    }
    for (; block.Valid(); block.Next()) {
      if (block.key() > index.key()) Corrupt("key behind its separator");
      key_bytes += block.key().size();
      if (key_bytes / kMaxKeyExpansion > contents_.size()) Corrupt("keys too long for the size of the file");
      visit(block.key(), block.value());
    }
    is_first = false;
    bound = index.key();
  }
}

void TableReader::Corrupt(const char* what) const {
  throw Error(ErrorKind::kDataLoss, std::string(what) + ": " + path_);
}

std::string_view TableReader::DataBlock(std::string_view encoded_handle) const {
  BlockHandle handle;
  if (!handle.DecodeFrom(&encoded_handle)) {
    Corrupt("bad block handle in index block");
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto id = std::make_pair(handle.offset, handle.size);
  const bool is_verified = verified_blocks_.count(id) > 0;
  const std::string_view block = ReadBlock(contents_, handle, !is_verified, path_);
  verified_blocks_.insert(id);
  return block;
}

}  // namespace trackckpt
