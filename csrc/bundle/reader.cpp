#include "bundle/reader.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "bundle/dtype.h"
#include "bundle/string_tensor.h"
#include "encoding/crc32c.h"
#include "error.h"

namespace trackckpt {

namespace {

// Small enough to be still in the cache when its checksum is computed right after it was read.
constexpr uint64_t kChunkBytes = 512 << 10;

Error DataLoss(const std::string& message) { return Error(ErrorKind::kDataLoss, message); }

Error Unsupported(const std::string& message) { return Error(ErrorKind::kUnsupportedFormat, message); }

std::string Hex(uint32_t number) {
  char text[11];
  std::snprintf(text, sizeof(text), "0x%08x", number);
  return text;
}

Error ChecksumMismatch(const char* what, const BundleEntry& entry, const ReadableFile& file, uint32_t stored,
                       uint32_t computed) {
  return DataLoss(std::string(what) + " does not match: key " + DisplayKey(entry.key) + ", file " +
                  file.path() + ", offset " + std::to_string(entry.offset) + ", size " +
                  std::to_string(entry.size) + ": stored " + Hex(stored) + " but computed " + Hex(computed));
}

void CheckChecksum(const BundleEntry& entry, const ReadableFile& file, uint32_t computed) {
  const uint32_t stored = UnmaskCrc(entry.crc32c);
  if (stored != computed) throw ChecksumMismatch("Checksum", entry, file, stored, computed);
}

Error BadLengths(const BundleEntry& entry, const ReadableFile& file) {
  return DataLoss("String lengths longer than expected offset, or shorter: key " + DisplayKey(entry.key) +
                  ", file " + file.path() + ", offset " + std::to_string(entry.offset) + ", size " +
                  std::to_string(entry.size));
}

void CheckHeader(const BundleHeader& header, const std::string& path) {
  CheckVersion(header, path);
  if (header.endianness != 0) throw Unsupported(path + ": big-endian checkpoints are not supported");
  if (header.num_shards <= 0) {
    throw DataLoss(path + ": invalid number of shards in the header: " + std::to_string(header.num_shards));
  }
}

// The size of a value; for strings, the least it can be. Nothing if no file is that large.
std::optional<uint64_t> ExpectedSize(const BundleEntry& entry) {
  const uint64_t num_elements = *NumElements(entry.shape);
  if (entry.dtype == kDtypeString) return num_elements + kLengthChecksumSize;
  uint64_t size;
  if (__builtin_mul_overflow(num_elements, ItemSize(entry.dtype), &size)) return std::nullopt;
  return size;
}

bool IsPossibleSize(const BundleEntry& entry, uint64_t expected) {
  const uint64_t stored = static_cast<uint64_t>(entry.size);
  if (entry.dtype != kDtypeString) return stored == expected;
  if (expected > kLengthChecksumSize) return stored >= expected;
  return stored == expected || stored == 0;  // no strings: some producers leave the checksum out
}

void CheckSize(const BundleEntry& entry) {
  const auto expected = ExpectedSize(entry);
  if (!expected) throw DataLoss("Invalid tensor shape: " + DisplayKey(entry.key));
  if (IsPossibleSize(entry, *expected)) return;
  throw DataLoss("Invalid size in bundle entry: key " + DisplayKey(entry.key) + "; stored size " +
                 std::to_string(entry.size) + "; expected size " +
                 (entry.dtype == kDtypeString ? "at least " : "") + std::to_string(*expected));
}

void CheckInside(const BundleEntry& entry, const ReadableFile& file) {
  const uint64_t offset = static_cast<uint64_t>(entry.offset);
  const uint64_t size = static_cast<uint64_t>(entry.size);
  if (offset <= file.size() && size <= file.size() - offset) return;
  throw DataLoss(file.path() + ": Read less bytes than requested: key " + DisplayKey(entry.key) +
                 " lies at offset " + std::to_string(offset) + ", size " + std::to_string(size) +
                 ", but the file has " + std::to_string(file.size()) + " bytes");
}

}  // namespace

BundleReader::BundleReader(const std::string& index_path, std::string data_prefix,
                           std::vector<std::string> data_suffixes)
    : index_path_(index_path), index_(index_path) {
  data_names_.prefix = std::move(data_prefix);
  data_names_.suffixes = std::move(data_suffixes);
  if (data_names_.suffixes.empty()) throw Error(ErrorKind::kInvalidArgument, "data_suffixes is empty");
  ReadHeader();
}

void BundleReader::ReadHeader() {
  const std::string intro = "Unable to read file (" + index_path_ + "). Perhaps the file is corrupt ";
  std::optional<std::string_view> record;
  try {
    record = index_.Get("");
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kDataLoss) throw;
    throw DataLoss(intro + "(failed to seek to header entry): " + error.what());
  }
  if (!record) throw DataLoss(intro + "(failed to seek to header entry): the first key is not the header's");
  BundleHeader header;
  if (!header.DecodeFrom(*record)) throw DataLoss(intro + "(unable to parse header)");
  CheckHeader(header, index_path_);
  data_names_.num_shards = header.num_shards;
}

std::vector<BundleEntry> BundleReader::Entries() const {
  std::vector<BundleEntry> entries;
  index_.ForEach([&](const std::string& key, std::string_view record) {
    if (!key.empty()) entries.push_back(DecodeEntry(key, record));
  });
  return entries;
}

std::optional<BundleEntry> BundleReader::Find(std::string_view key) const {
  if (key.empty()) return std::nullopt;
  const auto record = index_.Get(key);
  if (!record) return std::nullopt;
  return DecodeEntry(key, *record);
}

void BundleReader::Check(const std::vector<std::string>& keys) const {
  DataFiles files(data_names_);
  for (const std::string& key : keys) Locate(key, &files);
}

void BundleReader::Verify(const std::vector<std::string>& keys) const {
  DataFiles files(data_names_);
  std::string buffer;
  for (const std::string& key : keys) {
    const Value value = Locate(key, &files);
    if (value.entry.dtype == kDtypeString) {
      LoadStrings(value, &files, &buffer);
    } else {
      VerifyFixed(value, &files, &buffer);
    }
  }
}

void BundleReader::Read(const std::vector<ReadRequest>& requests, ReadProgress* progress) const {
  DataFiles files(data_names_);
  std::vector<Value> values;
  values.reserve(requests.size());
  for (const ReadRequest& request : requests) values.push_back(CheckRequest(request, &files));
  std::string buffer;
  while (progress->completed < values.size()) {
    const Value& value = values[progress->completed];
    if (value.size() <= kMaxBufferedBytes) {
      ReadNeighbours(values, &files, &buffer, progress);
    } else {
      ReadInPlace(value, &files, progress);
    }
  }
}

std::vector<std::string> BundleReader::ReadStrings(std::string_view key) const {
  DataFiles files(data_names_);
  const Value value = Locate(key, &files);
  if (value.entry.dtype != kDtypeString) {
    throw Error(ErrorKind::kInvalidArgument, "Key " + DisplayKey(key) + " is no string tensor");
  }
  std::string data;
  const auto strings = LoadStrings(value, &files, &data);
  return std::vector<std::string>(strings.begin(), strings.end());
}

BundleEntry BundleReader::DecodeEntry(std::string_view key, std::string_view record) const {
  BundleEntry entry;
  entry.key = key;
  if (!entry.DecodeFrom(record)) {
    throw DataLoss(index_path_ + ": unable to parse the entry of key " + DisplayKey(key));
  }
  if (entry.is_unknown_rank || !NumElements(entry.shape)) {
    throw DataLoss("Invalid tensor shape: " + DisplayKey(key) + " in " + index_path_);
  }
  if (entry.shard_id < 0 || entry.shard_id >= num_shards()) {
    throw DataLoss(index_path_ + ": key " + DisplayKey(key) + " lies in shard " +
                   std::to_string(entry.shard_id) + " of " + std::to_string(num_shards()));
  }
  if (entry.offset < 0 || entry.size < 0) {
    throw DataLoss(index_path_ + ": key " + DisplayKey(key) + " has a negative offset or size");
  }
  return entry;
}

BundleReader::Value BundleReader::Locate(std::string_view key, DataFiles* files) const {
  std::optional<BundleEntry> entry = Find(key);
  if (!entry) {
    throw Error(ErrorKind::kKeyNotFound,
                "Key " + DisplayKey(key) + " not found in checkpoint " + index_path_);
  }
  CheckFormat(*entry);
  CheckSize(*entry);
  CheckInside(*entry, files->Open(entry->shard_id));
  return {*std::move(entry)};
}

void BundleReader::CheckFormat(const BundleEntry& entry) const {
  const bool is_sliced = !entry.slices.empty();
  const bool is_known_dtype = entry.dtype == kDtypeString || ItemSize(entry.dtype) > 0;
  if (!is_sliced && is_known_dtype) return;
  throw Unsupported(index_path_ + ": key " + DisplayKey(entry.key) +
                    (is_sliced ? " is stored in slices" : " has DataType " + std::to_string(entry.dtype)) +
                    ", which is not supported");
}

BundleReader::Value BundleReader::CheckRequest(const ReadRequest& request, DataFiles* files) const {
  Value value = Locate(request.key, files);
  if (value.entry.dtype == kDtypeString) {
    throw Error(ErrorKind::kInvalidArgument, "Key " + DisplayKey(request.key) + " is a string tensor");
  }
  if (value.size() != request.size) {
    throw Error(ErrorKind::kInvalidArgument, "Key " + DisplayKey(request.key) + " has " +
                                                 std::to_string(value.size()) + " bytes, but memory of " +
                                                 std::to_string(request.size) + " bytes was given");
  }
  value.destination = request.destination;
  return value;
}

// The end of the values from `begin` on that lie one behind the other in one file and fit the buffer.
size_t BundleReader::EndOfNeighbours(const std::vector<Value>& values, size_t begin) {
  const Value& first = values[begin];
  uint64_t offset = first.offset();
  size_t end = begin;
  do {
    offset += values[end++].size();
  } while (end < values.size() && values[end].entry.shard_id == first.entry.shard_id &&
           values[end].offset() == offset &&
           offset - first.offset() + values[end].size() <= kMaxBufferedBytes);
  return end;
}

// Serves as many of the next requests as a single read can.
void BundleReader::ReadNeighbours(const std::vector<Value>& values, DataFiles* files, std::string* buffer,
                                  ReadProgress* progress) const {
  const Value& first = values[progress->completed];
  const size_t end = EndOfNeighbours(values, progress->completed);
  const ReadableFile& file = files->Open(first.entry.shard_id);
  buffer->resize(values[end - 1].offset() + values[end - 1].size() - first.offset());
  file.Read(first.offset(), buffer->data(), buffer->size());
  for (const char* p = buffer->data(); progress->completed < end; ++progress->completed) {
    const Value& value = values[progress->completed];
    CheckChecksum(value.entry, file, Crc32cExtend(0, p, value.size()));
    if (value.size() > 0) std::memcpy(value.destination, p, value.size());
    p += value.size();
  }
}

void BundleReader::ReadInPlace(const Value& value, DataFiles* files, ReadProgress* progress) const {
  const ReadableFile& file = files->Open(value.entry.shard_id);
  char* destination = static_cast<char*>(value.destination);
  uint32_t crc = 0;
  progress->touched = true;
  for (uint64_t done = 0; done < value.size();) {
    const uint64_t n = std::min(value.size() - done, kChunkBytes);
    file.Read(value.offset() + done, destination + done, n);
    crc = Crc32cExtend(crc, destination + done, n);
    done += n;
  }
  CheckChecksum(value.entry, file, crc);
  progress->touched = false;
  ++progress->completed;
}

void BundleReader::VerifyFixed(const Value& value, DataFiles* files, std::string* buffer) const {
  const ReadableFile& file = files->Open(value.entry.shard_id);
  buffer->resize(std::min(value.size(), kChunkBytes));
  uint32_t crc = 0;
  for (uint64_t done = 0; done < value.size();) {
    const uint64_t n = std::min<uint64_t>(value.size() - done, buffer->size());
    file.Read(value.offset() + done, buffer->data(), n);
    crc = Crc32cExtend(crc, buffer->data(), n);
    done += n;
  }
  CheckChecksum(value.entry, file, crc);
}

std::vector<std::string_view> BundleReader::LoadStrings(const Value& value, DataFiles* files,
                                                        std::string* data) const {
  const ReadableFile& file = files->Open(value.entry.shard_id);
  data->resize(value.size());
  file.Read(value.offset(), data->data(), data->size());
  std::string_view rest = *data;
  StringHeader header;
  if (!header.DecodeFrom(&rest, *NumElements(value.entry.shape))) throw BadLengths(value.entry, file);
  if (header.stored_length_crc != header.computed_length_crc) {
    throw ChecksumMismatch("The length checksum", value.entry, file, header.stored_length_crc,
                           header.computed_length_crc);
  }
  CheckChecksum(value.entry, file, Crc32cExtend(header.crc, rest.data(), rest.size()));
  std::vector<std::string_view> strings;
  if (!SplitStrings(header.lengths, rest, &strings)) throw BadLengths(value.entry, file);
  return strings;
}

}  // namespace trackckpt
