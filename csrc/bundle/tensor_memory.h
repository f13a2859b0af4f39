// Tensors as memory: what the core needs to know of them to write their bytes, or to read bytes into them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trackckpt {

// C-contiguous elements of fixed size. Who fills a table keeps the memory alive.
struct TensorMemory {
  char* data = nullptr;
  uint64_t size = 0;
  int32_t dtype = 0;  // a DataType number; 0 where the row is no plain memory
  uint32_t rank = 0;
  size_t first_dim = 0;  // of `rank` dimensions in the table

  // Others are on a device, have gaps between their elements, or are no tensors at all.
  bool is_plain() const { return dtype != 0; }
};

// Many tensors, in columns, so that a row costs no allocation.
struct TensorMemoryTable {
  std::vector<TensorMemory> rows;
  std::vector<int64_t> dims;

  const int64_t* Shape(const TensorMemory& row) const { return dims.data() + row.first_dim; }
  std::vector<int64_t> ShapeOf(const TensorMemory& row) const { return {Shape(row), Shape(row) + row.rank}; }
};

}  // namespace trackckpt
