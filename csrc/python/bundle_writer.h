// `_native.BundleWriter`, and what makes one index of several.
#pragma once

#include <nanobind/nanobind.h>

namespace trackckpt {

void DefineWriter(nanobind::module_& module);
void DefineMerge(nanobind::module_& module);

}  // namespace trackckpt
