// The kernel that copies many pieces at once between tensors and contiguous device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/tile_copy.h"

namespace trackckpt::cuda {

// Consecutive pieces, all of it in device memory.
struct PackedRun {
  const Piece* pieces;
  const Layout* layouts;
  const uint32_t* first_tiles;  // of each piece; ascending
  uint32_t first_tile;          // of the run
  uint32_t num_pieces;
  uint32_t num_tiles;
  uint64_t packed;  // the address that the offsets of the pieces count from
};

// Has the current device do it, in the order of the stream. Not more than `max_blocks` blocks work at once, so that a
// program that uses the device meanwhile keeps most of it.
cudaError_t CopyRun(const PackedRun& run, Direction direction, uint32_t max_blocks, cudaStream_t stream);

}  // namespace trackckpt::cuda
