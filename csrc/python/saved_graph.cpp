#include "python/saved_graph.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "error.h"
#include "graph/graph_union.h"
#include "graph/saved_graph.h"
#include "python/address_table.h"
#include "python/tensor_reader.h"
#include "python/text.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace trackckpt {

namespace {

// --- SavedGraph ------------------------------------------------------------------------------------------

void InitSavedGraph(SavedGraph* self, const nb::bytes& record) {
  new (self) SavedGraph(std::string(record.c_str(), record.size()));
}

int32_t CheckedNode(const SavedGraph& graph, int32_t node) {
  if (node < 0 || node >= graph.num_nodes()) throw nb::index_error("no such node");
  return node;
}

nb::tuple ChildrenOf(const SavedGraph& self, int32_t node) {
  nb::list children;
  for (const SavedGraph::Child& child : self.Children(CheckedNode(self, node))) {
    children.append(nb::make_tuple(child.node, TextOf(child.name)));
  }
  return nb::tuple(children);
}

nb::tuple ChildAt(const SavedGraph& self, int32_t node, size_t position) {
  const auto children = self.Children(CheckedNode(self, node));
  if (position >= children.size()) throw nb::index_error("no such child");
  return nb::make_tuple(children[position].node, TextOf(children[position].name));
}

nb::object FindChild(const SavedGraph& self, int32_t node, const nb::str& name) {
  const std::string_view wanted = Utf8(name);
  for (const SavedGraph::Child& child : self.Children(CheckedNode(self, node))) {
    if (child.name == wanted) return nb::int_(child.node);
  }
  return nb::none();
}

nb::tuple AttributesOf(const SavedGraph& self, int32_t node) {
  nb::list attributes;
  for (const SavedGraph::Attribute& attribute : self.Attributes(CheckedNode(self, node))) {
    attributes.append(
        nb::make_tuple(TextOf(attribute.name), TextOf(attribute.full_name), TextOf(attribute.key)));
  }
  return nb::tuple(attributes);
}

nb::tuple SlotsOf(const SavedGraph& self, int32_t node) {
  nb::list slots;
  for (const SavedGraph::Slot& slot : self.Slots(CheckedNode(self, node))) {
    slots.append(nb::make_tuple(slot.variable, TextOf(slot.name), slot.slot));
  }
  return nb::tuple(slots);
}

nb::object SaverOf(const SavedGraph& self, int32_t node) {
  const auto saver = self.RegisteredSaver(CheckedNode(self, node));
  return saver ? nb::object(nb::make_tuple(TextOf(saver->first), TextOf(saver->second))) : nb::none();
}

nb::object HasValues(const SavedGraph& self, int32_t node) {
  const auto has_values = self.HasValues(CheckedNode(self, node));
  return has_values ? nb::object(nb::bool_(*has_values)) : nb::none();
}

nb::object VersionOf(const SavedGraph& self, int32_t node) {
  const auto version = self.ModuleVersion(CheckedNode(self, node));
  return version ? nb::object(nb::int_(*version)) : nb::none();
}

nb::object NamesOf(const SavedGraph& self, int32_t node) {
  const auto names = self.Names(CheckedNode(self, node));
  if (!names) return nb::none();
  nb::list list;
  for (std::string_view name : *names) list.append(TextOf(name));
  return nb::tuple(list);
}

nb::object SlotOwnerOf(const SavedGraph& self, int32_t node) {
  const auto [optimizer, slot] = self.SlotOwner(CheckedNode(self, node));
  if (slot == nullptr) return nb::none();
  return nb::make_tuple(optimizer, slot->variable, TextOf(slot->name));
}

nb::list OwnersOf(const SavedGraph& self, bool of_slots) {
  nb::list owners;
  for (int32_t node = 0; node < self.num_nodes(); ++node) {
    if (of_slots ? self.Slots(node).size() > 0
                 : self.Attributes(node).size() > 0 || self.RegisteredSaver(node)) {
      owners.append(node);
    }
  }
  return owners;
}

nb::bytes JoinGraphs(const std::vector<nb::bytes>& records, const nb::dict& renamed) {
  std::vector<std::unique_ptr<SavedGraph>> graphs;
  for (const nb::bytes& record : records) {
    graphs.push_back(std::make_unique<SavedGraph>(std::string(record.c_str(), record.size())));
  }
  std::unordered_map<std::string, std::string> keys;
  for (const auto [old_key, new_key] : renamed) keys.emplace(Utf8(old_key), Utf8(new_key));
  std::string joined;
  {
    const nb::gil_scoped_release release;
    joined = UnionOfGraphs(graphs, keys);
  }
  return nb::bytes(joined.data(), joined.size());
}

// --- PairedTensors ---------------------------------------------------------------------------------------

// Which nodes of a saved graph are bound, in which order; and for variables that were paired here, to which live
// tensors.
class PairedTensors {
 public:
  PairedTensors(const SavedGraph& graph, const nb::tuple& types)
      : graph_(graph),
        reader_(types, /*with_devices=*/true),
        order_(static_cast<size_t>(graph.num_nodes()), -1) {}

  // Pairs children of a node that are variables and free with what is under their names in dicts, or under
  // their numbers in a sequence, where that is an ordinary tensor. The positions of all other children.
  nb::list Pair(int32_t node, const nb::tuple& sources) {
    nb::list others;
    // Nodes and objects that others among the children may come to, which were asked for before.
    AddressTable nodes_ahead, objects_ahead;
    const auto children = graph_.Children(CheckedNode(graph_, node));
    std::vector<nb::object> live;
    live.reserve(children.size());
    for (const SavedGraph::Child& child : children) live.push_back(Lookup(child.name, sources));
    for (size_t i = 0; i < children.size(); ++i) {
      reader_.Approach(i, live.size(), [&](size_t at) { return live[at].ptr(); });
      const auto child = static_cast<uint64_t>(children[i].node);
      const bool is_ahead = nodes_ahead.Find(child) >= 0 || objects_ahead.Find(AddressOf(live[i])) >= 0;
      if (!is_ahead && live[i].is_valid() && IsFree(children[i].node) && Take(node, i, live[i])) continue;
      others.append(i);
      if (nodes_ahead.Find(child) < 0) nodes_ahead.Add(child, 0);
      if (objects_ahead.Find(AddressOf(live[i])) < 0) objects_ahead.Add(AddressOf(live[i]), 0);
    }
    return others;
  }

  // Says that a node is bound to something else.
  void Mark(int32_t node) {
    if (node < 0) throw nb::index_error("no such node");
    const auto index = static_cast<size_t>(node);
    if (index >= order_.size()) order_.resize(index + 1, -1);  // modules may have added nodes to the graph
    if (order_[index] < 0) order_[index] = next_order_++;
  }
  // Says that a tensor takes other values.
  void Claim(uint64_t address) {
    if (addresses_.Find(address) < 0) addresses_.Add(address, kClaimed);
  }

  bool Contains(int32_t node) const { return PairOf(node) != nullptr; }
  size_t size() const { return pairs_.size(); }
  // The place of a node in the order in which all were bound; -1 where it is not.
  int32_t Order(int32_t node) const {
    return node >= 0 && static_cast<size_t>(node) < order_.size() ? order_[static_cast<size_t>(node)] : -1;
  }
  bool HasTaken(uint64_t address) const { return addresses_.Find(address) >= 0; }

  nb::object Tensor(int32_t node) const {
    const PairedNode* const pair = PairOf(node);
    return pair == nullptr || !pair->tensor.is_valid() ? nb::none() : pair->tensor;
  }
  uint64_t Address(int32_t node) const { return Require(node).address; }
  nb::tuple Place(int32_t node) const {
    const PairedNode& pair = Require(node);
    return nb::make_tuple(pair.parent, TextOf(graph_.Children(pair.parent)[pair.position].name));
  }

  // The nodes that are paired with objects; -1 for those that are paired with none.
  nb::list FindAll(const nb::list& objects) const {
    nb::list found;
    for (nb::handle object : objects) {
      const int32_t index = addresses_.Find(AddressOf(object));
      found.append(index < 0 || index == kClaimed ? -1 : pairs_[static_cast<size_t>(index)].node);
    }
    return found;
  }

  nb::list Nodes() const {
    nb::list nodes;
    for (const PairedNode& pair : pairs_) nodes.append(pair.node);
    return nodes;
  }
  nb::list Keys() const {
    nb::list keys;
    for (const PairedNode& pair : pairs_) keys.append(TextOf(graph_.Attributes(pair.node)[0].key));
    return keys;
  }
  nb::list Tensors() const {
    nb::list tensors;
    for (const PairedNode& pair : pairs_) tensors.append(pair.tensor);
    return tensors;
  }

  void SetAttribute(const nb::str& name, nb::handle value) const {
    for (const PairedNode& pair : pairs_) {
      if (!pair.tensor.is_valid()) throw nb::value_error("the tensors were released");
      if (PyObject_SetAttr(pair.tensor.ptr(), name.ptr(), value.ptr()) != 0) throw nb::python_error();
    }
  }
  // Keeps the tensors alive no longer; their addresses stay.
  void Release() {
    for (PairedNode& pair : pairs_) pair.tensor.reset();
  }

 private:
  static constexpr int32_t kClaimed = 0x7fffffff;

  struct PairedNode {
    int32_t node;
    int32_t parent;
    uint32_t position;  // among the children of the parent
    uint64_t address;
    nb::object tensor;
  };

  static uint64_t AddressOf(nb::handle object) { return reinterpret_cast<uintptr_t>(object.ptr()); }

  bool IsFree(int32_t node) const { return order_[static_cast<size_t>(node)] < 0 && graph_.IsVariable(node); }

  static nb::object Lookup(std::string_view name, const nb::tuple& sources) {
    const nb::object text = TextOf(name);
    for (nb::handle source : sources) {
      PyObject* found = nullptr;
      if (PyDict_Check(source.ptr())) {
        found = PyDict_GetItemWithError(source.ptr(), text.ptr());
        if (found == nullptr && PyErr_Occurred()) throw nb::python_error();
      } else {
        found = Element(name, source);
      }
      if (found != nullptr) return nb::borrow(found);
    }
    return nb::object();
  }

  // The element of a list or tuple whose number is spelled as a name; borrowed, null where there is none.
  static PyObject* Element(std::string_view name, nb::handle sequence) {
    const bool has_other_spelling = name.empty() || name.size() > 9 || (name[0] == '0' && name.size() > 1);
    if (has_other_spelling || name.find_first_not_of("0123456789") != std::string_view::npos) return nullptr;
    const Py_ssize_t index = std::stol(std::string(name));
    if (PyList_Check(sequence.ptr())) {
      return index < PyList_Size(sequence.ptr()) ? PyList_GetItem(sequence.ptr(), index) : nullptr;
    }
    if (PyTuple_Check(sequence.ptr())) {
      return index < PyTuple_Size(sequence.ptr()) ? PyTuple_GetItem(sequence.ptr(), index) : nullptr;
    }
    throw nb::type_error("a source must be a dict, a list or a tuple");
  }

  // False where the object is no tensor that takes values as they lie in a file, or takes others already.
  bool Take(int32_t parent, size_t position, const nb::object& live) {
    const uint64_t address = AddressOf(live);
    if (addresses_.Find(address) >= 0 || !reader_.Add(live.ptr(), &scratch_)) return false;
    scratch_.rows.clear();
    scratch_.dims.clear();
    const int32_t node = graph_.Children(parent)[position].node;
    addresses_.Add(address, static_cast<int32_t>(pairs_.size()));
    order_[static_cast<size_t>(node)] = next_order_++;
    index_of_.resize(order_.size(), -1);
    index_of_[static_cast<size_t>(node)] = static_cast<int32_t>(pairs_.size());
    pairs_.push_back({node, parent, static_cast<uint32_t>(position), address, live});
    return true;
  }

  const PairedNode* PairOf(int32_t node) const {
    if (node < 0 || static_cast<size_t>(node) >= index_of_.size()) return nullptr;
    const int32_t index = index_of_[static_cast<size_t>(node)];
    return index < 0 ? nullptr : &pairs_[static_cast<size_t>(index)];
  }
  const PairedNode& Require(int32_t node) const {
    const PairedNode* const pair = PairOf(node);
    if (pair == nullptr) throw nb::index_error("the node is not paired with a tensor");
    return *pair;
  }

  const SavedGraph& graph_;
  const TensorReader reader_;
  std::vector<int32_t> order_;     // by node; -1 of those that are not bound
  std::vector<int32_t> index_of_;  // by node; -1 of those that are not paired here
  std::vector<PairedNode> pairs_;
  AddressTable addresses_;
  TensorMemoryTable scratch_;
  int32_t next_order_ = 0;
};

}  // namespace

void DefineSavedGraph(nb::module_& module) {
  nb::class_<SavedGraph>(module, "SavedGraph", nb::is_final(), "The object graph of a checkpoint.")
      .def("__init__", &InitSavedGraph, "record"_a)
      .def_prop_ro(
          "record",
          [](const SavedGraph& self) { return nb::bytes(self.record().data(), self.record().size()); })
      .def("__len__", &SavedGraph::num_nodes)
      .def("children", &ChildrenOf, "node"_a)
      .def("attributes", &AttributesOf, "node"_a)
      .def("slots", &SlotsOf, "node"_a)
      .def("registered_saver", &SaverOf, "node"_a)
      .def("has_values", &HasValues, "node"_a)
      .def("module_version", &VersionOf, "node"_a)
      .def("find_child", &FindChild, "node"_a, "name"_a)
      .def("names", &NamesOf, "node"_a)
      .def("slot_owner", &SlotOwnerOf, "node"_a)
      .def("child", &ChildAt, "node"_a, "position"_a)
      .def("nodes_with_slots", [](const SavedGraph& self) { return OwnersOf(self, true); })
      .def("nodes_with_values", [](const SavedGraph& self) { return OwnersOf(self, false); });
  module.def("union_of_graphs", &JoinGraphs, "records"_a, "renamed"_a);
  nb::class_<PairedTensors>(module, "PairedTensors", nb::is_final(), "Variables and live tensors.")
      .def(nb::init<const SavedGraph&, const nb::tuple&>(), "graph"_a, "types"_a, nb::keep_alive<1, 2>())
      .def("pair", &PairedTensors::Pair, "node"_a, "sources"_a)
      .def("mark", &PairedTensors::Mark, "node"_a)
      .def("claim", &PairedTensors::Claim, "address"_a)
      .def("__contains__", &PairedTensors::Contains, "node"_a)
      .def("__len__", &PairedTensors::size)
      .def("order", &PairedTensors::Order, "node"_a)
      .def("has_taken", &PairedTensors::HasTaken, "address"_a)
      .def("tensor", &PairedTensors::Tensor, "node"_a)
      .def("address", &PairedTensors::Address, "node"_a)
      .def("place", &PairedTensors::Place, "node"_a)
      .def("find_all", &PairedTensors::FindAll, "objects"_a)
      .def("nodes", &PairedTensors::Nodes)
      .def("keys", &PairedTensors::Keys)
      .def("tensors", &PairedTensors::Tensors)
      .def("set_attribute", &PairedTensors::SetAttribute, "name"_a, "value"_a)
      .def("release", &PairedTensors::Release);
}

}  // namespace trackckpt
