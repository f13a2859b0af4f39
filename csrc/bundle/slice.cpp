#include "bundle/slice.h"

#include <algorithm>
#include <numeric>

#include "bundle/entry.h"
#include "encoding/coding.h"
#include "encoding/ordered_code.h"
#include "encoding/wire.h"
#include "error.h"

namespace trackckpt {

namespace {

// Looking for overlaps compares slices in pairs. A made-up index could ask for more comparisons than anyone
// would wait for; a real one that cuts two dimensions into 100 parts each needs half a million.
constexpr uint64_t kMaxComparisons = 100'000'000;

bool DecodeExtent(std::string_view message, Extent* extent) {
  *extent = Extent();
  WireReader reader(message);
  while (reader.Next()) {
    if (reader.Is(1, WireType::kVarint)) extent->start = static_cast<int64_t>(reader.number());
    if (reader.Is(2, WireType::kVarint)) extent->length = static_cast<int64_t>(reader.number());
  }
  const bool is_all = extent->start == 0 && extent->length == Extent::kAll;
  return reader.ok() && (is_all || (extent->start >= 0 && extent->length >= 0));
}

std::string Where(std::string_view key, const std::string& path) {
  return ": key " + DisplayKey(key) + " in " + path;
}

// The dimension in which the boxes lie most apart: where the fewest of them share a start.
size_t SweepDimension(const std::vector<Piece>& pieces, size_t rank) {
  size_t best = 0;
  size_t most_starts = 0;
  for (size_t d = 0; d < rank; ++d) {
    std::vector<int64_t> starts;
    starts.reserve(pieces.size());
    for (const Piece& piece : pieces) starts.push_back(piece.stored.start[d]);
    std::sort(starts.begin(), starts.end());
    const size_t count = static_cast<size_t>(std::unique(starts.begin(), starts.end()) - starts.begin());
    if (count > most_starts) {
      most_starts = count;
      best = d;
    }
  }
  return best;
}

// Whether the boxes share an element.
bool Overlap(const Box& a, const Box& b) {
  for (size_t d = 0; d < a.start.size(); ++d) {
    const int64_t begin = std::max(a.start[d], b.start[d]);
    if (begin >= std::min(a.start[d] + a.length[d], b.start[d] + b.length[d])) return false;
  }
  return true;
}

// Counts the dimensions that runs do not reach over, and the elements of a run. Dimensions that are whole in
// both boxes join the one before them into longer runs.
size_t OuterDimensions(const Box& part, const Box& from, const Box& to, uint64_t* run) {
  size_t outer = part.length.size();
  *run = 1;
  while (outer > 0) {
    --outer;
    *run *= static_cast<uint64_t>(part.length[outer]);
    if (part.length[outer] != from.length[outer] || part.length[outer] != to.length[outer]) break;
  }
  return outer;
}

// Sorted by their start in one dimension, a box can overlap only with those that start before it ends.
void CheckNoOverlap(std::vector<Piece> pieces, size_t rank, std::string_view key, const std::string& path) {
  if (pieces.size() < 2) return;
  const std::string complaint = "Overlapping slices" + Where(key, path);
  if (rank == 0) throw Error(ErrorKind::kDataLoss, complaint);
  const size_t d = SweepDimension(pieces, rank);
  std::sort(pieces.begin(), pieces.end(),
            [d](const Piece& a, const Piece& b) { return a.stored.start[d] < b.stored.start[d]; });
  uint64_t comparisons = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const int64_t end = pieces[i].stored.start[d] + pieces[i].stored.length[d];
    for (size_t j = i + 1; j < pieces.size() && pieces[j].stored.start[d] < end; ++j) {
      if (Overlap(pieces[i].stored, pieces[j].stored)) throw Error(ErrorKind::kDataLoss, complaint);
      if (++comparisons > kMaxComparisons) {
        throw Error(ErrorKind::kUnsupportedFormat,
                    "Too many slices to tell whether they overlap" + Where(key, path));
      }
    }
  }
}

}  // namespace

void TensorSlice::EncodeTo(std::string* dst) const {
  for (const Extent& extent : extents) {
    std::string encoded;
    if (extent.length != Extent::kAll) {
      PutVarintField(&encoded, 1, static_cast<uint64_t>(extent.start));
      // One of a `oneof`, which is there even when 0; without it the extent would be all of the dimension.
      PutVarint64(&encoded, 2 << 3);
      PutVarint64(&encoded, static_cast<uint64_t>(extent.length));
    }
    PutBytesField(dst, 1, encoded);
  }
}

bool TensorSlice::DecodeFrom(std::string_view message) {
  extents.clear();
  WireReader reader(message);
  while (reader.Next()) {
    if (!reader.Is(1, WireType::kBytes)) continue;
    Extent extent;
    if (!DecodeExtent(reader.bytes(), &extent)) return false;
    if (extents.size() <= kMaxRank) extents.push_back(extent);  // one too many is enough to tell
  }
  return reader.ok();
}

TensorSlice WholeSlice(size_t rank) { return {std::vector<Extent>(rank)}; }

std::string SliceKey(std::string_view name, const TensorSlice& slice) {
  return SliceKeyPrefix(name) + SliceKeySuffix(slice);
}

std::string SliceKeyPrefix(std::string_view name) {
  std::string prefix;
  PutOrderedNumber(&prefix, 0);
  PutOrderedString(&prefix, name);
  return prefix;
}

std::string SliceKeySuffix(const TensorSlice& slice) {
  std::string suffix;
  PutOrderedNumber(&suffix, slice.extents.size());
  for (const Extent& extent : slice.extents) {
    PutOrderedSigned(&suffix, extent.start);
    PutOrderedSigned(&suffix, extent.length);
  }
  return suffix;
}

std::string DisplaySlice(const TensorSlice& slice) {
  std::string text;
  for (const Extent& extent : slice.extents) {
    if (!text.empty()) text += ':';
    const bool is_all = extent.length == Extent::kAll;
    text += is_all ? "-" : std::to_string(extent.start) + "," + std::to_string(extent.length);
  }
  return text;
}

uint64_t Box::NumElements() const {
  uint64_t count = 1;
  for (int64_t n : length) count *= static_cast<uint64_t>(n);
  return count;
}

Box WholeBox(const std::vector<int64_t>& shape) { return {std::vector<int64_t>(shape.size()), shape}; }

std::optional<Box> Resolve(const TensorSlice& slice, const std::vector<int64_t>& shape) {
  if (slice.extents.size() != shape.size()) return std::nullopt;
  Box box = WholeBox(shape);
  for (size_t d = 0; d < shape.size(); ++d) {
    const Extent& extent = slice.extents[d];
    if (extent == Extent()) continue;
    if (extent.start < 0 || extent.length < 0 || extent.start > shape[d] ||
        extent.length > shape[d] - extent.start) {
      return std::nullopt;
    }
    box.start[d] = extent.start;
    box.length[d] = extent.length;
  }
  return box;
}

std::optional<Box> Intersect(const Box& a, const Box& b) {
  Box shared = a;
  for (size_t d = 0; d < a.start.size(); ++d) {
    shared.start[d] = std::max(a.start[d], b.start[d]);
    shared.length[d] = std::min(a.start[d] + a.length[d], b.start[d] + b.length[d]) - shared.start[d];
    if (shared.length[d] <= 0) return std::nullopt;
  }
  return shared;
}

void ForEachRun(const Box& part, const Box& from, const Box& to, const RunVisitor& visit) {
  if (part.NumElements() == 0) return;
  uint64_t run;
  const size_t outer = OuterDimensions(part, from, to, &run);
  const auto position = [&](const std::vector<int64_t>& index, const Box& box) {
    uint64_t result = 0;
    for (size_t d = 0; d < index.size(); ++d) {
      result = result * static_cast<uint64_t>(box.length[d]) + static_cast<uint64_t>(index[d] - box.start[d]);
    }
    return result;
  };
  std::vector<int64_t> index = part.start;
  while (true) {
    visit(position(index, from), position(index, to), run);
    size_t d = outer;
    while (d > 0 && ++index[d - 1] == part.start[d - 1] + part.length[d - 1]) {
      --d;
      index[d] = part.start[d];
    }
    if (d == 0) return;
  }
}

bool IsOneRun(const Box& part, const Box& from, const Box& to) {
  uint64_t run;
  OuterDimensions(part, from, to, &run);
  return run == part.NumElements();
}

std::vector<Piece> PlanPieces(const std::vector<TensorSlice>& slices, const std::vector<int64_t>& shape,
                              const Box& request, std::string_view key, const std::string& path) {
  std::vector<Piece> stored;
  stored.reserve(slices.size());
  for (size_t i = 0; i < slices.size(); ++i) {
    std::optional<Box> box = Resolve(slices[i], shape);
    if (!box) throw Error(ErrorKind::kDataLoss, "Slice outside of its tensor" + Where(key, path));
    stored.push_back({i, *box, *box});
  }
  CheckNoOverlap(stored, shape.size(), key, path);
  std::vector<Piece> pieces;
  uint64_t covered = 0;
  for (Piece& piece : stored) {
    if (piece.stored == request) return {piece};
    const std::optional<Box> part = Intersect(piece.stored, request);
    if (!part) continue;
    covered += part->NumElements();
    pieces.push_back({piece.index, piece.stored, *part});
  }
  if (covered != request.NumElements()) {
    throw Error(ErrorKind::kDataLoss, "Tensor does not have sufficient slices for the request" +
                                          Where(key, path) + ": " + std::to_string(covered) + " of " +
                                          std::to_string(request.NumElements()) + " elements are stored");
  }
  return pieces;
}

}  // namespace trackckpt
