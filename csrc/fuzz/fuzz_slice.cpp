// Slices of a small tensor, and a part of it that is wanted: what is planned and copied is what a list of single
// elements says. The codes of slice keys sort as their numbers.
//
//    input: rank, sizes | wanted slice | stored slices      a slice: start, length of each dimension (1 byte each)

#include <cstring>
#include <string>
#include <vector>

#include "bundle/slice.h"
#include "encoding/ordered_code.h"
#include "fuzz/check.h"
#include "fuzz/input.h"

using namespace trackckpt;
using fuzz::Input;

namespace {

std::vector<int64_t> ReadShape(Input* input) {
  std::vector<int64_t> shape(input->Byte() % 5);
  for (int64_t& dim : shape) dim = input->Byte() % 7;
  return shape;
}

TensorSlice ReadSlice(Input* input, size_t rank) {
  TensorSlice slice;
  for (size_t d = 0; d < rank; ++d) {
    const int64_t start = static_cast<int8_t>(input->Byte());
    slice.extents.push_back({start, static_cast<int8_t>(input->Byte())});
  }
  return slice;
}

// The positions in a tensor of the elements of a box, in row-major order.
std::vector<size_t> Positions(const Box& box, const std::vector<int64_t>& shape) {
  std::vector<size_t> positions;
  for (uint64_t i = 0; i < box.NumElements(); ++i) {
    uint64_t rest = i;
    size_t position = 0;
    size_t stride = 1;
    for (size_t d = shape.size(); d-- > 0;) {
      const uint64_t length = static_cast<uint64_t>(box.length[d]);
      position += (static_cast<size_t>(box.start[d]) + rest % length) * stride;
      rest /= length;
      stride *= static_cast<size_t>(shape[d]);
    }
    positions.push_back(position);
  }
  return positions;
}

void CheckPlan(const std::vector<TensorSlice>& stored, const std::vector<int64_t>& shape, const Box& wanted) {
  std::vector<int> holders(WholeBox(shape).NumElements());
  for (const TensorSlice& slice : stored) {
    const auto box = Resolve(slice, shape);
    if (!box) return;
    for (size_t position : Positions(*box, shape)) ++holders[position];
  }
  const std::vector<size_t> positions = Positions(wanted, shape);
  bool is_possible = true;
  for (int count : holders) is_possible &= count <= 1;
  for (size_t position : positions) is_possible &= holders[position] == 1;

  std::vector<size_t> copied(positions.size(), SIZE_MAX);
  const bool is_planned = fuzz::Attempt([&] {
    for (const Piece& piece : PlanPieces(stored, shape, wanted, "key", "path")) {
      const std::vector<size_t> source = Positions(piece.stored, shape);
      ForEachRun(piece.part, piece.stored, wanted, [&](uint64_t from, uint64_t to, uint64_t count) {
        FUZZ_CHECK(from + count <= source.size() && to + count <= copied.size());
        std::memcpy(&copied[to], &source[from], count * sizeof(size_t));
      });
    }
  });
  FUZZ_CHECK(is_planned == is_possible);
  FUZZ_CHECK(!is_planned || copied == positions);
}

// Of slices that can be written: those without elements cannot.
void CheckEncoding(const TensorSlice& slice) {
  for (const Extent& extent : slice.extents) {
    if (extent.length == 0) return;
  }
  std::string encoded;
  slice.EncodeTo(&encoded);
  TensorSlice decoded;
  FUZZ_CHECK(decoded.DecodeFrom(encoded) && decoded == slice);
}

void CheckOrder(int64_t a, int64_t b) {
  std::string code_a, code_b;
  PutOrderedSigned(&code_a, a);
  PutOrderedSigned(&code_b, b);
  FUZZ_CHECK((a < b) == (code_a < code_b) && (a == b) == (code_a == code_b));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size >= 16) {
    int64_t numbers[2];
    std::memcpy(numbers, data, sizeof(numbers));
    CheckOrder(numbers[0], numbers[1]);
  }
  Input input(data, size);
  const std::vector<int64_t> shape = ReadShape(&input);
  const TensorSlice wanted = ReadSlice(&input, shape.size());
  std::vector<TensorSlice> stored;
  while (!input.empty() && stored.size() < 1000) {
    stored.push_back(ReadSlice(&input, shape.size()));
    if (shape.empty()) input.Byte();
    if (Resolve(stored.back(), shape)) CheckEncoding(stored.back());
    FUZZ_CHECK((SliceKey("key", wanted) == SliceKey("key", stored.back())) == (wanted == stored.back()));
  }
  const auto box = Resolve(wanted, shape);
  if (box) CheckPlan(stored, shape, *box);
  return 0;
}
