#include "bundle/run_reader.h"

#include <algorithm>
#include <cstring>

namespace trackckpt {

namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kMaxSpan = 1 << 20;
constexpr size_t kMaxRuns =
    1 << 15;  // where all are very short, so that the list stays as small as the buffer

}  // namespace

void RunReader::Add(uint64_t from, char* to, uint64_t size) {
  if (!IsNear(from, size)) Flush();
  runs_.push_back({from, to, size});
}

bool RunReader::IsNear(uint64_t from, uint64_t size) const {
  if (runs_.empty() || runs_.size() >= kMaxRuns) return false;
  const uint64_t gap = from - (runs_.back().from + runs_.back().size);
  const ReadGrain& grain = file_.grain();
  return gap < std::max(kPageBytes, grain.gap_bytes) &&
         from + size - runs_.front().from <= std::max(kMaxSpan, grain.request_bytes);
}

void RunReader::Flush() {
  if (runs_.empty()) return;
  const Run& first = runs_.front();
  if (runs_.size() == 1) {  // straight to its place, however large it is
    file_.Read(value_offset_ + first.from, first.to, first.size);
    form_.ToMemory(first.to, first.size);
    num_read_ += first.size;
  } else {
    const uint64_t span = runs_.back().from + runs_.back().size - first.from;
    if (buffer_.size() < span) buffer_.resize(span);
    file_.Read(value_offset_ + first.from, buffer_.data(), span);
    form_.ToMemory(buffer_.data(), span);
    num_read_ += span;
    for (const Run& run : runs_) std::memcpy(run.to, buffer_.data() + (run.from - first.from), run.size);
  }
  runs_.clear();
}

}  // namespace trackckpt
