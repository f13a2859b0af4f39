// Page-locked memory of the host, which devices reach by themselves while the processor does something else.
#pragma once

#include <cstddef>

namespace trackckpt::cuda {

// The node of memory that is nearest to a device, or -1 where the system does not say.
int NumaNodeOf(int device);

class PinnedMemory {
 public:
  // Near to a device where that is known. Throws a Failure where the driver refuses, which it does when too much of the
  // machine's memory would be locked.
  PinnedMemory(size_t size, int device);
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  ~PinnedMemory();

  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  size_t size_;
  int device_;
  int process_;
};

}  // namespace trackckpt::cuda
