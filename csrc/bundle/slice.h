// Parts of tensors: boxes, given by a start and a length in each dimension. A tensor may be stored in slices,
// each under a key of its own, and a reader may ask for any part of it.
//
//    TensorSliceProto { 1 repeated extent { 1 start int64 | 2 length int64 } }   no fields: all of the dimension
//    slice key        number 0 | string name | number rank | signed start, signed length for each dimension
//                     (ordered_code.h; all of the dimension is start 0, length -1)
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace trackckpt {

constexpr size_t kMaxRank = 254;  // TensorFlow's limit

struct Extent {
  static constexpr int64_t kAll = -1;

  int64_t start = 0;
  int64_t length = kAll;

  bool operator==(const Extent& other) const { return start == other.start && length == other.length; }
};

// A slice as it is written: `0,4` and "all" differ even in a dimension of 4.
struct TensorSlice {
  std::vector<Extent> extents;

  void EncodeTo(std::string* dst) const;
  // False if the message is malformed, or an extent can lie in no tensor.
  bool DecodeFrom(std::string_view message);
  bool operator==(const TensorSlice& other) const { return extents == other.extents; }
};

TensorSlice WholeSlice(size_t rank);

// The key under which a slice of the tensor `name` is stored: what all slices of the tensor share, and the rest.
std::string SliceKey(std::string_view name, const TensorSlice& slice);
std::string SliceKeyPrefix(std::string_view name);
std::string SliceKeySuffix(const TensorSlice& slice);

// A slice for a message, as TensorFlow writes it: `0,4:-`.
std::string DisplaySlice(const TensorSlice& slice);

// A box inside a tensor of known shape, with no "all" left.
struct Box {
  std::vector<int64_t> start;
  std::vector<int64_t> length;

  uint64_t NumElements() const;
  bool operator==(const Box& other) const { return start == other.start && length == other.length; }
};

Box WholeBox(const std::vector<int64_t>& shape);
// Nothing if the slice has another rank or reaches over the edge. The shape is one that NumElements accepts.
std::optional<Box> Resolve(const TensorSlice& slice, const std::vector<int64_t>& shape);
// Nothing if the boxes share no element.
std::optional<Box> Intersect(const Box& a, const Box& b);

// Visits `part`, which lies in both boxes, as runs of elements that are contiguous in both. Positions count
// elements from the first of the respective box, in row-major order, and increase.
// If all of `part` is one run, there is one visit.
using RunVisitor = std::function<void(uint64_t from_position, uint64_t to_position, uint64_t num_elements)>;
void ForEachRun(const Box& part, const Box& from, const Box& to, const RunVisitor& visit);
bool IsOneRun(const Box& part, const Box& from, const Box& to);

// A stored slice that a request needs, and what it needs of it.
struct Piece {
  size_t index = 0;  // among the stored slices
  Box stored;
  Box part;
};

// The pieces that make up `request` of a tensor stored in `slices`; a slice that is just the request is used
// alone. Throws kDataLoss, naming `key` and `path`, if stored slices overlap, reach over the edge, or do not
// hold all of the request.
std::vector<Piece> PlanPieces(const std::vector<TensorSlice>& slices, const std::vector<int64_t>& shape,
                              const Box& request, std::string_view key, const std::string& path);

}  // namespace trackckpt
