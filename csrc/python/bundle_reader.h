// `_native.BundleReader`, `_native.V1Reader`, and the entries that they find.
#pragma once

#include <nanobind/nanobind.h>

namespace trackckpt {

void DefineEntry(nanobind::module_& module);
void DefineReader(nanobind::module_& module);
void DefineV1Reader(nanobind::module_& module);

}  // namespace trackckpt
