#include "bundle/fixed_reader.h"

#include <algorithm>
#include <cstring>

#include "bundle/dtype.h"
#include "bundle/element_form.h"
#include "bundle/run_reader.h"
#include "bundle/stored_value.h"
#include "encoding/crc32c.h"

namespace trackckpt {

namespace {

// The end of the tensors from `begin` on that lie one behind the other in one file and fit the buffer.
size_t EndOfNeighbours(const std::vector<ReadTarget>& targets, size_t begin) {
  const ReadTarget& first = targets[begin];
  uint64_t offset = first.offset();
  size_t end = begin;
  do {
    offset += targets[end++].size();
  } while (end < targets.size() && !targets[end].is_sliced() &&
           targets[end].tensor.shard_id == first.tensor.shard_id && targets[end].offset() == offset &&
           offset - first.offset() + targets[end].size() <= FixedReader::kMaxBufferedBytes);
  return end;
}

}  // namespace

void FixedReader::Verify(const BundleEntry& value) {
  const ReadableFile& file = files_.Open(value.shard_id);
  ValueStream stream(value, file, &buffer_);
  uint32_t crc = 0;
  while (stream.remaining() > 0) {
    const std::string_view chunk = stream.Take(kStreamBytes);
    crc = Crc32cExtend(crc, chunk.data(), chunk.size());
  }
  CheckChecksum(crc, value, file);
}

void FixedReader::ReadTensors(const std::vector<ReadTarget>& targets, ReadProgress* progress) {
  while (progress->completed < targets.size()) {
    const ReadTarget& target = targets[progress->completed];
    if (!target.is_sliced() && target.size() <= kMaxBufferedBytes) {
      ReadNeighbours(targets, progress);
      continue;
    }
    progress->touched = true;
    if (target.is_sliced()) {
      const Box whole = WholeBox(target.tensor.shape);
      for (const StoredPart& part : target.parts) {
        ReadWhole(part, whole, static_cast<char*>(target.destination));
      }
    } else {
      ReadInPlace(target.tensor, static_cast<char*>(target.destination));
    }
    progress->touched = false;
    ++progress->completed;
  }
}

// Serves as many of the next requests as a single read can.
void FixedReader::ReadNeighbours(const std::vector<ReadTarget>& targets, ReadProgress* progress) {
  const ReadTarget& first = targets[progress->completed];
  const size_t end = EndOfNeighbours(targets, progress->completed);
  const ReadableFile& file = files_.Open(first.tensor.shard_id);
  const uint64_t size = targets[end - 1].offset() + targets[end - 1].size() - first.offset();
  if (buffer_.size() < size) buffer_.resize(size);
  file.Read(first.offset(), buffer_.data(), size);
  for (const char* p = buffer_.data(); progress->completed < end; ++progress->completed) {
    const ReadTarget& target = targets[progress->completed];
    CheckChecksum(Crc32cExtend(0, p, target.size()), target.tensor, file);
    if (target.size() > 0) std::memcpy(target.destination, p, target.size());
    ElementForm(target.tensor.dtype, order_).ToMemory(target.destination, target.size());
    p += target.size();
  }
}

void FixedReader::ReadInPlace(const BundleEntry& value, char* destination) {
  const ReadableFile& file = files_.Open(value.shard_id);
  const uint64_t size = static_cast<uint64_t>(value.size);
  const ElementForm form(value.dtype, order_);
  uint32_t crc = 0;
  for (uint64_t done = 0; done < size;) {
    const uint64_t n = std::min(size - done, kStreamBytes);
    file.Read(static_cast<uint64_t>(value.offset) + done, destination + done, n);
    crc = Crc32cExtend(crc, destination + done, n);
    form.ToMemory(destination + done, n);
    done += n;
  }
  CheckChecksum(crc, value, file);
}

void FixedReader::ReadWhole(const StoredPart& part, const Box& request, char* destination) {
  if (!IsOneRun(part.part, part.stored, request)) return Scatter(part, request, destination);
  uint64_t position = 0;
  ForEachRun(part.part, part.stored, request, [&](uint64_t, uint64_t to, uint64_t) { position = to; });
  ReadInPlace(part.value, destination + position * ItemSize(part.value.dtype));
}

// All bytes of the value in the order in which they lie, through the buffer.
void FixedReader::Scatter(const StoredPart& part, const Box& request, char* destination) {
  const ReadableFile& file = files_.Open(part.value.shard_id);
  const uint64_t item_size = ItemSize(part.value.dtype);
  const ElementForm form(part.value.dtype, order_);
  ValueStream stream(part.value, file, &buffer_);
  std::string_view chunk;
  uint32_t crc = 0;
  ForEachRun(part.part, part.stored, request, [&](uint64_t, uint64_t to, uint64_t num_elements) {
    char* p = destination + to * item_size;
    for (uint64_t left = num_elements * item_size; left > 0;) {
      if (chunk.empty()) {
        chunk = stream.Take(kStreamBytes);
        crc = Crc32cExtend(crc, chunk.data(), chunk.size());
        form.ToMemory(buffer_.data(), chunk.size());  // the chunk is all of the buffer
      }
      const size_t n = std::min<uint64_t>(left, chunk.size());
      std::memcpy(p, chunk.data(), n);
      chunk.remove_prefix(n);
      p += n;
      left -= n;
    }
  });
  CheckChecksum(crc, part.value, file);
}

void FixedReader::ReadPart(const StoredPart& part, const Box& request, char* destination) {
  const uint64_t item_size = ItemSize(part.value.dtype);
  RunReader reader(files_.Open(part.value.shard_id), static_cast<uint64_t>(part.value.offset),
                   ElementForm(part.value.dtype, order_), &buffer_);
  ForEachRun(part.part, part.stored, request, [&](uint64_t from, uint64_t to, uint64_t num_elements) {
    reader.Add(from * item_size, destination + to * item_size, num_elements * item_size);
  });
  reader.Finish();
}

}  // namespace trackckpt
