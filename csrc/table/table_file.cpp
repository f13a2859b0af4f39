#include "table/table_file.h"

#include "error.h"
#include "table/block_reader.h"

namespace trackckpt {

namespace {

// A made-up index could have blocks overlap, each of them as large as the file, and be read for ever.
void CheckNoOverlap(std::string_view index_block, const LocalFile& file) {
  uint64_t stored_bytes = 0;
  BlockIterator index(index_block, file.path());
  for (index.SeekToFirst(); index.Valid(); index.Next()) {
    const BlockHandle handle = DecodeHandle(index.value(), file.path());
    CheckInside(handle, file.size(), file.path());
    stored_bytes += handle.size + kBlockTrailerSize;
    if (stored_bytes > file.size()) throw Error(ErrorKind::kDataLoss, "blocks overlap: " + file.path());
  }
}

}  // namespace

TableFile::TableFile(const std::string& path) : path_(path) {
  const LocalFile file(path);
  state_ = file.state();
  const Footer footer = ReadFooter(file);
  index_block_ = LastBlock().Load(file, footer.index_handle);
  CheckNoOverlap(index_block_, file);
}

LocalFile TableFile::Open() const {
  LocalFile file(path_);
  if (file.state() == state_) return file;
  throw Error(ErrorKind::kDataLoss, path_ + ": the file has changed since it was opened");
}

std::optional<std::string_view> TableFile::Get(const LocalFile& file, std::string_view key,
                                               LastBlock* block) const {
  const auto handle = FindDataBlock(index_block_, key, path_);
  if (!handle) return std::nullopt;
  return FindInBlock(block->Load(file, *handle), key, path_);
}

std::string_view TableFile::LastBlock::Load(const LocalFile& file, const BlockHandle& handle) {
  if (file_ == file.state() && handle_ == handle) return contents_;
  CheckInside(handle, file.size(), file.path());
  Clear();
  sealed_.resize(handle.size + kBlockTrailerSize);
  file.Read(handle.offset, sealed_.data(), sealed_.size());
  contents_ = WithRestartPoints(OpenBlock(sealed_, file.path(), &uncompressed_), file.path(), &rebuilt_);
  file_ = file.state();
  handle_ = handle;
  return contents_;
}

// Gives the memory back, so that no two large blocks exist at once.
void TableFile::LastBlock::Clear() {
  file_.reset();
  std::string().swap(sealed_);
  std::string().swap(uncompressed_);
  std::string().swap(rebuilt_);
}

}  // namespace trackckpt
