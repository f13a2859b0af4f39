// Single values of fixed-size elements, or parts of them, on their way from the data files to memory, where they arrive
// in the byte order of this machine. Checksums cover the bytes as they lie in the file.
#pragma once

#include <cstdint>
#include <string>

#include "bundle/data_files.h"
#include "bundle/locator.h"
#include "encoding/byte_order.h"

namespace trackckpt {

class FixedReader {
 public:
  // `files` stays with the caller and outlives this. `order` is that of the data files.
  FixedReader(DataFiles* files, ByteOrder order) : files_(*files), order_(order) {}

  // Checks the checksum.
  void Verify(const BundleEntry& value);

  // Reads a stored value, all of it, to its place in the memory of `request`, and checks it on the way.
  void ReadWhole(const StoredPart& part, const Box& request, char* destination);
  // Reads no more than is needed, but gaps of less than a page, and checks nothing. Returns the bytes of the file.
  uint64_t ReadPart(const StoredPart& part, const Box& request, char* destination);

 private:
  void ReadInPlace(const BundleEntry& value, char* destination);
  void Scatter(const StoredPart& part, const Box& request, char* destination);

  DataFiles& files_;
  const ByteOrder order_;
  std::string buffer_;
};

}  // namespace trackckpt
