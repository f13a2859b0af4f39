#include "cuda/pack.h"

namespace trackckpt::cuda {

namespace {

constexpr uint32_t kThreads = 256;

// Blocks take tiles in turn, because there may be many more tiles than blocks.
__global__ void __launch_bounds__(kThreads) CopyTiles(PackedRun run, Direction direction) {
  for (uint32_t number = blockIdx.x; number < run.num_tiles; number += gridDim.x) {
    const uint32_t tile = run.first_tile + number;
    const uint32_t piece = PieceOfTile(run.first_tiles, run.num_pieces, tile);
    CopyTile({run.pieces + piece, tile - run.first_tiles[piece]}, run.layouts, run.packed, direction,
             threadIdx.x, kThreads);
  }
}

}  // namespace

cudaError_t CopyRun(const PackedRun& run, Direction direction, uint32_t max_blocks, cudaStream_t stream) {
  if (run.num_tiles == 0) return cudaSuccess;
  const uint32_t num_blocks = run.num_tiles < max_blocks ? run.num_tiles : max_blocks;
  CopyTiles<<<num_blocks, kThreads, 0, stream>>>(run, direction);
  return cudaGetLastError();
}

}  // namespace trackckpt::cuda
