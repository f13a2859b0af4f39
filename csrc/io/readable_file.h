// A file that can be read at any place, wherever it is: on this machine (file.h), or where only ranges of it can be
// asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

namespace trackckpt {

// What the way to a file makes of the sizes in which it is read. Nothing for files of this machine, for which readers
// have sizes of their own; where each request takes its time whatever it asks for, there are to be few, large ones, and
// several at once.
struct ReadGrain {
  uint64_t request_bytes = 0;  // the largest request; readers ask for as much where they can
  uint64_t gap_bytes = 0;      // what lies between two pieces costs less than a second request
  size_t num_requests = 0;     // how many at once, at least
};

class ReadableFile {
 public:
  virtual ~ReadableFile() = default;

  const std::string& path() const { return path_; }
  virtual uint64_t size() const = 0;
  virtual const ReadGrain& grain() const = 0;

  // Reads exactly `n` bytes, or throws. Any number of threads may read at once.
  virtual void Read(uint64_t offset, void* destination, size_t n) const = 0;

 protected:
  explicit ReadableFile(std::string path) : path_(std::move(path)) {}
  ReadableFile(ReadableFile&&) = default;

 private:
  std::string path_;
};

// Where files are. Any number of threads may use one object at once.
class FilePlace {
 public:
  virtual ~FilePlace() = default;
  // Throws kNotFound where there is no such file.
  virtual std::shared_ptr<const ReadableFile> Open(const std::string& path) const = 0;
  virtual const ReadGrain& grain() const = 0;
};

}  // namespace trackckpt
