// Many stored values on their way from the data files to memory, or only past a checksum, by several threads.
//
//    up to 1 MiB      neighbours in a file are read together into a buffer of the thread's; each is checked there, and
//                     only then copied to its destination
//    larger           in chunks, each read by whichever thread is free, straight to its destination; the checksum of
//                     a value is joined of those of its chunks when the last of them is there
//    in slices, or    what is contiguous in the file and in memory is a value like others; the rest goes by stored
//    only a box       parts, cut along the first dimension where one is large and not checked anyway
//    without a size   strings and variants, from front to back; they can only be checked
//
// What goes to a device lands in memory of the caller's on its way: the same, but that the destination is the next free
// place there, and that a call reads no more than fits.
//
// A checksum is computed on bytes that are still in the cache of the processor that has just read them. Where only a
// part of a stored value is needed, no more is read, and there is no checksum of less than the whole. An error stops all
// threads, and it is known then which destinations were, or may have been, written to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bundle/data_files.h"
#include "bundle/locator.h"
#include "encoding/byte_order.h"

namespace trackckpt {

// A stored value of fixed-size elements in one piece, or neighbouring elements of one. There may be very many.
struct PlacedValue {
  std::string_view key;         // for messages; outlives the reader
  char* destination = nullptr;  // nothing where the value is only checked
  uint64_t offset = 0;
  uint64_t size = 0;
  int32_t shard_id = 0;
  int32_t dtype = 0;
  uint32_t crc32c = 0;     // masked
  uint32_t request = 0;    // the caller's number for what this belongs to
  bool lands = false;      // instead of a destination
  bool is_part = false;    // of a value, so that the checksum is not that of these bytes
  bool is_in_box = false;  // goes to a part of its destination only

  PlacedValue() = default;
  // Of an entry that has been checked with CheckStored.
  PlacedValue(const BundleEntry& entry, std::string_view key, char* destination, size_t request);

  uint64_t end() const { return offset + size; }
  BundleEntry ToEntry() const;
};

// Memory in which values land.
struct Landing {
  char* memory = nullptr;
  uint64_t size = 0;
};

// What has landed of a value: bytes from `begin` on, at an offset that is a multiple of kLandingAlignment.
struct Landed {
  size_t request;
  uint64_t begin;
  uint64_t size;
  uint64_t offset;
};

class ParallelReader {
 public:
  static constexpr uint64_t kLandingAlignment = 64;
  // With so much memory, every call gets on.
  static constexpr uint64_t kLeastLandingBytes = 8 << 20;
  static constexpr uint64_t kMaxBufferedBytes = 1 << 20;

  // `files` stays with the caller and outlives this. `order` is that of the data files.
  ParallelReader(DataFiles* files, ByteOrder order) : files_(*files), order_(order) {}

  void Add(const PlacedValue& value) { values_.push_back(value); }
  void Add(const std::vector<PlacedValue>& values) {
    values_.insert(values_.end(), values.begin(), values.end());
  }
  // A box of a tensor, which has what TensorLocator::Parts says of it.
  void AddParts(const Box& box, std::vector<StoredPart> parts, char* destination, size_t request);
  // Something that is done only when values are checked.
  void AddCheck(std::function<void()> check) { checks_.push_back(std::move(check)); }

  // Reads everything and keeps nothing. Stored values of which only a part is needed are read whole, or not at all.
  void Verify(size_t num_threads, bool with_parts = true);

  // Reads about `max_bytes` of what has not been read yet, in the order of the files. Returns how many; 0 when all is
  // there. With an error, nothing more can be read.
  uint64_t Read(size_t num_threads, uint64_t max_bytes);
  // The same, with a place for what lands, which is added to `landed`. Also for what does not.
  uint64_t Read(size_t num_threads, uint64_t max_bytes, const Landing& landing, std::vector<Landed>* landed);
  // The requests whose destinations were, or may have been, written to; ascending.
  std::vector<size_t> Touched() const;
  // How many bytes of the files were read, those between two values included.
  uint64_t NumRead() const;

 private:
  // Of a stored value what is contiguous in the file or in memory, but not in both.
  struct Scattered {
    StoredPart part;
    Box box;  // in memory
    char* destination;
    size_t request;
  };
  class Pass;

  void Arrange();
  bool DestinationsOverlap() const;
  uint64_t NumBytes() const;

  DataFiles& files_;
  const ByteOrder order_;
  std::vector<PlacedValue> values_;
  std::vector<Scattered> scattered_;
  std::vector<BundleEntry> partly_needed_;               // the stored values that is true of
  std::deque<std::string> names_;                        // of stored values, for messages
  std::vector<std::pair<const char*, uint64_t>> boxes_;  // what was added as parts: memory and size
  std::vector<std::function<void()>> checks_;
  bool is_arranged_ = false;
  bool has_shared_memory_ = false;  // destinations overlap: what comes later wins
  std::shared_ptr<Pass> reading_;   // from the first call of Read on
};

}  // namespace trackckpt
