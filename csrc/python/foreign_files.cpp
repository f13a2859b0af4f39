#include "python/foreign_files.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "error.h"
#include "io/parallel.h"
#include "python/arguments.h"

namespace nb = nanobind;

namespace trackckpt {

namespace {

class ForeignFile : public ReadableFile {
 public:
  ForeignFile(const ForeignPlace& place, std::string path, uint64_t size)
      : ReadableFile(std::move(path)), place_(place), size_(size) {}

  uint64_t size() const override { return size_; }
  const ReadGrain& grain() const override { return place_.grain(); }
  void Read(uint64_t offset, void* destination, size_t n) const override;

 private:
  const ForeignPlace& place_;
  const uint64_t size_;
};

// More than one request may ask for is asked for by several at once.
void ForeignFile::Read(uint64_t offset, void* destination, size_t n) const {
  if (n == 0) return;
  const uint64_t step = grain().request_bytes;
  const size_t count = (n - 1) / step + 1;
  ParallelFor(std::min(count, grain().num_requests), count, [&](size_t i) {
    const uint64_t begin = i * step;
    place_.Read(path(), offset + begin, static_cast<char*>(destination) + begin,
                std::min<uint64_t>(n - begin, step));
  });
}

std::string TextOr(nb::handle value, const std::string& otherwise) {
  if (!nb::isinstance<nb::str>(value)) return otherwise;
  return PathFromPython(nb::borrow<nb::str>(value));
}

// What a method raised. Anything but an OSError stays what it is.
[[noreturn]] void ThrowFileError(const nb::python_error& error, const std::string& path) {
  const nb::object raised = nb::borrow(error.value());
  const bool is_missing = error.matches(PyExc_FileNotFoundError);
  const nb::object number = raised.attr("errno");
  const int code = nb::isinstance<nb::int_>(number) ? nb::cast<int>(number) : is_missing ? ENOENT : EIO;
  const std::string text = TextOr(raised.attr("strerror"), nb::str(raised).c_str());
  const std::string remark = text.empty() || text == std::strerror(code) ? "" : " (" + text + ")";
  throw FileError(is_missing ? ErrorKind::kNotFound : ErrorKind::kSystem, code,
                  TextOr(raised.attr("filename"), path), remark);
}

template <typename Call>
auto Calling(const std::string& path, Call call) {
  try {
    return call();
  } catch (const nb::python_error& error) {
    if (!error.matches(PyExc_OSError)) throw;
    ThrowFileError(error, path);
  }
}

}  // namespace

ForeignPlace::ForeignPlace(nb::object files) : files_(std::move(files)) {
  grain_.request_bytes = std::max<uint64_t>(nb::cast<uint64_t>(files_.attr("request_bytes")), 1);
  grain_.gap_bytes = nb::cast<uint64_t>(files_.attr("gap_bytes"));
  grain_.num_requests = std::max<size_t>(nb::cast<size_t>(files_.attr("num_requests")), 1);
}

std::shared_ptr<const ReadableFile> ForeignPlace::Open(const std::string& path) const {
  const nb::gil_scoped_acquire lock;
  return Calling(path, [&] {
    const uint64_t size = nb::cast<uint64_t>(files_.attr("size")(PythonText(path)));
    return std::make_shared<const ForeignFile>(*this, path, size);
  });
}

void ForeignPlace::Read(const std::string& path, uint64_t offset, char* destination, size_t n) const {
  const nb::gil_scoped_acquire lock;
  Calling(path, [&] {
    const nb::object found = files_.attr("read")(PythonText(path), offset, n);
    const nb::bytes bytes = Require<nb::bytes>(found, "what is read must be bytes");
    if (bytes.size() != n) throw nb::value_error("what is read must have the size that was asked for");
    // Others go on meanwhile; the bytes stay as they are.
    const nb::gil_scoped_release release;
    std::memcpy(destination, bytes.c_str(), n);
  });
}

std::unique_ptr<Output> ForeignOutput(std::string path, nb::object next_part) {
  const auto call = [next_part = std::move(next_part)](uint64_t num_filled, bool is_last) {
    const nb::gil_scoped_acquire lock;
    const nb::object given = next_part(num_filled, is_last);
    if (is_last) return PartOutput::Part();
    const nb::tuple part = TupleOfLength(given, 2, "a part is an address and a size");
    const uint64_t size = SizeFromPython(part[1]);
    if (size == 0) throw nb::value_error("a part must have room");
    return PartOutput::Part{static_cast<char*>(MemoryFromPython(part[0], size)), size};
  };
  return std::make_unique<PartOutput>(std::move(path), call);
}

}  // namespace trackckpt
