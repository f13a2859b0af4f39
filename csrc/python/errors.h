// The exceptions of the core as those of Python.
#pragma once

#include <nanobind/nanobind.h>

#include <exception>

#include "error.h"

namespace trackckpt {

// An exception object, which has not been raised.
nanobind::object PythonException(const Error& error);
void SetPythonError(const nanobind::object& exception);
// For nanobind::register_exception_translator.
void TranslateException(const std::exception_ptr& pointer, void* unused);

}  // namespace trackckpt
