// Asks tensors of Python for their memory, without a call of Python code for each.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <vector>

#include "bundle/tensor_memory.h"

namespace trackckpt {

// To be made anew for each use, because classes may change, and used with the interpreter lock.
class TensorReader {
 public:
  static constexpr int64_t kNoVersion = -1;  // of inference tensors, and of what is no tensor

  // Only objects of exactly these classes are asked, which do not interfere with torch.
  explicit TensorReader(const nanobind::tuple& types);

  bool IsOfType(PyObject* object) const { return Find(object) != nullptr; }
  // Adds a row for a tensor of these classes in contiguous CPU memory; for every other object nothing.
  bool AddPlain(PyObject* object, TensorMemoryTable* table) const;
  // The counter by which torch notices changes in place.
  int64_t Version(PyObject* tensor) const;

 private:
  struct Type {
    PyTypeObject* type;
    int (*borrow)(void*, void*);  // null where the class does not tell
  };

  const Type* Find(PyObject* object) const;
  bool HasFlaggedSign(PyObject* tensor, int32_t dtype) const;
  bool IsNarrowInteger(PyObject* tensor, int32_t dtype) const;

  std::vector<Type> types_;
  nanobind::object is_neg_, is_conj_, dtype_, version_;  // names of methods, made once
};

}  // namespace trackckpt
