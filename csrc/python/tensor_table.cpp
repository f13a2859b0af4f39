#include "python/tensor_table.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "bundle/dtype.h"
#include "python/dlpack.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace trackckpt {

namespace {

constexpr int64_t kNoVersion = -1;  // of objects that have none: inference tensors, and what is no tensor

// The DataType number of a type without a counterpart is 0.
int32_t DataTypeOf(dlpack::DataType type) {
  if (type.lanes != 1) return 0;
  const auto by_bits = [&](int32_t bits8, int32_t bits16, int32_t bits32, int32_t bits64) {
    switch (type.bits) {
      case 8:
        return bits8;
      case 16:
        return bits16;
      case 32:
        return bits32;
      case 64:
        return bits64;
      default:
        return 0;
    }
  };
  switch (type.code) {
    case dlpack::kInt:
      return by_bits(6, 5, 3, 9);
    case dlpack::kUInt:
      return by_bits(4, 17, 22, 23);
    case dlpack::kFloat:
      return by_bits(0, 19, 1, 2);
    case dlpack::kBfloat:
      return by_bits(0, 14, 0, 0);
    case dlpack::kComplex:
      return type.bits == 64 ? kDtypeComplex64 : type.bits == 128 ? kDtypeComplex128 : 0;
    case dlpack::kBool:
      return by_bits(kDtypeBool, 0, 0, 0);
    case dlpack::kFloat8E4m3fn:
      return by_bits(25, 0, 0, 0);
    case dlpack::kFloat8E4m3fnuz:
      return by_bits(26, 0, 0, 0);
    case dlpack::kFloat8E5m2:
      return by_bits(24, 0, 0, 0);
    case dlpack::kFloat8E5m2fnuz:
      return by_bits(28, 0, 0, 0);
    default:
      return 0;
  }
}

bool IsContiguous(const dlpack::Tensor& tensor) {
  if (tensor.strides == nullptr) return true;
  int64_t expected = 1;
  bool is_contiguous = true;
  for (int32_t i = tensor.ndim - 1; i >= 0; --i) {
    if (tensor.shape[i] == 0) return true;
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) is_contiguous = false;
    expected *= tensor.shape[i];
  }
  return is_contiguous;
}

// Asks objects of one class; made anew for each table, because a class may change.
class TypeReader {
 public:
  explicit TypeReader(nb::handle type) : type_(type.ptr()) {
    PyObject* const capsule = PyObject_GetAttrString(type_, dlpack::kAttribute);
    if (capsule == nullptr) {
      PyErr_Clear();
      return;
    }
    const nb::object owner = nb::steal(capsule);
    auto* api = static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule, dlpack::kCapsuleName));
    if (api == nullptr) throw nb::python_error();
    while (api != nullptr && api->major != dlpack::kMajorVersion) api = api->previous;
    if (api != nullptr) borrow_ = api->borrow;
  }

  PyTypeObject* type() const { return reinterpret_cast<PyTypeObject*>(type_); }

  // False where the object has no memory that can be described: it is sparse, say, or on the meta device.
  bool Borrow(PyObject* object, dlpack::Tensor* tensor) const {
    if (borrow_ == nullptr) return false;
    if (borrow_(object, tensor) == 0) return true;
    PyErr_Clear();
    return false;
  }

 private:
  PyObject* type_;
  int (*borrow_)(void*, dlpack::Tensor*) = nullptr;
};

class TypeReaders {
 public:
  explicit TypeReaders(const nb::tuple& types) {
    for (nb::handle type : types) readers_.emplace_back(type);
  }

  // Nothing for objects of other classes.
  const TypeReader* Find(PyObject* object) const {
    const auto is_its_reader = [&](const TypeReader& reader) { return reader.type() == Py_TYPE(object); };
    const auto found = std::find_if(readers_.begin(), readers_.end(), is_its_reader);
    return found == readers_.end() ? nullptr : &*found;
  }

 private:
  std::vector<TypeReader> readers_;
};

bool CallPredicate(PyObject* object, PyObject* name) {
  PyObject* const arguments[] = {object};
  const nb::object result =
      nb::steal(PyObject_VectorcallMethod(name, arguments, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
  if (!result.is_valid()) throw nb::python_error();
  return result.is(Py_True);
}

// What is asked of every tensor, with its name made once.
class Questions {
 public:
  // A conjugate or negative view has its sign in a flag, not in its memory.
  bool HasFlaggedSign(PyObject* tensor, int32_t dtype) const {
    if (CallPredicate(tensor, is_neg_.ptr())) return true;
    const bool is_complex = dtype == kDtypeComplex64 || dtype == kDtypeComplex128;
    return is_complex && CallPredicate(tensor, is_conj_.ptr());
  }

  int64_t Version(PyObject* tensor) const {
    const nb::object version = nb::steal(PyObject_GetAttr(tensor, version_.ptr()));
    if (version.is_valid()) return PyLong_AsLongLong(version.ptr());
    PyErr_Clear();
    return kNoVersion;
  }

 private:
  nb::object is_neg_ = nb::steal(PyUnicode_InternFromString("is_neg"));
  nb::object is_conj_ = nb::steal(PyUnicode_InternFromString("is_conj"));
  nb::object version_ = nb::steal(PyUnicode_InternFromString("_version"));
};

// Adds a row for a tensor in contiguous CPU memory; for others nothing.
bool AddPlain(PyObject* object, const TypeReader& reader, const Questions& questions,
              TensorMemoryTable* table) {
  dlpack::Tensor tensor;
  if (!reader.Borrow(object, &tensor)) return false;
  const int32_t dtype = DataTypeOf(tensor.dtype);
  if (dtype == 0 || tensor.device.type != dlpack::kCpu || !IsContiguous(tensor)) return false;
  TensorMemory row;
  row.size = ItemSize(dtype);
  for (int32_t i = 0; i < tensor.ndim; ++i) row.size *= static_cast<uint64_t>(tensor.shape[i]);
  if (row.size > 0 && tensor.data == nullptr) return false;
  if (questions.HasFlaggedSign(object, dtype)) return false;
  row.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  row.dtype = dtype;
  row.rank = static_cast<uint32_t>(tensor.ndim);
  row.first_dim = table->dims.size();
  table->dims.insert(table->dims.end(), tensor.shape, tensor.shape + tensor.ndim);
  table->rows.push_back(row);
  return true;
}

}  // namespace

TensorTable::TensorTable(const nb::list& values, const nb::tuple& types) : types_(types) {
  const TypeReaders readers(types);
  const Questions questions;
  objects_.reserve(values.size());
  versions_.reserve(values.size());
  memory_.rows.reserve(values.size());
  memory_.dims.reserve(2 * values.size());
  for (nb::handle value : values) {
    const TypeReader* const reader = readers.Find(value.ptr());
    const bool is_plain = reader != nullptr && AddPlain(value.ptr(), *reader, questions, &memory_);
    if (!is_plain) memory_.rows.emplace_back();
    const bool is_tensor = reader != nullptr || nb::hasattr(value, "_version");
    versions_.push_back(is_tensor ? questions.Version(value.ptr()) : kNoVersion);
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
  const Questions questions;
  nb::list changed;
  for (size_t i = 0; i < objects_.size(); ++i) {
    if (versions_[i] != kNoVersion && questions.Version(objects_[i].ptr()) != versions_[i]) changed.append(i);
  }
  return changed;
}

nb::list TensorTable::Moved() const {
  const TypeReaders readers(types_);
  nb::list moved;
  for (size_t i = 0; i < objects_.size(); ++i) {
    const TensorMemory& row = memory_.rows[i];
    if (!row.is_plain()) continue;
    const TypeReader* const reader = readers.Find(objects_[i].ptr());
    dlpack::Tensor tensor;
    const bool is_same = reader != nullptr && reader->Borrow(objects_[i].ptr(), &tensor) &&
                         static_cast<char*>(tensor.data) + tensor.byte_offset == row.data &&
                         DataTypeOf(tensor.dtype) == row.dtype && IsContiguous(tensor) &&
                         static_cast<uint32_t>(tensor.ndim) == row.rank &&
                         std::equal(tensor.shape, tensor.shape + tensor.ndim, memory_.Shape(row));
    if (!is_same) moved.append(i);
  }
  return moved;
}

nb::list TensorTable::Unversioned() const {
  nb::list unversioned;
  for (size_t i = 0; i < versions_.size(); ++i) {
    if (versions_[i] == kNoVersion) unversioned.append(i);
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
