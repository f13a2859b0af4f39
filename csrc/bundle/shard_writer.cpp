#include "bundle/shard_writer.h"

#include <algorithm>
#include <utility>

#include "bundle/dtype.h"
#include "encoding/crc32c.h"
#include "error.h"

// Tensor bytes are stored as they lie in memory, and the header says little-endian.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "big-endian machines are not supported");

namespace trackckpt {

namespace {

// Small enough to be still in the cache when it is written right after its checksum was computed.
constexpr uint64_t kChunkBytes = 512 << 10;
constexpr char kZeros[4096] = {};

Error InvalidArgument(const std::string& message) { return Error(ErrorKind::kInvalidArgument, message); }

uint64_t CheckedNumElements(std::string_view key, const std::vector<int64_t>& shape) {
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

ShardWriter::ShardWriter(std::unique_ptr<Output> output, int32_t shard_id, int64_t alignment,
                         const WriterState& state)
    : output_(std::move(output)), shard_id_(shard_id), alignment_(alignment), state_(state) {}

void ShardWriter::Add(const TensorBytes& tensor) {
  CheckSize(tensor);
  BeginEntry(tensor.key, tensor.dtype);
  entry_.shape = tensor.shape;
  EndEntry(tensor.key, tensor.size, AppendChecked(0, tensor.data, tensor.size));
}

void ShardWriter::AddRow(std::string_view key, const TensorMemoryTable& table, const TensorMemory& row) {
  BeginEntry(key, row.dtype);
  entry_.shape.assign(table.Shape(row), table.Shape(row) + row.rank);
  EndEntry(key, row.size, AppendChecked(0, row.data, row.size));
}

void ShardWriter::AddRowPiece(std::string_view key, const TensorMemoryTable& table, const RowPiece& piece) {
  const TensorMemory& row = table.rows[piece.row];
  const bool follows = partial_bytes_ == 0 || piece.row == partial_row_;
  if (!follows || piece.begin != partial_bytes_ || piece.size > row.size - piece.begin) {
    throw InvalidArgument("Key " + DisplayKey(key) + ": its pieces do not follow each other");
  }
  if (piece.begin == 0) {
    BeginEntry(key, row.dtype);
    entry_.shape.assign(table.Shape(row), table.Shape(row) + row.rank);
    partial_row_ = piece.row;
    partial_crc_ = 0;
  }
  partial_crc_ = AppendChecked(partial_crc_, piece.data, piece.size);
  partial_bytes_ += piece.size;
  if (partial_bytes_ < row.size) return;
  partial_bytes_ = 0;
  EndEntry(key, row.size, partial_crc_);
}

void ShardWriter::AddStrings(std::string_view key, std::vector<int64_t> shape,
                             const std::vector<std::string_view>& values) {
  if (CheckedNumElements(key, shape) != values.size()) {
    throw InvalidArgument("Key " + DisplayKey(key) + ": " + std::to_string(values.size()) +
                          " strings do not match the shape");
  }
  BeginEntry(key, kDtypeString);
  entry_.shape = std::move(shape);
  uint32_t crc;
  const std::string header = EncodeStringHeader(values, &crc);
  uint64_t size = header.size();
  Sink().Append(header.data(), header.size());
  for (std::string_view value : values) {
    crc = AppendChecked(crc, value.data(), value.size());
    size += value.size();
  }
  EndEntry(key, size, crc);
}

void ShardWriter::AddSlice(TensorBytes tensor, const TensorSlice& slice) {
  EnterSlice(slice, tensor.dtype, &tensor.key, &tensor.shape);
  Add(tensor);
}

void ShardWriter::AddStringsSlice(std::string key, std::vector<int64_t> shape, const TensorSlice& slice,
                                  const std::vector<std::string_view>& values) {
  EnterSlice(slice, kDtypeString, &key, &shape);
  AddStrings(key, std::move(shape), values);
}

void ShardWriter::Complete() {
  if (is_complete_) return;
  CheckNotPartial();
  output_->Complete();
  is_complete_ = true;
}

Output& ShardWriter::Sink() {
  if (is_complete_) throw Error(ErrorKind::kWriterClosed, output_->path() + ": the shard is complete");
  return *output_;
}

void ShardWriter::BeginEntry(std::string_view key, int32_t dtype) {
  if (key.empty()) throw InvalidArgument("The empty key belongs to the header");
  CheckNotPartial();
  entry_.dtype = dtype;
  entry_.shard_id = shard_id_;
  entry_.offset = offset_;
}

void ShardWriter::CheckNotPartial() const {
  if (partial_bytes_ > 0) throw InvalidArgument("The tensor before has not got all of its pieces");
}

void ShardWriter::EndEntry(std::string_view key, uint64_t size, uint32_t crc) {
  entry_.size = static_cast<int64_t>(size);
  entry_.crc32c = MaskCrc(crc);
  record_.clear();
  entry_.EncodeTo(&record_);
  keys_.Append(key);
  records_.Append(record_);
  offset_ += entry_.size;
  AppendPadding();
}

// Lists a slice in the entry of its tensor, and turns key and shape of the tensor into those of the slice.
void ShardWriter::EnterSlice(const TensorSlice& slice, int32_t dtype, std::string* key,
                             std::vector<int64_t>* shape) {
  if (key->empty()) throw InvalidArgument("The empty key belongs to the header");
  Box box = CheckedBox(*key, slice, *shape);
  if (box == WholeBox(*shape)) return;
  const auto [found, is_first] = sliced_.try_emplace(*key);
  BundleEntry& tensor = found->second;
  if (is_first) {
    tensor.key = *key;
    tensor.dtype = dtype;
    tensor.shape = *shape;
    tensor.shard_id = shard_id_;
  }
  CheckOneTensor(tensor, dtype, *shape);
  tensor.slices.push_back(slice);
  *key = SliceKey(*key, slice);
  *shape = std::move(box.length);
}

uint32_t ShardWriter::AppendChecked(uint32_t crc, const void* data, uint64_t size) {
  Output& sink = Sink();
  const char* p = static_cast<const char*>(data);
  while (size > 0) {
    state_.CheckOpen();
    const uint64_t n = std::min(size, kChunkBytes);
    crc = Crc32cExtend(crc, p, n);
    sink.Append(p, n);
    p += n;
    size -= n;
  }
  return crc;
}

void ShardWriter::AppendPadding() {
  const int64_t excess = offset_ % alignment_;
  if (excess == 0) return;
  int64_t missing = alignment_ - excess;
  offset_ += missing;
  while (missing > 0) {
    const int64_t n = std::min<int64_t>(missing, sizeof(kZeros));
    Sink().Append(kZeros, static_cast<size_t>(n));
    missing -= n;
  }
}

void CheckOneTensor(const BundleEntry& entry, int32_t dtype, const std::vector<int64_t>& shape) {
  if (entry.dtype == dtype && entry.shape == shape) return;
  throw InvalidArgument("Key " + DisplayKey(entry.key) +
                        ": slices of one tensor differ in its dtype or its shape");
}

}  // namespace trackckpt
