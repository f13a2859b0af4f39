// Arguments of Python as plain values of the core. What is wrong raises ``TypeError`` or ``ValueError``.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/reader.h"
#include "bundle/shard_writer.h"
#include "bundle/slice.h"

namespace trackckpt {

// Messages hold keys and paths, and a path may be any bytes.
nanobind::object PythonText(const std::string& text);

// As os.fsencode, so that every path that Python can name can be opened.
std::string PathFromPython(const nanobind::str& path);
std::string_view ViewOf(const nanobind::bytes& bytes);
nanobind::bytes BytesOf(std::string_view text);
int64_t IntFromPython(nanobind::handle value, const char* what);
std::string KeyFromPython(nanobind::handle value);
uint64_t SizeFromPython(nanobind::handle value);
void* AddressFromPython(nanobind::handle value);
int32_t DtypeFromPython(nanobind::handle value);
std::vector<int64_t> ShapeFromPython(nanobind::handle value);
nanobind::tuple TupleOfLength(nanobind::handle value, size_t length, const char* what);
TensorSlice SliceFromPython(nanobind::handle value);
// Tensors whose memory was released, or that never had any, report the address 0.
void* MemoryFromPython(nanobind::handle address, uint64_t size);
TensorBytes TensorFromPython(nanobind::handle value);
ReadRequest RequestFromPython(nanobind::handle value);
// The elements stay alive as long as the tuple.
std::vector<std::string_view> ViewsOf(const nanobind::tuple& values);
std::vector<std::string> KeysFromPython(const nanobind::list& keys);

template <typename T>
T Require(nanobind::handle value, const char* what) {
  if (!nanobind::isinstance<T>(value)) {
    throw nanobind::type_error((std::string(what) + ", not " + nanobind::inst_name(value).c_str()).c_str());
  }
  return nanobind::borrow<T>(value);
}

template <typename T, typename Convert>
std::vector<T> ListFromPython(const nanobind::list& list, Convert convert) {
  std::vector<T> values;
  values.reserve(list.size());
  for (nanobind::handle item : list) values.push_back(convert(item));
  return values;
}

}  // namespace trackckpt
