#include "io/mapping.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#include "error.h"
#include "io/file.h"

namespace trackckpt {

FileMapping::FileMapping(const std::string& path, uint64_t offset, size_t size) {
  const LocalFile file(path);
  if (offset > file.size() || size > file.size() - offset) {
    throw Error(ErrorKind::kDataLoss, path + ": the file ends before offset " + std::to_string(offset) +
                                          " and " + std::to_string(size) + " bytes");
  }
  before_ = offset % static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  length_ = before_ + size;
  // The mapping outlives the descriptor.
  void* const memory = mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.descriptor(),
                            static_cast<off_t>(offset - before_));
  if (memory == MAP_FAILED) throw FileError(ErrorKind::kSystem, errno, path);
  memory_ = static_cast<char*>(memory);
}

FileMapping::~FileMapping() { munmap(memory_, length_); }

}  // namespace trackckpt
