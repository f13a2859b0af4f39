// Strings that were read: all that one stored value holds, or chosen from several.
#pragma once

#include <cstddef>
#include <functional>
#include <string_view>
#include <vector>

#include "bundle/locator.h"
#include "bundle/string_tensor.h"

namespace trackckpt {

class StringParts {
 public:
  using Load = std::function<StringArray(const BundleEntry& value)>;

  // The elements of `request` in row-major order, which `parts` hold between them. Each is loaded once.
  StringParts(const std::vector<StoredPart>& parts, const Box& request, const Load& load);
  StringParts(const StringParts&) = delete;
  StringParts& operator=(const StringParts&) = delete;

  size_t size() const { return is_plain_ ? loaded_.front().size() : chosen_.size(); }
  // Valid as long as this.
  std::string_view operator[](size_t i) const { return is_plain_ ? loaded_.front()[i] : chosen_[i]; }

 private:
  void Choose(const StoredPart& part, const StringArray& values, const Box& request);

  std::vector<StringArray> loaded_;       // one for each part
  bool is_plain_ = false;                 // the request is one stored value
  std::vector<std::string_view> chosen_;  // otherwise
};

}  // namespace trackckpt
