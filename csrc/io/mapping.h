// A part of a file as memory. Nothing is read before it is used, and what is written to the memory stays in this
// process. If the file is cut short meanwhile, using what was lost ends the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace trackckpt {

class FileMapping {
 public:
  // Throws kDataLoss if the file ends before the part does. `size` is not 0.
  FileMapping(const std::string& path, uint64_t offset, size_t size);
  FileMapping(const FileMapping&) = delete;
  FileMapping& operator=(const FileMapping&) = delete;
  ~FileMapping();

  char* data() const { return memory_ + before_; }

 private:
  size_t before_;  // mappings begin at a page
  size_t length_;
  char* memory_;
};

}  // namespace trackckpt
