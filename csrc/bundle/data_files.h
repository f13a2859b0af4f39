// The data files of a bundle, each opened when first asked for and closed with this object and its last user.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "io/readable_file.h"

namespace trackckpt {

// <prefix>.data-<shard>-of-<num_shards><suffix>
struct DataFileNames {
  std::shared_ptr<const FilePlace> place;
  std::string prefix;
  std::vector<std::string> suffixes;
  int32_t num_shards = 0;

  std::string Name(int32_t shard, const std::string& suffix) const;
};

// Any number of threads may use one object at once.
class DataFiles {
 public:
  // `names` stays with the caller and outlives this.
  explicit DataFiles(const DataFileNames& names) : names_(names) {}

  // The first existing file of a shard.
  std::shared_ptr<const ReadableFile> Open(int32_t shard);
  // That of all files.
  const ReadGrain& grain() const { return names_.place->grain(); }

 private:
  std::shared_ptr<const ReadableFile> OpenFirst(int32_t shard) const;

  const DataFileNames& names_;
  std::mutex mutex_;
  std::map<int32_t, std::shared_ptr<const ReadableFile>> open_;  // guarded by mutex_
};

}  // namespace trackckpt
