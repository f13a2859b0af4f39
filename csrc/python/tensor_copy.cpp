#include "python/tensor_copy.h"

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "io/memory_copy.h"
#include "python/tensor_table.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace trackckpt {

namespace {

// A copy, with what owns the memory on both sides.
class TensorCopy {
 public:
  TensorCopy(nb::handle_t<TensorTable> table, const Column& rows, uint64_t address, const Column& offsets,
             nb::object owner)
      : table_(nb::borrow(table)),
        owner_(std::move(owner)),
        copy_(Pieces(nb::cast<const TensorTable&>(table).memory(), rows, address, offsets)) {}

  void Run(size_t num_threads) {
    const nb::gil_scoped_release release;
    copy_.Run(num_threads);
  }

 private:
  static std::vector<CopyPiece> Pieces(const TensorMemoryTable& table, const Column& rows, uint64_t address,
                                       const Column& offsets) {
    if (rows.shape(0) != offsets.shape(0)) throw nb::value_error("there is not an offset for each row");
    std::vector<CopyPiece> pieces;
    pieces.reserve(rows.shape(0));
    for (size_t i = 0; i < rows.shape(0); ++i) {
      const auto row = static_cast<size_t>(rows.data()[i]);
      if (row >= table.rows.size() || !table.rows[row].is_plain()) throw nb::index_error("no such plain row");
      char* const to = reinterpret_cast<char*>(address + static_cast<uint64_t>(offsets.data()[i]));
      pieces.push_back({table.rows[row].data, to, static_cast<size_t>(table.rows[row].size)});
    }
    return pieces;
  }

  nb::object table_;
  nb::object owner_;
  MemoryCopy copy_;
};

}  // namespace

void DefineTensorCopy(nb::module_& module) {
  nb::class_<TensorCopy>(module, "TensorCopy", nb::is_final(),
                         "Bytes of tensors on their way to other memory.")
      .def(nb::init<nb::handle_t<TensorTable>, const Column&, uint64_t, const Column&, nb::object>(),
           "table"_a, "rows"_a, "address"_a, "offsets"_a, "owner"_a)
      .def("run", &TensorCopy::Run, "num_threads"_a);
}

}  // namespace trackckpt
