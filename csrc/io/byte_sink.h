// Where bytes go, one after the other.
#pragma once

#include <cstddef>

namespace trackckpt {

class ByteSink {
 public:
  virtual ~ByteSink() = default;
  // The bytes may change when this returns.
  virtual void Append(const void* data, size_t n) = 0;
};

}  // namespace trackckpt
