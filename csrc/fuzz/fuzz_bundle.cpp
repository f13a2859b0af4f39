// A bundle of up to two data files: everything in it is listed, checked and read.
//
//    input: flags (1 byte) | chunk of each data file | table of the index (tables.h)
//    flags: 1  checksums of values are set right, and entries are made for slices that have none;
//              only for an index of entries
//           upper bits: which part of a tensor is read

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "bundle/dtype.h"
#include "bundle/entry.h"
#include "bundle/reader.h"
#include "bundle/slice.h"
#include "encoding/coding.h"
#include "encoding/crc32c.h"
#include "fuzz/everything.h"
#include "fuzz/scratch.h"
#include "fuzz/tables.h"
#include "table/table_reader.h"

using namespace trackckpt;

namespace {

using DataFileContents = std::array<std::string, 2>;

std::string HeaderOfTwoShards() {
  BundleHeader header;
  header.num_shards = 2;
  header.producer = 1;
  std::string record;
  header.EncodeTo(&record);
  return record;
}

// The checksum of stored strings. That of their lengths, which lies among them, is set right.
uint32_t StringChecksum(uint64_t num_elements, char* stored, size_t size) {
  std::string_view rest(stored, size);
  std::string lengths;
  for (uint64_t i = 0; i < num_elements; ++i) {
    uint64_t length;
    if (!GetVarint64(&rest, &length)) return 0;
    length <= UINT32_MAX ? PutFixed32(&lengths, static_cast<uint32_t>(length)) : PutFixed64(&lengths, length);
  }
  if (rest.size() < sizeof(uint32_t)) return 0;
  const uint32_t crc = Crc32cExtend(0, lengths.data(), lengths.size());
  std::string length_checksum;
  PutFixed32(&length_checksum, MaskCrc(crc));
  std::memcpy(stored + (size - rest.size()), length_checksum.data(), length_checksum.size());
  return Crc32cExtend(crc, rest.data(), rest.size());
}

uint32_t Checksum(int32_t dtype, uint64_t num_elements, char* stored, size_t size) {
  return dtype == kDtypeString ? StringChecksum(num_elements, stored, size) : Crc32cExtend(0, stored, size);
}

std::string EncodeWithChecksum(BundleEntry entry, DataFileContents* files) {
  const auto num_elements = NumElements(entry.shape);
  if (num_elements && entry.offset >= 0 && entry.size >= 0 && (entry.shard_id == 0 || entry.shard_id == 1)) {
    std::string& file = (*files)[static_cast<size_t>(entry.shard_id)];
    const size_t offset = static_cast<size_t>(entry.offset);
    if (offset <= file.size()) {
      const size_t size = std::min(static_cast<size_t>(entry.size), file.size() - offset);
      entry.crc32c = MaskCrc(Checksum(entry.dtype, *num_elements, file.data() + offset, size));
    }
  }
  std::string record;
  entry.EncodeTo(&record);
  return record;
}

// Places a slice behind `offset` in the first file.
BundleEntry EntryOfSlice(const BundleEntry& tensor, const Box& box, int64_t* offset) {
  BundleEntry entry;
  entry.dtype = tensor.dtype;
  entry.shape = box.length;
  entry.offset = *offset;
  const auto num_elements = NumElements(box.length);
  if (num_elements && *num_elements < 1 << 16) {
    entry.size = static_cast<int64_t>(*num_elements * ItemSize(tensor.dtype));
  }
  *offset += entry.size;
  return entry;
}

void AddMissingSlices(const std::string& key, const BundleEntry& tensor, DataFileContents* files,
                      fuzz::Entries* entries, int64_t* offset) {
  if (!NumElements(tensor.shape)) return;
  for (const TensorSlice& slice : tensor.slices) {
    const auto box = Resolve(slice, tensor.shape);
    if (!box) continue;
    const std::string slice_key = SliceKey(key, slice);
    if (entries->count(slice_key) > 0) continue;
    (*entries)[slice_key] = EncodeWithChecksum(EntryOfSlice(tensor, *box, offset), files);
  }
}

void SetRight(DataFileContents* files, fuzz::Entries* entries) {
  int64_t offset = 0;
  const fuzz::Entries given = *entries;
  for (const auto& [key, record] : given) {
    BundleEntry entry;
    if (key.empty() || !entry.DecodeFrom(record)) continue;
    if (entry.slices.empty()) {
      (*entries)[key] = EncodeWithChecksum(entry, files);
    } else {
      AddMissingSlices(key, entry, files, entries, &offset);
    }
  }
}

std::string WriteIndex(fuzz::Input input, bool is_set_right, DataFileContents* files) {
  fuzz::Input rest = input;
  if (fuzz::ReadTableKind(&rest) != fuzz::TableKind::kEntries) return fuzz::WriteTable("bundle.index", input);
  fuzz::Entries entries = fuzz::ReadEntries(rest);
  entries.emplace("", HeaderOfTwoShards());
  if (is_set_right) SetRight(files, &entries);
  return fuzz::WriteEntries("bundle.index", entries);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t flags = input.Byte();
  DataFileContents files;
  for (std::string& file : files) file = input.Chunk();
  const std::string index = WriteIndex(input, (flags & 1) != 0, &files);
  fuzz::Attempt([&] {
    const BundleReader reader(index, fuzz::ScratchPath("bundle"), {""});
    const bool is_one = reader.num_shards() == 1;
    fuzz::WriteScratch(is_one ? "bundle.data-00000-of-00001" : "bundle.data-00000-of-00002", files[0]);
    fuzz::WriteScratch("bundle.data-00001-of-00002", files[1]);
    fuzz::ReadEverything(reader, flags * 2654435761u);
  });
  return 0;
}
