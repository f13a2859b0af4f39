// Values of fixed-size elements on their way from the data files to memory, where they arrive in the byte order
// of this machine. Checksums cover the bytes as they lie in the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "bundle/data_files.h"
#include "bundle/locator.h"
#include "encoding/byte_order.h"

namespace trackckpt {

// A tensor that has been located, and where it is wanted.
struct ReadTarget {
  BundleEntry tensor;
  void* destination = nullptr;
  std::vector<StoredPart> parts;  // of a tensor that lies in slices

  bool is_sliced() const { return !tensor.slices.empty(); }
  uint64_t offset() const { return static_cast<uint64_t>(tensor.offset); }
  uint64_t size() const { return static_cast<uint64_t>(tensor.size); }
};

struct ReadProgress {
  size_t completed = 0;  // requests that were served
  bool touched = false;  // memory of the request after these was written to
};

class FixedReader {
 public:
  static constexpr uint64_t kMaxBufferedBytes = 1 << 20;

  // `files` stays with the caller and outlives this. `order` is that of the data files.
  FixedReader(DataFiles* files, ByteOrder order) : files_(*files), order_(order) {}

  // Checks the checksum.
  void Verify(const BundleEntry& value);

  // Reads and checks whole tensors in order. One that lies in one piece and has at most kMaxBufferedBytes is
  // checked before its destination is touched. `progress` holds even when this throws.
  void ReadTensors(const std::vector<ReadTarget>& targets, ReadProgress* progress);

  // Reads a stored value, all of it, to its place in the memory of `request`, and checks it on the way.
  void ReadWhole(const StoredPart& part, const Box& request, char* destination);
  // Reads no more than is needed, and checks nothing.
  void ReadPart(const StoredPart& part, const Box& request, char* destination);

 private:
  void ReadNeighbours(const std::vector<ReadTarget>& targets, ReadProgress* progress);
  void ReadInPlace(const BundleEntry& value, char* destination);
  void Scatter(const StoredPart& part, const Box& request, char* destination);

  DataFiles& files_;
  const ByteOrder order_;
  std::string buffer_;
};

}  // namespace trackckpt
