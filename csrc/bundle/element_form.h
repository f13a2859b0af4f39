// What fixed-size elements that were read need before they are what memory holds: their bytes in the order of this
// machine, and bools that are 0 or 1. (Any other byte would print as true and count as more than one.)
#pragma once

#include <cstdint>

#include "encoding/byte_order.h"

namespace trackckpt {

class ElementForm {
 public:
  // `order` is that of the data file.
  ElementForm(int32_t dtype, ByteOrder order);

  // `data` holds whole elements, as they lie in the file. It need not be aligned.
  void ToMemory(void* data, uint64_t size) const;

 private:
  uint32_t swap_width_;  // 1 where nothing is to be swapped
  bool is_bool_;
};

}  // namespace trackckpt
