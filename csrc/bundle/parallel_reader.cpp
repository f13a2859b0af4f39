#include "bundle/parallel_reader.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <mutex>
#include <set>
#include <utility>

#include "bundle/dtype.h"
#include "bundle/element_form.h"
#include "bundle/fixed_reader.h"
#include "bundle/stored_value.h"
#include "encoding/crc32c.h"
#include "error.h"
#include "io/parallel.h"

namespace trackckpt {

namespace {

// Neighbours are read together up to this size. Half of it stays in the smallest of today's second-level caches while
// the other half is what it is copied to.
constexpr uint64_t kGroupBytes = 256 << 10;
// What lies between two values that are read together, and is thrown away.
constexpr uint64_t kMaxGapBytes = 4096;
// A larger value is read by several threads, in chunks so small that all of them are busy up to the end.
constexpr uint64_t kLeastChunkBytes = 1 << 20;
constexpr uint64_t kMostChunkBytes = 8 << 20;
// How much is read at once, and then checked.
constexpr uint64_t kStepBytes = 256 << 10;
// Starting a thread costs as much as reading this.
constexpr uint64_t kLeastBytesPerThread = 512 << 10;

static_assert(kLeastChunkBytes % 16 == 0 && kStepBytes % 16 == 0);  // whole elements, however large

// Memory for the threads of one call.
class Buffers {
 public:
  explicit Buffers(uint64_t size) : size_(size) {}

  std::unique_ptr<char[]> Take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::unique_ptr<char[]>(new char[size_]);
    std::unique_ptr<char[]> buffer = std::move(free_.back());
    free_.pop_back();
    return buffer;
  }

  void GiveBack(std::unique_ptr<char[]> buffer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(buffer));
  }

 private:
  const uint64_t size_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<char[]>> free_;
};

// One of `buffers`, for as long as this lives.
class Buffer {
 public:
  explicit Buffer(Buffers* buffers) : buffers_(*buffers), memory_(buffers->Take()) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { buffers_.GiveBack(std::move(memory_)); }

  char* data() const { return memory_.get(); }

 private:
  Buffers& buffers_;
  std::unique_ptr<char[]> memory_;
};

bool LiesBefore(const PlacedValue& a, const PlacedValue& b) {
  return a.shard_id != b.shard_id ? a.shard_id < b.shard_id : a.offset < b.offset;
}

uint64_t ChunkBytes(uint64_t num_bytes, size_t num_threads, const ReadGrain& grain) {
  // Threads come to their ends at about the same time, unless that would cost requests.
  const size_t num_shares = grain.num_requests > 0 ? std::max(num_threads, grain.num_requests)
                                                   : 4 * std::max<size_t>(num_threads, 1);
  const uint64_t share = num_bytes / num_shares;
  return std::clamp(share / kLeastChunkBytes * kLeastChunkBytes, kLeastChunkBytes, kMostChunkBytes);
}

uint64_t LandingBytes(uint64_t size) {
  constexpr uint64_t kAlignment = ParallelReader::kLandingAlignment;
  return (size + kAlignment - 1) / kAlignment * kAlignment;
}

uint64_t LandingBytes(const PlacedValue& value) { return value.lands ? LandingBytes(value.size) : 0; }

static_assert(ParallelReader::kLeastLandingBytes >= kMostChunkBytes);

}  // namespace

PlacedValue::PlacedValue(const BundleEntry& entry, std::string_view key, char* destination, size_t request)
    : key(key),
      destination(destination),
      offset(static_cast<uint64_t>(entry.offset)),
      size(static_cast<uint64_t>(entry.size)),
      shard_id(entry.shard_id),
      dtype(entry.dtype),
      crc32c(entry.crc32c),
      request(static_cast<uint32_t>(request)) {}

BundleEntry PlacedValue::ToEntry() const {
  BundleEntry entry;
  entry.key = key;
  entry.dtype = dtype;
  entry.shard_id = shard_id;
  entry.offset = static_cast<int64_t>(offset);
  entry.size = static_cast<int64_t>(size);
  entry.crc32c = crc32c;
  return entry;
}

// All values once, cut into pieces of work.
class ParallelReader::Pass {
 public:
  // Without `is_reading` nothing is written to any destination.
  Pass(const ParallelReader& reader, bool is_reading, size_t num_threads, uint64_t max_group_bytes,
       uint64_t landing_bytes = 0);

  // Has whole stored values checked of which only parts are needed.
  void AddPartlyNeeded();

  bool is_done() const { return next_unit_ == units_.size(); }
  uint64_t num_read() const { return num_read_.load(std::memory_order_relaxed); }
  // Does pieces of at least `max_bytes` together, or what is left, or what has room to land. Returns how many bytes of
  // them are needed.
  uint64_t Run(size_t num_threads, uint64_t max_bytes, const Landing& landing, std::vector<Landed>* landed);
  std::vector<size_t> Touched() const;

 private:
  enum class Kind : uint8_t { kGroup, kChunk, kScattered, kWhole, kCheck };
  struct Unit {
    Kind kind;
    uint32_t begin;  // of the values, large values, pieces of scattered parts, partly needed values or checks
    uint32_t end;
    uint64_t from;  // of a group in the file, of a chunk in its value
    uint64_t size;
    uint64_t num_needed;      // of these bytes, without those between values
    char* landing = nullptr;  // where the first of it lands
  };
  // A value that is read in chunks.
  struct Large {
    Large(uint32_t value, size_t num_chunks) : value(value), crcs(num_chunks), num_left(num_chunks) {}

    const uint32_t value;
    std::vector<uint32_t> crcs;
    std::atomic<size_t> num_left;
  };

  // A part of a stored value that one thread reads.
  struct Piece {
    uint32_t scattered;
    Box part;
  };

  void AddValues(uint64_t max_group_bytes);
  void AddScattered(uint32_t index);
  uint32_t EndOfGroup(uint32_t begin, uint64_t max_bytes, uint64_t* size, uint64_t* num_needed) const;
  void AddChunks(uint32_t value);
  uint64_t LandingBytesOf(const Unit& unit) const;
  void AddLanded(const Unit& unit, const Landing& landing, std::vector<Landed>* landed) const;

  void Do(const Unit& unit);
  void DoGroup(const Unit& unit);
  void DoChunk(const Unit& unit);
  void DoScattered(const Unit& unit);
  void CheckWhole(const Large& large) const;

  const ParallelReader& reader_;
  const ReadGrain grain_;
  const bool is_reading_;
  const uint64_t chunk_bytes_;
  Buffers buffers_;
  std::vector<Unit> units_;
  std::deque<Large> large_;
  std::vector<Piece> pieces_;
  size_t next_unit_ = 0;
  std::atomic<uint64_t> num_read_{0};
  // By value, and behind these by scattered part.
  std::vector<std::atomic<bool>> touched_;
};

ParallelReader::Pass::Pass(const ParallelReader& reader, bool is_reading, size_t num_threads,
                           uint64_t max_group_bytes, uint64_t landing_bytes)
    : reader_(reader),
      grain_(reader.files_.grain()),
      is_reading_(is_reading),
      // All threads are to be busy with what lands at once, too.
      chunk_bytes_(
          ChunkBytes(std::min(reader.NumBytes(), landing_bytes == 0 ? UINT64_MAX : 2 * landing_bytes),
                     num_threads, grain_)),
      buffers_(std::max(kMaxBufferedBytes, grain_.request_bytes)),
      touched_(is_reading ? reader.values_.size() + reader.scattered_.size() : 0) {
  AddValues(max_group_bytes);
  for (uint32_t i = 0; i < reader_.scattered_.size(); ++i) AddScattered(i);
  if (is_reading) return;
  for (uint32_t i = 0; i < reader_.checks_.size(); ++i) units_.push_back({Kind::kCheck, i, i + 1, 0, 0, 0});
}

void ParallelReader::Pass::AddValues(uint64_t max_group_bytes) {
  const std::vector<PlacedValue>& values = reader_.values_;
  for (uint32_t i = 0; i < values.size();) {
    if (!is_reading_ && values[i].is_part) {
      ++i;
      continue;
    }
    if (values[i].size > kMaxBufferedBytes) {
      AddChunks(i++);
      continue;
    }
    uint64_t size, num_needed;
    const uint32_t end = EndOfGroup(i, max_group_bytes, &size, &num_needed);
    units_.push_back({Kind::kGroup, i, end, values[i].offset, size, num_needed});
    i = end;
  }
}

uint32_t ParallelReader::Pass::EndOfGroup(uint32_t begin, uint64_t max_bytes, uint64_t* size,
                                          uint64_t* num_needed) const {
  const std::vector<PlacedValue>& values = reader_.values_;
  const PlacedValue& first = values[begin];
  uint64_t group_end = first.end();
  uint64_t num_landing = LandingBytes(first);
  *num_needed = first.size;
  uint32_t end = begin + 1;
  for (; end < values.size(); ++end) {
    const PlacedValue& next = values[end];
    num_landing += LandingBytes(next);
    const bool is_near = next.shard_id == first.shard_id && next.offset >= first.offset &&
                         next.offset <= group_end + std::max(kMaxGapBytes, grain_.gap_bytes);
    if (!is_near || next.size > max_bytes || next.end() - first.offset > max_bytes) break;
    // Tiny values take more room where they land, and values of several keys may be the same bytes of the file.
    if (num_landing > kLeastLandingBytes) break;
    group_end = std::max(group_end, next.end());
    *num_needed += next.size;
  }
  *size = group_end - first.offset;
  return end;
}

void ParallelReader::Pass::AddChunks(uint32_t value) {
  const uint64_t size = reader_.values_[value].size;
  const uint32_t index = static_cast<uint32_t>(large_.size());
  large_.emplace_back(value, (size - 1) / chunk_bytes_ + 1);
  for (uint64_t from = 0; from < size; from += chunk_bytes_) {
    const uint64_t n = std::min(size - from, chunk_bytes_);
    units_.push_back({Kind::kChunk, index, index + 1, from, n, n});
  }
}

void ParallelReader::Pass::AddScattered(uint32_t index) {
  const StoredPart& part = reader_.scattered_[index].part;
  const auto add = [&](const Box& box, uint64_t size) {
    const auto piece = static_cast<uint32_t>(pieces_.size());
    pieces_.push_back({index, box});
    units_.push_back({Kind::kScattered, piece, piece + 1, 0, size, size});
  };
  if (part.IsWhole()) return add(part.part, static_cast<uint64_t>(part.value.size));
  if (!is_reading_) return;
  const uint64_t size = part.part.NumElements() * ItemSize(part.value.dtype);
  // In the first dimension that can be cut, so that each piece lies together in the file.
  size_t d = 0;
  while (d + 1 < part.part.length.size() && part.part.length[d] == 1) ++d;
  const int64_t length = part.part.length[d];
  const uint64_t num_pieces = std::min((size - 1) / chunk_bytes_ + 1, static_cast<uint64_t>(length));
  const int64_t step = (length - 1) / static_cast<int64_t>(num_pieces) + 1;
  for (int64_t from = 0; from < length; from += step) {
    Box box = part.part;
    box.start[d] += from;
    box.length[d] = std::min(step, length - from);
    add(box, box.NumElements() * ItemSize(part.value.dtype));
  }
}

void ParallelReader::Pass::AddPartlyNeeded() {
  std::set<std::pair<int32_t, int64_t>> known;
  for (uint32_t i = 0; i < reader_.partly_needed_.size(); ++i) {
    const BundleEntry& value = reader_.partly_needed_[i];
    if (!known.emplace(value.shard_id, value.offset).second) continue;
    const uint64_t size = static_cast<uint64_t>(value.size);
    units_.push_back({Kind::kWhole, i, i + 1, 0, size, size});
  }
}

uint64_t ParallelReader::Pass::LandingBytesOf(const Unit& unit) const {
  if (unit.kind == Kind::kChunk) {
    return reader_.values_[large_[unit.begin].value].lands ? LandingBytes(unit.size) : 0;
  }
  uint64_t num_bytes = 0;
  if (unit.kind != Kind::kGroup) return num_bytes;
  for (uint32_t i = unit.begin; i < unit.end; ++i) num_bytes += LandingBytes(reader_.values_[i]);
  return num_bytes;
}

void ParallelReader::Pass::AddLanded(const Unit& unit, const Landing& landing,
                                     std::vector<Landed>* landed) const {
  uint64_t offset = static_cast<uint64_t>(unit.landing - landing.memory);
  if (unit.kind == Kind::kChunk) {
    landed->push_back({reader_.values_[large_[unit.begin].value].request, unit.from, unit.size, offset});
    return;
  }
  for (uint32_t i = unit.begin; i < unit.end; ++i) {
    const PlacedValue& value = reader_.values_[i];
    if (!value.lands) continue;
    landed->push_back({value.request, 0, value.size, offset});
    offset += LandingBytes(value.size);
  }
}

uint64_t ParallelReader::Pass::Run(size_t num_threads, uint64_t max_bytes, const Landing& landing,
                                   std::vector<Landed>* landed) {
  const size_t begin = next_unit_;
  uint64_t num_bytes = 0;
  uint64_t num_landing = 0;
  while (next_unit_ < units_.size() && num_bytes < max_bytes) {
    Unit& unit = units_[next_unit_];
    const uint64_t unit_landing = is_reading_ ? LandingBytesOf(unit) : 0;
    if (unit_landing > landing.size - num_landing) {
      if (next_unit_ > begin) break;
      throw Error(ErrorKind::kInvalidArgument, "there is no room for what has to land");
    }
    if (unit_landing > 0) {
      unit.landing = landing.memory + num_landing;
      AddLanded(unit, landing, landed);
    }
    num_landing += unit_landing;
    num_bytes += unit.num_needed;
    ++next_unit_;
  }
  const size_t count = next_unit_ - begin;
  size_t num_useful = num_bytes / kLeastBytesPerThread + 1;
  if (grain_.num_requests > 0) {  // threads wait most of the time
    num_threads = std::max(num_threads, grain_.num_requests);
    num_useful = count;
  }
  if (reader_.has_shared_memory_) num_useful = 1;
  try {
    ParallelFor(std::min(num_threads, num_useful), count, [&](size_t i) { Do(units_[begin + i]); });
  } catch (...) {
    next_unit_ = units_.size();
    throw;
  }
  return num_bytes;
}

std::vector<size_t> ParallelReader::Pass::Touched() const {
  std::vector<size_t> requests;
  const size_t num_values = reader_.values_.size();
  for (size_t i = 0; i < touched_.size(); ++i) {
    if (!touched_[i]) continue;
    requests.push_back(i < num_values ? reader_.values_[i].request
                                      : reader_.scattered_[i - num_values].request);
  }
  std::sort(requests.begin(), requests.end());
  requests.erase(std::unique(requests.begin(), requests.end()), requests.end());
  return requests;
}

void ParallelReader::Pass::Do(const Unit& unit) {
  switch (unit.kind) {
    case Kind::kGroup:
      return DoGroup(unit);
    case Kind::kChunk:
      return DoChunk(unit);
    case Kind::kScattered:
      return DoScattered(unit);
    case Kind::kWhole:
      return FixedReader(&reader_.files_, reader_.order_).Verify(reader_.partly_needed_[unit.begin]);
    case Kind::kCheck:
      return reader_.checks_[unit.begin]();
  }
}

void ParallelReader::Pass::DoGroup(const Unit& unit) {
  const auto file = reader_.files_.Open(reader_.values_[unit.begin].shard_id);
  const Buffer buffer(&buffers_);
  file->Read(unit.from, buffer.data(), unit.size);
  num_read_.fetch_add(unit.size, std::memory_order_relaxed);
  char* landing = unit.landing;
  for (uint32_t i = unit.begin; i < unit.end; ++i) {
    const PlacedValue& value = reader_.values_[i];
    const char* const p = buffer.data() + (value.offset - unit.from);
    if (!value.is_part) {
      const uint32_t crc = Crc32cExtend(0, p, value.size);
      if (crc != UnmaskCrc(value.crc32c)) CheckChecksum(crc, value.ToEntry(), *file);
    }
    if (!is_reading_ || value.size == 0) continue;
    char* const destination = value.lands ? landing : value.destination;
    if (value.lands) landing += LandingBytes(value.size);
    touched_[i].store(true, std::memory_order_relaxed);
    std::memcpy(destination, p, value.size);
    ElementForm(value.dtype, reader_.order_).ToMemory(destination, value.size);
  }
}

void ParallelReader::Pass::DoChunk(const Unit& unit) {
  Large& large = large_[unit.begin];
  const PlacedValue& value = reader_.values_[large.value];
  const auto file = reader_.files_.Open(value.shard_id);
  const ElementForm form(value.dtype, reader_.order_);
  const std::unique_ptr<Buffer> buffer = is_reading_ ? nullptr : std::make_unique<Buffer>(&buffers_);
  char* destination = nullptr;
  if (is_reading_) {
    destination = value.lands ? unit.landing : value.destination + unit.from;
    touched_[large.value].store(true, std::memory_order_relaxed);
  }
  uint32_t crc = 0;
  for (uint64_t done = 0; done < unit.size;) {
    const uint64_t n = std::min(unit.size - done, std::max(kStepBytes, grain_.request_bytes));
    char* const p = is_reading_ ? destination + done : buffer->data();
    file->Read(value.offset + unit.from + done, p, n);
    if (!value.is_part) crc = Crc32cExtend(crc, p, n);
    if (is_reading_) form.ToMemory(p, n);
    done += n;
  }
  num_read_.fetch_add(unit.size, std::memory_order_relaxed);
  if (value.is_part) return;
  large.crcs[unit.from / chunk_bytes_] = crc;
  // Who finishes last has seen what the others wrote before.
  if (large.num_left.fetch_sub(1, std::memory_order_acq_rel) == 1) CheckWhole(large);
}

void ParallelReader::Pass::CheckWhole(const Large& large) const {
  const PlacedValue& value = reader_.values_[large.value];
  uint32_t crc = 0;
  uint64_t from = 0;
  for (const uint32_t chunk_crc : large.crcs) {
    const uint64_t n = std::min(value.size - from, chunk_bytes_);
    crc = Crc32cCombine(crc, chunk_crc, n);
    from += n;
  }
  if (crc != UnmaskCrc(value.crc32c))
    CheckChecksum(crc, value.ToEntry(), *reader_.files_.Open(value.shard_id));
}

void ParallelReader::Pass::DoScattered(const Unit& unit) {
  const Piece& piece = pieces_[unit.begin];
  const Scattered& scattered = reader_.scattered_[piece.scattered];
  const StoredPart& part = scattered.part;
  FixedReader reader(&reader_.files_, reader_.order_);
  if (!is_reading_) return reader.Verify(part.value);
  touched_[reader_.values_.size() + piece.scattered].store(true, std::memory_order_relaxed);
  uint64_t num_read = unit.size;
  if (part.IsWhole()) {
    reader.ReadWhole(part, scattered.box, scattered.destination);
  } else {
    num_read = reader.ReadPart({part.value, part.stored, piece.part}, scattered.box, scattered.destination);
  }
  num_read_.fetch_add(num_read, std::memory_order_relaxed);
}

void ParallelReader::AddParts(const Box& box, std::vector<StoredPart> parts, char* destination,
                              size_t request) {
  if (parts.empty()) return;
  boxes_.emplace_back(destination, box.NumElements() * ItemSize(parts.front().value.dtype));
  for (StoredPart& part : parts) {
    const uint64_t item_size = ItemSize(part.value.dtype);
    const bool is_whole = part.IsWhole();
    if (!is_whole && part.part.NumElements() == 0) continue;
    if (!is_whole) partly_needed_.push_back(part.value);
    if (!IsOneRun(part.part, part.stored, box)) {
      scattered_.push_back({std::move(part), box, destination, request});
      continue;
    }
    PlacedValue value(part.value, names_.emplace_back(part.value.key), destination, request);
    value.is_part = !is_whole;
    value.is_in_box = true;
    ForEachRun(part.part, part.stored, box, [&](uint64_t from, uint64_t to, uint64_t num_elements) {
      value.offset += from * item_size;
      value.size = num_elements * item_size;
      if (destination != nullptr) value.destination += to * item_size;
    });
    values_.push_back(value);
  }
}

void ParallelReader::Arrange() {
  if (is_arranged_) return;
  is_arranged_ = true;
  has_shared_memory_ = DestinationsOverlap();
  if (has_shared_memory_ || std::is_sorted(values_.begin(), values_.end(), LiesBefore)) return;
  std::stable_sort(values_.begin(), values_.end(), LiesBefore);
}

bool ParallelReader::DestinationsOverlap() const {
  std::vector<std::pair<const char*, const char*>> ranges;
  ranges.reserve(values_.size() + boxes_.size());
  const auto add = [&](const char* destination, uint64_t size) {
    if (destination != nullptr && size > 0) ranges.emplace_back(destination, destination + size);
  };
  for (const PlacedValue& value : values_) {
    if (!value.is_in_box) add(value.destination, value.size);
  }
  for (const auto& [destination, size] : boxes_) add(destination, size);
  if (!std::is_sorted(ranges.begin(), ranges.end())) std::sort(ranges.begin(), ranges.end());
  const auto overlap = [](const auto& a, const auto& b) { return b.first < a.second; };
  return std::adjacent_find(ranges.begin(), ranges.end(), overlap) != ranges.end();
}

uint64_t ParallelReader::NumBytes() const {
  uint64_t num_bytes = 0;
  for (const PlacedValue& value : values_) num_bytes += value.size;
  for (const Scattered& scattered : scattered_) {
    num_bytes += scattered.part.part.NumElements() * ItemSize(scattered.part.value.dtype);
  }
  return num_bytes;
}

void ParallelReader::Verify(size_t num_threads, bool with_parts) {
  Arrange();
  const uint64_t group_bytes = std::max(kGroupBytes, files_.grain().request_bytes);
  Pass pass(*this, false, num_threads, group_bytes);
  if (with_parts) pass.AddPartlyNeeded();
  pass.Run(num_threads, UINT64_MAX, {}, nullptr);
}

uint64_t ParallelReader::Read(size_t num_threads, uint64_t max_bytes) {
  return Read(num_threads, max_bytes, {}, nullptr);
}

uint64_t ParallelReader::Read(size_t num_threads, uint64_t max_bytes, const Landing& landing,
                              std::vector<Landed>* landed) {
  Arrange();
  if (reading_ == nullptr) {
    const uint64_t group_bytes = std::max(kGroupBytes, files_.grain().request_bytes);
    reading_ =
        std::make_shared<Pass>(*this, true, num_threads, std::min(group_bytes, max_bytes), landing.size);
  }
  return reading_->Run(num_threads, max_bytes, landing, landed);
}

std::vector<size_t> ParallelReader::Touched() const {
  return reading_ == nullptr ? std::vector<size_t>() : reading_->Touched();
}

uint64_t ParallelReader::NumRead() const { return reading_ == nullptr ? 0 : reading_->num_read(); }

}  // namespace trackckpt
