#include "cuda/status.h"

#include <string>

namespace trackckpt::cuda {

void Check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  // Errors that can be recovered from would come back from the next call.
  cudaGetLastError();
  throw Failure(std::string("CUDA cannot ") + what + ": " + cudaGetErrorName(status) + ", " +
                cudaGetErrorString(status));
}

OnDevice::OnDevice(int device) {
  Check(cudaGetDevice(&before_), "tell the current device");
  Check(cudaSetDevice(device), "use the device");
}

OnDevice::~OnDevice() { cudaSetDevice(before_); }

}  // namespace trackckpt::cuda
