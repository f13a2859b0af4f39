#include "python/errors.h"

#include "python/arguments.h"

namespace nb = nanobind;

namespace trackckpt {

namespace {

nb::object PackageError(const char* name) {
  return nb::module_::import_("torch_trackckpt.errors").attr(name);
}

nb::object PythonClass(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kNotFound:
      return PackageError("CheckpointNotFoundError");
    case ErrorKind::kKeyNotFound:
      return PackageError("TensorNotFoundError");
    case ErrorKind::kDataLoss:
      return PackageError("DataLossError");
    case ErrorKind::kUnsupportedFormat:
      return PackageError("UnsupportedFormatError");
    case ErrorKind::kDuplicateKey:
      return PackageError("DuplicateKeyError");
    case ErrorKind::kWriterClosed:
      return PackageError("WriterClosedError");
    case ErrorKind::kInvalidArgument:
      return nb::borrow(PyExc_ValueError);
    case ErrorKind::kSystem:
      break;
  }
  return nb::borrow(PyExc_OSError);  // its constructor picks the subclass that belongs to errno
}

}  // namespace

nb::object PythonException(const Error& error) {
  const nb::object type = PythonClass(error.kind());
  const nb::object message = PythonText(error.what());
  const auto* file_error = dynamic_cast<const FileError*>(&error);
  if (file_error == nullptr) return type(message);
  return type(file_error->code(), message, PythonText(file_error->path()));
}

void SetPythonError(const nb::object& exception) {
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
}

void TranslateException(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Error& error) {
    try {
      SetPythonError(PythonException(error));
    } catch (nb::python_error& failure) {  // torch_trackckpt.errors cannot be imported
      failure.restore();
    }
  }
}

}  // namespace trackckpt
