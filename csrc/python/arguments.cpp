#include "python/arguments.h"

#include "error.h"

namespace nb = nanobind;

namespace trackckpt {

nb::object PythonText(const std::string& text) {
  return nb::steal(PyUnicode_DecodeFSDefaultAndSize(text.data(), static_cast<Py_ssize_t>(text.size())));
}

std::string PathFromPython(const nb::str& path) {
  PyObject* encoded = nullptr;
  if (!PyUnicode_FSConverter(path.ptr(), &encoded)) throw nb::python_error();
  const auto bytes = nb::steal<nb::bytes>(encoded);
  return std::string(bytes.c_str(), bytes.size());
}

std::string_view ViewOf(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

nb::bytes BytesOf(std::string_view text) { return nb::bytes(text.data(), text.size()); }

int64_t IntFromPython(nb::handle value, const char* what) {
  const long long number = PyLong_AsLongLong(Require<nb::int_>(value, what).ptr());
  if (number == -1 && PyErr_Occurred()) throw nb::python_error();
  return number;
}

std::string KeyFromPython(nb::handle value) {
  return std::string(ViewOf(Require<nb::bytes>(value, "a key must be bytes")));
}

uint64_t SizeFromPython(nb::handle value) {
  const int64_t size = IntFromPython(value, "a size must be an int");
  if (size < 0) throw Error(ErrorKind::kInvalidArgument, "a size must not be negative");
  return static_cast<uint64_t>(size);
}

void* AddressFromPython(nb::handle value) {
  return reinterpret_cast<void*>(static_cast<uintptr_t>(IntFromPython(value, "an address must be an int")));
}

int32_t DtypeFromPython(nb::handle value) {
  const int64_t dtype = IntFromPython(value, "a dtype must be an int");
  if (dtype != static_cast<int32_t>(dtype)) {
    throw Error(ErrorKind::kInvalidArgument, "no such DataType: " + std::to_string(dtype));
  }
  return static_cast<int32_t>(dtype);
}

std::vector<int64_t> ShapeFromPython(nb::handle value) {
  std::vector<int64_t> shape;
  for (nb::handle dim : Require<nb::tuple>(value, "a shape must be a tuple of int")) {
    shape.push_back(IntFromPython(dim, "a shape must be a tuple of int"));
  }
  return shape;
}

nb::tuple TupleOfLength(nb::handle value, size_t length, const char* what) {
  const auto tuple = Require<nb::tuple>(value, what);
  if (tuple.size() != length) throw nb::type_error(what);
  return tuple;
}

TensorSlice SliceFromPython(nb::handle value) {
  TensorSlice slice;
  const char* what = "extents must be a tuple of (start, length)";
  for (nb::handle item : Require<nb::tuple>(value, what)) {
    const nb::tuple extent = TupleOfLength(item, 2, what);
    slice.extents.push_back({IntFromPython(extent[0], what), IntFromPython(extent[1], what)});
  }
  return slice;
}

void* MemoryFromPython(nb::handle address, uint64_t size) {
  void* memory = AddressFromPython(address);
  if (memory == nullptr && size > 0)
    throw Error(ErrorKind::kInvalidArgument, "there is no memory at address 0");
  return memory;
}

TensorBytes TensorFromPython(nb::handle value) {
  const nb::tuple fields =
      TupleOfLength(value, 5, "a tensor must be a tuple (key, dtype, shape, address, size)");
  const uint64_t size = SizeFromPython(fields[4]);
  return {KeyFromPython(fields[0]), DtypeFromPython(fields[1]), ShapeFromPython(fields[2]),
          MemoryFromPython(fields[3], size), size};
}

ReadRequest RequestFromPython(nb::handle value) {
  const nb::tuple fields = TupleOfLength(value, 3, "a request must be a tuple (key, address, size)");
  const uint64_t size = SizeFromPython(fields[2]);
  return {KeyFromPython(fields[0]), MemoryFromPython(fields[1], size), size};
}

std::vector<std::string_view> ViewsOf(const nb::tuple& values) {
  std::vector<std::string_view> views;
  views.reserve(values.size());
  for (nb::handle value : values)
    views.push_back(ViewOf(Require<nb::bytes>(value, "a string must be bytes")));
  return views;
}

std::vector<std::string> KeysFromPython(const nb::list& keys) {
  return ListFromPython<std::string>(keys, KeyFromPython);
}

}  // namespace trackckpt
