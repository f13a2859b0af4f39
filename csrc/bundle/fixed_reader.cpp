#include "bundle/fixed_reader.h"

#include <algorithm>
#include <cstring>

#include "bundle/dtype.h"
#include "bundle/element_form.h"
#include "bundle/run_reader.h"
#include "bundle/stored_value.h"
#include "encoding/crc32c.h"

namespace trackckpt {

void FixedReader::Verify(const BundleEntry& value) {
  const auto file = files_.Open(value.shard_id);
  ValueStream stream(value, *file, &buffer_);
  uint32_t crc = 0;
  while (stream.remaining() > 0) {
    const std::string_view chunk = stream.Take(StreamBytes(*file));
    crc = Crc32cExtend(crc, chunk.data(), chunk.size());
  }
  CheckChecksum(crc, value, *file);
}

void FixedReader::ReadInPlace(const BundleEntry& value, char* destination) {
  const auto file = files_.Open(value.shard_id);
  const uint64_t size = static_cast<uint64_t>(value.size);
  const ElementForm form(value.dtype, order_);
  uint32_t crc = 0;
  for (uint64_t done = 0; done < size;) {
    const uint64_t n = std::min(size - done, StreamBytes(*file));
    file->Read(static_cast<uint64_t>(value.offset) + done, destination + done, n);
    crc = Crc32cExtend(crc, destination + done, n);
    form.ToMemory(destination + done, n);
    done += n;
  }
  CheckChecksum(crc, value, *file);
}

void FixedReader::ReadWhole(const StoredPart& part, const Box& request, char* destination) {
  if (!IsOneRun(part.part, part.stored, request)) return Scatter(part, request, destination);
  uint64_t position = 0;
  ForEachRun(part.part, part.stored, request, [&](uint64_t, uint64_t to, uint64_t) { position = to; });
  ReadInPlace(part.value, destination + position * ItemSize(part.value.dtype));
}

// All bytes of the value in the order in which they lie, through the buffer.
void FixedReader::Scatter(const StoredPart& part, const Box& request, char* destination) {
  const auto file = files_.Open(part.value.shard_id);
  const uint64_t item_size = ItemSize(part.value.dtype);
  const ElementForm form(part.value.dtype, order_);
  ValueStream stream(part.value, *file, &buffer_);
  std::string_view chunk;
  uint32_t crc = 0;
  ForEachRun(part.part, part.stored, request, [&](uint64_t, uint64_t to, uint64_t num_elements) {
    char* p = destination + to * item_size;
    for (uint64_t left = num_elements * item_size; left > 0;) {
      if (chunk.empty()) {
        chunk = stream.Take(StreamBytes(*file));
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
  CheckChecksum(crc, part.value, *file);
}

uint64_t FixedReader::ReadPart(const StoredPart& part, const Box& request, char* destination) {
  const uint64_t item_size = ItemSize(part.value.dtype);
  const auto file = files_.Open(part.value.shard_id);
  RunReader reader(*file, static_cast<uint64_t>(part.value.offset), ElementForm(part.value.dtype, order_),
                   &buffer_);
  ForEachRun(part.part, part.stored, request, [&](uint64_t from, uint64_t to, uint64_t num_elements) {
    reader.Add(from * item_size, destination + to * item_size, num_elements * item_size);
  });
  return reader.Finish();
}

}  // namespace trackckpt
