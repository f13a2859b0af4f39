// Reads runs of bytes of one stored value, each to its own place in memory. Runs that lie close together are
// read at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "bundle/element_form.h"
#include "io/readable_file.h"

namespace trackckpt {

class RunReader {
 public:
  // The file and the buffer stay with the caller. `value_offset` is where the value begins.
  RunReader(const ReadableFile& file, uint64_t value_offset, ElementForm form, std::string* buffer)
      : file_(file), value_offset_(value_offset), form_(form), buffer_(*buffer) {}

  // `from` counts from the beginning of the value; it is not less than the end of the run before.
  void Add(uint64_t from, char* to, uint64_t size);
  // What was added is in memory when this returns. Tells how many bytes of the file were read, gaps included.
  uint64_t Finish() {
    Flush();
    return num_read_;
  }

 private:
  struct Run {
    uint64_t from;
    char* to;
    uint64_t size;
  };

  bool IsNear(uint64_t from, uint64_t size) const;
  void Flush();

  const ReadableFile& file_;
  const uint64_t value_offset_;
  const ElementForm form_;
  std::string& buffer_;
  std::vector<Run> runs_;  // added but not read
  uint64_t num_read_ = 0;
};

}  // namespace trackckpt
