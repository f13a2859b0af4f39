// Reads everything that a reader offers, of bundles and of the older format. Whatever can be read in one way is
// read alike in the others.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/dtype.h"
#include "bundle/entry.h"
#include "bundle/reader.h"
#include "bundle/row_plan.h"
#include "bundle/slice.h"
#include "bundle/tensor_memory.h"
#include "bundle/v1_reader.h"
#include "fuzz/check.h"

namespace trackckpt::fuzz {

// A part of a tensor, made up of its key and of a number.
inline TensorSlice SomePart(const BundleEntry& entry, uint32_t seed) {
  TensorSlice part = WholeSlice(entry.shape.size());
  for (size_t d = 0; d < entry.shape.size(); ++d) {
    seed = seed * 1664525 + 1013904223;
    if (seed >> 30 == 0) continue;
    const int64_t start = entry.shape[d] > 0 ? (seed >> 8) % entry.shape[d] : 0;
    part.extents[d] = {start, std::min<int64_t>(entry.shape[d] - start, (seed >> 4) % 16)};
  }
  return part;
}

template <typename Reader>
void ReadPart(const Reader& reader, const BundleEntry& entry, const std::string& whole, uint32_t seed) {
  const TensorSlice part = SomePart(entry, seed);
  const Box box = *Resolve(part, entry.shape);
  const uint32_t item_size = ItemSize(entry.dtype);
  std::string expected(box.NumElements() * item_size, '\0');
  ForEachRun(box, WholeBox(entry.shape), box, [&](uint64_t from, uint64_t to, uint64_t count) {
    std::memcpy(&expected[to * item_size], &whole[from * item_size], count * item_size);
  });
  for (const bool verify : {false, true}) {
    std::string read(expected.size(), '\0');
    reader.ReadSlice({entry.key, read.data(), read.size()}, part, verify);
    FUZZ_CHECK(read == expected);
  }
}

template <typename Reader>
void ReadFixed(const Reader& reader, const BundleEntry& entry, uint32_t seed) {
  // What has been checked fits its files, which are small.
  std::string whole(*NumElements(entry.shape) * ItemSize(entry.dtype), '\0');
  const size_t num_threads = 1 + seed % 2;
  std::vector<size_t> touched;
  const bool is_read =
      Attempt([&] { reader.Read({{entry.key, whole.data(), whole.size()}}, num_threads, &touched); });
  FUZZ_CHECK(is_read == Attempt([&] { reader.Verify({entry.key}, num_threads); }));
  if (is_read) {
    // Without elements, a tensor needs none of its slices, but a part of it may be one that is not there.
    const bool is_part_read = Attempt([&] { ReadPart(reader, entry, whole, seed); });
    FUZZ_CHECK(is_part_read || whole.empty());
  }
}

// The readers give strings in forms of their own.
template <typename Strings>
size_t Count(const Strings& strings) {
  return strings.size();
}
template <typename Strings>
size_t Count(const std::unique_ptr<Strings>& strings) {
  return strings->size();
}

inline void ReadVariants(const BundleReader& reader, const BundleEntry& entry) {
  Attempt([&] { FUZZ_CHECK(Count(reader.ReadVariants(entry.key)) == *NumElements(entry.shape)); });
}
inline void ReadVariants(const V1Reader&, const BundleEntry&) {}

// All tensors by one plan, whose ways through the table are not those of a look-up. What lies behind the memory of each
// has to stay.
inline void ReadRows(const BundleReader& reader, const std::vector<BundleEntry>& entries,
                     size_t num_threads) {
  constexpr size_t kGuardBytes = 64;
  std::vector<std::string_view> keys;
  std::vector<std::string> memory;
  TensorMemoryTable table;
  for (const BundleEntry& entry : entries) {
    if (ItemSize(entry.dtype) == 0 || !Attempt([&] { reader.Check({entry.key}); })) continue;
    TensorMemory row;
    row.size = *NumElements(entry.shape) * ItemSize(entry.dtype);
    row.dtype = entry.dtype;
    row.rank = static_cast<uint32_t>(entry.shape.size());
    row.first_dim = table.dims.size();
    table.dims.insert(table.dims.end(), entry.shape.begin(), entry.shape.end());
    table.rows.push_back(row);
    keys.push_back(entry.key);
    memory.emplace_back(row.size + kGuardBytes, '\x5a');
  }
  for (size_t i = 0; i < memory.size(); ++i) table.rows[i].data = memory[i].data();
  Attempt([&] {
    // Every third row takes a box: what of its value its memory has room for, but the first in each dimension.
    std::vector<RowBox> boxes;
    for (size_t i = 2; i < keys.size(); i += 3) {
      TensorMemory& row = table.rows[i];
      if (row.rank == 0 || row.size == 0) continue;
      RowBox box{i, table.ShapeOf(row), std::vector<int64_t>(row.rank, 0)};
      int64_t* const dims = table.dims.data() + row.first_dim;
      const uint64_t item_size = ItemSize(row.dtype);
      row.size = item_size;
      for (uint32_t d = 0; d < row.rank; ++d) {
        if (dims[d] > 1) {
          --dims[d];
          box.start[d] = 1;
        }
        row.size *= static_cast<uint64_t>(dims[d]);
      }
      memory[i].resize(row.size + kGuardBytes);
      boxes.push_back(std::move(box));
    }
    // Every second row lands elsewhere.
    std::vector<size_t> land;
    for (size_t i = 1; i < keys.size(); i += 2) land.push_back(i);
    std::vector<char> memory_to_land(ParallelReader::kLeastLandingBytes + kGuardBytes, '\x5a');
    RowPlan plan(reader.index(), reader.data_names(), keys, table, land, boxes);
    if (!plan.misfits().empty()) return;
    plan.Verify(num_threads, true);
    std::vector<Landed> landed;
    const Landing landing{memory_to_land.data(), ParallelReader::kLeastLandingBytes};
    while (plan.Read(num_threads, 1 << 12, landing, &landed) > 0) {
    }
    for (size_t i = ParallelReader::kLeastLandingBytes; i < memory_to_land.size(); ++i) {
      FUZZ_CHECK(memory_to_land[i] == '\x5a');
    }
  });
  for (size_t i = 0; i < memory.size(); ++i) {
    FUZZ_CHECK(memory[i].substr(table.rows[i].size) == std::string(kGuardBytes, '\x5a'));
  }
}
inline void ReadRows(const V1Reader&, const std::vector<BundleEntry>&, size_t) {}

template <typename Reader>
void ReadEverything(const Reader& reader, uint32_t seed) {
  std::vector<BundleEntry> entries;
  if (!Attempt([&] { entries = reader.Entries(); })) return;
  Attempt([&] { FUZZ_CHECK(reader.Columns().size() == entries.size()); });
  ReadRows(reader, entries, 1 + seed % 2);
  for (const BundleEntry& entry : entries) {
    const auto found = reader.Find(entry.key);
    FUZZ_CHECK(found && found->dtype == entry.dtype && found->shape == entry.shape);
    if (!Attempt([&] { reader.Check({entry.key}); })) continue;
    if (entry.dtype == kDtypeString) {
      Attempt([&] {
        FUZZ_CHECK(Count(reader.ReadStrings(entry.key, std::nullopt)) == *NumElements(entry.shape));
        const TensorSlice part = SomePart(entry, seed);
        FUZZ_CHECK(Count(reader.ReadStrings(entry.key, part)) == Resolve(part, entry.shape)->NumElements());
      });
    } else if (entry.dtype == kDtypeVariant) {
      ReadVariants(reader, entry);
    } else if (ItemSize(entry.dtype) > 0) {
      ReadFixed(reader, entry, seed);
    }
  }
}

}  // namespace trackckpt::fuzz
