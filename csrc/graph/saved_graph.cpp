#include "graph/saved_graph.h"

#include <limits>

#include "encoding/utf8.h"
#include "encoding/wire.h"
#include "error.h"
#include "graph/keys.h"
#include "graph/messages.h"

namespace trackckpt {

namespace {

Error Malformed(const std::string& what) {
  return Error(ErrorKind::kDataLoss, "it does not parse (" + what + ")");
}

std::string_view Text(const WireReader& reader) {
  if (!IsUtf8(reader.bytes())) throw Malformed("a name is no UTF-8");
  return reader.bytes();
}

// Calls `take` with the reader at each field of a message.
template <typename Take>
void ForEachField(std::string_view message, Take take) {
  WireReader reader(message);
  while (reader.Next()) take(reader);
  if (!reader.ok()) throw Malformed("a field is cut or malformed");
}

int32_t Number(const WireReader& reader) { return static_cast<int32_t>(reader.number()); }

SavedGraph::Child ParseChild(std::string_view message) {
  SavedGraph::Child child;
  ForEachField(message, [&](const WireReader& reader) {
    if (reader.Is(field::kNodeId, WireType::kVarint)) child.node = Number(reader);
    if (reader.Is(field::kLocalName, WireType::kBytes)) child.name = Text(reader);
  });
  return child;
}

SavedGraph::Attribute ParseAttribute(std::string_view message) {
  SavedGraph::Attribute attribute;
  ForEachField(message, [&](const WireReader& reader) {
    if (reader.Is(field::kAttributeName, WireType::kBytes)) attribute.name = Text(reader);
    if (reader.Is(field::kFullName, WireType::kBytes)) attribute.full_name = Text(reader);
    if (reader.Is(field::kCheckpointKey, WireType::kBytes)) attribute.key = Text(reader);
  });
  return attribute;
}

SavedGraph::Slot ParseSlot(std::string_view message) {
  SavedGraph::Slot slot;
  ForEachField(message, [&](const WireReader& reader) {
    if (reader.Is(field::kOriginalVariable, WireType::kVarint)) slot.variable = Number(reader);
    if (reader.Is(field::kSlotName, WireType::kBytes)) slot.name = Text(reader);
    if (reader.Is(field::kSlotVariable, WireType::kVarint)) slot.slot = Number(reader);
  });
  return slot;
}

}  // namespace

SavedGraph::SavedGraph(std::string record) : record_(std::move(record)) {
  if (record_.size() > std::numeric_limits<uint32_t>::max()) throw Malformed("it is larger than 4 GiB");
  Parse();
  CheckReferences();
  FindWays();
}

void SavedGraph::Parse() {
  ForEachField(record_, [&](const WireReader& reader) {
    if (reader.Is(field::kNodes, WireType::kBytes)) ParseNode(reader.bytes());
  });
}

// A message that is there several times is merged, as protobuf does.
void SavedGraph::ParseNode(std::string_view message) {
  Node node;
  node.children.begin = static_cast<uint32_t>(children_.size());
  node.attributes.begin = static_cast<uint32_t>(attributes_.size());
  node.slots.begin = static_cast<uint32_t>(slots_.size());
  ForEachField(message, [&](const WireReader& reader) {
    if (reader.Is(field::kChildren, WireType::kBytes)) {
      children_.push_back(ParseChild(reader.bytes()));
    } else if (reader.Is(field::kAttributes, WireType::kBytes)) {
      attributes_.push_back(ParseAttribute(reader.bytes()));
    } else if (reader.Is(field::kSlotVariables, WireType::kBytes)) {
      slots_.push_back(ParseSlot(reader.bytes()));
    } else if (reader.Is(field::kRegisteredSaver, WireType::kBytes)) {
      if (node.saver < 0) {
        node.saver = static_cast<int32_t>(savers_.size());
        savers_.emplace_back();
      }
      auto& [name, object_name] = savers_[static_cast<size_t>(node.saver)];
      ForEachField(reader.bytes(), [&, &name = name, &object_name = object_name](const WireReader& part) {
        if (part.Is(field::kSaverName, WireType::kBytes)) name = Text(part);
        if (part.Is(field::kObjectName, WireType::kBytes)) object_name = Text(part);
      });
    } else if (reader.Is(field::kHasCheckpointValues, WireType::kBytes)) {
      if (node.has_values < 0) node.has_values = 0;
      ForEachField(reader.bytes(), [&](const WireReader& part) {
        if (part.Is(field::kWrapped, WireType::kVarint)) node.has_values = part.number() != 0;
      });
    } else if (reader.Is(field::kModuleVersion, WireType::kBytes)) {
      node.has_version = true;
      ForEachField(reader.bytes(), [&](const WireReader& part) {
        if (part.Is(field::kWrapped, WireType::kVarint)) node.version = static_cast<int64_t>(part.number());
      });
    }
  });
  node.children.end = static_cast<uint32_t>(children_.size());
  node.attributes.end = static_cast<uint32_t>(attributes_.size());
  node.slots.end = static_cast<uint32_t>(slots_.size());
  nodes_.push_back(node);
}

void SavedGraph::CheckReferences() const {
  if (nodes_.empty()) throw Error(ErrorKind::kDataLoss, "it has no root node");
  const auto check = [&](int32_t from, int32_t to) {
    if (to >= 0 && to < num_nodes()) return;
    throw Error(ErrorKind::kDataLoss, "node " + std::to_string(from) + " refers to node " +
                                          std::to_string(to) + ", but there are " +
                                          std::to_string(num_nodes()) + " nodes");
  };
  for (int32_t node = 0; node < num_nodes(); ++node) {
    for (const Child& child : Children(node)) check(node, child.node);
    for (const Slot& slot : Slots(node)) {
      check(node, slot.variable);
      check(node, slot.slot);
    }
  }
}

void SavedGraph::FindWays() {
  ways_.resize(nodes_.size());
  std::vector<int32_t> queue{0};
  for (size_t next = 0; next < queue.size(); ++next) {
    const Range children = At(queue[next]).children;
    for (uint32_t i = children.begin; i < children.end; ++i) {
      Way& way = ways_[static_cast<size_t>(children_[i].node)];
      if (children_[i].node == 0 || way.parent >= 0) continue;
      way.parent = queue[next];
      way.child = static_cast<int32_t>(i);
      queue.push_back(children_[i].node);
    }
  }
  for (int32_t node = 0; node < num_nodes(); ++node) {
    const Range slots = At(node).slots;
    for (uint32_t i = slots.begin; i < slots.end; ++i) {
      Way& way = ways_[static_cast<size_t>(slots_[i].slot)];
      way.optimizer = node;
      way.slot = static_cast<int32_t>(i);
    }
  }
}

std::optional<std::vector<std::string_view>> SavedGraph::Names(int32_t node) const {
  std::vector<std::string_view> names;
  while (node != 0) {
    const Way& way = ways_[static_cast<size_t>(node)];
    if (way.parent < 0) return std::nullopt;
    names.push_back(children_[static_cast<size_t>(way.child)].name);
    node = way.parent;
  }
  return std::vector<std::string_view>(names.rbegin(), names.rend());
}

std::pair<int32_t, const SavedGraph::Slot*> SavedGraph::SlotOwner(int32_t node) const {
  const Way& way = ways_[static_cast<size_t>(node)];
  return {way.optimizer, way.slot < 0 ? nullptr : &slots_[static_cast<size_t>(way.slot)]};
}

std::optional<std::pair<std::string_view, std::string_view>> SavedGraph::RegisteredSaver(int32_t node) const {
  if (At(node).saver < 0) return std::nullopt;
  return savers_[static_cast<size_t>(At(node).saver)];
}

std::optional<bool> SavedGraph::HasValues(int32_t node) const {
  if (At(node).has_values < 0) return std::nullopt;
  return At(node).has_values != 0;
}

std::optional<int64_t> SavedGraph::ModuleVersion(int32_t node) const {
  if (!At(node).has_version) return std::nullopt;
  return At(node).version;
}

bool SavedGraph::IsVariable(int32_t node) const {
  const Span<Attribute> attributes = Attributes(node);
  return attributes.size() == 1 && attributes[0].name == kVariableValue && Children(node).size() == 0 &&
         Slots(node).size() == 0 && At(node).saver < 0;
}

}  // namespace trackckpt
