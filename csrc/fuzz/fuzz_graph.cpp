// The record of an object graph, as it is.

#include <string>

#include "encoding/utf8.h"
#include "fuzz/check.h"
#include "fuzz/input.h"
#include "graph/saved_graph.h"

using namespace trackckpt;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string record(fuzz::Input(data, size).Rest());
  fuzz::Attempt([&] {
    const SavedGraph graph(record);
    for (int32_t node = 0; node < graph.num_nodes(); ++node) {
      for (const SavedGraph::Child& child : graph.Children(node)) {
        FUZZ_CHECK(child.node >= 0 && child.node < graph.num_nodes() && IsUtf8(child.name));
      }
      for (const SavedGraph::Slot& slot : graph.Slots(node)) {
        FUZZ_CHECK(slot.variable >= 0 && slot.variable < graph.num_nodes());
        FUZZ_CHECK(slot.slot >= 0 && slot.slot < graph.num_nodes() && IsUtf8(slot.name));
      }
      for (const SavedGraph::Attribute& attribute : graph.Attributes(node)) {
        FUZZ_CHECK(IsUtf8(attribute.name) && IsUtf8(attribute.full_name) && IsUtf8(attribute.key));
      }
      FUZZ_CHECK(!graph.IsVariable(node) || graph.Attributes(node).size() == 1);
    }
  });
  return 0;
}
