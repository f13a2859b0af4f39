#include "python/tensor_reader.h"

#include <cstddef>
#include <cstring>
#include <string>

#include "bundle/dtype.h"
#include "python/dlpack.h"

namespace nb = nanobind;

namespace trackckpt {

namespace {

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
      return by_bits(kDtypeInt8, 5, 3, 9);
    case dlpack::kUInt:
      return by_bits(kDtypeUint8, 17, 22, 23);
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

using Borrow = int (*)(void* object, void* tensor);

// How objects of a class tell where their memory is; null where they do not.
Borrow BorrowOf(nb::handle type) {
  if (!nb::hasattr(type, dlpack::kAttribute)) return nullptr;
  const nb::object capsule = type.attr(dlpack::kAttribute);
  // What has another meaning tells nothing.
  if (!PyCapsule_IsValid(capsule.ptr(), dlpack::kCapsuleName)) return nullptr;
  auto* api = static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsuleName));
  while (api != nullptr && api->major != dlpack::kMajorVersion) api = api->previous;
  return api == nullptr ? nullptr : api->borrow;
}

// Below may be what is no address. What the system hands out is above as a rule, and what is not costs a closer look.
constexpr uintptr_t kUsualAddresses = uintptr_t{1} << 40;

// What is copied from devices with its gaps has no more.
constexpr int32_t kMostDims = 8;

constexpr size_t kBodyOffset = sizeof(PyObject), kPointerSize = sizeof(void*);

nb::object Name(const char* name) { return nb::steal(PyUnicode_InternFromString(name)); }

bool CallPredicate(PyObject* object, const nb::object& name) {
  PyObject* const arguments[] = {object};
  const nb::object result = nb::steal(
      PyObject_VectorcallMethod(name.ptr(), arguments, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
  if (!result.is_valid()) throw nb::python_error();
  return result.is(Py_True);
}

}  // namespace

TensorReader::TensorReader(const nb::tuple& types, bool with_devices)
    : with_devices_(with_devices),
      is_neg_(Name("is_neg")),
      is_conj_(Name("is_conj")),
      dtype_(Name("dtype")),
      version_(Name("_version")) {
  for (nb::handle type : types) {
    const bool has_body = nb::cast<size_t>(type.attr("__basicsize__")) >= kBodyOffset + kPointerSize;
    types_.push_back({reinterpret_cast<PyTypeObject*>(type.ptr()), BorrowOf(type), has_body});
  }
}

const TensorReader::Type* TensorReader::Find(const PyObject* object) const {
  for (const Type& type : types_) {
    if (type.type == Py_TYPE(object)) return &type;
  }
  return nullptr;
}

// torch keeps the address of a tensor's body behind the head of its Python object. Should that change, what is fetched
// is of no use, and nothing else is wrong.
void TensorReader::FetchBody(const PyObject* object) const {
  constexpr size_t kCacheLine = 64;
  const Type* const type = object == nullptr ? nullptr : Find(object);
  if (type == nullptr || !type->has_body) return;
  const char* body;
  std::memcpy(&body, reinterpret_cast<const char*>(object) + kBodyOffset, kPointerSize);
  for (size_t line = 0; line < 4; ++line) __builtin_prefetch(body + line * kCacheLine);
}

// A conjugate or negative view has its sign in a flag, not in its memory.
bool TensorReader::HasFlaggedSign(PyObject* tensor, int32_t dtype) const {
  if (CallPredicate(tensor, is_neg_)) return true;
  const bool is_complex = dtype == kDtypeComplex64 || dtype == kDtypeComplex128;
  return is_complex && CallPredicate(tensor, is_conj_);
}

// The exchange calls torch's integers of less than eight bits int8 and uint8, which is what they lie in.
bool TensorReader::IsNarrowInteger(PyObject* tensor, int32_t dtype) const {
  if (dtype != kDtypeInt8 && dtype != kDtypeUint8) return false;
  const nb::object type = nb::steal(PyObject_GetAttr(tensor, dtype_.ptr()));
  if (!type.is_valid()) throw nb::python_error();
  const std::string name = nb::repr(type).c_str();
  return name != "torch.int8" && name != "torch.uint8";
}

// A view of storage that was released has an address that is the view's offset alone.
bool TensorReader::IsInsideStorage(PyObject* tensor, uint64_t size) const {
  const nb::handle object(tensor);
  const auto offset = nb::cast<uint64_t>(object.attr("storage_offset")());
  const auto item_size = nb::cast<uint64_t>(object.attr("element_size")());
  return offset * item_size + size <= nb::cast<uint64_t>(object.attr("untyped_storage")().attr("nbytes")());
}

int64_t TensorReader::Version(PyObject* tensor) const {
  const nb::object version = nb::steal(PyObject_GetAttr(tensor, version_.ptr()));
  if (version.is_valid()) {
    const int64_t number = PyLong_AsLongLong(version.ptr());
    if (number != -1 || !PyErr_Occurred()) return number;
  }
  PyErr_Clear();
  return kNoVersion;
}

bool TensorReader::Add(PyObject* object, TensorMemoryTable* table) const {
  const Type* const type = Find(object);
  if (type == nullptr || type->borrow == nullptr) return false;
  dlpack::Tensor tensor;
  if (type->borrow(object, &tensor) != 0) {
    PyErr_Clear();  // it has no memory that could be described: it is sparse, say, or on the meta device
    return false;
  }
  const int32_t dtype = DataTypeOf(tensor.dtype);
  const bool is_on_device = with_devices_ && tensor.device.type == dlpack::kCuda;
  if (dtype == 0 || (tensor.device.type != dlpack::kCpu && !is_on_device)) return false;
  TensorMemory row;
  row.is_strided = !IsContiguous(tensor);
  if (row.is_strided && (!is_on_device || tensor.ndim > kMostDims)) return false;
  if (is_on_device) row.device = tensor.device.id;
  row.size = ItemSize(dtype);
  for (int32_t i = 0; i < tensor.ndim; ++i) row.size *= static_cast<uint64_t>(tensor.shape[i]);
  if (row.size > 0 && tensor.data == nullptr) return false;
  row.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  row.dtype = dtype;
  row.rank = static_cast<uint32_t>(tensor.ndim);
  row.first_dim = table->dims.size();
  table->dims.insert(table->dims.end(), tensor.shape, tensor.shape + tensor.ndim);
  if (row.is_strided) table->dims.insert(table->dims.end(), tensor.strides, tensor.strides + tensor.ndim);
  // What was borrowed is no longer looked at: this may call code of Python.
  const bool may_be_released = row.size > 0 && reinterpret_cast<uintptr_t>(row.data) < kUsualAddresses;
  if (HasFlaggedSign(object, dtype) || IsNarrowInteger(object, dtype) ||
      (may_be_released && !IsInsideStorage(object, row.size))) {
    table->dims.resize(row.first_dim);
    return false;
  }
  table->rows.push_back(row);
  return true;
}

}  // namespace trackckpt
