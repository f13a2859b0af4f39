#include "graph/graph_union.h"

#include <cstdint>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <string_view>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "error.h"
#include "graph/messages.h"

namespace trackckpt {

namespace {

Error InvalidArgument(const std::string& message) { return Error(ErrorKind::kInvalidArgument, message); }

class GraphUnion {
 public:
  GraphUnion(const std::vector<std::unique_ptr<SavedGraph>>& graphs,
             const std::unordered_map<std::string, std::string>& renamed)
      : graphs_(graphs), renamed_(renamed) {
    for (const auto& graph : graphs_) {
      bases_.push_back(num_nodes_);
      num_nodes_ += static_cast<uint32_t>(graph->num_nodes());
    }
    parents_.resize(num_nodes_);
    std::iota(parents_.begin(), parents_.end(), 0U);
    children_.resize(num_nodes_);
  }

  std::string Record() {
    JoinChildren();
    JoinSlots();
    Number();
    ObjectGraphEncoder encoder;
    for (uint32_t node : order_) Encode(node, &encoder);
    return encoder.TakeRecord();
  }

 private:
  // A node of one of the graphs, counted through all of them, and the first of those that are the same object.
  using NodeId = uint32_t;

  NodeId IdOf(size_t graph, int32_t node) const { return bases_[graph] + static_cast<uint32_t>(node); }

  NodeId Find(NodeId node) {
    while (parents_[node] != node) node = parents_[node] = parents_[parents_[node]];
    return node;
  }

  // Two objects that have the same name below one object are one object, and so are their children of the same name.
  void JoinChildren() {
    for (size_t g = 0; g < graphs_.size(); ++g) {
      for (int32_t node = 0; node < graphs_[g]->num_nodes(); ++node) {
        auto& children = children_[IdOf(g, node)];
        for (const auto& child : graphs_[g]->Children(node)) {
          children.emplace(child.name, IdOf(g, child.node));
        }
      }
      if (g > 0) same_.emplace_back(IdOf(0, 0), IdOf(g, 0));
    }
    JoinSame();
  }

  void JoinSlots() {
    std::map<std::tuple<NodeId, std::string_view, NodeId>, NodeId> slots;
    for (size_t g = 0; g < graphs_.size(); ++g) {
      for (int32_t node = 0; node < graphs_[g]->num_nodes(); ++node) {
        for (const auto& slot : graphs_[g]->Slots(node)) {
          const auto key = std::make_tuple(Find(IdOf(g, node)), slot.name, Find(IdOf(g, slot.variable)));
          const NodeId id = IdOf(g, slot.slot);
          const auto [found, is_new] = slots.emplace(key, id);
          if (!is_new) same_.emplace_back(found->second, id);
        }
      }
    }
    JoinSame();
  }

  void JoinSame() {
    while (!same_.empty()) {
      auto [a, b] = same_.back();
      same_.pop_back();
      a = Find(a);
      b = Find(b);
      if (a == b) continue;
      // The first graph's node stands for all: its order of children comes first.
      if (a > b) std::swap(a, b);
      parents_[b] = a;
      for (const auto& [name, child] : children_[b]) {
        const auto [found, is_new] = children_[a].emplace(name, child);
        if (!is_new) same_.emplace_back(found->second, child);
      }
      children_[b].clear();
    }
  }

  void Number() {
    members_.resize(num_nodes_);
    for (size_t g = 0; g < graphs_.size(); ++g) {
      for (int32_t node = 0; node < graphs_[g]->num_nodes(); ++node) {
        auto& members = members_[Find(IdOf(g, node))];
        if (!members.empty() && members.back().first == g) {
          throw InvalidArgument("two objects of one process have the same names as one object of another: " +
                                NameOf(g, members.back().second) + " and " + NameOf(g, node));
        }
        members.emplace_back(g, node);
      }
    }
    numbers_.assign(num_nodes_, -1);
    GiveNumber(Find(0));
    for (size_t i = 0; i < order_.size(); ++i) {
      ForEachMember(order_[i], [&](size_t g, int32_t node) {
        for (const auto& child : graphs_[g]->Children(node)) GiveNumber(Find(IdOf(g, child.node)));
      });
    }
    for (size_t i = 0, count = order_.size(); i < count; ++i) {
      ForEachMember(order_[i], [&](size_t g, int32_t node) {
        for (const auto& slot : graphs_[g]->Slots(node)) {
          GiveNumber(Find(IdOf(g, slot.variable)));
          GiveNumber(Find(IdOf(g, slot.slot)));
        }
      });
    }
  }

  std::string NameOf(size_t graph, int32_t node) const {
    std::string name = "(root)";
    const auto names = graphs_[graph]->Names(node);
    if (!names) return "a slot";
    for (std::string_view part : *names) name.append(".").append(part);
    return name;
  }

  void GiveNumber(NodeId node) {
    if (numbers_[node] >= 0) return;
    numbers_[node] = static_cast<int32_t>(order_.size());
    order_.push_back(node);
  }

  template <typename Visitor>
  void ForEachMember(NodeId node, const Visitor& visit) const {
    for (const auto& [graph, member] : members_[node]) visit(graph, member);
  }

  void Encode(NodeId node, ObjectGraphEncoder* encoder) {
    std::unordered_map<std::string_view, std::string_view> keys;
    std::unordered_set<std::string_view> named;
    std::set<std::pair<std::string_view, NodeId>> kept;
    std::optional<bool> has_values;
    std::optional<int64_t> version;
    ForEachMember(node, [&](size_t g, int32_t member) {
      for (const auto& child : graphs_[g]->Children(member)) {
        if (named.insert(child.name).second) {
          encoder->AddChild(numbers_[Find(IdOf(g, child.node))], child.name);
        }
      }
    });
    ForEachMember(node, [&](size_t g, int32_t member) {
      for (const auto& attribute : graphs_[g]->Attributes(member)) {
        const auto [found, is_new] = keys.emplace(attribute.name, attribute.key);
        if (!is_new) {
          if (found->second == attribute.key) continue;
          throw InvalidArgument(NameOf(g, member) + " has its value under " + std::string(attribute.key) +
                                " in one process and under " + std::string(found->second) + " in another");
        }
        const auto other = renamed_.find(std::string(attribute.key));
        encoder->AddAttribute(attribute.name, attribute.full_name,
                              other == renamed_.end() ? attribute.key : std::string_view(other->second));
      }
    });
    ForEachMember(node, [&](size_t g, int32_t member) {
      for (const auto& slot : graphs_[g]->Slots(member)) {
        const NodeId variable = Find(IdOf(g, slot.variable));
        if (!kept.emplace(slot.name, variable).second) continue;
        encoder->AddSlotVariable(numbers_[variable], slot.name, numbers_[Find(IdOf(g, slot.slot))]);
      }
      if (const auto flag = graphs_[g]->HasValues(member)) has_values = has_values.value_or(false) || *flag;
      if (!version) version = graphs_[g]->ModuleVersion(member);
    });
    if (has_values) encoder->SetHasCheckpointValues(*has_values);
    if (version) encoder->SetModuleVersion(*version);
    encoder->EndNode();
  }

  const std::vector<std::unique_ptr<SavedGraph>>& graphs_;
  const std::unordered_map<std::string, std::string>& renamed_;
  uint32_t num_nodes_ = 0;
  std::vector<uint32_t> bases_;  // by graph, its first node
  std::vector<NodeId> parents_;  // of a forest, each of whose trees is one object
  std::vector<std::unordered_map<std::string_view, NodeId>> children_;  // by root of such a tree
  std::vector<std::pair<NodeId, NodeId>> same_;                         // still to be joined
  std::vector<std::vector<std::pair<size_t, int32_t>>> members_;        // by root, in the order of the graphs
  std::vector<int32_t> numbers_;                                        // by root
  std::vector<NodeId> order_;                                           // roots by number
};

}  // namespace

std::string UnionOfGraphs(const std::vector<std::unique_ptr<SavedGraph>>& graphs,
                          const std::unordered_map<std::string, std::string>& renamed) {
  if (graphs.empty()) throw InvalidArgument("there is no graph to join");
  return GraphUnion(graphs, renamed).Record();
}

}  // namespace trackckpt
