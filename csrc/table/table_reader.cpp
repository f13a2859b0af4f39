#include "table/table_reader.h"

#include <functional>

#include "error.h"
#include "io/file.h"
#include "table/block_reader.h"

namespace trackckpt {

namespace {

// To look one key up costs as much as passing over entries of about this many bytes.
constexpr size_t kBytesPassedForOneKey = 1 << 10;

// Positions of keys, by their hashes. Keys that were chosen so that their hashes collide are not taken.
class KeySet {
 public:
  explicit KeySet(const std::vector<std::string_view>& keys) : keys_(keys) {
    size_t size = 4;
    while (size < 2 * keys.size()) size *= 2;
    slots_.resize(size);
    for (size_t i = 0; i < keys.size() && is_usable_; ++i) Insert(i);
  }

  bool is_usable() const { return is_usable_; }

  template <typename Visit>
  void ForEachEqual(std::string_view key, Visit visit) const {
    const size_t hash = std::hash<std::string_view>()(key);
    for (size_t slot = hash & mask(); slots_[slot].position != 0; slot = (slot + 1) & mask()) {
      const size_t i = slots_[slot].position - 1;
      if (slots_[slot].hash == static_cast<uint32_t>(hash >> 32) && keys_[i] == key) visit(i);
    }
  }

 private:
  // Of random hashes, none in millions is so far from its place.
  static constexpr size_t kMaxDistance = 256;

  struct Slot {
    uint32_t hash = 0;      // its upper half
    uint32_t position = 0;  // and 1; 0 where nothing is
  };

  size_t mask() const { return slots_.size() - 1; }

  void Insert(size_t i) {
    const size_t hash = std::hash<std::string_view>()(keys_[i]);
    size_t slot = hash & mask();
    size_t distance = 0;
    while (slots_[slot].position != 0 && ++distance < kMaxDistance) slot = (slot + 1) & mask();
    is_usable_ = distance < kMaxDistance;
    slots_[slot] = {static_cast<uint32_t>(hash >> 32), static_cast<uint32_t>(i + 1)};
  }

  const std::vector<std::string_view>& keys_;
  std::vector<Slot> slots_;
  bool is_usable_ = true;
};

}  // namespace

TableReader::TableReader(const std::string& path) : TableReader(LocalFile(path)) {}

TableReader::TableReader(const ReadableFile& file) : path_(file.path()) {
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

TableReader::Values TableReader::GetMany(const std::vector<std::string_view>& keys) const {
  Values values(keys.size());
  if (GetInPassing(keys, &values)) return values;
  for (size_t i = 0; i < keys.size(); ++i) values[i] = Get(keys[i]);
  return values;
}

bool TableReader::GetInPassing(const std::vector<std::string_view>& keys, Values* values) const {
  if (keys.size() < file_.size() / kBytesPassedForOneKey) return false;
  KeySet wanted(keys);
  if (!wanted.is_usable()) return false;
  try {
    ForEach([&](const std::string& key, std::string_view value) {
      wanted.ForEachEqual(key, [&](size_t i) { (*values)[i] = value; });
    });
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kDataLoss) throw;
    return false;
  }
  return true;
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
