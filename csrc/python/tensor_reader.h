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
  explicit TensorReader(const nanobind::tuple& types, bool with_devices = false);

  // Says that the object at a position will be asked for next. Most of the time that many tensors take is spent waiting
  // for memory; what is ahead of the position is waited for together.
  template <typename ObjectAt>
  void Approach(size_t position, size_t count, ObjectAt object_at) const {
    constexpr size_t kAhead = 8;
    if (position + 2 * kAhead < count) __builtin_prefetch(object_at(position + 2 * kAhead));
    if (position + kAhead < count) FetchBody(object_at(position + kAhead));
  }

  bool IsOfType(PyObject* object) const { return Find(object) != nullptr; }
  // Adds a row for a tensor of these classes in contiguous memory of the processor or, `with_devices`, anyhow on a CUDA
  // device; for every other object nothing.
  bool Add(PyObject* object, TensorMemoryTable* table) const;
  // The counter by which torch notices changes in place.
  int64_t Version(PyObject* tensor) const;

 private:
  struct Type {
    PyTypeObject* type;
    int (*borrow)(void*, void*);  // null where the class does not tell
    bool has_body;                // behind the head of each object is room for an address
  };

  void FetchBody(const PyObject* object) const;
  const Type* Find(const PyObject* object) const;
  bool HasFlaggedSign(PyObject* tensor, int32_t dtype) const;
  bool IsNarrowInteger(PyObject* tensor, int32_t dtype) const;
  bool IsInsideStorage(PyObject* tensor, uint64_t size) const;

  std::vector<Type> types_;
  bool with_devices_;
  nanobind::object is_neg_, is_conj_, dtype_, version_;  // names of methods, made once
};

}  // namespace trackckpt
