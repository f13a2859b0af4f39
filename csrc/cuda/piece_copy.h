// Copies pieces of tensors between device memory and one contiguous run of memory, in the order of a stream.
//
//    large pieces      one copy each, straight from or to the tensor
//    all others        many are gathered by a kernel into scratch memory on the device, from which one copy takes them
//                      to the host; the other way round they arrive there together and are scattered
//
// Thousands of copies of a few KiB would take longer than all the large ones: each costs some microseconds, whatever its
// size. What the kernel has to know of the pieces is copied to the device first, into the front of the scratch memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/pieces.h"

namespace trackckpt::cuda {

struct Scratch {
  char* device;       // aligned for every type
  uint64_t size;      // at least PieceCopy::least_scratch_bytes()
  char* description;  // page-locked memory of the host, of PieceCopy::description_bytes()
};

class PieceCopy {
 public:
  // A larger piece that is contiguous is copied by itself.
  static constexpr uint64_t kPackedBytes = 512 << 10;

  // Pieces by ascending offset; they do not overlap in the contiguous memory. Less than 64 bytes between two of them may
  // be overwritten with anything; more are left alone.
  PieceCopy(int device, std::vector<Piece> pieces, std::vector<Layout> layouts);

  // What the description of the pieces takes, on either side.
  uint64_t description_bytes() const { return description_bytes_; }
  // With it, copies are correct; a few MiB more make them fast.
  uint64_t least_scratch_bytes() const;

  // All of these return when the work is queued. Until the device has done it, the tensors, the contiguous memory and
  // the scratch memory have to stay, and the description must not be used by others.
  void ToHost(char* host, const Scratch& scratch, cudaStream_t stream) const;
  void FromHost(const char* host, const Scratch& scratch, cudaStream_t stream) const;
  // Into other memory of the same device, without scratch memory but for the description.
  void Snapshot(char* copy, const Scratch& scratch, cudaStream_t stream) const;

 private:
  // Consecutive pieces; one where it is copied by itself.
  struct Run {
    size_t begin;
    size_t end;
    bool is_packed;
  };

  std::vector<Run> Runs(uint64_t area) const;
  void Describe(const Scratch& scratch, cudaStream_t stream) const;
  void Pack(const Run& run, const Scratch& scratch, uint64_t packed, bool is_unpacking, uint32_t max_blocks,
            cudaStream_t stream) const;
  bool IsPacked(const Piece& piece) const {
    return piece.layout != kContiguous || piece.size <= kPackedBytes;
  }

  const int device_;
  std::vector<Piece> pieces_;
  std::vector<Layout> layouts_;
  std::vector<uint32_t> first_tiles_;  // counted from the first piece; one more than there are pieces
  uint64_t description_bytes_ = 0;
};

}  // namespace trackckpt::cuda
