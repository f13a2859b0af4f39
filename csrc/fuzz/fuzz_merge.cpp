// Indexes of several bundles, merged into one.
//
//    input: three chunks, each a table (tables.h)

#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "bundle/entry.h"
#include "bundle/merge.h"
#include "fuzz/check.h"
#include "fuzz/scratch.h"
#include "fuzz/tables.h"
#include "table/table_reader.h"

using namespace trackckpt;

namespace {

void CheckMerged(const std::string& path, size_t num_files) {
  std::set<int32_t> shards;
  const TableReader table(path);
  table.ForEach([&](const std::string& key, std::string_view record) {
    if (key.empty()) {
      BundleHeader header;
      FUZZ_CHECK(header.DecodeFrom(record) && header.num_shards == std::max(static_cast<int>(num_files), 1));
      return;
    }
    BundleEntry entry;
    FUZZ_CHECK(entry.DecodeFrom(record));
    FUZZ_CHECK(entry.shard_id >= 0 && static_cast<size_t>(entry.shard_id) < num_files);
    shards.insert(entry.shard_id);
  });
  FUZZ_CHECK(shards.size() == num_files);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  std::vector<std::string> paths;
  for (const char* name : {"0.index", "1.index", "2.index"}) {
    const fuzz::Input table(input.Chunk());
    if (!table.empty()) paths.push_back(fuzz::WriteTable(name, table));
  }
  const std::string merged = fuzz::FreshPath("merged.index");
  std::vector<MergedShard> files;
  if (fuzz::Attempt([&] { files = MergeIndexes(paths, merged, false); })) {
    for (const MergedShard& file : files) {
      FUZZ_CHECK(file.source < paths.size() && file.shard_id >= 0 && file.shard_id < file.num_shards);
    }
    CheckMerged(merged, files.size());
  } else {
    FUZZ_CHECK(!std::filesystem::exists(merged));
  }
  return 0;
}
