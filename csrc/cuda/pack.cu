#include "cuda/pack.h"

namespace trackckpt::cuda {

namespace {

constexpr uint32_t kThreads = 256;

// There may be many more tiles than blocks. Each takes neighbours, and has to look for the piece of the first only.
__global__ void __launch_bounds__(kThreads) CopyTiles(PackedRun run, Direction direction) {
  const auto begin = static_cast<uint32_t>(uint64_t{run.num_tiles} * blockIdx.x / gridDim.x);
  const auto end = static_cast<uint32_t>(uint64_t{run.num_tiles} * (blockIdx.x + 1) / gridDim.x);
  if (begin == end) return;
  uint32_t piece = PieceOfTile(run.first_tiles, run.num_pieces, run.first_tile + begin);
  for (uint32_t number = begin; number < end; ++number) {
    const uint32_t tile = run.first_tile + number;
    while (piece + 1 < run.num_pieces && run.first_tiles[piece + 1] <= tile) ++piece;
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
