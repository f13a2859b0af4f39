// `_native.LiveObjects`: the objects of a program and the graph that they form; and `_native.GraphRecord`, what is
// saved of that graph.
#pragma once

#include <nanobind/nanobind.h>

namespace trackckpt {

void DefineLiveObjects(nanobind::module_& module);

}  // namespace trackckpt
