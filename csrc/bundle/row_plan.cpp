#include "bundle/row_plan.h"

#include <algorithm>
#include <string>
#include <utility>

#include "bundle/locator.h"
#include "bundle/stored_value.h"
#include "error.h"

namespace trackckpt {

namespace {

void CheckBox(const RowBox& box, const TensorMemoryTable& table) {
  if (box.row >= table.rows.size()) throw Error(ErrorKind::kInvalidArgument, "there is a box of no row");
  const TensorMemory& row = table.rows[box.row];
  bool is_inside = box.shape.size() == row.rank && box.start.size() == row.rank;
  for (size_t d = 0; is_inside && d < row.rank; ++d) {
    const int64_t length = table.Shape(row)[d];
    is_inside = box.start[d] >= 0 && length <= box.shape[d] && box.start[d] <= box.shape[d] - length;
  }
  if (row.dtype == 0 || is_inside) return;
  throw Error(ErrorKind::kInvalidArgument, "row " + std::to_string(box.row) + " is no box of its tensor");
}

}  // namespace

RowPlan::RowPlan(const BundleIndex& index, const DataFileNames& names,
                 const std::vector<std::string_view>& keys, const TensorMemoryTable& table,
                 std::vector<size_t> land, std::vector<RowBox> boxes)
    : index_(index),
      keys_(keys),
      table_(table),
      land_(std::move(land)),
      boxes_(std::move(boxes)),
      files_(names),
      reader_(&files_, index.byte_order()) {
  if (keys.size() != table.rows.size()) {
    throw Error(ErrorKind::kInvalidArgument, "there are " + std::to_string(keys.size()) + " keys for " +
                                                 std::to_string(table.rows.size()) + " rows");
  }
  for (const RowBox& box : boxes_) CheckBox(box, table);
  in_one_piece_.reserve(keys.size());
  index.FindMany(keys, [&](size_t row, const BundleEntry* entry) {
    if (!table.rows[row].is_plain() && !Lands(row)) return;
    if (entry == nullptr || !Fits(*entry, row)) {
      misfits_.push_back(row);
    } else {
      Place(keys[row], *entry, row);
    }
  });
}

bool RowPlan::Lands(size_t row) const {
  return !land_.empty() && std::binary_search(land_.begin(), land_.end(), row);
}

const RowBox* RowPlan::BoxOf(size_t row) const {
  const auto at = std::lower_bound(boxes_.begin(), boxes_.end(), row,
                                   [](const RowBox& box, size_t wanted) { return box.row < wanted; });
  return at == boxes_.end() || at->row != row ? nullptr : &*at;
}

Box RowPlan::Request(size_t row) const {
  Box request = WholeBox(table_.ShapeOf(table_.rows[row]));
  if (const RowBox* const box = BoxOf(row)) request.start = box->start;
  return request;
}

bool RowPlan::Fits(const BundleEntry& entry, size_t row) const {
  const TensorMemory& memory = table_.rows[row];
  if (entry.dtype != memory.dtype) return false;
  if (const RowBox* const box = BoxOf(row)) return entry.shape == box->shape;
  return entry.shape.size() == memory.rank &&
         std::equal(entry.shape.begin(), entry.shape.end(), table_.Shape(memory));
}

void RowPlan::Place(std::string_view key, const BundleEntry& entry, size_t row) {
  const bool lands = Lands(row);
  const bool is_in_one_piece = entry.slices.empty() && Request(row) == WholeBox(entry.shape);
  if (!is_in_one_piece && lands) {
    left_out_.push_back(row);
    return;
  }
  num_bytes_ += table_.rows[row].size;
  if (is_in_one_piece) {
    in_one_piece_.emplace_back(entry, key, lands ? nullptr : table_.rows[row].data, row);
    in_one_piece_.back().lands = lands;
  } else {
    in_parts_.push_back(row);
  }
}

void RowPlan::Check() {
  if (!misfits_.empty()) throw Error(ErrorKind::kInvalidArgument, "there are rows that do not fit");
  if (is_checked_) return;
  // What is wrong is said of the first row for which anything is.
  auto part = in_parts_.begin();
  for (const PlacedValue& value : in_one_piece_) {
    while (part != in_parts_.end() && *part < value.request) PlaceParts(*part++);
    CheckPlace(value);
  }
  while (part != in_parts_.end()) PlaceParts(*part++);
  reader_.Add(in_one_piece_);
  file_ = nullptr;
  is_checked_ = true;
}

// As CheckStored, without its entry.
void RowPlan::CheckPlace(const PlacedValue& value) {
  if (file_shard_ != value.shard_id) {
    file_ = files_.Open(value.shard_id);
    file_shard_ = value.shard_id;
  }
  const bool is_inside = value.offset <= file_->size() && value.size <= file_->size() - value.offset;
  if (value.size == table_.rows[value.request].size && is_inside) return;
  // Of what the way through the table has found: a made-up table may answer a look-up with another entry.
  BundleEntry entry = value.ToEntry();
  entry.shape = table_.ShapeOf(table_.rows[value.request]);
  CheckStored(entry, *file_);
}

void RowPlan::PlaceParts(size_t row) {
  const TensorLocator locator(index_, &files_);
  const BundleEntry tensor = locator.Find(keys_[row]);
  if ((tensor.slices.empty() && BoxOf(row) == nullptr) || !Fits(tensor, row)) {
    throw Error(ErrorKind::kDataLoss,
                index_.path() + ": the index has several entries of key " + DisplayKey(tensor.key));
  }
  const Box request = Request(row);
  reader_.AddParts(request, locator.Parts(tensor, request), table_.rows[row].data, row);
}

void RowPlan::Verify(size_t num_threads, bool with_parts) {
  Check();
  reader_.Verify(num_threads, with_parts);
}

uint64_t RowPlan::Read(size_t num_threads, uint64_t max_bytes, const Landing& landing,
                       std::vector<Landed>* landed) {
  Check();
  return reader_.Read(num_threads, max_bytes, landing, landed);
}

std::vector<size_t> RowPlan::Touched() const { return reader_.Touched(); }

}  // namespace trackckpt
