#include "bundle/writer.h"

#include <unistd.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "bundle/dtype.h"
#include "bundle/string_tensor.h"
#include "encoding/crc32c.h"
#include "error.h"
#include "table/table_builder.h"

// Tensor bytes are stored as they lie in memory, and the header says little-endian.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "big-endian machines are not supported");

namespace trackckpt {

namespace {

// Small enough to be still in the cache when it is written right after its checksum was computed.
constexpr uint64_t kChunkBytes = 512 << 10;
constexpr int32_t kProducerVersion = 1;
constexpr char kZeros[4096] = {};

// The second of two files: if it cannot be created, the first is removed.
WritableFile CreateBeside(WritableFile* first, const std::string& path) {
  try {
    return WritableFile(path);
  } catch (...) {
    first->Discard();
    throw;
  }
}

Error InvalidArgument(const std::string& message) { return Error(ErrorKind::kInvalidArgument, message); }

int64_t CheckedAlignment(int64_t alignment) {
  if (alignment < 1) throw InvalidArgument("Alignment must be at least 1, not " + std::to_string(alignment));
  return alignment;
}

uint64_t CheckedNumElements(const std::string& key, const std::vector<int64_t>& shape) {
  const auto num_elements = NumElements(shape);
  if (!num_elements) throw InvalidArgument("Invalid tensor shape: " + DisplayKey(key));
  return *num_elements;
}

void CheckSize(const TensorBytes& tensor) {
  const uint32_t item_size = ItemSize(tensor.dtype);
  if (item_size == 0) {
    throw InvalidArgument("Key " + DisplayKey(tensor.key) + ": DataType " + std::to_string(tensor.dtype) +
                          " has no fixed element size");
  }
  uint64_t expected;
  if (__builtin_mul_overflow(CheckedNumElements(tensor.key, tensor.shape), item_size, &expected) ||
      expected != tensor.size) {
    throw InvalidArgument("Key " + DisplayKey(tensor.key) + ": " + std::to_string(tensor.size) +
                          " bytes do not match the dtype and the shape");
  }
}

// What a slice is of its tensor. As in TensorFlow, a slice without elements can only be one of all of a dimension.
Box CheckedBox(const std::string& key, const TensorSlice& slice, const std::vector<int64_t>& shape) {
  CheckedNumElements(key, shape);
  const std::optional<Box> box = Resolve(slice, shape);
  const auto is_empty = [](const Extent& extent) { return extent.length == 0; };
  if (!box || std::any_of(slice.extents.begin(), slice.extents.end(), is_empty)) {
    throw InvalidArgument("Key " + DisplayKey(key) + ": the extents are empty or lie outside of the shape");
  }
  return *box;
}

}  // namespace

BundleWriter::BundleWriter(const std::string& data_path, const std::string& index_path, bool durable,
                           size_t block_size, int64_t alignment)
    : durable_(durable),
      block_size_(block_size),
      alignment_(CheckedAlignment(alignment)),
      data_file_(data_path),
      index_file_(CreateBeside(&data_file_, index_path)),
      owner_(getpid()) {}

BundleWriter::~BundleWriter() { Abandon(); }

void BundleWriter::Add(const std::vector<TensorBytes>& tensors) {
  Run([&] {
    for (const TensorBytes& tensor : tensors) AddTensor(tensor);
    data_file_.Flush();
  });
}

void BundleWriter::AddStrings(std::string key, std::vector<int64_t> shape,
                              const std::vector<std::string_view>& values) {
  Run([&] { AddStringTensor(std::move(key), std::move(shape), values); });
}

void BundleWriter::AddSlice(TensorBytes tensor, const TensorSlice& slice) {
  Run([&] {
    EnterSlice(slice, tensor.dtype, &tensor.key, &tensor.shape);
    AddTensor(tensor);
    data_file_.Flush();
  });
}

void BundleWriter::AddStringsSlice(std::string key, std::vector<int64_t> shape, const TensorSlice& slice,
                                   const std::vector<std::string_view>& values) {
  Run([&] {
    EnterSlice(slice, kDtypeString, &key, &shape);
    AddStringTensor(std::move(key), std::move(shape), values);
  });
}

void BundleWriter::Finish() {
  Run([&] {
    Complete(&data_file_);
    WriteIndex();
    Complete(&index_file_);
    closed_because_ = "it has finished";
    owns_files_ = false;
  });
}

void BundleWriter::Fail(const std::string& reason) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (closed_because_.empty()) closed_because_ = "it failed: " + reason;
}

void BundleWriter::Abandon() {
  const std::lock_guard<std::mutex> lock(mutex_);
  // A forked child has a copy of this object, but the files are its parent's.
  if (!owns_files_ || owner_ != getpid()) return;
  owns_files_ = false;
  if (closed_because_.empty()) closed_because_ = "it was abandoned";
  data_file_.Discard();
  index_file_.Discard();
}

// Runs a call unless the writer is closed, and closes it if the call fails.
void BundleWriter::Run(const std::function<void()>& action) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!closed_because_.empty()) {
    throw Error(ErrorKind::kWriterClosed,
                "The writer of " + data_file_.path() + " is closed: " + closed_because_);
  }
  try {
    action();
  } catch (const std::exception& error) {
    closed_because_ = std::string("it failed: ") + error.what();
    throw;
  }
}

void BundleWriter::AddTensor(const TensorBytes& tensor) {
  CheckSize(tensor);
  BundleEntry entry = BeginEntry(tensor.key, tensor.dtype, tensor.shape);
  const uint32_t crc = AppendChecked(0, tensor.data, tensor.size);
  EndEntry(std::move(entry), tensor.size, crc);
}

void BundleWriter::AddStringTensor(std::string key, std::vector<int64_t> shape,
                                   const std::vector<std::string_view>& values) {
  if (CheckedNumElements(key, shape) != values.size()) {
    throw InvalidArgument("Key " + DisplayKey(key) + ": " + std::to_string(values.size()) +
                          " strings do not match the shape");
  }
  BundleEntry entry = BeginEntry(std::move(key), kDtypeString, std::move(shape));
  uint32_t crc;
  const std::string header = EncodeStringHeader(values, &crc);
  uint64_t size = header.size();
  data_file_.Append(header.data(), header.size());
  for (std::string_view value : values) {
    crc = AppendChecked(crc, value.data(), value.size());
    size += value.size();
  }
  EndEntry(std::move(entry), size, crc);
  data_file_.Flush();
}

// Lists a slice in the entry of its tensor, and turns key and shape of the tensor into those of the slice.
void BundleWriter::EnterSlice(const TensorSlice& slice, int32_t dtype, std::string* key,
                              std::vector<int64_t>* shape) {
  Box box = CheckedBox(*key, slice, *shape);
  if (box == WholeBox(*shape)) return;
  SlicedEntry(*key, dtype, *shape)->slices.push_back(slice);
  *key = SliceKey(*key, slice);
  *shape = std::move(box.length);
}

// The entry of a tensor that is stored in slices; a new one for its first slice. Throws if the key is taken by
// something else.
BundleEntry* BundleWriter::SlicedEntry(const std::string& key, int32_t dtype,
                                       const std::vector<int64_t>& shape) {
  const auto found = entries_.find(key);
  if (found == entries_.end() || found->second.slices.empty()) {
    BundleEntry entry = BeginEntry(key, dtype, shape);
    entry.offset = 0;
    return &entries_.emplace(std::move(entry.key), std::move(entry)).first->second;
  }
  BundleEntry& entry = found->second;
  if (entry.dtype != dtype || entry.shape != shape) {
    throw InvalidArgument("Key " + DisplayKey(key) +
                          ": slices of one tensor differ in its dtype or its shape");
  }
  return &entry;
}

uint32_t BundleWriter::AppendChecked(uint32_t crc, const void* data, uint64_t size) {
  const char* p = static_cast<const char*>(data);
  while (size > 0) {
    const uint64_t n = std::min(size, kChunkBytes);
    crc = Crc32cExtend(crc, p, n);
    data_file_.Append(p, n);
    p += n;
    size -= n;
  }
  return crc;
}

void BundleWriter::AppendPadding() {
  const int64_t excess = offset_ % alignment_;
  if (excess == 0) return;
  int64_t missing = alignment_ - excess;
  offset_ += missing;
  while (missing > 0) {
    const int64_t n = std::min<int64_t>(missing, sizeof(kZeros));
    data_file_.Append(kZeros, static_cast<size_t>(n));
    missing -= n;
  }
}

BundleEntry BundleWriter::BeginEntry(std::string key, int32_t dtype, std::vector<int64_t> shape) const {
  if (key.empty()) throw InvalidArgument("The empty key belongs to the header");
  if (entries_.count(key) > 0) {
    throw Error(ErrorKind::kDuplicateKey, "Adding duplicate key: " + DisplayKey(key));
  }
  BundleEntry entry;
  entry.key = std::move(key);
  entry.dtype = dtype;
  entry.shape = std::move(shape);
  entry.offset = offset_;
  return entry;
}

void BundleWriter::EndEntry(BundleEntry entry, uint64_t size, uint32_t crc) {
  entry.size = static_cast<int64_t>(size);
  entry.crc32c = MaskCrc(crc);
  offset_ += entry.size;
  entries_.emplace(std::move(entry.key), std::move(entry));
  AppendPadding();
}

void BundleWriter::WriteIndex() {
  BundleHeader header;
  header.num_shards = 1;
  header.producer = kProducerVersion;
  std::string record;
  header.EncodeTo(&record);
  TableBuilder table(&index_file_, block_size_);
  table.Add("", record);
  for (const auto& [key, entry] : entries_) {
    record.clear();
    entry.EncodeTo(&record);
    table.Add(key, record);
  }
  table.Finish();
}

void BundleWriter::Complete(WritableFile* file) {
  if (durable_) file->Sync();
  file->Close();
}

}  // namespace trackckpt
