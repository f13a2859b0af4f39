#include "python/tensor_table.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

namespace nb = nanobind;
using namespace nb::literals;

namespace trackckpt {

namespace {

bool IsSame(const TensorMemoryTable& table, const TensorMemory& row, const TensorMemoryTable& other_table,
            const TensorMemory& other) {
  const size_t num_dims = row.rank * (row.is_strided ? 2 : 1);
  return row.data == other.data && row.dtype == other.dtype && row.device == other.device &&
         row.rank == other.rank && row.is_strided == other.is_strided &&
         std::equal(table.Shape(row), table.Shape(row) + num_dims, other_table.Shape(other));
}

void AppendNumber(int64_t number, std::string* text) {
  text->append(reinterpret_cast<const char*>(&number), sizeof(number));
}

// What is known of values without what is in them, as bytes that are the same as long as that is.
nb::tuple KindsOf(const nb::list& values, const nb::tuple& types) {
  const TensorReader reader(types, /*with_devices=*/true);
  const nb::tuple all(values);
  std::string kinds;
  nb::list others;
  TensorMemoryTable one;
  for (size_t i = 0; i < all.size(); ++i) {
    reader.Approach(i, all.size(), [&](size_t at) { return nb::handle(all[at]).ptr(); });
    one.rows.clear();
    one.dims.clear();
    if (!reader.Add(nb::handle(all[i]).ptr(), &one)) {
      others.append(i);
      AppendNumber(0, &kinds);
      continue;
    }
    const TensorMemory& row = one.rows[0];
    AppendNumber(row.dtype, &kinds);
    AppendNumber(row.rank, &kinds);
    for (uint32_t dim = 0; dim < row.rank; ++dim) AppendNumber(one.Shape(row)[dim], &kinds);
  }
  return nb::make_tuple(nb::bytes(kinds.data(), kinds.size()), others);
}

nb::tuple TupleOf(const int64_t* numbers, uint32_t count) {
  nb::list list;
  for (uint32_t i = 0; i < count; ++i) list.append(numbers[i]);
  return nb::tuple(list);
}

}  // namespace

TensorTable::TensorTable(const nb::list& values, const nb::tuple& types, bool with_devices)
    : reader_(types, with_devices) {
  objects_.reserve(values.size());
  versions_.reserve(values.size());
  memory_.rows.reserve(values.size());
  memory_.dims.reserve(2 * values.size());
  const nb::tuple all(values);
  for (size_t i = 0; i < all.size(); ++i) {
    const nb::handle value = all[i];
    reader_.Approach(i, all.size(), [&](size_t at) { return nb::handle(all[at]).ptr(); });
    if (!reader_.Add(value.ptr(), &memory_)) memory_.rows.emplace_back();
    const bool is_tensor = reader_.IsOfType(value.ptr()) || nb::hasattr(value, "_version");
    versions_.push_back(is_tensor ? reader_.Version(value.ptr()) : TensorReader::kNoVersion);
    objects_.push_back(nb::borrow(value));
  }
}

TensorTable TensorTable::Relocated(const Column& addresses, const nb::list& others, const nb::list& replaced,
                                   nb::object owner) const {
  if (addresses.shape(0) != size()) throw nb::value_error("there is not an address for each row");
  if (others.size() != replaced.size()) throw nb::value_error("there is not a tensor for each of the others");
  TensorTable copy(reader_);
  copy.memory_ = memory_;
  copy.owner_ = std::move(owner);
  for (size_t i = 0; i < size(); ++i) {
    TensorMemory& row = copy.memory_.rows[i];
    if (row.dtype == 0 || addresses.data()[i] == 0) continue;
    row.data = reinterpret_cast<char*>(static_cast<uintptr_t>(addresses.data()[i]));
    row.device = kHost;
    row.is_strided = false;
  }
  for (size_t i = 0; i < others.size(); ++i) {
    const auto row = nb::cast<size_t>(others[i]);
    if (row >= size()) throw nb::index_error();
    TensorMemoryTable one;
    if (!reader_.Add(replaced[i].ptr(), &one)) continue;
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
    if (!memory_.rows[i].is_plain() && !memory_.rows[i].is_on_device()) others.append(i);
  }
  return others;
}

nb::tuple TensorTable::OnDevices() const {
  nb::list rows, devices;
  for (size_t i = 0; i < memory_.rows.size(); ++i) {
    if (!memory_.rows[i].is_on_device()) continue;
    rows.append(i);
    devices.append(memory_.rows[i].device);
  }
  return nb::make_tuple(rows, devices);
}

nb::list TensorTable::Strided() const {
  nb::list strided;
  for (size_t i = 0; i < memory_.rows.size(); ++i) {
    const TensorMemory& row = memory_.rows[i];
    if (!row.is_strided) continue;
    const int64_t* const dims = memory_.Shape(row);
    strided.append(nb::make_tuple(i, TupleOf(dims, row.rank), TupleOf(dims + row.rank, row.rank)));
  }
  return strided;
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
  if (!before.is_plain() && !before.is_on_device()) return false;
  scratch->rows.clear();
  scratch->dims.clear();
  return !reader_.Add(objects_[row].ptr(), scratch) || !IsSame(*scratch, scratch->rows[0], memory_, before);
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
      .def(nb::init<const nb::list&, const nb::tuple&, bool>(), "values"_a, "types"_a,
           "with_devices"_a = false)
      .def("__len__", &TensorTable::size)
      .def_prop_ro("nbytes", &TensorTable::num_bytes)
      .def("others", &TensorTable::Others)
      .def("on_devices", &TensorTable::OnDevices)
      .def("strided", &TensorTable::Strided)
      .def("sizes", &TensorTable::Sizes)
      .def("addresses", &TensorTable::Addresses)
      .def("value", &TensorTable::Value, "row"_a)
      .def("relocated", &TensorTable::Relocated, "addresses"_a, "others"_a, "replaced"_a, "owner"_a)
      .def("changed", &TensorTable::Changed)
      .def("moved", &TensorTable::Moved)
      .def("unversioned", &TensorTable::Unversioned);
  module.def("kinds_of", &KindsOf, "values"_a, "types"_a, "The types and shapes of tensors.");
}

}  // namespace trackckpt
