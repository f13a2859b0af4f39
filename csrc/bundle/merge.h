// Makes one bundle of several by writing one index for all of their data files, which keep their bytes.
//
//    merged index   a table (table_builder.h): "" -> header, then the entries of all indexes in key order, with
//                   new shard numbers; of a tensor with slices in several bundles, one entry with all of them
//
// Data files are numbered in the order in which their bundles were given, and within a bundle in the key order
// of the first entry that lies in each. A data file that no entry lies in is left out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace trackckpt {

// Where a data file of a merged bundle comes from.
struct MergedShard {
  size_t source = 0;  // the position of its index among those that were given
  int32_t shard_id = 0;
  int32_t num_shards = 0;
};

// Writes the index of the merged bundle, and returns the sources of its data files in the order of their new
// numbers. `merged_path` must not exist; on failure it does not. With `durable`, the index has been synced.
//
// With `num_files`, each bundle has one data file, which is known to be called by the bundle's position among so many, and
// stays in whether an entry lies in it or not.
//
// All keys and entries are held in memory, each once: about as many bytes as the indexes have.
std::vector<MergedShard> MergeIndexes(const std::vector<std::string>& index_paths,
                                      const std::string& merged_path, bool durable,
                                      std::optional<int32_t> num_files = std::nullopt);

}  // namespace trackckpt
