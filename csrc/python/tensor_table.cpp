#include "python/tensor_table.h"

#include <cstddef>

namespace nb = nanobind;
using namespace nb::literals;

namespace trackckpt {

TensorTable::TensorTable(const nb::list& values, const nb::tuple& types) : reader_(types) {
  objects_.reserve(values.size());
  versions_.reserve(values.size());
  memory_.rows.reserve(values.size());
  memory_.dims.reserve(2 * values.size());
  const nb::tuple all(values);
  for (size_t i = 0; i < all.size(); ++i) {
    const nb::handle value = all[i];
    reader_.Approach(i, all.size(), [&](size_t at) { return nb::handle(all[at]).ptr(); });
    if (!reader_.AddPlain(value.ptr(), &memory_)) memory_.rows.emplace_back();
    const bool is_tensor = reader_.IsOfType(value.ptr()) || nb::hasattr(value, "_version");
    versions_.push_back(is_tensor ? reader_.Version(value.ptr()) : TensorReader::kNoVersion);
    objects_.push_back(nb::borrow(value));
  }
}

uint64_t TensorTable::num_bytes() const {
  uint64_t total = 0;
  for (const TensorMemory& row : memory_.rows) total += row.size;
  return total;
}

nb::list TensorTable::Others() const {
  nb::list others;
  for (size_t i = 0; i < memory_.rows.size(); ++i) {
    if (!memory_.rows[i].is_plain()) others.append(i);
  }
  return others;
}

nb::list TensorTable::Sizes() const {
  nb::list sizes;
  for (const TensorMemory& row : memory_.rows) sizes.append(row.size);
  return sizes;
}

nb::list TensorTable::Changed() const {
  nb::list changed;
  for (size_t i = 0; i < objects_.size(); ++i) {
    reader_.Approach(i, objects_.size(), [&](size_t at) { return objects_[at].ptr(); });
    if (versions_[i] != TensorReader::kNoVersion && reader_.Version(objects_[i].ptr()) != versions_[i])
      changed.append(i);
  }
  return changed;
}

nb::list TensorTable::Moved() const {
  nb::list moved;
  TensorMemoryTable now;
  for (size_t i = 0; i < objects_.size(); ++i) {
    const TensorMemory& before = memory_.rows[i];
    if (!before.is_plain()) continue;
    reader_.Approach(i, objects_.size(), [&](size_t at) { return objects_[at].ptr(); });
    now.rows.clear();
    now.dims.clear();
    const bool is_same = reader_.AddPlain(objects_[i].ptr(), &now) && now.rows[0].data == before.data &&
                         now.rows[0].dtype == before.dtype &&
                         now.ShapeOf(now.rows[0]) == memory_.ShapeOf(before);
    if (!is_same) moved.append(i);
  }
  return moved;
}

nb::list TensorTable::Unversioned() const {
  nb::list unversioned;
  for (size_t i = 0; i < versions_.size(); ++i) {
    if (versions_[i] == TensorReader::kNoVersion) unversioned.append(i);
  }
  return unversioned;
}

void DefineTensorTable(nb::module_& module) {
  nb::class_<TensorTable>(module, "TensorTable", nb::is_final(), "Tensors as memory.")
      .def(nb::init<const nb::list&, const nb::tuple&>(), "values"_a, "types"_a)
      .def("__len__", &TensorTable::size)
      .def_prop_ro("nbytes", &TensorTable::num_bytes)
      .def("others", &TensorTable::Others)
      .def("sizes", &TensorTable::Sizes)
      .def("changed", &TensorTable::Changed)
      .def("moved", &TensorTable::Moved)
      .def("unversioned", &TensorTable::Unversioned);
}

}  // namespace trackckpt
