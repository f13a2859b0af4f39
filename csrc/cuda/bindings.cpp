// `_cuda`: what the CPU core cannot do for tensors on CUDA devices. Addresses and streams cross as integers: neither
// torch nor its memory is known here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/piece_copy.h"
#include "cuda/pinned_memory.h"
#include "cuda/status.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace trackckpt::cuda {

namespace {

using Column = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// rank, bytes of an element, lengths, strides in elements
constexpr size_t kLayoutColumns = 2 + 2 * kMaxRank;

Layout LayoutOf(const int64_t* row) {
  Layout layout{};
  layout.rank = static_cast<int32_t>(row[0]);
  layout.item_size = static_cast<int32_t>(row[1]);
  if (layout.rank < 0 || layout.rank > kMaxRank) throw nb::value_error("a layout has too many dimensions");
  for (int32_t i = 0; i < layout.rank; ++i) {
    layout.shape[i] = row[2 + i];
    layout.strides[i] = row[2 + kMaxRank + i] * layout.item_size;
    if (layout.shape[i] < 1) throw nb::value_error("a layout has no elements");
  }
  return layout;
}

PieceCopy MakePieceCopy(int device, const Column& addresses, const Column& begins, const Column& sizes,
                        const Column& offsets, const Column& layout_of, const Table& layouts) {
  const size_t count = addresses.shape(0);
  for (const Column* column : {&begins, &sizes, &offsets, &layout_of}) {
    if (column->shape(0) != count) throw nb::value_error("the columns are not equally long");
  }
  if (layouts.shape(0) > 0 && layouts.shape(1) != kLayoutColumns)
    throw nb::value_error("layouts have 18 columns");
  std::vector<Layout> plain_layouts;
  plain_layouts.reserve(layouts.shape(0));
  for (size_t i = 0; i < layouts.shape(0); ++i)
    plain_layouts.push_back(LayoutOf(layouts.data() + i * kLayoutColumns));
  std::vector<Piece> pieces;
  pieces.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    Piece piece{};
    piece.address = static_cast<uint64_t>(addresses.data()[i]);
    piece.begin = static_cast<uint64_t>(begins.data()[i]);
    piece.size = static_cast<uint64_t>(sizes.data()[i]);
    piece.offset = static_cast<uint64_t>(offsets.data()[i]);
    piece.layout = static_cast<int32_t>(layout_of.data()[i]);
    pieces.push_back(piece);
  }
  return PieceCopy(device, std::move(pieces), std::move(plain_layouts));
}

Scratch ScratchOf(const PieceCopy& copy, uint64_t device, uint64_t size, uint64_t description) {
  if (size < copy.least_scratch_bytes()) {
    throw nb::value_error(
        ("the copy needs at least " + std::to_string(copy.least_scratch_bytes()) + " bytes of scratch memory")
            .c_str());
  }
  return {reinterpret_cast<char*>(device), size, reinterpret_cast<char*>(description)};
}

cudaStream_t StreamOf(uint64_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

template <void (PieceCopy::*Method)(char*, const Scratch&, cudaStream_t) const>
void Begin(const PieceCopy& self, uint64_t to, uint64_t scratch, uint64_t scratch_size, uint64_t description,
           uint64_t stream) {
  const Scratch memory = ScratchOf(self, scratch, scratch_size, description);
  const nb::gil_scoped_release release;
  (self.*Method)(reinterpret_cast<char*>(to), memory, StreamOf(stream));
}

void BeginFromHost(const PieceCopy& self, uint64_t from, uint64_t scratch, uint64_t scratch_size,
                   uint64_t description, uint64_t stream) {
  const Scratch memory = ScratchOf(self, scratch, scratch_size, description);
  const nb::gil_scoped_release release;
  self.FromHost(reinterpret_cast<const char*>(from), memory, StreamOf(stream));
}

class Stream {
 public:
  explicit Stream(int device) : device_(device) {
    const OnDevice on_device(device);
    Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "make a stream");
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
    const nb::gil_scoped_release release;
    try {
      const OnDevice on_device(device_);
      cudaStreamDestroy(stream_);
      cudaGetLastError();
    } catch (const Failure&) {
      // At the exit of the process the device may be gone already.
    }
  }

  uintptr_t handle() const { return reinterpret_cast<uintptr_t>(stream_); }

 private:
  int device_;
  cudaStream_t stream_ = nullptr;
};

// Unlocks memory without the interpreter lock: that takes as long as to lock it did.
class Memory {
 public:
  Memory(size_t size, int device) : memory_(std::make_unique<PinnedMemory>(size, device)) {}
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    const nb::gil_scoped_release release;
    memory_.reset();
  }

  const PinnedMemory& operator*() const { return *memory_; }

 private:
  std::unique_ptr<PinnedMemory> memory_;
};

// CUDA's numbers: 13000 is 13.0; 0 where there is no driver.
std::pair<int, int> Versions() {
  int driver = 0;
  int runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) cudaGetLastError();
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) cudaGetLastError();
  return {driver, runtime};
}

// What this thread may do while another one captures a graph: 0 and 1 nothing that could end up in it, 2 everything.
// Returns what it was.
int ExchangeCaptureMode(int mode) {
  auto exchanged = static_cast<cudaStreamCaptureMode>(mode);
  Check(cudaThreadExchangeStreamCaptureMode(&exchanged), "say what a thread does while a graph is captured");
  return static_cast<int>(exchanged);
}

}  // namespace

}  // namespace trackckpt::cuda

NB_MODULE(_cuda, module) {
  namespace cuda = trackckpt::cuda;
  module.doc() = "What torch_trackckpt does on CUDA devices.";
#ifdef NDEBUG
  nb::set_leak_warnings(false);
#endif
  module.def("versions", &cuda::Versions);
  module.def("numa_node", &cuda::NumaNodeOf, "device"_a);
  module.def("exchange_capture_mode", &cuda::ExchangeCaptureMode, "mode"_a);
  nb::class_<cuda::Stream>(module, "Stream", nb::is_final())
      .def(nb::init<int>(), "device"_a, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("handle", &cuda::Stream::handle);
  nb::class_<cuda::Memory>(module, "PinnedMemory", nb::is_final())
      .def(nb::init<size_t, int>(), "size"_a, "device"_a, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("address",
                   [](const cuda::Memory& self) { return reinterpret_cast<uintptr_t>((*self).data()); })
      .def_prop_ro("nbytes", [](const cuda::Memory& self) { return (*self).size(); });
  nb::class_<cuda::PieceCopy>(module, "PieceCopy", nb::is_final())
      .def(nb::new_(&cuda::MakePieceCopy), "device"_a, "addresses"_a, "begins"_a, "sizes"_a, "offsets"_a,
           "layout_of"_a, "layouts"_a)
      .def_prop_ro("description_nbytes", &cuda::PieceCopy::description_bytes)
      .def_prop_ro("least_scratch_nbytes", &cuda::PieceCopy::least_scratch_bytes)
      .def("to_host", &cuda::Begin<&cuda::PieceCopy::ToHost>, "address"_a, "scratch"_a, "scratch_nbytes"_a,
           "description"_a, "stream"_a)
      .def("from_host", &cuda::BeginFromHost, "address"_a, "scratch"_a, "scratch_nbytes"_a, "description"_a,
           "stream"_a)
      .def("snapshot", &cuda::Begin<&cuda::PieceCopy::Snapshot>, "address"_a, "scratch"_a, "scratch_nbytes"_a,
           "description"_a, "stream"_a);
}
