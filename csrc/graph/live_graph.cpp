#include "graph/live_graph.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "error.h"
#include "graph/keys.h"
#include "graph/messages.h"

namespace trackckpt {

namespace {

// The paths, or the full names, of those nodes whose are still asked for.
class Paths {
 public:
  explicit Paths(size_t num_nodes) : by_node_(num_nodes) {}
  const std::string& operator[](int32_t node) const { return by_node_[static_cast<size_t>(node)]; }
  std::string* At(int32_t node) { return &by_node_[static_cast<size_t>(node)]; }

 private:
  std::vector<std::string> by_node_;
};

// What of a list that is ordered by node belongs to one node after the other.
template <typename Item, typename NodeOf>
class Cursor {
 public:
  Cursor(const std::vector<Item>& items, NodeOf node_of)
      : next_(items.begin()), end_(items.end()), node_of_(node_of) {}
  // The next item of a node, or null.
  const Item* Next(int32_t node) {
    if (next_ == end_ || node_of_(*next_) != node) return nullptr;
    return &*next_++;
  }
  bool is_at_end() const { return next_ == end_; }

 private:
  typename std::vector<Item>::const_iterator next_, end_;
  NodeOf node_of_;
};

}  // namespace

LiveGraph::Text LiveGraph::Keep(std::string_view text) {
  if (text_.size() + text.size() > std::numeric_limits<uint32_t>::max()) {
    throw Error(ErrorKind::kInvalidArgument, "The names of all objects together take more than 4 GiB");
  }
  const Text kept{static_cast<uint32_t>(text_.size()), static_cast<uint32_t>(text.size())};
  text_.append(text);
  return kept;
}

void LiveGraph::AddRoot(bool is_module) {
  if (!nodes_.empty()) throw Error(ErrorKind::kInvalidArgument, "A graph has one root");
  Node root;
  if (is_module) root.module = 0;
  nodes_.push_back(root);
}

void LiveGraph::BeginChildren(int32_t parent) {
  if (nodes_[At(parent)].num_edges > 0) {
    throw Error(ErrorKind::kInvalidArgument, "The children of a node are added at once");
  }
  current_ = parent;
  nodes_[At(parent)].first_edge = static_cast<uint32_t>(edges_.size());
}

void LiveGraph::AddEdge(std::string_view name, int32_t child) {
  edges_.push_back({Keep(name), child});
  ++nodes_[At(current_)].num_edges;
}

int32_t LiveGraph::AddChild(std::string_view name, bool is_tensor, bool is_module) {
  if (nodes_.size() >= static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    throw Error(ErrorKind::kInvalidArgument, "There are more objects than a checkpoint can number");
  }
  const int32_t child = num_nodes();
  AddEdge(name, child);
  Node node;
  node.parent = current_;
  node.name = edges_.back().name;
  node.is_tensor = is_tensor;
  node.module = nodes_[At(current_)].module;
  if (is_module && node.module == kNone) node.module = child;
  nodes_.push_back(node);
  return child;
}

std::vector<int32_t> LiveGraph::Renumber() {
  if (nodes_.empty()) return {};
  std::vector<int32_t> order{0};
  std::vector<int32_t> number(nodes_.size(), kNone);
  number[0] = 0;
  order.reserve(nodes_.size());
  for (size_t i = 0; i < order.size(); ++i) {
    const Node& node = nodes_[At(order[i])];
    for (uint32_t e = node.first_edge; e < node.first_edge + node.num_edges; ++e) {
      const int32_t child = edges_[e].child;
      if (number[At(child)] != kNone) continue;
      number[At(child)] = static_cast<int32_t>(order.size());
      order.push_back(child);
    }
  }
  const auto renumbered = [&](int32_t node) { return node == kNone ? kNone : number[At(node)]; };
  std::vector<Node> nodes;
  nodes.reserve(order.size());
  for (int32_t old : order) {
    Node node = nodes_[At(old)];
    node.parent = renumbered(node.parent);
    node.module = renumbered(node.module);
    nodes.push_back(node);
  }
  nodes_ = std::move(nodes);
  for (StoredEdge& edge : edges_) edge.child = renumbered(edge.child);
  return order;
}

std::vector<LiveGraph::Edge> LiveGraph::Children(int32_t node) const {
  const Node& parent = nodes_[At(node)];
  std::vector<Edge> children;
  for (uint32_t e = parent.first_edge; e < parent.first_edge + parent.num_edges; ++e) {
    children.push_back({View(edges_[e].name), edges_[e].child});
  }
  return children;
}

std::vector<std::string_view> LiveGraph::Names(int32_t node) const {
  std::vector<std::string_view> names;
  for (; node != 0; node = nodes_[At(node)].parent) names.push_back(View(nodes_[At(node)].name));
  std::reverse(names.begin(), names.end());
  return names;
}

int32_t LiveGraph::ModuleDepth(int32_t node) const {
  const int32_t module = nodes_[At(node)].module;
  return module == kNone ? kNone : static_cast<int32_t>(Names(module).size());
}

std::string LiveGraph::Path(int32_t node) const {
  std::string path;
  const std::vector<std::string_view> names = Names(node);
  for (size_t i = 0; i < names.size(); ++i) {
    if (i > 0) path.push_back('/');
    AppendEscaped(&path, names[i]);
  }
  return path;
}

std::string LiveGraph::FullName(int32_t node) const {
  std::string full_name;
  const std::vector<std::string_view> names = Names(node);
  const size_t begin = static_cast<size_t>(std::max(ModuleDepth(node), 0));
  for (size_t i = begin; i < names.size(); ++i) {
    if (i > begin) full_name.push_back('.');
    full_name.append(names[i]);
  }
  return full_name;
}

// Whether the full names of a node's children, which belong to `module`, begin with their local names.
bool LiveGraph::StartsFullName(int32_t parent, int32_t module) const {
  return module == kNone ? parent == 0 : parent == module;
}

// Whether a node or anything below it owns a value; the graph may have cycles.
std::vector<bool> LiveGraph::WithValues(const Contents& contents) const {
  std::vector<bool> marked(nodes_.size());
  std::vector<int32_t> stack;
  const auto mark = [&](int32_t node) {
    if (marked[At(node)]) return;
    marked[At(node)] = true;
    stack.push_back(node);
  };
  // Whose children a node is besides its first parent's: edges by child.
  std::vector<uint32_t> first_of(nodes_.size() + 1);
  for (const StoredEdge& edge : edges_) ++first_of[At(edge.child) + 1];
  for (size_t i = 1; i < first_of.size(); ++i) first_of[i] += first_of[i - 1];
  std::vector<int32_t> parents(edges_.size());
  std::vector<uint32_t> next(first_of.begin(), first_of.end() - 1);
  for (int32_t parent = 0; parent < num_nodes(); ++parent) {
    const Node& node = nodes_[At(parent)];
    for (uint32_t e = node.first_edge; e < node.first_edge + node.num_edges; ++e) {
      parents[next[At(edges_[e].child)]++] = parent;
    }
  }
  for (int32_t node = 0; node < num_nodes(); ++node) {
    if (is_tensor(node)) mark(node);
  }
  for (const Attribute& attribute : contents.attributes) mark(attribute.node);
  for (const Slot& slot : contents.slots) mark(slot.optimizer);
  while (!stack.empty()) {
    const int32_t node = stack.back();
    stack.pop_back();
    for (uint32_t p = first_of[At(node)]; p < first_of[At(node) + 1]; ++p) mark(parents[p]);
  }
  return marked;
}

std::string LiveGraph::Encode(const Contents& contents,
                              const std::function<void(std::string_view)>& tell_key) const {
  const std::vector<bool> has_values = WithValues(contents);
  const auto node_of_attribute = [](const Attribute& attribute) { return attribute.node; };
  const auto node_of_version = [](const Version& version) { return version.node; };
  const auto node_of_slot = [](const Slot& slot) { return slot.optimizer; };
  Cursor attributes(contents.attributes, node_of_attribute);
  Cursor versions(contents.versions, node_of_version);
  Cursor slots(contents.slots, node_of_slot);
  Paths paths(nodes_.size()), full_names(nodes_.size());
  std::vector<std::string> states;
  std::string path, full_name, key, name;
  ObjectGraphEncoder encoder;
  int32_t slot_id = num_nodes();
  for (int32_t id = 0; id < num_nodes(); ++id) {
    const Node& node = nodes_[At(id)];
    path.clear();
    full_name.clear();
    if (id != 0) {
      if (node.parent != 0) path.append(paths[node.parent]).push_back('/');
      AppendEscaped(&path, View(node.name));
    }
    if (id != 0 && node.module != id) {
      if (!StartsFullName(node.parent, node.module)) full_name.append(full_names[node.parent]).push_back('.');
      full_name.append(View(node.name));
    }
    for (uint32_t e = node.first_edge; e < node.first_edge + node.num_edges; ++e) {
      encoder.AddChild(edges_[e].child, View(edges_[e].name));
    }
    if (node.is_tensor) {
      key.clear();
      AppendAttributeKey(&key, path, kVariableValue);
      encoder.AddAttribute(kVariableValue, full_name, key);
      tell_key(key);
    }
    while (const Attribute* attribute = attributes.Next(id)) {
      key.clear();
      name.clear();
      AppendAttributeKey(&key, path, attribute->name);
      AppendEscaped(&name,
                    attribute->name);  // as in TensorFlow's files, the recorded name is the escaped one
      if (!attribute->full_name.empty()) full_name = attribute->full_name;
      encoder.AddAttribute(name, attribute->name == kVariableValue ? std::string_view(full_name) : "", key);
      if (attribute->name == kPythonState) {
        states.push_back(key);
      } else {
        tell_key(key);
      }
    }
    while (const Slot* slot = slots.Next(id)) encoder.AddSlotVariable(slot->variable, slot->name, slot_id++);
    encoder.SetHasCheckpointValues(has_values[At(id)]);
    while (const Version* version = versions.Next(id)) encoder.SetModuleVersion(version->version);
    encoder.EndNode();
    if (node.num_edges > 0 || !contents.slots.empty()) {
      *paths.At(id) = path;
      *full_names.At(id) = full_name;
    }
  }
  if (!attributes.is_at_end() || !versions.is_at_end() || !slots.is_at_end()) {
    throw Error(ErrorKind::kInvalidArgument, "What is said of nodes is not in the order of the nodes");
  }
  for (const Slot& slot : contents.slots) {
    path.clear();
    key.clear();
    AppendSlotPath(&path, paths[slot.variable], paths[slot.optimizer], slot.name);
    AppendAttributeKey(&key, path, kVariableValue);
    full_name.assign(full_names[slot.variable]).append("/").append(slot.name);
    encoder.AddAttribute(kVariableValue, full_name, key);
    encoder.SetHasCheckpointValues(true);
    encoder.EndNode();
    tell_key(key);
  }
  for (const std::string& state : states) tell_key(state);
  return encoder.TakeRecord();
}

bool LiveGraph::operator==(const LiveGraph& other) const {
  return nodes_ == other.nodes_ && edges_ == other.edges_ && text_ == other.text_;
}

}  // namespace trackckpt
