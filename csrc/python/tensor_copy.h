// `_native.TensorCopy`: the bytes of plain tensors on their way to other memory.
#pragma once

#include <nanobind/nanobind.h>

namespace trackckpt {

void DefineTensorCopy(nanobind::module_& module);

}  // namespace trackckpt
