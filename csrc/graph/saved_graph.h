// The object graph of a checkpoint, as its record (messages.h) has it. All bytes may be hostile: a record that parses
// refers to nodes that it has, and holds text where text belongs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace trackckpt {

class SavedGraph {
 public:
  struct Child {
    int32_t node = 0;
    std::string_view name;
  };
  struct Attribute {
    std::string_view name, full_name, key;
  };
  struct Slot {
    int32_t variable = 0;
    std::string_view name;
    int32_t slot = 0;
  };
  template <typename Item>
  struct Span {
    const Item* begin_;
    const Item* end_;
    const Item* begin() const { return begin_; }
    const Item* end() const { return end_; }
    size_t size() const { return static_cast<size_t>(end_ - begin_); }
    const Item& operator[](size_t i) const { return begin_[i]; }
  };

  // Throws kDataLoss; the text says what is wrong, as the end of a sentence.
  explicit SavedGraph(std::string record);
  SavedGraph(const SavedGraph&) = delete;
  SavedGraph& operator=(const SavedGraph&) = delete;

  const std::string& record() const { return record_; }
  int32_t num_nodes() const { return static_cast<int32_t>(nodes_.size()); }
  Span<Child> Children(int32_t node) const { return Part(children_, At(node).children); }
  Span<Attribute> Attributes(int32_t node) const { return Part(attributes_, At(node).attributes); }
  Span<Slot> Slots(int32_t node) const { return Part(slots_, At(node).slots); }
  // Name and object name.
  std::optional<std::pair<std::string_view, std::string_view>> RegisteredSaver(int32_t node) const;
  std::optional<bool> HasValues(int32_t node) const;
  std::optional<int64_t> ModuleVersion(int32_t node) const;

  // The names that lead to a node on the shortest way from the root; nothing where children do not lead to it.
  std::optional<std::vector<std::string_view>> Names(int32_t node) const;
  // The optimizer that has a node as a slot, and the slot; null where none has.
  std::pair<int32_t, const Slot*> SlotOwner(int32_t node) const;

  // Whether a node is a variable and nothing else: it owns one value, of that name, and refers to nothing.
  bool IsVariable(int32_t node) const;

 private:
  struct Range {
    uint32_t begin = 0;
    uint32_t end = 0;
  };
  struct Node {
    Range children, attributes, slots;
    int32_t saver = -1;
    int8_t has_values = -1;  // of a flag that is not there
    bool has_version = false;
    int64_t version = 0;
  };

  template <typename Item>
  static Span<Item> Part(const std::vector<Item>& items, Range range) {
    return {items.data() + range.begin, items.data() + range.end};
  }
  const Node& At(int32_t node) const { return nodes_[static_cast<size_t>(node)]; }
  void Parse();
  void ParseNode(std::string_view message);
  void CheckReferences() const;
  void FindWays();

  const std::string record_;
  std::vector<Node> nodes_;
  std::vector<Child> children_;
  std::vector<Attribute> attributes_;
  std::vector<Slot> slots_;
  std::vector<std::pair<std::string_view, std::string_view>> savers_;
  // By node: its parent on the shortest way, and which of all children it is; the optimizer that has it as a slot, and
  // which of all slots it is. -1 where there is none.
  struct Way {
    int32_t parent = -1, child = -1, optimizer = -1, slot = -1;
  };
  std::vector<Way> ways_;
};

}  // namespace trackckpt
