// The Python module `_native`; torch_trackckpt/_native.pyi is its contract. The only file that knows Python:
// it turns arguments into plain values, releases the interpreter lock, calls the core, and maps its
// exceptions.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bundle/merge.h"
#include "bundle/reader.h"
#include "bundle/v1_reader.h"
#include "bundle/writer.h"
#include "encoding/crc32c.h"
#include "error.h"
#include "io/huge_pages.h"
#include "io/mapping.h"
#include "python/live_objects.h"
#include "python/row_plan.h"
#include "python/saved_graph.h"
#include "python/tensor_copy.h"
#include "python/tensor_table.h"
#include "python/text.h"
#include "table/format.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace trackckpt {
namespace {

// --- exceptions ------------------------------------------------------------------------------------------

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

// Messages hold keys and paths, and a path may be any bytes.
nb::object PythonText(const std::string& text) {
  return nb::steal(PyUnicode_DecodeFSDefaultAndSize(text.data(), static_cast<Py_ssize_t>(text.size())));
}

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

// --- arguments -------------------------------------------------------------------------------------------

// As os.fsencode, so that every path that Python can name can be opened.
std::string PathFromPython(const nb::str& path) {
  PyObject* encoded = nullptr;
  if (!PyUnicode_FSConverter(path.ptr(), &encoded)) throw nb::python_error();
  const auto bytes = nb::steal<nb::bytes>(encoded);
  return std::string(bytes.c_str(), bytes.size());
}

std::string_view ViewOf(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

nb::bytes BytesOf(std::string_view text) { return nb::bytes(text.data(), text.size()); }

template <typename T>
T Require(nb::handle value, const char* what) {
  if (!nb::isinstance<T>(value)) {
    throw nb::type_error((std::string(what) + ", not " + nb::inst_name(value).c_str()).c_str());
  }
  return nb::borrow<T>(value);
}

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

// Tensors whose memory was released, or that never had any, report the address 0.
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

// The elements stay alive as long as the tuple.
std::vector<std::string_view> ViewsOf(const nb::tuple& values) {
  std::vector<std::string_view> views;
  views.reserve(values.size());
  for (nb::handle value : values)
    views.push_back(ViewOf(Require<nb::bytes>(value, "a string must be bytes")));
  return views;
}

template <typename T, typename Convert>
std::vector<T> ListFromPython(const nb::list& list, Convert convert) {
  std::vector<T> values;
  values.reserve(list.size());
  for (nb::handle item : list) values.push_back(convert(item));
  return values;
}

std::vector<std::string> KeysFromPython(const nb::list& keys) {
  return ListFromPython<std::string>(keys, KeyFromPython);
}

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

// --- BundleWriter ----------------------------------------------------------------------------------------

void InitWriter(BundleWriter* self, const nb::list& data_paths, const nb::str& index_path, bool durable,
                size_t block_size, int64_t alignment) {
  const auto data = ListFromPython<std::string>(data_paths, [](nb::handle path) {
    return PathFromPython(Require<nb::str>(path, "a path must be a str"));
  });
  const std::string index = PathFromPython(index_path);
  const nb::gil_scoped_release release;
  new (self) BundleWriter(data, index, durable, block_size, alignment);
}

// Runs a conversion of arguments; the contract wants the writer failed after any error.
template <typename Convert>
auto ConvertOrFail(BundleWriter& self, Convert convert) {
  try {
    return convert();
  } catch (const std::exception& error) {
    self.Fail(error.what());
    throw;
  }
}

void AddTensors(BundleWriter& self, size_t shard, const nb::list& tensors) {
  const auto values =
      ConvertOrFail(self, [&] { return ListFromPython<TensorBytes>(tensors, TensorFromPython); });
  const nb::gil_scoped_release release;
  self.Add(shard, values);
}

// The bytes of a key, which live as long as the object.
std::string_view KeyView(nb::handle key) {
  if (nb::isinstance<nb::bytes>(key)) return ViewOf(nb::borrow<nb::bytes>(key));
  Py_ssize_t size = 0;
  const char* const text = PyUnicode_AsUTF8AndSize(key.ptr(), &size);
  if (text == nullptr) throw nb::python_error();
  return {text, static_cast<size_t>(size)};
}

using RowNumbers = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Rows of a table, and what keeps their keys alive should another thread change the list.
struct KeyedRows {
  std::vector<size_t> rows;
  std::vector<nb::object> owners;
  std::vector<std::string_view> keys;
};

KeyedRows KeyedRowsFromPython(const nb::list& keys, const TensorMemoryTable& table, const RowNumbers& rows) {
  KeyedRows keyed;
  keyed.rows.reserve(rows.shape(0));
  keyed.owners.reserve(rows.shape(0));
  keyed.keys.reserve(rows.shape(0));
  for (size_t i = 0; i < rows.shape(0); ++i) {
    const auto row = static_cast<size_t>(rows.data()[i]);
    if (row >= table.rows.size() || row >= keys.size() || !table.rows[row].is_plain()) {
      throw Error(ErrorKind::kInvalidArgument, "there is no plain row " + std::to_string(rows.data()[i]));
    }
    keyed.rows.push_back(row);
    keyed.owners.push_back(keys[row]);
    keyed.keys.push_back(KeyView(keyed.owners.back()));
  }
  return keyed;
}

void AddRows(BundleWriter& self, size_t shard, const nb::list& keys, const TensorTable& table,
             const RowNumbers& rows) {
  const KeyedRows keyed =
      ConvertOrFail(self, [&] { return KeyedRowsFromPython(keys, table.memory(), rows); });
  const nb::gil_scoped_release release;
  self.AddRows(shard, keyed.keys, table.memory(), keyed.rows);
}

void AddStrings(BundleWriter& self, size_t shard, const nb::bytes& key, const nb::tuple& shape,
                const nb::list& values) {
  std::vector<int64_t> plain_shape = ConvertOrFail(self, [&] { return ShapeFromPython(shape); });
  const nb::tuple owners(values);  // keeps the elements alive should another thread change the list
  const auto views = ConvertOrFail(self, [&] { return ViewsOf(owners); });
  const nb::gil_scoped_release release;
  self.AddStrings(shard, ViewOf(key), std::move(plain_shape), views);
}

void AddSlice(BundleWriter& self, size_t shard, const nb::bytes& key, nb::handle dtype,
              const nb::tuple& shape, const nb::tuple& extents, nb::handle address, nb::handle size) {
  const nb::tuple fields = nb::make_tuple(key, dtype, shape, address, size);
  TensorBytes tensor = ConvertOrFail(self, [&] { return TensorFromPython(fields); });
  const TensorSlice slice = ConvertOrFail(self, [&] { return SliceFromPython(extents); });
  const nb::gil_scoped_release release;
  self.AddSlice(shard, std::move(tensor), slice);
}

void AddStringsSlice(BundleWriter& self, size_t shard, const nb::bytes& key, const nb::tuple& shape,
                     const nb::tuple& extents, const nb::list& values) {
  std::string plain_key(ViewOf(key));
  std::vector<int64_t> plain_shape = ConvertOrFail(self, [&] { return ShapeFromPython(shape); });
  const TensorSlice slice = ConvertOrFail(self, [&] { return SliceFromPython(extents); });
  const nb::tuple owners(values);
  const auto views = ConvertOrFail(self, [&] { return ViewsOf(owners); });
  const nb::gil_scoped_release release;
  self.AddStringsSlice(shard, std::move(plain_key), std::move(plain_shape), slice, views);
}

// --- merging ---------------------------------------------------------------------------------------------

nb::list MergeIndexesOf(const nb::list& index_paths, const nb::str& merged_path, bool durable) {
  const auto paths = ListFromPython<std::string>(index_paths, [](nb::handle path) {
    return PathFromPython(Require<nb::str>(path, "an index path must be a str"));
  });
  const std::string merged = PathFromPython(merged_path);
  std::vector<MergedShard> shards;
  {
    const nb::gil_scoped_release release;
    shards = MergeIndexes(paths, merged, durable);
  }
  nb::list result;
  for (const MergedShard& shard : shards) {
    result.append(nb::make_tuple(shard.source, shard.shard_id, shard.num_shards));
  }
  return result;
}

// --- BundleReader ----------------------------------------------------------------------------------------

void InitReader(BundleReader* self, const nb::str& index_path, const nb::str& data_prefix,
                const nb::tuple& data_suffixes) {
  const std::string index = PathFromPython(index_path);
  std::string prefix = PathFromPython(data_prefix);
  std::vector<std::string> suffixes;
  for (nb::handle suffix : data_suffixes) {
    suffixes.push_back(PathFromPython(Require<nb::str>(suffix, "a data suffix must be a str")));
  }
  const nb::gil_scoped_release release;
  new (self) BundleReader(index, std::move(prefix), std::move(suffixes));
}

template <typename Reader>
nb::list ListEntries(const Reader& self) {
  std::vector<BundleEntry> entries;
  {
    const nb::gil_scoped_release release;
    entries = self.Entries();
  }
  nb::list result;
  for (BundleEntry& entry : entries) result.append(nb::cast(std::move(entry)));
  return result;
}

template <typename Reader>
std::optional<BundleEntry> FindEntry(const Reader& self, const nb::bytes& key) {
  const std::string_view view = ViewOf(key);
  const nb::gil_scoped_release release;
  return self.Find(view);
}

template <typename Reader>
void CheckKeys(const Reader& self, const nb::list& keys) {
  const auto plain_keys = KeysFromPython(keys);
  const nb::gil_scoped_release release;
  self.Check(plain_keys);
}

template <typename Reader>
void VerifyKeys(const Reader& self, const nb::list& keys, size_t num_threads) {
  const auto plain_keys = KeysFromPython(keys);
  const nb::gil_scoped_release release;
  self.Verify(plain_keys, num_threads);
}

template <typename Reader>
void ReadTensors(const Reader& self, const nb::list& requests, size_t num_threads) {
  const auto values = ListFromPython<ReadRequest>(requests, RequestFromPython);
  std::vector<size_t> touched;
  try {
    const nb::gil_scoped_release release;
    self.Read(values, num_threads, &touched);
  } catch (const Error& error) {
    const nb::object exception = PythonException(error);
    exception.attr("touched") = touched;
    SetPythonError(exception);
    throw nb::python_error();
  }
}

template <typename Reader>
void ReadSlice(const Reader& self, const nb::bytes& key, const nb::tuple& extents, nb::handle address,
               nb::handle size, bool verify) {
  const uint64_t plain_size = SizeFromPython(size);
  const ReadRequest request{KeyFromPython(key), MemoryFromPython(address, plain_size), plain_size};
  const TensorSlice slice = SliceFromPython(extents);
  const nb::gil_scoped_release release;
  self.ReadSlice(request, slice, verify);
}

// Each element is copied once, from where it was read.
template <typename Strings>
nb::list ListOfBytes(const Strings& strings) {
  const auto list = nb::steal<nb::list>(PyList_New(static_cast<Py_ssize_t>(strings.size())));
  if (!list.is_valid()) throw nb::python_error();
  for (size_t i = 0; i < strings.size(); ++i) {
    PyList_SetItem(list.ptr(), static_cast<Py_ssize_t>(i), BytesOf(strings[i]).release().ptr());
  }
  return list;
}

nb::list ReadStrings(const BundleReader& self, const nb::bytes& key, const nb::object& extents) {
  const std::string_view view = ViewOf(key);
  std::optional<TensorSlice> slice;
  if (!extents.is_none()) slice = SliceFromPython(extents);
  std::unique_ptr<StringParts> strings;
  {
    const nb::gil_scoped_release release;
    strings = self.ReadStrings(view, slice);
  }
  return ListOfBytes(*strings);
}

nb::list ReadVariants(const BundleReader& self, const nb::bytes& key) {
  const std::string_view view = ViewOf(key);
  std::unique_ptr<StringParts> messages;
  {
    const nb::gil_scoped_release release;
    messages = self.ReadVariants(view);
  }
  return ListOfBytes(*messages);
}

nb::object DataPath(const BundleReader& self, int64_t shard_id) {
  std::string path;
  {
    const nb::gil_scoped_release release;
    path = self.DataPath(shard_id);
  }
  return PythonText(path);
}

// --- V1Reader --------------------------------------------------------------------------------------------

void InitV1Reader(V1Reader* self, const nb::list& paths) {
  const auto plain_paths = ListFromPython<std::string>(
      paths, [](nb::handle path) { return PathFromPython(Require<nb::str>(path, "a path must be a str")); });
  const nb::gil_scoped_release release;
  new (self) V1Reader(plain_paths);
}

nb::list ReadV1Strings(const V1Reader& self, const nb::bytes& key, const nb::object& extents) {
  const std::string_view view = ViewOf(key);
  std::optional<TensorSlice> slice;
  if (!extents.is_none()) slice = SliceFromPython(extents);
  StringArray strings;
  {
    const nb::gil_scoped_release release;
    strings = self.ReadStrings(view, slice);
  }
  return ListOfBytes(strings);
}

// --- memory maps -----------------------------------------------------------------------------------------

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

// --- BundleEntry -----------------------------------------------------------------------------------------

nb::tuple TupleOf(const int64_t* numbers, size_t size) {
  const auto tuple = nb::steal<nb::tuple>(PyTuple_New(static_cast<Py_ssize_t>(size)));
  if (!tuple.is_valid()) throw nb::python_error();
  for (size_t i = 0; i < size; ++i) {
    PyTuple_SetItem(tuple.ptr(), static_cast<Py_ssize_t>(i), nb::int_(numbers[i]).release().ptr());
  }
  return tuple;
}

// The garbage collector looks at everything that lives, again and again, while very many objects come into being of
// which none can be garbage yet.
class WithoutCollector {
 public:
  WithoutCollector() : was_enabled_(PyGC_Disable() != 0) {}
  WithoutCollector(const WithoutCollector&) = delete;
  WithoutCollector& operator=(const WithoutCollector&) = delete;
  ~WithoutCollector() {
    if (was_enabled_) PyGC_Enable();
  }

 private:
  const bool was_enabled_;
};

template <typename Reader>
EntryColumns ColumnsOf(const Reader& self) {
  const nb::gil_scoped_release release;
  return self.Columns();
}

// Plain tuples, because an index may have very many entries.
template <typename Reader>
nb::list ListTensors(const Reader& self) {
  const EntryColumns columns = ColumnsOf(self);
  const WithoutCollector without_collector;
  nb::list result;
  for (size_t i = 0; i < columns.size(); ++i) {
    const nb::tuple shape = TupleOf(columns.shape(i), columns.rank(i));
    result.append(nb::make_tuple(TextOf(columns.key(i)), columns.dtype(i), shape, columns.num_bytes(i)));
  }
  return result;
}

template <typename Reader>
nb::list ListKeys(const Reader& self) {
  const EntryColumns columns = ColumnsOf(self);
  nb::list result;
  for (size_t i = 0; i < columns.size(); ++i) result.append(TextOf(columns.key(i)));
  return result;
}

template <typename Reader>
nb::dict ShapesByKey(const Reader& self) {
  const EntryColumns columns = ColumnsOf(self);
  const WithoutCollector without_collector;
  nb::dict result;
  for (size_t i = 0; i < columns.size(); ++i) {
    const nb::object key = TextOf(columns.key(i));
    const nb::object shape = nb::steal(PyList_New(static_cast<Py_ssize_t>(columns.rank(i))));
    if (!shape.is_valid()) throw nb::python_error();
    for (size_t d = 0; d < columns.rank(i); ++d) {
      PyList_SetItem(shape.ptr(), static_cast<Py_ssize_t>(d), nb::int_(columns.shape(i)[d]).release().ptr());
    }
    if (PyDict_SetItem(result.ptr(), key.ptr(), shape.ptr()) != 0) throw nb::python_error();
  }
  return result;
}

nb::bytes EntryKey(const BundleEntry& entry) { return BytesOf(entry.key); }

nb::tuple EntryShape(const BundleEntry& entry) { return TupleOf(entry.shape.data(), entry.shape.size()); }

nb::tuple EntrySlices(const BundleEntry& entry) {
  nb::list slices;
  for (const TensorSlice& slice : entry.slices) {
    nb::list extents;
    for (const Extent& extent : slice.extents) extents.append(nb::make_tuple(extent.start, extent.length));
    slices.append(nb::tuple(extents));
  }
  return nb::tuple(slices);
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

void DefineWriter(nb::module_& module) {
  const nb::call_guard<nb::gil_scoped_release> unlocked;
  nb::class_<BundleWriter>(module, "BundleWriter", nb::is_final(), "Writes data files and their index.")
      .def("__init__", &InitWriter, "data_paths"_a, "index_path"_a, nb::kw_only(), "durable"_a,
           "block_size"_a = kDefaultBlockSize, "alignment"_a = 1)
      .def("expect", &BundleWriter::Expect, "shard"_a, "size"_a, unlocked)
      .def("add", &AddTensors, "shard"_a, "tensors"_a)
      .def("add_rows", &AddRows, "shard"_a, "keys"_a, "table"_a, "rows"_a)
      .def("add_strings", &AddStrings, "shard"_a, "key"_a, "shape"_a, "values"_a)
      .def("add_slice", &AddSlice, "shard"_a, "key"_a, "dtype"_a, "shape"_a, "extents"_a, "address"_a,
           "size"_a)
      .def("add_strings_slice", &AddStringsSlice, "shard"_a, "key"_a, "shape"_a, "extents"_a, "values"_a)
      .def("finish_shard", &BundleWriter::FinishShard, "shard"_a, unlocked)
      .def("finish", &BundleWriter::Finish, unlocked)
      .def("abandon", &BundleWriter::Abandon, unlocked);
}

void DefineMerge(nb::module_& module) {
  module.def("merge_indexes", &MergeIndexesOf, "index_paths"_a, "merged_path"_a, nb::kw_only(), "durable"_a,
             "Writes one index for several bundles.");
}

void DefineEntry(nb::module_& module) {
  nb::class_<BundleEntry>(module, "BundleEntry", nb::is_final(), "One record of the index.")
      .def_prop_ro("key", &EntryKey)
      .def_ro("dtype", &BundleEntry::dtype)
      .def_prop_ro("shape", &EntryShape)
      .def_ro("shard_id", &BundleEntry::shard_id)
      .def_ro("offset", &BundleEntry::offset)
      .def_ro("size", &BundleEntry::size)
      .def_ro("crc32c", &BundleEntry::crc32c)
      .def_prop_ro("slices", &EntrySlices);
}

void DefineReader(nb::module_& module) {
  nb::class_<BundleReader>(module, "BundleReader", nb::is_final(), "Reads one bundle.")
      .def("__init__", &InitReader, "index_path"_a, "data_prefix"_a, "data_suffixes"_a = nb::make_tuple(""))
      .def_prop_ro("num_shards", &BundleReader::num_shards)
      .def_prop_ro("is_big_endian", &BundleReader::is_big_endian)
      .def("data_path", &DataPath, "shard_id"_a)
      .def("entries", &ListEntries<BundleReader>)
      .def("tensors", &ListTensors<BundleReader>)
      .def("keys", &ListKeys<BundleReader>)
      .def("shapes", &ShapesByKey<BundleReader>)
      .def("find", &FindEntry<BundleReader>, "key"_a)
      .def("check", &CheckKeys<BundleReader>, "keys"_a)
      .def("verify", &VerifyKeys<BundleReader>, "keys"_a, nb::kw_only(), "num_threads"_a = 1)
      .def("read", &ReadTensors<BundleReader>, "requests"_a, nb::kw_only(), "num_threads"_a = 1)
      .def("read_slice", &ReadSlice<BundleReader>, "key"_a, "extents"_a, "address"_a, "size"_a, nb::kw_only(),
           "verify"_a)
      .def("read_strings", &ReadStrings, "key"_a, "extents"_a = nb::none())
      .def("read_variants", &ReadVariants, "key"_a);
}

void DefineV1Reader(nb::module_& module) {
  nb::class_<V1Reader>(module, "V1Reader", nb::is_final(), "Reads the older format.")
      .def("__init__", &InitV1Reader, "paths"_a)
      .def_prop_ro("num_shards", &V1Reader::num_shards)
      .def("entries", &ListEntries<V1Reader>)
      .def("tensors", &ListTensors<V1Reader>)
      .def("keys", &ListKeys<V1Reader>)
      .def("shapes", &ShapesByKey<V1Reader>)
      .def("find", &FindEntry<V1Reader>, "key"_a)
      .def("check", &CheckKeys<V1Reader>, "keys"_a)
      .def("verify", &VerifyKeys<V1Reader>, "keys"_a, nb::kw_only(), "num_threads"_a = 1)
      .def("read", &ReadTensors<V1Reader>, "requests"_a, nb::kw_only(), "num_threads"_a = 1)
      .def("read_slice", &ReadSlice<V1Reader>, "key"_a, "extents"_a, "address"_a, "size"_a, nb::kw_only(),
           "verify"_a)
      .def("read_strings", &ReadV1Strings, "key"_a, "extents"_a = nb::none());
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
