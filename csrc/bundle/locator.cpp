#include "bundle/locator.h"

#include <map>
#include <string>
#include <utility>

#include "bundle/dtype.h"
#include "bundle/stored_value.h"
#include "error.h"

namespace trackckpt {

namespace {

// Each slice is looked up by a key that holds the name of its tensor, and an index can give a very long name to
// a tensor of very many slices. Keys of real tensors take a few megabytes together.
constexpr uint64_t kMaxSliceKeyBytes = 256 << 20;

Error DataLoss(const std::string& message) { return Error(ErrorKind::kDataLoss, message); }

uint64_t SaturatingAdd(uint64_t a, uint64_t b) {
  uint64_t sum;
  return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

}  // namespace

BundleEntry TensorLocator::Find(std::string_view key) const {
  std::optional<BundleEntry> entry = index_.Find(key);
  if (!entry) {
    throw Error(ErrorKind::kKeyNotFound,
                "Key " + DisplayKey(key) + " not found in checkpoint " + index_.path());
  }
  CheckType(*entry);
  if (entry->slices.empty()) {
    CheckStored(*entry, *files_.Open(entry->shard_id));
  } else if (ItemSize(entry->dtype) > 0 && !ExpectedSize(*entry)) {
    throw DataLoss("Invalid tensor shape: " + DisplayKey(key) + " in " + index_.path());
  }
  return *std::move(entry);
}

std::vector<StoredPart> TensorLocator::Parts(const BundleEntry& tensor, const Box& request) const {
  std::vector<StoredPart> parts;
  if (tensor.slices.empty()) {
    parts.push_back({tensor, WholeBox(tensor.shape), request});
    return parts;
  }
  CheckSliceKeys(tensor);
  for (Piece& piece : PlanPieces(tensor.slices, tensor.shape, request, tensor.key, index_.path())) {
    BundleEntry value = FindSlice(tensor, piece);
    parts.push_back({std::move(value), std::move(piece.stored), std::move(piece.part)});
  }
  CheckTotalSize(tensor, parts);
  return parts;
}

void TensorLocator::CheckType(const BundleEntry& entry) const {
  const bool is_variant = entry.dtype == kDtypeVariant;
  const bool is_readable_variant = is_variant && index_.byte_order() == kNativeByteOrder;
  if (ItemSize(entry.dtype) > 0 || entry.dtype == kDtypeString || is_readable_variant) return;
  throw Error(ErrorKind::kUnsupportedFormat, index_.path() + ": key " + DisplayKey(entry.key) +
                                                 " has DataType " + std::to_string(entry.dtype) +
                                                 (is_variant ? " (variant) in the other byte order" : "") +
                                                 ", which is not supported");
}

void TensorLocator::CheckSliceKeys(const BundleEntry& tensor) const {
  uint64_t key_bytes;
  const bool fits =
      !__builtin_mul_overflow(uint64_t{tensor.key.size()}, uint64_t{tensor.slices.size()}, &key_bytes);
  if (fits && key_bytes <= kMaxSliceKeyBytes) return;
  throw Error(ErrorKind::kUnsupportedFormat,
              index_.path() + ": a key of " + std::to_string(tensor.key.size()) + " bytes is too long for " +
                  std::to_string(tensor.slices.size()) +
                  " slices: " + DisplayKey(std::string_view(tensor.key).substr(0, 200)));
}

BundleEntry TensorLocator::FindSlice(const BundleEntry& tensor, const Piece& piece) const {
  const TensorSlice& slice = tensor.slices[piece.index];
  const std::string name = tensor.key + " (slice " + DisplaySlice(slice) + ")";
  std::optional<BundleEntry> value = index_.Find(SliceKey(tensor.key, slice));
  if (!value) {
    throw Error(ErrorKind::kKeyNotFound,
                "Key " + DisplayKey(name) + " not found in checkpoint " + index_.path());
  }
  value->key = name;
  const std::string where = ": key " + DisplayKey(name) + " in " + index_.path();
  if (!value->slices.empty()) throw DataLoss("A slice that lies in slices" + where);
  if (value->dtype != tensor.dtype) {
    throw DataLoss("DataType " + std::to_string(value->dtype) + " of a slice is not that of its tensor, " +
                   std::to_string(tensor.dtype) + where);
  }
  if (value->shape != piece.stored.length) throw DataLoss("Invalid tensor shape of a slice" + where);
  CheckStored(*value, *files_.Open(value->shard_id));
  return *std::move(value);
}

// Slices that point at the same bytes would make a tensor of any size out of a small file.
void TensorLocator::CheckTotalSize(const BundleEntry& tensor, const std::vector<StoredPart>& parts) const {
  uint64_t total = 0;
  std::map<int32_t, uint64_t> file_sizes;
  for (const StoredPart& part : parts) {
    const int32_t shard = part.value.shard_id;
    total = SaturatingAdd(total, static_cast<uint64_t>(part.value.size));
    if (file_sizes.count(shard) == 0) file_sizes[shard] = files_.Open(shard)->size();
  }
  uint64_t available = 0;
  for (const auto& [shard, size] : file_sizes) available = SaturatingAdd(available, size);
  if (total <= available) return;
  throw DataLoss("Slices larger than the files that they lie in: key " + DisplayKey(tensor.key) + " in " +
                 index_.path() + ": " + std::to_string(total) + " bytes in files of " +
                 std::to_string(available));
}

}  // namespace trackckpt
