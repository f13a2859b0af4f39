// Tensors as memory: what the core needs to know of them to write their bytes, or to read bytes into them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trackckpt {

constexpr int32_t kHost = -1;  // not the number of a device

// Elements of fixed size. Who fills a table keeps the memory alive.
struct TensorMemory {
  char* data = nullptr;
  uint64_t size = 0;  // of the elements, without gaps
  int32_t dtype = 0;  // a DataType number; 0 where nothing is known of the row
  uint32_t rank = 0;
  size_t first_dim = 0;  // of `rank` dimensions in the table
  int32_t device = kHost;
  bool is_strided = false;  // only on devices: strides, in elements, follow the dimensions

  // C-contiguous memory of the processor. Others are on a device, have gaps between their elements, or are no tensors.
  bool is_plain() const { return dtype != 0 && device == kHost; }
  bool is_on_device() const { return dtype != 0 && device != kHost; }
};

// Many tensors, in columns, so that a row costs no allocation.
struct TensorMemoryTable {
  std::vector<TensorMemory> rows;
  std::vector<int64_t> dims;

  const int64_t* Shape(const TensorMemory& row) const { return dims.data() + row.first_dim; }
  const int64_t* Strides(const TensorMemory& row) const { return Shape(row) + row.rank; }
  std::vector<int64_t> ShapeOf(const TensorMemory& row) const { return {Shape(row), Shape(row) + row.rank}; }
};

// Some of the bytes of a row, in other memory than its own.
struct RowPiece {
  size_t row = 0;
  uint64_t begin = 0;
  uint64_t size = 0;
  const char* data = nullptr;
};

}  // namespace trackckpt
