#include "bundle/element_form.h"

#include "bundle/dtype.h"

namespace trackckpt {

ElementForm::ElementForm(int32_t dtype, ByteOrder order)
    : swap_width_(order == kNativeByteOrder ? 1 : ComponentSize(dtype)), is_bool_(dtype == kDtypeBool) {}

void ElementForm::ToMemory(void* data, uint64_t size) const {
  if (swap_width_ > 1) SwapBytes(data, size, swap_width_);
  if (!is_bool_) return;
  uint8_t* const bytes = static_cast<uint8_t*>(data);
  for (uint64_t i = 0; i < size; ++i) bytes[i] = bytes[i] != 0;
}

}  // namespace trackckpt
