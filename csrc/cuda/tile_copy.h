// What the threads of one block do for one tile: they copy some bytes of a piece between its tensor and contiguous
// memory. Without anything of CUDA in it but two marks, so that the tests run it on the processor.
#pragma once

#include <cstdint>

#include "cuda/pieces.h"

#ifdef __CUDACC__
#define TRACKCKPT_DEVICE __host__ __device__ inline
#else
#define TRACKCKPT_DEVICE inline
#endif

namespace trackckpt::cuda {

// How many bytes one block copies at a time. With 256 threads each has four loads of 16 bytes under way.
constexpr uint32_t kTileBytes = 16 << 10;

enum class Direction : int32_t { kPack, kUnpack };

struct alignas(16) Bytes16 {
  uint32_t word[4];
};

// An element of 16 bytes, which need not begin at a multiple of 16.
struct TwoWords {
  uint64_t word[2];
};

// The part of a piece that a tile is.
struct Tile {
  const Piece* piece;
  uint32_t number;  // among those of the piece
};

TRACKCKPT_DEVICE uint32_t NumTiles(const Piece& piece) {
  return static_cast<uint32_t>((piece.size + kTileBytes - 1) / kTileBytes);
}

// The piece that a tile belongs to: the last one that begins at or before it.
TRACKCKPT_DEVICE uint32_t PieceOfTile(const uint32_t* first_tiles, uint32_t num_pieces, uint32_t tile) {
  uint32_t low = 0;
  uint32_t high = num_pieces;
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    if (first_tiles[middle] <= tile) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

template <typename Unit>
TRACKCKPT_DEVICE uint32_t CopyUnits(char* to, const char* from, uint32_t n, uint32_t thread,
                                    uint32_t num_threads) {
  const uint32_t count = n / sizeof(Unit);
  auto* const target = reinterpret_cast<Unit*>(to);
  const auto* const source = reinterpret_cast<const Unit*>(from);
  // Four loads are under way before the first is waited for. A compiler does not do that by itself: for all it knows,
  // the first store might change what is loaded next.
  uint32_t i = thread;
  for (; i < count && count - i > 3 * num_threads; i += 4 * num_threads) {
    const Unit first = source[i];
    const Unit second = source[i + num_threads];
    const Unit third = source[i + 2 * num_threads];
    const Unit fourth = source[i + 3 * num_threads];
    target[i] = first;
    target[i + num_threads] = second;
    target[i + 2 * num_threads] = third;
    target[i + 3 * num_threads] = fourth;
  }
  for (; i < count; i += num_threads) target[i] = source[i];
  return count * static_cast<uint32_t>(sizeof(Unit));
}

// By the widest accesses that both sides are aligned for.
TRACKCKPT_DEVICE void CopyContiguous(char* to, const char* from, uint32_t n, uint32_t thread,
                                     uint32_t num_threads) {
  const uintptr_t both = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  uint32_t done;
  if (both % 16 == 0) {
    done = CopyUnits<Bytes16>(to, from, n, thread, num_threads);
  } else if (both % 8 == 0) {
    done = CopyUnits<uint64_t>(to, from, n, thread, num_threads);
  } else if (both % 4 == 0) {
    done = CopyUnits<uint32_t>(to, from, n, thread, num_threads);
  } else if (both % 2 == 0) {
    done = CopyUnits<uint16_t>(to, from, n, thread, num_threads);
  } else {
    done = 0;
  }
  CopyUnits<uint8_t>(to + done, from + done, n - done, thread, num_threads);
}

// Where the element of a row-major number lies, in bytes from the first.
TRACKCKPT_DEVICE int64_t PlaceOf(const Layout& layout, uint64_t element) {
  int64_t place = 0;
  for (int32_t i = layout.rank - 1; i >= 0; --i) {
    const auto length = static_cast<uint64_t>(layout.shape[i]);
    place += static_cast<int64_t>(element % length) * layout.strides[i];
    element /= length;
  }
  return place;
}

template <typename Item>
TRACKCKPT_DEVICE void CopyItems(const Layout& layout, char* tensor, uint64_t first, char* packed,
                                uint32_t count, Direction direction, uint32_t thread, uint32_t num_threads) {
  for (uint32_t i = thread; i < count; i += num_threads) {
    auto* const scattered = reinterpret_cast<Item*>(tensor + PlaceOf(layout, first + i));
    auto* const gathered = reinterpret_cast<Item*>(packed) + i;
    if (direction == Direction::kPack) {
      *gathered = *scattered;
    } else {
      *scattered = *gathered;
    }
  }
}

TRACKCKPT_DEVICE void CopyStrided(const Layout& layout, char* tensor, uint64_t begin, char* packed,
                                  uint32_t n, Direction direction, uint32_t thread, uint32_t num_threads) {
  const auto item_size = static_cast<uint32_t>(layout.item_size);
  const uint64_t first = begin / item_size;
  const uint32_t count = n / item_size;
  switch (item_size) {
    case 1:
      return CopyItems<uint8_t>(layout, tensor, first, packed, count, direction, thread, num_threads);
    case 2:
      return CopyItems<uint16_t>(layout, tensor, first, packed, count, direction, thread, num_threads);
    case 4:
      return CopyItems<uint32_t>(layout, tensor, first, packed, count, direction, thread, num_threads);
    case 8:
      return CopyItems<uint64_t>(layout, tensor, first, packed, count, direction, thread, num_threads);
    default:
      return CopyItems<TwoWords>(layout, tensor, first, packed, count, direction, thread, num_threads);
  }
}

// The share that one of `num_threads` threads has in a tile. `packed` is the address that the offsets of pieces count
// from; there need not be anything at it.
TRACKCKPT_DEVICE void CopyTile(const Tile& tile, const Layout* layouts, uint64_t packed, Direction direction,
                               uint32_t thread, uint32_t num_threads) {
  const Piece& piece = *tile.piece;
  const uint64_t from = static_cast<uint64_t>(tile.number) * kTileBytes;
  const uint64_t left = piece.size - from;
  const auto n = static_cast<uint32_t>(left < kTileBytes ? left : kTileBytes);
  char* const tensor = reinterpret_cast<char*>(piece.address);
  char* const place = reinterpret_cast<char*>(packed + piece.offset + from);
  if (piece.layout != kContiguous) {
    return CopyStrided(layouts[piece.layout], tensor, piece.begin + from, place, n, direction, thread,
                       num_threads);
  }
  char* const part = tensor + piece.begin + from;
  if (direction == Direction::kPack) {
    CopyContiguous(place, part, n, thread, num_threads);
  } else {
    CopyContiguous(part, place, n, thread, num_threads);
  }
}

}  // namespace trackckpt::cuda
