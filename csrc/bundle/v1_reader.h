// Reads the older checkpoint format: one or more table files that hold the tensors themselves, all of them or slices
// of them; saved_slice.h has the records. What the files say of their tensors is in memory from the start; values are
// read from files that are open only within a call, one record at a time. All bytes may be hostile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bundle/entry.h"
#include "bundle/entry_columns.h"
#include "bundle/reader.h"
#include "bundle/saved_slice.h"
#include "bundle/slice.h"
#include "bundle/string_tensor.h"
#include "error.h"
#include "table/table_file.h"

namespace trackckpt {

// Any number of threads may use one reader at once.
class V1Reader {
 public:
  explicit V1Reader(const std::vector<std::string>& paths);

  size_t num_shards() const { return tables_.size(); }

  // In key order. What places a value in a data file is 0.
  std::vector<BundleEntry> Entries() const;
  EntryColumns Columns() const { return EntryColumns(Entries()); }
  bool ForEachUnsliced(const std::function<void(const BundleEntry& entry)>& visit) const {
    for (const BundleEntry& entry : Entries()) visit(entry);
    return true;
  }
  std::optional<BundleEntry> Find(std::string_view key) const;

  // Checks that stored slices make up each tensor, and that their records exist, for which their blocks are read.
  void Check(const std::vector<std::string>& keys) const;
  // Reads the values and checks that they are whole. One thread does it, however many there may be.
  void Verify(const std::vector<std::string>& keys, size_t num_threads) const;

  // Checks what is known of all requests, then serves them in order. A record is checked before it goes to memory.
  // When this throws, `touched` are the requests whose destinations were written to.
  void Read(const std::vector<ReadRequest>& requests, size_t num_threads, std::vector<size_t>* touched) const;
  // Reads a part of a tensor. With `verify`, all its records are checked before memory is touched.
  void ReadSlice(const ReadRequest& request, const TensorSlice& part, bool verify) const;

  // The elements of a string tensor, or of a part of it, in row-major order.
  StringArray ReadStrings(std::string_view key, const std::optional<TensorSlice>& part) const;

 private:
  struct Tensor {
    BundleEntry entry;
    std::vector<size_t> files;  // for each slice, which file it is in

    std::vector<TensorSlice> Slices() const;
  };
  // A part of a tensor, and what makes it up of the stored slices.
  struct Request {
    const Tensor& tensor;
    ValueField field;
    Box part;
    std::vector<TensorSlice> slices;
    std::vector<Piece> pieces;
  };
  class Records;
  using StoredSlices = std::set<std::pair<const Tensor*, std::string>>;

  static SavedMeta ReadMeta(const TableFile& table);
  void Unite(BundleEntry tensor, size_t file, StoredSlices* stored);

  const Tensor& Locate(std::string_view key) const;
  Request Plan(const Tensor& tensor, const Box& part) const;
  Request PlanWhole(const Tensor& tensor) const;
  Request PlanPart(const Tensor& tensor, const TensorSlice& part) const;
  void CheckMemory(const Request& request, uint64_t size) const;

  std::string_view Record(const Request& request, const Piece& piece, Records* records) const;
  std::string_view CheckedRecord(const Request& request, const Piece& piece, Records* records) const;
  void CheckRecords(const Request& request, Records* records) const;
  void Copy(const Request& request, void* destination, Records* records, bool* touched) const;

  Error BadRecord(const Request& request, const Piece& piece) const;
  std::string Paths() const;

  std::vector<TableFile> tables_;
  std::map<std::string, Tensor, std::less<>> tensors_;
};

}  // namespace trackckpt
