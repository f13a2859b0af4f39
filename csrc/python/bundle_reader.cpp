#include "python/bundle_reader.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bundle/reader.h"
#include "bundle/v1_reader.h"
#include "python/arguments.h"
#include "python/errors.h"
#include "python/foreign_files.h"
#include "python/text.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace trackckpt {

namespace {

void InitReader(BundleReader* self, const nb::str& index_path, const nb::str& data_prefix,
                const nb::tuple& data_suffixes, const nb::object& files) {
  const std::string index = PathFromPython(index_path);
  std::string prefix = PathFromPython(data_prefix);
  std::vector<std::string> suffixes;
  for (nb::handle suffix : data_suffixes) {
    suffixes.push_back(PathFromPython(Require<nb::str>(suffix, "a data suffix must be a str")));
  }
  std::shared_ptr<const FilePlace> place;
  if (files.is_none()) {
    place = std::make_shared<const LocalPlace>();
  } else {
    place = std::make_shared<const ForeignPlace>(files);
  }
  // `place` stays until the interpreter lock is held again, should this throw.
  const nb::gil_scoped_release release;
  new (self) BundleReader(index, std::move(prefix), std::move(suffixes), place);
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

// Objects of Python are made while the index is gone through: what is in between, for very many entries, would cost as
// much as they do. The interpreter lock is held for that long.
template <typename Reader, typename Add>
void ForEachEntry(const Reader& self, const nb::object& result, const Add& add) {
  const WithoutCollector without_collector;
  if (self.ForEachUnsliced(
          [&](const BundleEntry& entry) { add(entry.key, entry.shape.data(), entry.shape.size()); }))
    return;
  result.attr("clear")();
  const EntryColumns columns = ColumnsOf(self);
  for (size_t i = 0; i < columns.size(); ++i) add(columns.key(i), columns.shape(i), columns.rank(i));
}

template <typename Reader>
nb::list ListKeys(const Reader& self) {
  nb::list result;
  ForEachEntry(self, result,
               [&](std::string_view key, const int64_t*, size_t) { result.append(TextOf(key)); });
  return result;
}

template <typename Reader>
size_t CountKeys(const Reader& self) {
  const nb::gil_scoped_release release;
  size_t count = 0;
  const bool is_counted = self.ForEachUnsliced([&](const BundleEntry&) { ++count; });
  return is_counted ? count : self.Entries().size();
}

template <typename Reader>
nb::dict ShapesByKey(const Reader& self) {
  nb::dict result;
  ForEachEntry(self, result, [&](std::string_view key, const int64_t* dims, size_t rank) {
    const nb::object text = TextOf(key);
    const nb::object shape = nb::steal(PyList_New(static_cast<Py_ssize_t>(rank)));
    if (!shape.is_valid()) throw nb::python_error();
    for (size_t d = 0; d < rank; ++d) {
      PyList_SetItem(shape.ptr(), static_cast<Py_ssize_t>(d), nb::int_(dims[d]).release().ptr());
    }
    if (PyDict_SetItem(result.ptr(), text.ptr(), shape.ptr()) != 0) throw nb::python_error();
  });
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

}  // namespace

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
      .def("__init__", &InitReader, "index_path"_a, "data_prefix"_a, "data_suffixes"_a = nb::make_tuple(""),
           "files"_a = nb::none())
      .def_prop_ro("num_shards", &BundleReader::num_shards)
      .def_prop_ro("is_big_endian", &BundleReader::is_big_endian)
      .def("data_path", &DataPath, "shard_id"_a)
      .def("entries", &ListEntries<BundleReader>)
      .def("tensors", &ListTensors<BundleReader>)
      .def("keys", &ListKeys<BundleReader>)
      .def("num_keys", &CountKeys<BundleReader>)
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
      .def("num_keys", &CountKeys<V1Reader>)
      .def("shapes", &ShapesByKey<V1Reader>)
      .def("find", &FindEntry<V1Reader>, "key"_a)
      .def("check", &CheckKeys<V1Reader>, "keys"_a)
      .def("verify", &VerifyKeys<V1Reader>, "keys"_a, nb::kw_only(), "num_threads"_a = 1)
      .def("read", &ReadTensors<V1Reader>, "requests"_a, nb::kw_only(), "num_threads"_a = 1)
      .def("read_slice", &ReadSlice<V1Reader>, "key"_a, "extents"_a, "address"_a, "size"_a, nb::kw_only(),
           "verify"_a)
      .def("read_strings", &ReadV1Strings, "key"_a, "extents"_a = nb::none());
}

}  // namespace trackckpt
