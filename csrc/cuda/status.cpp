#include "cuda/status.h"

#include <dlfcn.h>

#include <string>

namespace trackckpt::cuda {

namespace {

// Whether this process has begun to use a device. The runtime does not tell, and its driver, which does, need not be
// there when a program is linked.
bool IsInUse(int device) {
  using GetState = int (*)(int device, unsigned int* flags, int* is_active);
  void* const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  if (driver == nullptr) return false;
  const auto get_state = reinterpret_cast<GetState>(dlsym(driver, "cuDevicePrimaryCtxGetState"));
  unsigned int flags = 0;
  int is_active = 0;
  const bool is_known = get_state != nullptr && get_state(device, &flags, &is_active) == 0;
  dlclose(driver);
  return is_known && is_active != 0;
}

}  // namespace

void Check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  // Errors that can be recovered from would come back from the next call.
  cudaGetLastError();
  throw Failure(std::string("CUDA cannot ") + what + ": " + cudaGetErrorName(status) + ", " +
                cudaGetErrorString(status));
}

OnDevice::OnDevice(int device) {
  Check(cudaGetDevice(&before_), "tell the current device");
  if (before_ == device) return;
  Check(cudaSetDevice(device), "use the device");
  has_changed_ = true;
}

OnDevice::~OnDevice() {
  if (has_changed_ && IsInUse(before_)) cudaSetDevice(before_);
}

}  // namespace trackckpt::cuda
