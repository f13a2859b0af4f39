// Files that Python code reads and writes for the core, which asks for ranges and hands over parts. The interpreter lock
// is taken for the time of each call.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <string>

#include "io/output.h"
#include "io/readable_file.h"

namespace trackckpt {

// An object as torch_trackckpt.storage.base.Ranges describes. Made and destroyed with the interpreter lock.
class ForeignPlace : public FilePlace {
 public:
  explicit ForeignPlace(nanobind::object files);

  // The files do not outlive this.
  std::shared_ptr<const ReadableFile> Open(const std::string& path) const override;
  const ReadGrain& grain() const override { return grain_; }

  // Exactly these bytes. An OSError of the method's becomes a FileError, so that the core knows what to do.
  void Read(const std::string& path, uint64_t offset, char* destination, size_t n) const;

 private:
  nanobind::object files_;
  ReadGrain grain_;
};

// Calls `next_part(num_filled, is_last)`, which returns address and size of memory, or None behind the last part.
std::unique_ptr<Output> ForeignOutput(std::string path, nanobind::object next_part);

}  // namespace trackckpt
