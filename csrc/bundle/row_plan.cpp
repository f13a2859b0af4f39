#include "bundle/row_plan.h"

#include <algorithm>
#include <string>
#include <utility>

#include "bundle/locator.h"
#include "bundle/stored_value.h"
#include "error.h"

namespace trackckpt {

namespace {

bool Fits(const BundleEntry& entry, const TensorMemoryTable& table, const TensorMemory& row) {
  return entry.dtype == row.dtype && entry.shape.size() == row.rank &&
         std::equal(entry.shape.begin(), entry.shape.end(), table.Shape(row));
}

}  // namespace

RowPlan::RowPlan(const BundleIndex& index, const DataFileNames& names,
                 const std::vector<std::string_view>& keys, const TensorMemoryTable& table,
                 std::vector<size_t> land)
    : index_(index),
      keys_(keys),
      table_(table),
      land_(std::move(land)),
      files_(names),
      reader_(&files_, index.byte_order()) {
  if (keys.size() != table.rows.size()) {
    throw Error(ErrorKind::kInvalidArgument, "there are " + std::to_string(keys.size()) + " keys for " +
                                                 std::to_string(table.rows.size()) + " rows");
  }
  in_one_piece_.reserve(keys.size());
  index.FindMany(keys, [&](size_t row, const BundleEntry* entry) {
    if (!table.rows[row].is_plain() && !Lands(row)) return;
    if (entry == nullptr || !Fits(*entry, table, table.rows[row])) {
      misfits_.push_back(row);
    } else {
      Place(keys[row], *entry, row);
    }
  });
}

bool RowPlan::Lands(size_t row) const {
  return !land_.empty() && std::binary_search(land_.begin(), land_.end(), row);
}

void RowPlan::Place(std::string_view key, const BundleEntry& entry, size_t row) {
  const bool lands = Lands(row);
  if (!entry.slices.empty() && lands) {
    left_out_.push_back(row);
    return;
  }
  num_bytes_ += table_.rows[row].size;
  if (entry.slices.empty()) {
    in_one_piece_.emplace_back(entry, key, lands ? nullptr : table_.rows[row].data, row);
    in_one_piece_.back().lands = lands;
  } else {
    in_slices_.push_back(row);
  }
}

void RowPlan::Check() {
  if (!misfits_.empty()) throw Error(ErrorKind::kInvalidArgument, "there are rows that do not fit");
  if (is_checked_) return;
  // What is wrong is said of the first row for which anything is.
  auto sliced = in_slices_.begin();
  for (const PlacedValue& value : in_one_piece_) {
    while (sliced != in_slices_.end() && *sliced < value.request) PlaceSlices(*sliced++);
    CheckPlace(value);
  }
  while (sliced != in_slices_.end()) PlaceSlices(*sliced++);
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

void RowPlan::PlaceSlices(size_t row) {
  const TensorLocator locator(index_, &files_);
  const BundleEntry tensor = locator.Find(keys_[row]);
  if (tensor.slices.empty() || !Fits(tensor, table_, table_.rows[row])) {
    throw Error(ErrorKind::kDataLoss,
                index_.path() + ": the index has several entries of key " + DisplayKey(tensor.key));
  }
  reader_.AddSliced(tensor, locator.Parts(tensor), table_.rows[row].data, row);
}

void RowPlan::Verify(size_t num_threads) {
  Check();
  reader_.Verify(num_threads);
}

uint64_t RowPlan::Read(size_t num_threads, uint64_t max_bytes, const Landing& landing,
                       std::vector<Landed>* landed) {
  Check();
  return reader_.Read(num_threads, max_bytes, landing, landed);
}

std::vector<size_t> RowPlan::Touched() const { return reader_.Touched(); }

}  // namespace trackckpt
