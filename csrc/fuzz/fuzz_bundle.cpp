// A bundle of up to two data files: everything in it is listed, checked and read.
//
//    input: flags (1 byte) | chunk of each data file | table of the index (tables.h)
//    flags: 1  checksums of values are set right, and entries are made for slices that have none;
//              only for an index of entries
//           upper bits: which part of a tensor is read

#include <string>

#include "bundle/dtype.h"
#include "bundle/entry.h"
#include "bundle/reader.h"
#include "bundle/slice.h"
#include "bundle/string_tensor.h"
#include "encoding/crc32c.h"
#include "fuzz/everything.h"
#include "fuzz/scratch.h"
#include "fuzz/tables.h"
#include "table/table_reader.h"

using namespace trackckpt;

namespace {

using DataFileContents = std::string_view[2];

std::string HeaderOfTwoShards() {
  BundleHeader header;
  header.num_shards = 2;
  header.producer = 1;
  std::string record;
  header.EncodeTo(&record);
  return record;
}

uint32_t Checksum(int32_t dtype, uint64_t num_elements, std::string_view stored) {
  if (dtype != kDtypeString) return Crc32cExtend(0, stored.data(), stored.size());
  StringHeader header;
  header.DecodeFrom(&stored, num_elements);
  return Crc32cExtend(header.crc, stored.data(), stored.size());
}

std::string EncodeWithChecksum(BundleEntry entry, const DataFileContents& files) {
  const auto num_elements = NumElements(entry.shape);
  if (num_elements && entry.offset >= 0 && entry.size >= 0 && (entry.shard_id == 0 || entry.shard_id == 1)) {
    const std::string_view file = files[entry.shard_id];
    if (static_cast<uint64_t>(entry.offset) <= file.size()) {
      const std::string_view stored =
          file.substr(static_cast<size_t>(entry.offset), static_cast<size_t>(entry.size));
      entry.crc32c = MaskCrc(Checksum(entry.dtype, *num_elements, stored));
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

void AddMissingSlices(const std::string& key, const BundleEntry& tensor, const DataFileContents& files,
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

void SetRight(const DataFileContents& files, fuzz::Entries* entries) {
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

std::string WriteIndex(fuzz::Input input, bool is_set_right, const DataFileContents& files) {
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
  const DataFileContents files = {input.Chunk(), input.Chunk()};
  const std::string index = WriteIndex(input, (flags & 1) != 0, files);
  fuzz::Attempt([&] {
    const BundleReader reader(index, fuzz::ScratchPath("bundle"), {""});
    const bool is_one = reader.num_shards() == 1;
    fuzz::WriteScratch(is_one ? "bundle.data-00000-of-00001" : "bundle.data-00000-of-00002", files[0]);
    fuzz::WriteScratch("bundle.data-00001-of-00002", files[1]);
    fuzz::ReadEverything(reader, flags * 2654435761u);
  });
  return 0;
}
