// The Python module `_native`; torch_trackckpt/_native.pyi is its contract. This file and those in python/ are the only
// ones that know Python: they turn arguments into plain values, release the interpreter lock, call the core, and map its
// exceptions.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <memory>
#include <string>

#include "encoding/crc32c.h"
#include "error.h"
#include "io/huge_pages.h"
#include "io/mapping.h"
#include "python/arguments.h"
#include "python/bundle_reader.h"
#include "python/bundle_writer.h"
#include "python/errors.h"
#include "python/live_objects.h"
#include "python/row_plan.h"
#include "python/saved_graph.h"
#include "python/tensor_copy.h"
#include "python/tensor_table.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace trackckpt {
namespace {

// --- crc32c ----------------------------------------------------------------------------------------------

const Crc32cImplementation& FindImplementation(const std::string& name) {
  for (const Crc32cImplementation& implementation : Crc32cImplementations()) {
    if (name.empty() || name == implementation.name) return implementation;
  }
  throw Error(ErrorKind::kInvalidArgument, "no such crc32c implementation on this processor: " + name);
}

// The bytes of a buffer, which cannot be resized or freed while this lives.
class BufferBytes {
 public:
  explicit BufferBytes(nb::handle buffer) {
    if (PyObject_GetBuffer(buffer.ptr(), &view_, PyBUF_SIMPLE) != 0) throw nb::python_error();
  }
  ~BufferBytes() { PyBuffer_Release(&view_); }
  BufferBytes(const BufferBytes&) = delete;
  BufferBytes& operator=(const BufferBytes&) = delete;

  const void* data() const { return view_.buf; }
  size_t size() const { return static_cast<size_t>(view_.len); }

 private:
  Py_buffer view_;
};

uint32_t Crc32c(nb::handle data, uint32_t crc, const std::string& name) {
  const Crc32cImplementation& implementation = FindImplementation(name);
  const BufferBytes bytes(data);
  const nb::gil_scoped_release release;
  return implementation.extend(crc, bytes.data(), bytes.size());
}

nb::list Crc32cNames() {
  nb::list names;
  for (const Crc32cImplementation& implementation : Crc32cImplementations())
    names.append(implementation.name);
  return names;
}

// --- memory ----------------------------------------------------------------------------------------------

// An array, because it is what keeps memory with an owner in Python.
nb::object MapFile(const nb::str& path, uint64_t offset, size_t size) {
  const std::string plain_path = PathFromPython(path);
  if (size == 0) throw Error(ErrorKind::kInvalidArgument, "there is nothing to map");
  auto mapping = std::make_unique<FileMapping>(plain_path, offset, size);
  const nb::capsule owner(mapping.get(),
                          [](void* owned) noexcept { delete static_cast<FileMapping*>(owned); });
  char* const memory = mapping.release()->data();
  return nb::cast(nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(memory, {size}, owner));
}

void DefineMapFile(nb::module_& module) {
  module.def("map_file", &MapFile, "path"_a, "offset"_a, "size"_a, "A part of a file as memory.");
}

void AdviseHugePagesAt(nb::handle address, uint64_t size) {
  AdviseHugePages(MemoryFromPython(address, size), size);
}

void DefineHugePages(nb::module_& module) {
  module.def("advise_huge_pages", &AdviseHugePagesAt, "address"_a, "size"_a, "Asks for huge pages.");
}

void DefineCrc32c(nb::module_& module) {
  module.def("crc32c", &Crc32c, "data"_a, "crc"_a = 0, "implementation"_a = "",
             "CRC-32C of `data`, continuing from `crc`.");
  module.def("crc32c_combine", &Crc32cCombine, "crc_a"_a, "crc_b"_a, "size_b"_a,
             "CRC-32C of two parts together, from those of the parts.");
  module.def("crc32c_implementations", &Crc32cNames, "Names of the CRC-32C kernels, fastest first.");
}

}  // namespace
}  // namespace trackckpt

NB_MODULE(_native, module) {
  module.doc() = "The compiled core of torch_trackckpt.";
#ifdef NDEBUG
  // A restore that still waits when Python ends keeps its reader; that is no leak which users should read of.
  nb::set_leak_warnings(false);
#endif
  nb::register_exception_translator(trackckpt::TranslateException);
  trackckpt::DefineLiveObjects(module);
  trackckpt::DefineSavedGraph(module);
  trackckpt::DefineTensorTable(module);
  trackckpt::DefineTensorCopy(module);
  trackckpt::DefineCrc32c(module);
  trackckpt::DefineMapFile(module);
  trackckpt::DefineHugePages(module);
  trackckpt::DefineWriter(module);
  trackckpt::DefineMerge(module);
  trackckpt::DefineEntry(module);
  trackckpt::DefineReader(module);
  trackckpt::DefineRowPlan(module);
  trackckpt::DefineV1Reader(module);
}
