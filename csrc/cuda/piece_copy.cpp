#include "cuda/piece_copy.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "cuda/pack.h"
#include "cuda/status.h"

namespace trackckpt::cuda {

namespace {

// A piece with gaps may be as large as its tensor; so much of it is packed at once.
constexpr uint64_t kMostPackedBytes = 4 << 20;
// Enough to keep the bus busy, and a part of any device that others will hardly miss. Not measured yet.
constexpr uint32_t kFewBlocks = 64;
constexpr uint32_t kAllBlocks = 4096;
// What begins in the description, and in the packed memory behind it.
constexpr uint64_t kAlignment = 256;
// What lies between two pieces that are each at a multiple of this, if it is less, is nobody's.
constexpr uint64_t kNoGap = 64;

uint64_t Aligned(uint64_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

std::vector<Piece> Cut(const std::vector<Piece>& pieces) {
  std::vector<Piece> cut;
  cut.reserve(pieces.size());
  uint64_t end = 0;
  for (Piece piece : pieces) {
    if (piece.offset < end) throw std::invalid_argument("pieces overlap, or are not in their order");
    end = piece.offset + piece.size;
    while (piece.layout != kContiguous && piece.size > kMostPackedBytes) {
      Piece head = piece;
      head.size = kMostPackedBytes;
      cut.push_back(head);
      piece.begin += kMostPackedBytes;
      piece.offset += kMostPackedBytes;
      piece.size -= kMostPackedBytes;
    }
    if (piece.size > 0) cut.push_back(piece);
  }
  return cut;
}

}  // namespace

PieceCopy::PieceCopy(int device, std::vector<Piece> pieces, std::vector<Layout> layouts)
    : device_(device), pieces_(Cut(pieces)), layouts_(std::move(layouts)) {
  first_tiles_.reserve(pieces_.size() + 1);
  uint64_t num_tiles = 0;
  for (const Piece& piece : pieces_) {
    if (piece.layout != kContiguous && static_cast<size_t>(piece.layout) >= layouts_.size()) {
      throw std::invalid_argument("a piece has a layout that is not there");
    }
    first_tiles_.push_back(static_cast<uint32_t>(num_tiles));
    num_tiles += NumTiles(piece);
    // 64 TiB.
    if (num_tiles > UINT32_MAX) throw std::invalid_argument("there is too much to copy at once");
  }
  first_tiles_.push_back(static_cast<uint32_t>(num_tiles));
  description_bytes_ = Aligned(pieces_.size() * sizeof(Piece)) + Aligned(layouts_.size() * sizeof(Layout)) +
                       Aligned(first_tiles_.size() * sizeof(uint32_t));
}

uint64_t PieceCopy::least_scratch_bytes() const {
  uint64_t largest = 0;
  for (const Piece& piece : pieces_) {
    if (IsPacked(piece)) largest = std::max(largest, piece.size);
  }
  return description_bytes_ + Aligned(largest);
}

std::vector<PieceCopy::Run> PieceCopy::Runs(uint64_t area) const {
  std::vector<Run> runs;
  for (size_t i = 0; i < pieces_.size();) {
    size_t end = i + 1;
    const bool is_packed = IsPacked(pieces_[i]);
    if (is_packed) {
      // The next one, where nothing else can lie between it and the one before.
      const auto follows = [&](const Piece& piece, const Piece& before) {
        return IsPacked(piece) && piece.offset - (before.offset + before.size) < kNoGap &&
               piece.offset + piece.size - pieces_[i].offset <= area;
      };
      while (end < pieces_.size() && follows(pieces_[end], pieces_[end - 1])) ++end;
    }
    // A single contiguous piece gains nothing by being gathered.
    runs.push_back({i, end, is_packed && !(end == i + 1 && pieces_[i].layout == kContiguous)});
    i = end;
  }
  return runs;
}

// Pieces, layouts and numbers of tiles, one after the other.
void PieceCopy::Describe(const Scratch& scratch, cudaStream_t stream) const {
  char* to = scratch.description;
  const auto append = [&to](const auto& items) {
    const size_t n = items.size() * sizeof(items[0]);
    if (n > 0) std::memcpy(to, items.data(), n);
    to += Aligned(n);
  };
  append(pieces_);
  append(layouts_);
  append(first_tiles_);
  Check(cudaMemcpyAsync(scratch.device, scratch.description, description_bytes_, cudaMemcpyHostToDevice,
                        stream),
        "copy the list of what is to be packed to the device");
}

void PieceCopy::Pack(const Run& run, const Scratch& scratch, uint64_t packed, bool is_unpacking,
                     uint32_t max_blocks, cudaStream_t stream) const {
  const char* const pieces = scratch.device;
  const char* const layouts = pieces + Aligned(pieces_.size() * sizeof(Piece));
  const char* const first_tiles = layouts + Aligned(layouts_.size() * sizeof(Layout));
  PackedRun described;
  described.pieces = reinterpret_cast<const Piece*>(pieces) + run.begin;
  described.layouts = reinterpret_cast<const Layout*>(layouts);
  described.first_tiles = reinterpret_cast<const uint32_t*>(first_tiles) + run.begin;
  described.first_tile = first_tiles_[run.begin];
  described.num_pieces = static_cast<uint32_t>(run.end - run.begin);
  described.num_tiles = first_tiles_[run.end] - first_tiles_[run.begin];
  described.packed = packed;
  Check(CopyRun(described, is_unpacking ? Direction::kUnpack : Direction::kPack, max_blocks, stream),
        "start the kernel that packs small tensors");
}

void PieceCopy::ToHost(char* host, const Scratch& scratch, cudaStream_t stream) const {
  const OnDevice on_device(device_);
  char* const area = scratch.device + description_bytes_;
  const std::vector<Run> runs = Runs(scratch.size - description_bytes_);
  const bool packs = std::any_of(runs.begin(), runs.end(), [](const Run& run) { return run.is_packed; });
  if (packs) Describe(scratch, stream);
  for (const Run& run : runs) {
    const Piece& first = pieces_[run.begin];
    const Piece& last = pieces_[run.end - 1];
    const uint64_t size = last.offset + last.size - first.offset;
    const char* from = reinterpret_cast<const char*>(first.address + first.begin);
    if (run.is_packed) {
      Pack(run, scratch, reinterpret_cast<uint64_t>(area) - first.offset, false, kFewBlocks, stream);
      from = area;
    }
    Check(cudaMemcpyAsync(host + first.offset, from, size, cudaMemcpyDeviceToHost, stream),
          "copy to the host");
  }
}

void PieceCopy::FromHost(const char* host, const Scratch& scratch, cudaStream_t stream) const {
  const OnDevice on_device(device_);
  char* const area = scratch.device + description_bytes_;
  const std::vector<Run> runs = Runs(scratch.size - description_bytes_);
  const bool packs = std::any_of(runs.begin(), runs.end(), [](const Run& run) { return run.is_packed; });
  if (packs) Describe(scratch, stream);
  for (const Run& run : runs) {
    const Piece& first = pieces_[run.begin];
    const Piece& last = pieces_[run.end - 1];
    const uint64_t size = last.offset + last.size - first.offset;
    char* const to = run.is_packed ? area : reinterpret_cast<char*>(first.address + first.begin);
    Check(cudaMemcpyAsync(to, host + first.offset, size, cudaMemcpyHostToDevice, stream),
          "copy to the device");
    if (run.is_packed)
      Pack(run, scratch, reinterpret_cast<uint64_t>(area) - first.offset, true, kFewBlocks, stream);
  }
}

void PieceCopy::Snapshot(char* copy, const Scratch& scratch, cudaStream_t stream) const {
  if (pieces_.empty()) return;
  const OnDevice on_device(device_);
  Describe(scratch, stream);
  Pack({0, pieces_.size(), true}, scratch, reinterpret_cast<uint64_t>(copy), false, kAllBlocks, stream);
}

}  // namespace trackckpt::cuda
