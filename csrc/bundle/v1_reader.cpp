#include "bundle/v1_reader.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "bundle/dtype.h"
#include "error.h"

namespace trackckpt {

namespace {

Error DataLoss(const std::string& message) { return Error(ErrorKind::kDataLoss, message); }

Error InvalidArgument(const std::string& message) { return Error(ErrorKind::kInvalidArgument, message); }

// The first record of a bundle's index has a number where the older format has a message.
bool IsBundleHeader(std::string_view record) {
  WireReader reader(record);
  while (reader.Next()) {
    if (reader.Is(1, WireType::kVarint)) return true;
  }
  return false;
}

// A long name has to be in the table for each slice of the tensor.
void CheckNames(const SavedMeta& meta, const TableFile& table) {
  uint64_t key_bytes = 0;
  for (const BundleEntry& tensor : meta.tensors) {
    key_bytes += tensor.key.size() * tensor.slices.size();
    if (key_bytes / kMaxKeyExpansion <= table.size()) continue;
    throw DataLoss("keys too long for the size of the file: " + table.path());
  }
}

// By file, and in each by key: one block after the other, each read once. Slices can be listed in any order.
void SortAsStored(const std::vector<TensorSlice>& slices, const std::vector<size_t>& files,
                  std::vector<Piece>* pieces) {
  std::vector<std::pair<std::pair<size_t, std::string>, Piece>> keyed;
  keyed.reserve(pieces->size());
  for (Piece& piece : *pieces) {
    std::pair<size_t, std::string> place(files[piece.index], SliceKey("", slices[piece.index]));
    keyed.emplace_back(std::move(place), std::move(piece));
  }
  std::sort(keyed.begin(), keyed.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (size_t i = 0; i < keyed.size(); ++i) (*pieces)[i] = std::move(keyed[i].second);
}

// Neither the number of elements nor that of bytes is beyond counting.
bool HasSoundShape(const BundleEntry& tensor) {
  const auto num_elements = NumElements(tensor.shape);
  uint64_t num_bytes;
  return !tensor.is_unknown_rank && num_elements &&
         !__builtin_mul_overflow(*num_elements, ItemSize(tensor.dtype), &num_bytes);
}

// Reads what `wanted` needs of a stored slice into memory that holds all of `wanted`.
bool CopyPiece(const Piece& piece, const Box& wanted, uint32_t item_size, SavedValues* values,
               char* destination) {
  bool is_complete = true;
  uint64_t done = 0;
  ForEachRun(piece.part, piece.stored, wanted, [&](uint64_t from, uint64_t to, uint64_t n) {
    is_complete = is_complete && values->Skip(from - done) && values->Read(n, destination + to * item_size);
    done = from + n;
  });
  return is_complete;
}

// As CopyPiece; each string goes to the end of `strings`, and its place in `wanted` to that of `positions`.
bool AppendPiece(const Piece& piece, const Box& wanted, SavedValues* values, StringArray* strings,
                 std::vector<uint64_t>* positions) {
  bool is_complete = true;
  uint64_t done = 0;
  ForEachRun(piece.part, piece.stored, wanted, [&](uint64_t from, uint64_t to, uint64_t n) {
    std::string_view value;
    for (; is_complete && done < from + n; ++done) {
      is_complete = values->NextString(&value);
      if (!is_complete || done < from) continue;
      strings->Append(value);
      positions->push_back(to + done - from);
    }
  });
  return is_complete;
}

// `positions` holds each number from 0 on once.
StringArray InOrder(const StringArray& strings, const std::vector<uint64_t>& positions) {
  std::vector<size_t> sources(positions.size());
  for (size_t i = 0; i < positions.size(); ++i) sources[positions[i]] = i;
  StringArray sorted;
  for (size_t source : sources) sorted.Append(strings[source]);
  return sorted;
}

}  // namespace

// Finds records for one call: keeps one file open and one block in memory, the last of each.
class V1Reader::Records {
 public:
  explicit Records(const std::vector<TableFile>& tables) : tables_(tables) {}

  std::optional<std::string_view> Find(size_t file, std::string_view key) {
    if (!open_ || number_ != file) {
      open_.emplace(tables_[file].Open());
      number_ = file;
    }
    return tables_[file].Get(*open_, key, &block_);
  }

 private:
  const std::vector<TableFile>& tables_;
  size_t number_ = 0;
  std::optional<LocalFile> open_;
  TableFile::LastBlock block_;
};

V1Reader::V1Reader(const std::vector<std::string>& paths) {
  if (paths.empty()) throw InvalidArgument("there is no file to read");
  tables_.reserve(paths.size());
  StoredSlices stored;
  for (const std::string& path : paths) {
    SavedMeta meta = ReadMeta(tables_.emplace_back(path));
    for (BundleEntry& tensor : meta.tensors) Unite(std::move(tensor), tables_.size() - 1, &stored);
  }
  for (auto& [key, tensor] : tensors_) {
    std::vector<TensorSlice>& slices = tensor.entry.slices;
    if (slices.size() == 1 && slices[0] == WholeSlice(tensor.entry.shape.size())) slices.clear();
  }
}

SavedMeta V1Reader::ReadMeta(const TableFile& table) {
  TableFile::LastBlock block;
  const LocalFile file = table.Open();
  const auto record = table.Get(file, "", &block);
  SavedMeta meta;
  if (record && IsBundleHeader(*record)) {
    throw Error(ErrorKind::kUnsupportedFormat,
                table.path() +
                    ": the index of a checkpoint in the newer format, not a file of the older one: "
                    "pass the path without `.index`");
  }
  if (!record || !meta.DecodeFrom(*record)) {
    throw DataLoss("Failed to find the saved tensor slices at the beginning of the checkpoint file: " +
                   table.path());
  }
  CheckVersion(meta.version, table.path());
  CheckNames(meta, table);
  return meta;
}

// Adds what a file says of a tensor to what others, or the same, have said of it.
void V1Reader::Unite(BundleEntry tensor, size_t file, StoredSlices* stored) {
  const std::string where = ": key " + DisplayKey(tensor.key) + " in " + tables_[file].path();
  if (!HasSoundShape(tensor)) throw DataLoss("Invalid tensor shape" + where);
  Tensor& united = tensors_[tensor.key];
  if (united.files.empty()) {
    united.entry.key = tensor.key;
    united.entry.dtype = tensor.dtype;
    united.entry.shape = tensor.shape;
  }
  if (tensor.dtype != united.entry.dtype || tensor.shape != united.entry.shape) {
    throw DataLoss("Incompatible dtype or shape among the slices of one tensor" + where);
  }
  for (TensorSlice& slice : tensor.slices) {
    if (!Resolve(slice, tensor.shape)) throw DataLoss("Slice outside of its tensor" + where);
    if (!stored->emplace(&united, SliceKey("", slice)).second) throw DataLoss("Slice stored twice" + where);
    united.entry.slices.push_back(std::move(slice));
    united.files.push_back(file);
  }
}

std::vector<TensorSlice> V1Reader::Tensor::Slices() const {
  return entry.slices.empty() ? std::vector{WholeSlice(entry.shape.size())} : entry.slices;
}

std::vector<BundleEntry> V1Reader::Entries() const {
  std::vector<BundleEntry> entries;
  entries.reserve(tensors_.size());
  for (const auto& [key, tensor] : tensors_) entries.push_back(tensor.entry);
  return entries;
}

std::optional<BundleEntry> V1Reader::Find(std::string_view key) const {
  const auto found = tensors_.find(key);
  if (found == tensors_.end()) return std::nullopt;
  return found->second.entry;
}

void V1Reader::Check(const std::vector<std::string>& keys) const {
  Records records(tables_);
  for (const std::string& key : keys) {
    const Request request = PlanWhole(Locate(key));
    for (const Piece& piece : request.pieces) Record(request, piece, &records);
  }
}

void V1Reader::Verify(const std::vector<std::string>& keys, size_t /*num_threads*/) const {
  Records records(tables_);
  for (const std::string& key : keys) CheckRecords(PlanWhole(Locate(key)), &records);
}

void V1Reader::Read(const std::vector<ReadRequest>& requests, size_t /*num_threads*/,
                    std::vector<size_t>* touched) const {
  for (const ReadRequest& request : requests) CheckMemory(PlanWhole(Locate(request.key)), request.size);
  Records records(tables_);
  for (size_t i = 0; i < requests.size(); ++i) {
    bool is_half_read = false;
    try {
      Copy(PlanWhole(Locate(requests[i].key)), requests[i].destination, &records, &is_half_read);
    } catch (const Error&) {
      if (is_half_read) touched->push_back(i);
      throw;
    }
    touched->push_back(i);
  }
}

void V1Reader::ReadSlice(const ReadRequest& request, const TensorSlice& part, bool verify) const {
  const Request plan = PlanPart(Locate(request.key), part);
  CheckMemory(plan, request.size);
  Records records(tables_);
  if (verify && plan.pieces.size() > 1) CheckRecords(plan, &records);
  bool touched = false;
  Copy(plan, request.destination, &records, &touched);
}

StringArray V1Reader::ReadStrings(std::string_view key, const std::optional<TensorSlice>& part) const {
  const Tensor& tensor = Locate(key);
  const Request request = part ? PlanPart(tensor, *part) : PlanWhole(tensor);
  if (tensor.entry.dtype != kDtypeString) {
    throw InvalidArgument("Key " + DisplayKey(key) + " is no string tensor");
  }
  Records records(tables_);
  StringArray strings;
  std::vector<uint64_t> positions;
  for (const Piece& piece : request.pieces) {
    SavedValues values(CheckedRecord(request, piece, &records), request.field);
    if (!AppendPiece(piece, request.part, &values, &strings, &positions)) throw BadRecord(request, piece);
  }
  if (request.pieces.size() > 1) return InOrder(strings, positions);
  return strings;
}

const V1Reader::Tensor& V1Reader::Locate(std::string_view key) const {
  const auto found = tensors_.find(key);
  if (found != tensors_.end()) return found->second;
  throw Error(ErrorKind::kKeyNotFound, "Key " + DisplayKey(key) + " not found in checkpoint " + Paths());
}

V1Reader::Request V1Reader::Plan(const Tensor& tensor, const Box& part) const {
  const BundleEntry& entry = tensor.entry;
  const auto field = ValueField::Of(entry.dtype);
  if (!field) {
    throw Error(ErrorKind::kUnsupportedFormat, Paths() + ": key " + DisplayKey(entry.key) + " has DataType " +
                                                   std::to_string(entry.dtype) + ", which is not supported");
  }
  std::vector<TensorSlice> slices = tensor.Slices();
  std::vector<Piece> pieces = PlanPieces(slices, entry.shape, part, entry.key, Paths());
  SortAsStored(slices, tensor.files, &pieces);
  return {tensor, *field, part, std::move(slices), std::move(pieces)};
}

V1Reader::Request V1Reader::PlanWhole(const Tensor& tensor) const {
  return Plan(tensor, WholeBox(tensor.entry.shape));
}

V1Reader::Request V1Reader::PlanPart(const Tensor& tensor, const TensorSlice& part) const {
  const auto box = Resolve(part, tensor.entry.shape);
  if (box) return Plan(tensor, *box);
  throw InvalidArgument("Slice outside of the shape of key " + DisplayKey(tensor.entry.key));
}

void V1Reader::CheckMemory(const Request& request, uint64_t size) const {
  const BundleEntry& entry = request.tensor.entry;
  if (entry.dtype == kDtypeString)
    throw InvalidArgument("Key " + DisplayKey(entry.key) + " is a string tensor");
  const uint64_t needed = request.part.NumElements() * ItemSize(entry.dtype);
  if (size == needed) return;
  throw InvalidArgument("Key " + DisplayKey(entry.key) + " has " + std::to_string(needed) +
                        " bytes, but memory of " + std::to_string(size) + " bytes was given");
}

// The record of a stored slice, valid until the next.
std::string_view V1Reader::Record(const Request& request, const Piece& piece, Records* records) const {
  const BundleEntry& entry = request.tensor.entry;
  const size_t file = request.tensor.files[piece.index];
  const auto record = records->Find(file, SliceKey(entry.key, request.slices[piece.index]));
  if (record) return *record;
  throw DataLoss("The record of a slice is missing: key " + DisplayKey(entry.key) + " in " +
                 tables_[file].path());
}

// A record that can be read to its end, and holds as many elements as it should.
std::string_view V1Reader::CheckedRecord(const Request& request, const Piece& piece, Records* records) const {
  const std::string_view record = Record(request, piece, records);
  const auto count = SavedValues(record, request.field).Count();
  if (count == piece.stored.NumElements()) return record;
  throw BadRecord(request, piece);
}

void V1Reader::CheckRecords(const Request& request, Records* records) const {
  for (const Piece& piece : request.pieces) CheckedRecord(request, piece, records);
}

// Sets `touched` while the memory holds something that is not complete.
void V1Reader::Copy(const Request& request, void* destination, Records* records, bool* touched) const {
  const uint32_t item_size = ItemSize(request.tensor.entry.dtype);
  for (const Piece& piece : request.pieces) {
    SavedValues values(CheckedRecord(request, piece, records), request.field);
    *touched = true;
    if (!CopyPiece(piece, request.part, item_size, &values, static_cast<char*>(destination))) {
      throw BadRecord(request, piece);
    }
  }
  *touched = false;
}

Error V1Reader::BadRecord(const Request& request, const Piece& piece) const {
  return DataLoss("The record of a slice is damaged, or has not the slice's " +
                  std::to_string(piece.stored.NumElements()) + " elements: key " +
                  DisplayKey(request.tensor.entry.key) + " in " +
                  tables_[request.tensor.files[piece.index]].path());
}

// The files, for messages.
std::string V1Reader::Paths() const {
  const std::string& first = tables_.front().path();
  return tables_.size() == 1 ? first : first + " and " + std::to_string(tables_.size() - 1) + " more files";
}

}  // namespace trackckpt
