#include "python/bundle_writer.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bundle/merge.h"
#include "bundle/writer.h"
#include "error.h"
#include "python/arguments.h"
#include "python/foreign_files.h"
#include "python/tensor_table.h"
#include "table/format.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace trackckpt {

namespace {

void InitWriter(BundleWriter* self, const nb::list& data_paths, const nb::str& index_path, bool durable,
                size_t block_size, int64_t alignment, const nb::object& next_parts,
                const nb::object& take_index) {
  const auto data = ListFromPython<std::string>(data_paths, [](nb::handle path) {
    return PathFromPython(Require<nb::str>(path, "a path must be a str"));
  });
  const std::string index = PathFromPython(index_path);
  if (next_parts.is_none()) {
    const nb::gil_scoped_release release;
    new (self) BundleWriter(data, index, durable, block_size, alignment);
    return;
  }
  const auto callbacks = Require<nb::list>(next_parts, "next_parts must be a list");
  if (callbacks.size() != data.size()) throw nb::value_error("there is not one of next_parts for each path");
  std::vector<std::unique_ptr<Output>> outputs;
  for (size_t i = 0; i < data.size(); ++i) outputs.push_back(ForeignOutput(data[i], callbacks[i]));
  const auto take = [take_index](const std::string& bytes) {
    const nb::gil_scoped_acquire lock;
    take_index(BytesOf(bytes));
  };
  new (self)
      BundleWriter(std::move(outputs), std::make_unique<MemoryOutput>(index, take), block_size, alignment);
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

KeyedRows KeyedRowsFromPython(const nb::list& keys, const TensorMemoryTable& table, const RowNumbers& rows,
                              bool are_plain) {
  KeyedRows keyed;
  keyed.rows.reserve(rows.shape(0));
  keyed.owners.reserve(rows.shape(0));
  keyed.keys.reserve(rows.shape(0));
  for (size_t i = 0; i < rows.shape(0); ++i) {
    const auto row = static_cast<size_t>(rows.data()[i]);
    const bool is_there = row < table.rows.size() && row < keys.size() && table.rows[row].dtype != 0;
    if (!is_there || (are_plain && !table.rows[row].is_plain())) {
      throw Error(
          ErrorKind::kInvalidArgument,
          std::string("there is no ") + (are_plain ? "plain row " : "row ") + std::to_string(rows.data()[i]));
    }
    keyed.rows.push_back(row);
    keyed.owners.push_back(keys[row]);
    keyed.keys.push_back(KeyView(keyed.owners.back()));
  }
  return keyed;
}

void AddRows(BundleWriter& self, size_t shard, const nb::list& keys, const TensorTable& table,
             const RowNumbers& rows) {
  const KeyedRows keyed = ConvertOrFail(
      self, [&] { return KeyedRowsFromPython(keys, table.memory(), rows, /*are_plain=*/true); });
  const nb::gil_scoped_release release;
  self.AddRows(shard, keyed.keys, table.memory(), keyed.rows);
}

void AddParts(BundleWriter& self, size_t shard, const nb::list& keys, const TensorTable& table,
              const RowNumbers& rows, const RowNumbers& begins, const RowNumbers& sizes,
              const RowNumbers& addresses) {
  std::vector<RowPiece> pieces;
  const KeyedRows keyed = ConvertOrFail(self, [&] {
    for (const RowNumbers* column : {&begins, &sizes, &addresses}) {
      if (column->shape(0) != rows.shape(0)) throw nb::value_error("the columns are not equally long");
    }
    for (size_t i = 0; i < rows.shape(0); ++i) {
      pieces.push_back({static_cast<size_t>(rows.data()[i]), static_cast<uint64_t>(begins.data()[i]),
                        static_cast<uint64_t>(sizes.data()[i]),
                        reinterpret_cast<const char*>(static_cast<uintptr_t>(addresses.data()[i]))});
    }
    return KeyedRowsFromPython(keys, table.memory(), rows, /*are_plain=*/false);
  });
  const nb::gil_scoped_release release;
  self.AddRowPieces(shard, keyed.keys, table.memory(), pieces);
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

nb::list MergeIndexesOf(const nb::list& index_paths, const nb::str& merged_path, bool durable,
                        std::optional<int32_t> num_files) {
  const auto paths = ListFromPython<std::string>(index_paths, [](nb::handle path) {
    return PathFromPython(Require<nb::str>(path, "an index path must be a str"));
  });
  const std::string merged = PathFromPython(merged_path);
  std::vector<MergedShard> shards;
  {
    const nb::gil_scoped_release release;
    shards = MergeIndexes(paths, merged, durable, num_files);
  }
  nb::list result;
  for (const MergedShard& shard : shards) {
    result.append(nb::make_tuple(shard.source, shard.shard_id, shard.num_shards));
  }
  return result;
}

}  // namespace

void DefineWriter(nb::module_& module) {
  const nb::call_guard<nb::gil_scoped_release> unlocked;
  nb::class_<BundleWriter>(module, "BundleWriter", nb::is_final(), "Writes data files and their index.")
      .def("__init__", &InitWriter, "data_paths"_a, "index_path"_a, nb::kw_only(), "durable"_a,
           "block_size"_a = kDefaultBlockSize, "alignment"_a = 1, "next_parts"_a = nb::none(),
           "take_index"_a = nb::none())
      .def("expect", &BundleWriter::Expect, "shard"_a, "size"_a, unlocked)
      .def("add", &AddTensors, "shard"_a, "tensors"_a)
      .def("add_rows", &AddRows, "shard"_a, "keys"_a, "table"_a, "rows"_a)
      .def("add_parts", &AddParts, "shard"_a, "keys"_a, "table"_a, "rows"_a, "begins"_a, "sizes"_a,
           "addresses"_a)
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
             "num_files"_a = nb::none(), "Writes one index for several bundles.");
}

}  // namespace trackckpt
