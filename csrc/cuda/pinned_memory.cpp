#include "cuda/pinned_memory.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <string>

#include "cuda/status.h"
#include "io/huge_pages.h"

namespace trackckpt::cuda {

namespace {

// Of <linux/mempolicy.h>, which not every system has: nodes are a preference, not a condition.
constexpr int kPreferred = 1;

// Has pages that nobody has touched yet come from a node. A wish: where it is not granted, memory is farther away.
void PreferNode(void* memory, size_t size, int node) {
#ifdef SYS_mbind
  constexpr int kMaskBits = 8 * sizeof(unsigned long);
  if (node < 0 || node >= kMaskBits) return;
  const unsigned long mask = 1UL << node;
  syscall(SYS_mbind, memory, size, kPreferred, &mask, kMaskBits, 0);
#else
  (void)memory;
  (void)size;
  (void)node;
#endif
}

}  // namespace

int NumaNodeOf(int device) {
  char bus_id[32];
  if (cudaDeviceGetPCIBusId(bus_id, sizeof(bus_id), device) != cudaSuccess) {
    cudaGetLastError();
    return -1;
  }
  std::string name(bus_id);
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  std::ifstream file("/sys/bus/pci/devices/" + name + "/numa_node");
  int node = -1;
  file >> node;
  return file ? node : -1;
}

PinnedMemory::PinnedMemory(size_t size, int device) : size_(size), device_(device), process_(getpid()) {
  if (size == 0) return;
  const OnDevice on_device(device);
  void* const memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw Failure("the system has no " + std::to_string(size) + " bytes of memory");
  PreferNode(memory, size, NumaNodeOf(device));
  // Fewer pages are locked, and described to the device, in less time.
  AdviseHugePages(memory, size);
  try {
    Check(cudaHostRegister(memory, size, cudaHostRegisterPortable), "lock memory of the host");
  } catch (...) {
    munmap(memory, size);
    throw;
  }
  // A child of a fork has no use for it, and the parent's next write would have to copy each page.
  madvise(memory, size, MADV_DONTFORK);
  data_ = static_cast<char*>(memory);
}

PinnedMemory::~PinnedMemory() {
  // A forked child has neither the memory nor the device.
  if (data_ == nullptr || process_ != getpid()) return;
  try {
    const OnDevice on_device(device_);
    // Another thread may be capturing a graph, which this is no part of.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaHostUnregister(data_);
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaGetLastError();
  } catch (const Failure&) {
    // At the exit of the process the device may be gone already; the memory is unlocked then.
  }
  munmap(data_, size_);
}

}  // namespace trackckpt::cuda
