#include "bundle/string_parts.h"

namespace trackckpt {

StringParts::StringParts(const std::vector<StoredPart>& parts, const Box& request, const Load& load) {
  loaded_.reserve(parts.size());
  for (const StoredPart& part : parts) loaded_.push_back(load(part.value));
  is_plain_ = parts.size() == 1 && parts.front().IsWhole();
  if (is_plain_) return;
  chosen_.resize(request.NumElements());
  for (size_t i = 0; i < parts.size(); ++i) Choose(parts[i], loaded_[i], request);
}

void StringParts::Choose(const StoredPart& part, const StringArray& values, const Box& request) {
  ForEachRun(part.part, part.stored, request, [&](uint64_t from, uint64_t to, uint64_t num_elements) {
    for (uint64_t i = 0; i < num_elements; ++i) chosen_[to + i] = values[from + i];
  });
}

}  // namespace trackckpt
