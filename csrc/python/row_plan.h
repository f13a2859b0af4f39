// `_native.RowPlan`: stored values on their way into Python's tensors.
#pragma once

#include <nanobind/nanobind.h>

namespace trackckpt {

void DefineRowPlan(nanobind::module_& module);

}  // namespace trackckpt
