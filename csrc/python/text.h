// Text between Python and the core.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <string_view>

namespace trackckpt {

// Valid while the string lives. Raises where it is no text, or has no encoding.
inline std::string_view Utf8(nanobind::handle text) {
  if (!PyUnicode_Check(text.ptr())) {
    throw nanobind::type_error(
        (std::string("a name must be a str, not ") + nanobind::inst_name(text).c_str()).c_str());
  }
  Py_ssize_t size;
  const char* const data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (data == nullptr) throw nanobind::python_error();
  return {data, static_cast<size_t>(size)};
}

// Bytes of a file that are no UTF-8 become surrogates, as in the names of files.
inline nanobind::object TextOf(std::string_view text) {
  PyObject* const decoded =
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape");
  if (decoded == nullptr) throw nanobind::python_error();
  return nanobind::steal(decoded);
}

}  // namespace trackckpt
