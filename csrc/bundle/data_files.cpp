#include "bundle/data_files.h"

#include <cerrno>
#include <cstdio>
#include <utility>

#include "error.h"

namespace trackckpt {

namespace {

// A process may have as few as 256 files open, and a bundle as many shards as its writer had hosts.
constexpr size_t kMaxOpenFiles = 64;

}  // namespace

std::string DataFileNames::Name(int32_t shard, const std::string& suffix) const {
  char numbers[48];
  std::snprintf(numbers, sizeof(numbers), ".data-%05d-of-%05d", shard, num_shards);
  return prefix + numbers + suffix;
}

std::shared_ptr<const ReadableFile> DataFiles::Open(int32_t shard) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = open_.find(shard);
  if (found != open_.end()) return found->second;
  if (open_.size() >= kMaxOpenFiles) open_.clear();
  return open_.emplace(shard, OpenFirst(shard)).first->second;
}

std::shared_ptr<const ReadableFile> DataFiles::OpenFirst(int32_t shard) const {
  for (const std::string& suffix : names_.suffixes) {
    try {
      return names_.place->Open(names_.Name(shard, suffix));
    } catch (const FileError& error) {
      if (error.kind() != ErrorKind::kNotFound) throw;
    }
  }
  throw FileError(ErrorKind::kNotFound, ENOENT, names_.Name(shard, names_.suffixes.front()),
                  " (only the tensors in this file cannot be read; all others stay readable)");
}

}  // namespace trackckpt
