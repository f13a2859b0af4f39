#include "python/row_plan.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bundle/reader.h"
#include "bundle/row_plan.h"
#include "python/arguments.h"
#include "python/tensor_table.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace trackckpt {

namespace {

// The texts of a list, as the bytes that a file has for them. The list may change meanwhile.
class Keys {
 public:
  explicit Keys(const nb::list& keys) : owners_(keys) {
    views_.reserve(owners_.size());
    for (nb::handle key : owners_) views_.push_back(View(key));
  }

  const std::vector<std::string_view>& views() const { return views_; }

 private:
  std::string_view View(nb::handle key) {
    Py_ssize_t size;
    // Kept by the text itself, which for ASCII has no other form.
    if (const char* data = PyUnicode_AsUTF8AndSize(key.ptr(), &size))
      return {data, static_cast<size_t>(size)};
    if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) throw nb::python_error();
    PyErr_Clear();
    const nb::object encoded = nb::steal(PyUnicode_AsEncodedString(key.ptr(), "utf-8", "surrogateescape"));
    if (!encoded.is_valid()) {  // no bytes are this text, and the empty key is not there either
      PyErr_Clear();
      return {};
    }
    const nb::bytes bytes = nb::borrow<nb::bytes>(encoded);
    return encoded_.emplace_back(bytes.c_str(), bytes.size());
  }

  nb::tuple owners_;
  std::deque<std::string> encoded_;  // of texts that are no UTF-8
  std::vector<std::string_view> views_;
};

RowBox BoxFromPython(nb::handle value) {
  const nb::tuple fields = TupleOfLength(value, 3, "a box");
  RowBox box;
  box.row = SizeFromPython(fields[0]);
  box.shape = ShapeFromPython(fields[1]);
  box.start = ShapeFromPython(fields[2]);
  return box;
}

// A plan, with what it is about. Calls from several threads take turns.
class PythonRowPlan {
 public:
  PythonRowPlan(nb::handle_t<BundleReader> reader, const nb::list& keys, nb::handle_t<TensorTable> table,
                const std::vector<size_t>& land, const nb::list& boxes)
      : reader_(nb::borrow(reader)), table_(nb::borrow(table)), keys_(keys) {
    std::vector<RowBox> row_boxes = ListFromPython<RowBox>(boxes, BoxFromPython);
    const auto& bundle = *nb::inst_ptr<BundleReader>(reader);
    const auto& memory = nb::inst_ptr<TensorTable>(table)->memory();
    const nb::gil_scoped_release release;
    plan_.emplace(bundle.index(), bundle.data_names(), keys_.views(), memory, land, std::move(row_boxes));
  }

  std::vector<size_t> Misfits() const { return plan_->misfits(); }
  std::vector<size_t> LeftOut() const { return plan_->left_out(); }
  uint64_t num_bytes() const { return plan_->num_bytes(); }

  void Check() {
    const Turn turn(&mutex_);
    plan_->Check();
  }

  void Verify(size_t num_threads, bool with_parts) {
    const Turn turn(&mutex_);
    plan_->Verify(num_threads, with_parts);
  }

  uint64_t Read(size_t num_threads, std::optional<uint64_t> max_bytes) {
    const Turn turn(&mutex_);
    std::vector<Landed> landed;
    return plan_->Read(num_threads, max_bytes.value_or(UINT64_MAX), {}, &landed);
  }

  // The bytes that were read, and what of them has landed: rows, first bytes, sizes, offsets.
  nb::tuple ReadLanding(size_t num_threads, uint64_t address, uint64_t size) {
    std::vector<Landed> landed;
    uint64_t num_bytes;
    {
      const Turn turn(&mutex_);
      num_bytes = plan_->Read(num_threads, size, {reinterpret_cast<char*>(address), size}, &landed);
    }
    nb::list columns[4];
    for (const Landed& value : landed) {
      columns[0].append(value.request);
      columns[1].append(value.begin);
      columns[2].append(value.size);
      columns[3].append(value.offset);
    }
    return nb::make_tuple(num_bytes, columns[0], columns[1], columns[2], columns[3]);
  }

  std::vector<size_t> Touched() {
    const Turn turn(&mutex_);
    return plan_->Touched();
  }

  uint64_t NumRead() {
    const Turn turn(&mutex_);
    return plan_->NumRead();
  }

 private:
  // Without the interpreter lock.
  class Turn {
   public:
    explicit Turn(std::mutex* mutex) : lock_(*mutex) {}

   private:
    nb::gil_scoped_release release_;
    std::lock_guard<std::mutex> lock_;
  };

  nb::object reader_;
  nb::object table_;
  Keys keys_;
  std::mutex mutex_;
  std::optional<RowPlan> plan_;
};

}  // namespace

void DefineRowPlan(nb::module_& module) {
  nb::class_<PythonRowPlan>(module, "RowPlan", nb::is_final(), "Stored values and the tensors they go to.")
      .def(nb::init<nb::handle_t<BundleReader>, const nb::list&, nb::handle_t<TensorTable>,
                    const std::vector<size_t>&, const nb::list&>(),
           "reader"_a, "keys"_a, "table"_a, "land"_a = std::vector<size_t>(), "boxes"_a = nb::list())
      .def_prop_ro("nbytes", &PythonRowPlan::num_bytes)
      .def("misfits", &PythonRowPlan::Misfits)
      .def("left_out", &PythonRowPlan::LeftOut)
      .def("check", &PythonRowPlan::Check)
      .def("verify", &PythonRowPlan::Verify, nb::kw_only(), "num_threads"_a, "with_parts"_a = true)
      .def("read", &PythonRowPlan::Read, nb::kw_only(), "num_threads"_a, "max_bytes"_a = nb::none())
      .def("read_landing", &PythonRowPlan::ReadLanding, nb::kw_only(), "num_threads"_a, "address"_a, "size"_a)
      .def("touched", &PythonRowPlan::Touched)
      .def("num_read", &PythonRowPlan::NumRead);
}

}  // namespace trackckpt
