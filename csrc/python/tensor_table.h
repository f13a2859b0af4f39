// `_native.TensorTable`: Python's tensors as memory.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <vector>

#include "bundle/tensor_memory.h"
#include "python/tensor_reader.h"

namespace trackckpt {

// Keeps every object alive. To be used with the interpreter lock, but for `memory`.
class TensorTable {
 public:
  // Tensors of exactly these types, which do not interfere with torch, are asked for their memory; all other
  // objects are rows that are not plain.
  TensorTable(const nanobind::list& values, const nanobind::tuple& types);

  const TensorMemoryTable& memory() const { return memory_; }
  size_t size() const { return objects_.size(); }
  uint64_t num_bytes() const;
  // The rows that are not plain.
  nanobind::list Others() const;
  nanobind::list Sizes() const;
  // The rows of tensors that torch knows to have changed since the table was made.
  nanobind::list Changed() const;
  // The plain rows whose tensors are no longer what the table says: they have other memory, or another shape.
  nanobind::list Moved() const;
  // The rows of objects without a version: inference tensors, and what is no tensor.
  nanobind::list Unversioned() const;

 private:
  TensorReader reader_;
  std::vector<nanobind::object> objects_;
  std::vector<int64_t> versions_;
  TensorMemoryTable memory_;
};

void DefineTensorTable(nanobind::module_& module);

}  // namespace trackckpt
