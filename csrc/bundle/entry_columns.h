// What an index says of its tensors, in columns: a row costs no allocation, however many there are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/entry.h"

namespace trackckpt {

class EntryColumns {
 public:
  EntryColumns() = default;
  explicit EntryColumns(const std::vector<BundleEntry>& entries) {
    for (const BundleEntry& entry : entries) Add(entry);
  }

  void Add(const BundleEntry& entry) {
    rows_.push_back({keys_.size(), dims_.size(), entry.dtype, entry.size});
    keys_.append(entry.key);
    dims_.insert(dims_.end(), entry.shape.begin(), entry.shape.end());
  }

  size_t size() const { return rows_.size(); }
  std::string_view key(size_t i) const {
    const size_t end = i + 1 < rows_.size() ? rows_[i + 1].key_begin : keys_.size();
    return std::string_view(keys_).substr(rows_[i].key_begin, end - rows_[i].key_begin);
  }
  int32_t dtype(size_t i) const { return rows_[i].dtype; }
  int64_t num_bytes(size_t i) const { return rows_[i].size; }
  const int64_t* shape(size_t i) const { return dims_.data() + rows_[i].first_dim; }
  size_t rank(size_t i) const {
    return (i + 1 < rows_.size() ? rows_[i + 1].first_dim : dims_.size()) - rows_[i].first_dim;
  }

 private:
  struct Row {
    size_t key_begin;
    size_t first_dim;
    int32_t dtype;
    int64_t size;
  };

  std::string keys_;
  std::vector<int64_t> dims_;
  std::vector<Row> rows_;
};

}  // namespace trackckpt
