// The shape of a program's objects, as a walk finds it: nodes and their names, without the objects. Keys and the
// record of the object graph follow from it, and from nothing else.
//
//    nodes   in breadth-first order from node 0, the root; a tensor is a leaf
//    edges   those of a node lie together, in the order of its children
//    text    all names, one after the other
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace trackckpt {

class LiveGraph {
 public:
  static constexpr int32_t kNone = -1;

  // What a node owns under a name, other than the value of a leaf.
  struct Attribute {
    int32_t node;
    std::string name;
    // What the value is called where it came from; empty where its path tells.
    std::string full_name;
    bool operator==(const Attribute& o) const {
      return node == o.node && name == o.name && full_name == o.full_name;
    }
  };
  struct Version {
    int32_t node;
    int64_t version;
    bool operator==(const Version& o) const { return node == o.node && version == o.version; }
  };
  // A tensor that an optimizer keeps for a variable.
  struct Slot {
    int32_t optimizer;
    int32_t variable;
    std::string name;
    bool operator==(const Slot& o) const {
      return optimizer == o.optimizer && variable == o.variable && name == o.name;
    }
  };
  // What the nodes own. All lists are ordered by node, slots by optimizer, name and variable.
  struct Contents {
    std::vector<Attribute> attributes;
    std::vector<Version> versions;
    std::vector<Slot> slots;
    bool operator==(const Contents& o) const {
      return attributes == o.attributes && versions == o.versions && slots == o.slots;
    }
  };
  struct Edge {
    std::string_view name;
    int32_t child;
  };

  // Node 0.
  void AddRoot(bool is_module);
  // The children of a node, one by one; nothing else is added meanwhile, and a node gets its children once.
  void BeginChildren(int32_t parent);
  // To a node that is there already.
  void AddEdge(std::string_view name, int32_t child);
  // To a new node, whose number is returned.
  int32_t AddChild(std::string_view name, bool is_tensor, bool is_module);
  // Numbers the nodes breadth first, for children that were added late. The old numbers, by the new ones.
  std::vector<int32_t> Renumber();

  int32_t num_nodes() const { return static_cast<int32_t>(nodes_.size()); }
  bool is_tensor(int32_t node) const { return nodes_[At(node)].is_tensor; }
  std::vector<Edge> Children(int32_t node) const;
  // From the root on, by the way on which the node was found first.
  std::vector<std::string_view> Names(int32_t node) const;
  // How many of its names lead to the outermost module above a node, or to itself; kNone where there is none.
  int32_t ModuleDepth(int32_t node) const;
  std::string Path(int32_t node) const;
  // Its names from the outermost module on, or from the root where there is none, joined by dots.
  std::string FullName(int32_t node) const;

  // The record. Is told the keys of all values in the order of the data file: attributes and the values of leaves
  // by node, slots, and the python states last.
  std::string Encode(const Contents& contents, const std::function<void(std::string_view)>& tell_key) const;

  // Equal graphs have equal names, edges and numbers.
  bool operator==(const LiveGraph& other) const;

 private:
  struct Text {
    uint32_t begin = 0;
    uint32_t size = 0;
    bool operator==(const Text& o) const { return begin == o.begin && size == o.size; }
  };
  struct Node {
    int32_t parent = kNone;
    int32_t module = kNone;  // the outermost one above, or the node itself
    Text name;
    uint32_t first_edge = 0;
    uint32_t num_edges = 0;
    bool is_tensor = false;
    bool operator==(const Node& o) const {
      return parent == o.parent && module == o.module && name == o.name && first_edge == o.first_edge &&
             num_edges == o.num_edges && is_tensor == o.is_tensor;
    }
  };
  struct StoredEdge {
    Text name;
    int32_t child;
    bool operator==(const StoredEdge& o) const { return name == o.name && child == o.child; }
  };

  static size_t At(int32_t node) { return static_cast<size_t>(node); }
  Text Keep(std::string_view text);
  std::string_view View(Text text) const { return std::string_view(text_).substr(text.begin, text.size); }
  bool StartsFullName(int32_t parent, int32_t module) const;
  std::vector<bool> WithValues(const Contents& contents) const;

  std::vector<Node> nodes_;
  std::vector<StoredEdge> edges_;
  std::string text_;
  int32_t current_ = kNone;  // whose children are being added
};

}  // namespace trackckpt
