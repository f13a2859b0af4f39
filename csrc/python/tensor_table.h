// `_native.TensorTable`: Python's tensors as memory.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "bundle/tensor_memory.h"
#include "python/tensor_reader.h"

namespace trackckpt {

// A number for each row of a table.
using Column = nanobind::ndarray<const int64_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

// Keeps every object alive. To be used with the interpreter lock, but for `memory`.
class TensorTable {
 public:
  // Tensors of exactly these types, which do not interfere with torch, are asked for their memory; all other
  // objects are rows that are not plain.
  TensorTable(const nanobind::list& values, const nanobind::tuple& types, bool with_devices);

  // The same rows in other memory: plain rows and those on devices are copies at the addresses given, in memory of the
  // processor, or stay where they are if that is 0; of `others`, what the tensors in `replaced` tell. It keeps `owner`
  // alive, whose memory that is, and none of the objects.
  TensorTable Relocated(const Column& addresses, const nanobind::list& others, const nanobind::list& replaced,
                        nanobind::object owner) const;

  const TensorMemoryTable& memory() const { return memory_; }
  size_t size() const { return memory_.rows.size(); }
  uint64_t num_bytes() const;
  // The rows that are neither plain nor on a device.
  nanobind::list Others() const;
  // The rows that are on a device, ascending, and the number of the device of each.
  nanobind::tuple OnDevices() const;
  // The rows on devices that have gaps between their elements, with dimensions and strides.
  nanobind::list Strided() const;
  nanobind::list Sizes() const;
  // Where each row begins; 0 where that is not known.
  nanobind::list Addresses() const;
  nanobind::object Value(size_t row) const;
  // The rows of tensors that torch knows to have changed since the table was made, or that have moved.
  nanobind::list Changed() const;
  // The rows whose tensors are no longer what the table says: they have other memory, or another shape.
  nanobind::list Moved() const;
  // The rows of objects without a version: inference tensors, and what is no tensor.
  nanobind::list Unversioned() const;

 private:
  // `scratch` is used for nothing else.
  bool HasMoved(size_t row, TensorMemoryTable* scratch) const;

  explicit TensorTable(TensorReader reader) : reader_(std::move(reader)) {}

  TensorReader reader_;
  std::vector<nanobind::object> objects_;  // none where the table is a relocated one
  nanobind::object owner_;
  std::vector<int64_t> versions_;
  TensorMemoryTable memory_;
};

void DefineTensorTable(nanobind::module_& module);

}  // namespace trackckpt
