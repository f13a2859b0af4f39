#include "bundle/index.h"

#include <algorithm>
#include <utility>

#include "error.h"

namespace trackckpt {

namespace {

constexpr size_t kLeastBytesOfSlice = 2;

Error DataLoss(const std::string& message) { return Error(ErrorKind::kDataLoss, message); }

Error Unsupported(const std::string& message) { return Error(ErrorKind::kUnsupportedFormat, message); }

void CheckHeader(const BundleHeader& header, const std::string& path) {
  CheckVersion(header, path);
  if (header.endianness != 0 && header.endianness != 1) {
    throw Unsupported(path + ": unknown endianness " + std::to_string(header.endianness) +
                      "; 0 (little) and 1 (big) are read");
  }
  if (header.num_shards <= 0) {
    throw DataLoss(path + ": invalid number of shards in the header: " + std::to_string(header.num_shards));
  }
}

// Slice keys of one tensor have a prefix in common and lie one behind the other. They are looked up among the
// entries by what comes after it: to make up the keys of all slices of all tensors could take memory by far
// larger than the index.
void MarkSlicesOf(const BundleEntry& tensor, const std::vector<BundleEntry>& entries,
                  std::vector<bool>* is_slice) {
  const std::string prefix = SliceKeyPrefix(tensor.key);
  const auto starts_before = [&](const BundleEntry& entry, int bound) {
    return entry.key.compare(0, prefix.size(), prefix) < bound;
  };
  const auto begin = std::partition_point(entries.begin(), entries.end(),
                                          [&](const BundleEntry& entry) { return starts_before(entry, 0); });
  const auto end = std::partition_point(begin, entries.end(),
                                        [&](const BundleEntry& entry) { return starts_before(entry, 1); });
  if (begin == end) return;
  for (const TensorSlice& slice : tensor.slices) {
    const std::string suffix = SliceKeySuffix(slice);
    const auto found = std::partition_point(begin, end, [&](const BundleEntry& entry) {
      return entry.key.compare(prefix.size(), std::string::npos, suffix) < 0;
    });
    if (found == end || found->key.compare(prefix.size(), std::string::npos, suffix) != 0) continue;
    (*is_slice)[static_cast<size_t>(found - entries.begin())] = true;
  }
}

}  // namespace

BundleIndex::BundleIndex(const ReadableFile& file) : path_(file.path()), table_(file) { ReadHeader(); }

void BundleIndex::ReadHeader() {
  const std::string intro = "Unable to read file (" + path_ + "). Perhaps the file is corrupt ";
  std::optional<std::string_view> record;
  try {
    record = table_.Get("");
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kDataLoss) throw;
    throw DataLoss(intro + "(failed to seek to header entry): " + error.what());
  }
  if (!record) throw DataLoss(intro + "(failed to seek to header entry): the first key is not the header's");
  BundleHeader header;
  if (!header.DecodeFrom(*record)) throw DataLoss(intro + "(unable to parse header)");
  CheckHeader(header, path_);
  num_shards_ = header.num_shards;
  byte_order_ = header.endianness == 0 ? ByteOrder::kLittle : ByteOrder::kBig;
}

std::vector<BundleEntry> BundleIndex::Entries() const {
  std::vector<BundleEntry> entries;
  table_.ForEach([&](const std::string& key, std::string_view record) {
    if (!key.empty()) DecodeEntry(key, record, &entries.emplace_back());
  });
  std::vector<bool> is_slice(entries.size());
  for (const BundleEntry& entry : entries) {
    if (!entry.slices.empty()) MarkSlicesOf(entry, entries, &is_slice);
  }
  size_t kept = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (is_slice[i]) continue;
    if (kept != i) entries[kept] = std::move(entries[i]);
    ++kept;
  }
  entries.resize(kept);
  return entries;
}

bool BundleIndex::ForEachUnsliced(const std::function<void(const BundleEntry& entry)>& visit) const {
  BundleEntry entry;
  bool has_slices = false;
  table_.ForEach([&](const std::string& key, std::string_view record) {
    if (key.empty() || has_slices) return;
    DecodeEntry(key, record, &entry);
    has_slices = !entry.slices.empty();
    if (!has_slices) visit(entry);
  });
  return !has_slices;
}

EntryColumns BundleIndex::Columns() const {
  EntryColumns columns;
  return ForEachUnsliced([&](const BundleEntry& entry) { columns.Add(entry); }) ? columns
                                                                                : EntryColumns(Entries());
}

std::optional<BundleEntry> BundleIndex::Find(std::string_view key) const {
  if (key.empty()) return std::nullopt;
  const auto record = table_.Get(key);
  if (!record) return std::nullopt;
  std::optional<BundleEntry> entry(std::in_place);
  DecodeEntry(key, *record, &*entry);
  return entry;
}

void BundleIndex::FindMany(const std::vector<std::string_view>& keys, const EntryVisitor& visit) const {
  const std::vector<std::optional<std::string_view>> records = table_.GetMany(keys);
  BundleEntry entry;
  for (size_t i = 0; i < keys.size(); ++i) {
    const bool is_there = records[i] && !keys[i].empty();
    if (is_there) DecodeEntry(keys[i], *records[i], &entry);
    visit(i, is_there ? &entry : nullptr);
  }
}

void BundleIndex::DecodeEntry(std::string_view key, std::string_view record, BundleEntry* entry) const {
  entry->Clear();
  entry->key = key;
  // Each slice has an entry of its own in this very file, which takes several bytes however it is compressed.
  if (!entry->DecodeFrom(record, table_.file_size() / kLeastBytesOfSlice)) {
    throw DataLoss(path_ + ": unable to parse the entry of key " + DisplayKey(key));
  }
  if (entry->is_unknown_rank || !NumElements(entry->shape)) {
    throw DataLoss("Invalid tensor shape: " + DisplayKey(key) + " in " + path_);
  }
  if (entry->slices.empty()) CheckPlace(*entry);
}

// The place of a tensor that lies in slices means nothing: merging leaves the number of some shard in it.
void BundleIndex::CheckPlace(const BundleEntry& entry) const {
  if (entry.shard_id < 0 || entry.shard_id >= num_shards_) {
    throw DataLoss(path_ + ": key " + DisplayKey(entry.key) + " lies in shard " +
                   std::to_string(entry.shard_id) + " of " + std::to_string(num_shards_));
  }
  if (entry.offset < 0 || entry.size < 0) {
    throw DataLoss(path_ + ": key " + DisplayKey(entry.key) + " has a negative offset or size");
  }
}

}  // namespace trackckpt
