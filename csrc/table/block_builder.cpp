#include "table/block_builder.h"

#include <algorithm>

#include "encoding/coding.h"

namespace trackckpt {

namespace {

size_t SharedPrefixLength(std::string_view a, std::string_view b) {
  const size_t limit = std::min(a.size(), b.size());
  return static_cast<size_t>(std::mismatch(a.begin(), a.begin() + limit, b.begin()).first - a.begin());
}

}  // namespace

void BlockBuilder::Add(std::string_view key, std::string_view value) {
  size_t shared = 0;
  if (entries_since_restart_ < restart_interval_) {
    shared = SharedPrefixLength(last_key_, key);
  } else {
    restarts_.push_back(static_cast<uint32_t>(buffer_.size()));
    entries_since_restart_ = 0;
  }
  PutVarint64(&buffer_, shared);
  PutVarint64(&buffer_, key.size() - shared);
  PutVarint64(&buffer_, value.size());
  buffer_.append(key.substr(shared)).append(value);
  last_key_.assign(key);
  ++entries_since_restart_;
}

std::string_view BlockBuilder::Finish() {
  for (uint32_t restart : restarts_) PutFixed32(&buffer_, restart);
  PutFixed32(&buffer_, static_cast<uint32_t>(restarts_.size()));
  return buffer_;
}

void BlockBuilder::Reset() {
  buffer_.clear();
  restarts_.assign(1, 0);
  entries_since_restart_ = 0;
  last_key_.clear();
}

size_t BlockBuilder::CurrentSizeEstimate() const {
  return buffer_.size() + sizeof(uint32_t) * (restarts_.size() + 1);
}

}  // namespace trackckpt
