#include "python/tensor_table.h"

#include <algorithm>
#include <cstddef>
#include <utility>

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

TensorTable TensorTable::Relocated(uint64_t address, const Column& offsets, const nb::list& others,
                                   const nb::list& replaced, nb::object owner) const {
  if (offsets.shape(0) != size()) throw nb::value_error("there is not an offset for each row");
  if (others.size() != replaced.size()) throw nb::value_error("there is not a tensor for each of the others");
  TensorTable copy(reader_);
  copy.memory_ = memory_;
  copy.owner_ = std::move(owner);
  for (size_t i = 0; i < size(); ++i) {
    TensorMemory& row = copy.memory_.rows[i];
    if (row.is_plain())
      row.data = reinterpret_cast<char*>(address + static_cast<uint64_t>(offsets.data()[i]));
  }
  for (size_t i = 0; i < others.size(); ++i) {
    const auto row = nb::cast<size_t>(others[i]);
    if (row >= size()) throw nb::index_error();
    TensorMemoryTable one;
    if (!reader_.AddPlain(replaced[i].ptr(), &one)) continue;
    one.rows[0].first_dim = copy.memory_.dims.size();
    copy.memory_.rows[row] = one.rows[0];
    copy.memory_.dims.insert(copy.memory_.dims.end(), one.dims.begin(), one.dims.end());
  }
  return copy;
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

nb::list TensorTable::Addresses() const {
  nb::list addresses;
  for (const TensorMemory& row : memory_.rows) addresses.append(reinterpret_cast<uintptr_t>(row.data));
  return addresses;
}

nb::object TensorTable::Value(size_t row) const {
  if (row >= objects_.size()) throw nb::index_error();
  return objects_[row];
}

nb::list TensorTable::Changed() const {
  nb::list changed;
  TensorMemoryTable now;
  for (size_t i = 0; i < objects_.size(); ++i) {
    reader_.Approach(i, objects_.size(), [&](size_t at) { return objects_[at].ptr(); });
    const bool has_version = versions_[i] != TensorReader::kNoVersion;
    if ((has_version && reader_.Version(objects_[i].ptr()) != versions_[i]) || HasMoved(i, &now))
      changed.append(i);
  }
  return changed;
}

nb::list TensorTable::Moved() const {
  nb::list moved;
  TensorMemoryTable now;
  for (size_t i = 0; i < objects_.size(); ++i) {
    reader_.Approach(i, objects_.size(), [&](size_t at) { return objects_[at].ptr(); });
    if (HasMoved(i, &now)) moved.append(i);
  }
  return moved;
}

bool TensorTable::HasMoved(size_t row, TensorMemoryTable* scratch) const {
  const TensorMemory& before = memory_.rows[row];
  if (!before.is_plain()) return false;
  scratch->rows.clear();
  scratch->dims.clear();
  if (!reader_.AddPlain(objects_[row].ptr(), scratch)) return true;
  const TensorMemory& now = scratch->rows[0];
  return now.data != before.data || now.dtype != before.dtype || now.rank != before.rank ||
         !std::equal(scratch->Shape(now), scratch->Shape(now) + now.rank, memory_.Shape(before));
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
      .def("addresses", &TensorTable::Addresses)
      .def("value", &TensorTable::Value, "row"_a)
      .def("relocated", &TensorTable::Relocated, "address"_a, "offsets"_a, "others"_a, "replaced"_a,
           "owner"_a)
      .def("changed", &TensorTable::Changed)
      .def("moved", &TensorTable::Moved)
      .def("unversioned", &TensorTable::Unversioned);
}

}  // namespace trackckpt
