// Parts of tensors in device memory, and the places that they have in one contiguous run of memory: what a checkpoint's
// data file, a pinned chunk or a device-side snapshot holds of them.
#pragma once

#include <cstdint>

namespace trackckpt::cuda {

constexpr int32_t kMaxRank = 8;
constexpr int32_t kContiguous = -1;

// How the elements of a tensor lie that has gaps between them, or another order. Dimensions that can be joined have
// been, and those of one element are gone.
struct Layout {
  int32_t rank;
  int32_t item_size;  // 1, 2, 4, 8 or 16
  int64_t shape[kMaxRank];
  int64_t strides[kMaxRank];  // in bytes
};

// Some of the bytes that a tensor has in row-major order.
struct Piece {
  uint64_t address;  // of the tensor's first element
  uint64_t begin;    // of the piece, in row-major bytes; at an element
  uint64_t size;     // whole elements
  uint64_t offset;   // in the contiguous memory
  int32_t layout;    // the number of one, or kContiguous
  int32_t unused;    // zero: pieces are copied to the device as they are
};

}  // namespace trackckpt::cuda
