// The data files of a bundle, each opened when first asked for and closed with this object.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "io/file.h"

namespace trackckpt {

// <prefix>.data-<shard>-of-<num_shards><suffix>
struct DataFileNames {
  std::string prefix;
  std::vector<std::string> suffixes;
  int32_t num_shards = 0;

  std::string Name(int32_t shard, const std::string& suffix) const;
};

class DataFiles {
 public:
  // `names` stays with the caller and outlives this.
  explicit DataFiles(const DataFileNames& names) : names_(names) {}

  // The first existing file of a shard, valid until the next call.
  const ReadableFile& Open(int32_t shard);

 private:
  ReadableFile OpenFirst(int32_t shard) const;

  const DataFileNames& names_;
  std::map<int32_t, ReadableFile> open_;
};

}  // namespace trackckpt
