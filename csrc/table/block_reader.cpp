#include "table/block_reader.h"

#include "encoding/coding.h"
#include "error.h"
#include "table/block_builder.h"

namespace trackckpt {

namespace {

// Blocks with this many bytes for each restart point may have too few of them, and with this many entries they do.
constexpr size_t kManyBytes = 16 << 10;
constexpr size_t kManyEntries = 64 * kBlockRestartInterval;

// Restart points hold their keys in full. No real keys are so alike that this takes so many times their bytes.
constexpr size_t kMaxRebuiltExpansion = 16;

[[noreturn]] void ThrowCorruption(const std::string& path, const char* what) {
  throw Error(ErrorKind::kDataLoss, std::string(what) + ": " + path);
}

// Zero where an entry is malformed: that is said when it is looked for.
size_t CountEntries(BlockIterator block) {
  size_t count = 0;
  try {
    for (block.SeekToFirst(); block.Valid(); block.Next()) ++count;
  } catch (const Error&) {
    return 0;
  }
  return count;
}

}  // namespace

BlockIterator::BlockIterator(std::string_view contents, const std::string& path) : path_(&path) {
  if (contents.size() < sizeof(uint32_t)) ThrowCorruption(path, "bad block contents");
  const size_t before_count = contents.size() - sizeof(uint32_t);
  num_restarts_ = DecodeFixed32(contents.data() + before_count);
  if (num_restarts_ == 0 || num_restarts_ > before_count / sizeof(uint32_t)) {
    ThrowCorruption(path, "bad block contents");
  }
  const size_t restarts_size = num_restarts_ * sizeof(uint32_t);
  entries_ = contents.substr(0, before_count - restarts_size);
  restarts_ = contents.substr(entries_.size(), restarts_size);
}

void BlockIterator::SeekToFirst() {
  rest_ = entries_;
  ParseNextEntry(true);
}

void BlockIterator::Seek(std::string_view target) {
  SeekToRestart(LastRestartBefore(target));
  while (valid_ && key_ < target) Next();
}

void BlockIterator::Next() { ParseNextEntry(false); }

// The restart point to search from: the last with a key less than `target`, or the first.
uint32_t BlockIterator::LastRestartBefore(std::string_view target) {
  uint32_t left = 0;
  uint32_t right = num_restarts_ - 1;
  while (left < right) {
    const uint32_t middle = right - (right - left) / 2;
    SeekToRestart(middle);
    if (valid_ && key_ < target) {
      left = middle;
    } else {
      right = middle - 1;
    }
  }
  return left;
}

void BlockIterator::SeekToRestart(uint32_t index) {
  const uint32_t offset = DecodeFixed32(restarts_.data() + index * sizeof(uint32_t));
  if (offset > entries_.size()) ThrowCorruption(*path_, "bad restart point in block");
  rest_ = entries_.substr(offset);
  ParseNextEntry(true);
}

void BlockIterator::ParseNextEntry(bool is_restart) {
  valid_ = !rest_.empty();
  if (!valid_) return;
  if (is_restart) key_.clear();
  uint32_t shared, non_shared, value_length;
  if (!GetVarint32(&rest_, &shared) || !GetVarint32(&rest_, &non_shared) ||
      !GetVarint32(&rest_, &value_length) || shared > key_.size() ||
      uint64_t{non_shared} + value_length > rest_.size()) {
    ThrowCorruption(*path_, "bad entry in block");
  }
  const std::string_view suffix = rest_.substr(0, non_shared);
  // Both keys begin with the shared bytes, so comparing what follows compares the keys.
  if (!is_restart && std::string_view(key_).substr(shared) >= suffix) {
    ThrowCorruption(*path_, "keys out of order in block");
  }
  key_.resize(shared);
  key_.append(suffix);
  value_ = rest_.substr(non_shared, value_length);
  rest_.remove_prefix(uint64_t{non_shared} + value_length);
}

std::string_view WithRestartPoints(std::string_view contents, const std::string& path, std::string* rebuilt) {
  BlockIterator block(contents, path);
  const size_t num_restarts = DecodeFixed32(contents.data() + contents.size() - sizeof(uint32_t));
  if (contents.size() / num_restarts < kManyBytes) return contents;
  if (CountEntries(block) / num_restarts < kManyEntries) return contents;
  BlockBuilder builder(kBlockRestartInterval);
  for (block.SeekToFirst(); block.Valid(); block.Next()) {
    builder.Add(block.key(), block.value());
    if (builder.CurrentSizeEstimate() / kMaxRebuiltExpansion > contents.size()) {
      ThrowCorruption(path, "keys too long for the size of their block");
    }
  }
  rebuilt->assign(builder.Finish());
  return *rebuilt;
}

std::optional<std::string_view> FindInBlock(std::string_view contents, std::string_view key,
                                            const std::string& path) {
  BlockIterator block(contents, path);
  block.Seek(key);
  if (!block.Valid() || block.key() != key) return std::nullopt;
  return block.value();
}

std::optional<BlockHandle> FindDataBlock(std::string_view contents, std::string_view key,
                                         const std::string& path) {
  BlockIterator index(contents, path);
  index.Seek(key);
  if (!index.Valid()) return std::nullopt;
  return DecodeHandle(index.value(), path);
}

BlockHandle DecodeHandle(std::string_view encoded, const std::string& path) {
  BlockHandle handle;
  if (!handle.DecodeFrom(&encoded)) ThrowCorruption(path, "bad block handle in index block");
  return handle;
}

}  // namespace trackckpt
