// `_native.SavedGraph`: the object graph of a checkpoint; and `_native.PairedTensors`, which of its variables were
// paired with which live tensors.
#pragma once

#include <nanobind/nanobind.h>

namespace trackckpt {

void DefineSavedGraph(nanobind::module_& module);

}  // namespace trackckpt
