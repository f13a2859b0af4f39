// Failures of CUDA as errors that say what was being done.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>

namespace trackckpt::cuda {

class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws a Failure unless a call succeeded. `what` completes "CUDA cannot ...".
void Check(cudaError_t status, const char* what);

// Makes a device the current one of this thread for as long as this lives. To go back to a device takes some hundred
// MiB of its memory where the process has not used it yet, as in a thread that begins on device 0: that is not done.
class OnDevice {
 public:
  explicit OnDevice(int device);
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice();

 private:
  int before_ = 0;
  bool has_changed_ = false;
};

}  // namespace trackckpt::cuda
