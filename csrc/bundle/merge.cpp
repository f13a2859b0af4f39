#include "bundle/merge.h"

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <queue>
#include <string_view>
#include <utility>

#include "bundle/entry.h"
#include "bundle/string_tensor.h"
#include "error.h"
#include "io/file.h"
#include "table/format.h"
#include "table/table_builder.h"
#include "table/table_reader.h"

namespace trackckpt {

namespace {

Error DataLoss(const std::string& message) { return Error(ErrorKind::kDataLoss, message); }

Error InvalidArgument(const std::string& message) { return Error(ErrorKind::kInvalidArgument, message); }

// An index, taken apart: keys in increasing order, each with its record.
struct Source {
  std::string path;
  BundleHeader header;
  StringArray keys;
  StringArray records;
};

BundleHeader DecodeHeader(std::string_view record, const std::string& path) {
  BundleHeader header;
  if (!header.DecodeFrom(record)) throw DataLoss(path + ": unable to parse header");
  CheckVersion(header, path);
  if (header.num_shards <= 0) {
    throw DataLoss(path + ": invalid number of shards in the header: " + std::to_string(header.num_shards));
  }
  return header;
}

Source Load(const std::string& path) {
  Source source;
  source.path = path;
  const TableReader table(path);
  const auto header = table.Get("");
  if (!header) throw DataLoss(path + ": the first key is not the header's");
  source.header = DecodeHeader(*header, path);
  table.ForEach([&](const std::string& key, std::string_view record) {
    if (key.empty()) return;
    source.keys.Append(key);
    source.records.Append(record);
  });
  return source;
}

void CheckOneKind(const BundleHeader& first, const Source& source) {
  const BundleHeader& header = source.header;
  if (header.endianness != first.endianness) {
    throw InvalidArgument(source.path + ": bundles of different byte orders cannot be one");
  }
  if (header.producer != first.producer || header.min_consumer != first.min_consumer ||
      header.bad_consumers != first.bad_consumers) {
    throw InvalidArgument(source.path + ": bundles of different versions cannot be one");
  }
}

std::vector<Source> LoadAll(const std::vector<std::string>& paths) {
  if (paths.empty()) throw InvalidArgument("There is no bundle to merge");
  std::vector<Source> sources;
  for (const std::string& path : paths) {
    sources.push_back(Load(path));
    CheckOneKind(sources.front().header, sources.back());
  }
  return sources;
}

// An entry is written again from what was understood of it. One that would change is refused: the numbers of
// shards change in a merge, and a field that is not known here may depend on them.
BundleEntry DecodeEntry(const Source& source, size_t position) {
  const std::string_view record = source.records[position];
  BundleEntry entry;
  entry.key = source.keys[position];
  if (!entry.DecodeFrom(record)) {
    throw DataLoss(source.path + ": unable to parse the entry of key " + DisplayKey(entry.key));
  }
  std::string encoded;
  entry.EncodeTo(&encoded);
  if (encoded != record) {
    throw Error(ErrorKind::kUnsupportedFormat, source.path + ": the entry of key " + DisplayKey(entry.key) +
                                                   " has fields that are not known");
  }
  if (!NumElements(entry.shape)) {
    throw DataLoss("Invalid tensor shape: " + DisplayKey(entry.key) + " in " + source.path);
  }
  if (entry.shard_id < 0 || entry.shard_id >= source.header.num_shards) {
    throw DataLoss(source.path + ": key " + DisplayKey(entry.key) + " lies in shard " +
                   std::to_string(entry.shard_id) + " of " + std::to_string(source.header.num_shards));
  }
  return entry;
}

// Adds the slices that a later bundle holds of a tensor.
void AddSlices(const BundleEntry& other, const std::string& other_path, BundleEntry* entry) {
  if (entry->slices.empty() || other.slices.empty()) {
    throw Error(ErrorKind::kDuplicateKey,
                "Duplicate tensor keyed by " + DisplayKey(entry->key) + ": also in " + other_path);
  }
  if (other.dtype != entry->dtype || other.shape != entry->shape) {
    throw InvalidArgument(other_path + ": the slices of key " + DisplayKey(entry->key) +
                          " are of another dtype or shape than those of an earlier bundle");
  }
  entry->slices.insert(entry->slices.end(), other.slices.begin(), other.slices.end());
}

// Visits the entries of all sources in key order. An entry that several hold slices of comes once, from the
// first of them.
using EntryVisitor = std::function<void(size_t source, BundleEntry* entry)>;
void ForEachEntry(const std::vector<Source>& sources, const EntryVisitor& visit) {
  using Cursor = std::pair<std::string_view, size_t>;  // the next key of a source
  std::priority_queue<Cursor, std::vector<Cursor>, std::greater<Cursor>> cursors;
  std::vector<size_t> positions(sources.size());
  const auto push = [&](size_t s) {
    if (positions[s] < sources[s].keys.size()) cursors.emplace(sources[s].keys[positions[s]], s);
  };
  const auto pop = [&] {
    const size_t s = cursors.top().second;
    cursors.pop();
    BundleEntry entry = DecodeEntry(sources[s], positions[s]++);
    push(s);
    return std::make_pair(s, std::move(entry));
  };
  for (size_t s = 0; s < sources.size(); ++s) push(s);
  while (!cursors.empty()) {
    auto [source, entry] = pop();
    while (!cursors.empty() && cursors.top().first == entry.key) {
      const auto [other_source, other] = pop();
      AddSlices(other, sources[other_source].path, &entry);
    }
    visit(source, &entry);
  }
}

// The new number of each data file, by source and old number.
using ShardNumbers = std::map<std::pair<size_t, int32_t>, int32_t>;

// The data files in their new order.
std::vector<MergedShard> ListShards(const std::vector<Source>& sources, ShardNumbers* numbers) {
  std::vector<std::vector<int32_t>> by_source(sources.size());  // in key order of first entries
  ForEachEntry(sources, [&](size_t source, BundleEntry* entry) {
    const bool is_new = numbers->emplace(std::make_pair(source, entry->shard_id), 0).second;
    if (is_new) by_source[source].push_back(entry->shard_id);
  });
  std::vector<MergedShard> shards;
  for (size_t source = 0; source < sources.size(); ++source) {
    for (int32_t shard_id : by_source[source]) {
      (*numbers)[{source, shard_id}] = static_cast<int32_t>(shards.size());
      shards.push_back({source, shard_id, sources[source].header.num_shards});
    }
  }
  return shards;
}

// The same where files have their numbers already.
std::vector<MergedShard> KeepShards(const std::vector<Source>& sources, int32_t num_files,
                                    ShardNumbers* numbers) {
  if (sources.size() > static_cast<size_t>(num_files)) {
    throw InvalidArgument("there are more bundles than data files");
  }
  std::vector<MergedShard> shards;
  for (size_t source = 0; source < sources.size(); ++source) {
    (*numbers)[{source, 0}] = static_cast<int32_t>(source);
    shards.push_back({source, 0, sources[source].header.num_shards});
  }
  return shards;
}

// TensorFlow's header has the sum of the old numbers of shards. That is the same, unless a data file is left
// out; then no reader would find the others under the names that they get.
BundleHeader MergedHeader(const BundleHeader& first, size_t num_shards) {
  BundleHeader header = first;
  header.num_shards = std::max(static_cast<int32_t>(num_shards), 1);  // 1 for bundles without any tensor
  return header;
}

void WriteTable(const std::vector<Source>& sources, const ShardNumbers& numbers, const BundleHeader& header,
                ByteSink* sink) {
  TableBuilder table(sink, kDefaultBlockSize);
  std::string record;
  header.EncodeTo(&record);
  table.Add("", record);
  ForEachEntry(sources, [&](size_t source, BundleEntry* entry) {
    const auto number = numbers.find({source, entry->shard_id});
    if (number == numbers.end()) throw InvalidArgument("a bundle has more than one data file");
    entry->shard_id = number->second;
    record.clear();
    entry->EncodeTo(&record);
    table.Add(entry->key, record);
  });
  table.Finish();
}

}  // namespace

std::vector<MergedShard> MergeIndexes(const std::vector<std::string>& index_paths,
                                      const std::string& merged_path, bool durable,
                                      std::optional<int32_t> num_files) {
  const std::vector<Source> sources = LoadAll(index_paths);
  ShardNumbers numbers;
  std::vector<MergedShard> shards =
      num_files ? KeepShards(sources, *num_files, &numbers) : ListShards(sources, &numbers);
  const size_t num_shards = num_files ? static_cast<size_t>(*num_files) : shards.size();
  WritableFile file(merged_path);
  try {
    WriteTable(sources, numbers, MergedHeader(sources.front().header, num_shards), &file);
    if (durable) file.Sync();
    file.Close();
  } catch (...) {
    file.Discard();
    throw;
  }
  return shards;
}

}  // namespace trackckpt
