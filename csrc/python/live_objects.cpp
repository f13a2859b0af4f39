#include "python/live_objects.h"

#include <nanobind/stl/string.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "error.h"
#include "graph/keys.h"
#include "graph/live_graph.h"
#include "python/address_table.h"
#include "python/text.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace trackckpt {

namespace {

constexpr std::string_view kObjectGraphKey = "_CHECKPOINTABLE_OBJECT_GRAPH";

// What keys and record are made of, and both; without the objects.
struct GraphRecord {
  LiveGraph graph;
  LiveGraph::Contents contents;
  nb::bytes record;
  nb::list keys;
};

// Which node an object is: by its address where its identity is a number, as that of most objects is.
class Identities {
 public:
  int32_t Find(nb::handle identity) const {
    if (const auto address = AddressOf(identity)) return Find(*address);
    const PyObject* const found = PyDict_GetItemWithError(others_.ptr(), identity.ptr());
    if (found == nullptr) {
      if (PyErr_Occurred()) throw nb::python_error();
      return LiveGraph::kNone;
    }
    return static_cast<int32_t>(PyLong_AsLong(const_cast<PyObject*>(found)));
  }
  int32_t Find(uint64_t address) const { return addresses_.Find(address); }
  void Add(nb::handle identity, int32_t node) {
    if (const auto address = AddressOf(identity)) return Add(*address, node);
    others_[identity] = node;
  }
  void Add(uint64_t address, int32_t node) { addresses_.Add(address, node); }

 private:
  static std::optional<uint64_t> AddressOf(nb::handle identity) {
    if (!PyLong_CheckExact(identity.ptr())) return std::nullopt;
    const uint64_t address = PyLong_AsUnsignedLongLong(identity.ptr());
    if (address == static_cast<uint64_t>(-1) && PyErr_Occurred()) {
      PyErr_Clear();
      return std::nullopt;
    }
    return address;
  }

  AddressTable addresses_;
  nb::dict others_;
};

uint64_t AddressOf(nb::handle object) { return reinterpret_cast<uintptr_t>(object.ptr()); }

class LiveObjects {
 public:
  explicit LiveObjects(const nb::tuple& types) {
    for (nb::handle type : types) types_.push_back(nb::borrow(type));
  }

  void AddRoot(nb::handle trackable, nb::handle identity, bool is_module) {
    graph_.AddRoot(is_module);
    Keep(trackable, identity);
  }

  void AddChildren(int32_t parent, nb::handle children, nb::handle adapt) {
    const std::vector<std::pair<nb::object, nb::object>> items = ItemsOf(children);
    CheckNode(parent);
    graph_.BeginChildren(parent);
    for (const auto& [name, child] : items) {
      if (IsPlainTensor(child)) {
        AddTensor(Utf8(name), child);
      } else if (!child.is_none()) {
        AddAdapted(name, adapt(child));
      }
    }
  }

  void Renumber() {
    const std::vector<int32_t> order = graph_.Renumber();
    std::vector<nb::object> objects, identities;
    Identities numbers;
    for (int32_t old : order) {
      objects.push_back(objects_[static_cast<size_t>(old)]);
      identities.push_back(identities_of_[static_cast<size_t>(old)]);
      AddNumber(objects.back(), identities.back(), static_cast<int32_t>(objects.size() - 1), &numbers);
    }
    objects_ = std::move(objects);
    identities_of_ = std::move(identities);
    identities_ = std::move(numbers);
  }

  size_t size() const { return objects_.size(); }

  // The first node from `node` on that is no leaf.
  nb::object NextTrackable(int32_t node) const {
    if (node < 0) throw nb::index_error("no such node");
    while (node < graph_.num_nodes() && graph_.is_tensor(node)) ++node;
    return node < graph_.num_nodes() ? nb::object(nb::int_(node)) : nb::none();
  }

  nb::tuple Leaves() const {
    nb::list numbers, tensors;
    for (int32_t node = 0; node < graph_.num_nodes(); ++node) {
      if (!graph_.is_tensor(node)) continue;
      numbers.append(node);
      tensors.append(objects_[static_cast<size_t>(node)]);
    }
    return nb::make_tuple(numbers, tensors);
  }

  nb::list Trackables() const {
    nb::list trackables;
    for (int32_t node = 0; node < graph_.num_nodes(); ++node) {
      if (!graph_.is_tensor(node)) trackables.append(nb::make_tuple(node, Object(node)));
    }
    return trackables;
  }

  bool IsTensor(int32_t node) const { return graph_.is_tensor(CheckNode(node)); }
  nb::object Object(int32_t node) const { return objects_[static_cast<size_t>(CheckNode(node))]; }

  nb::object Identity(int32_t node) const {
    const nb::object& identity = identities_of_[static_cast<size_t>(CheckNode(node))];
    return identity.is_valid() ? identity : nb::int_(AddressOf(Object(node)));
  }

  nb::object Find(nb::handle identity) const {
    const int32_t node = identities_.Find(identity);
    return node == LiveGraph::kNone ? nb::none() : nb::object(nb::int_(node));
  }

  nb::list FindAll(const nb::list& objects) const {
    nb::list found;
    for (nb::handle object : objects) found.append(identities_.Find(AddressOf(object)));
    return found;
  }

  nb::tuple Names(int32_t node) const {
    nb::list names;
    for (std::string_view name : graph_.Names(CheckNode(node))) names.append(TextOf(name));
    return nb::tuple(names);
  }
  nb::object Path(int32_t node) const { return TextOf(graph_.Path(CheckNode(node))); }
  nb::object FullName(int32_t node) const { return TextOf(graph_.FullName(CheckNode(node))); }
  nb::object ModuleDepth(int32_t node) const {
    const int32_t depth = graph_.ModuleDepth(CheckNode(node));
    return depth == LiveGraph::kNone ? nb::none() : nb::object(nb::int_(depth));
  }

  nb::list Children(int32_t node) const {
    nb::list children;
    for (const LiveGraph::Edge& edge : graph_.Children(CheckNode(node))) {
      children.append(nb::make_tuple(TextOf(edge.name), edge.child));
    }
    return children;
  }

  // The record and the values that go with its keys.
  nb::tuple Collect(const nb::list& attributes, const nb::list& versions, const nb::list& slots,
                    nb::handle known) const {
    LiveGraph::Contents contents;
    nb::list values, slot_values, states;
    ReadAttributes(attributes, &contents);
    for (nb::handle item : versions) {
      contents.versions.push_back({CheckNode(nb::cast<int32_t>(item[0])), nb::cast<int64_t>(item[1])});
    }
    for (nb::handle item : slots) {
      const int32_t optimizer = CheckNode(nb::cast<int32_t>(item[0]));
      const std::string name(Utf8(item[1]));
      for (nb::handle variable : nb::borrow<nb::list>(item[2])) {
        contents.slots.push_back({optimizer, CheckNode(nb::cast<int32_t>(variable)), name});
      }
      slot_values.extend(item[3]);
    }
    CollectValues(attributes, &values, &states);
    values.extend(slot_values);
    values.extend(states);
    const nb::object record = RecordOf(std::move(contents), known);
    values.append(nb::cast<const GraphRecord&>(record).record);
    return nb::make_tuple(record, values);
  }

  // Whether the very same objects are under the same names.
  bool HasSameObjects(const LiveObjects& other) const {
    if (!(graph_ == other.graph_) || objects_.size() != other.objects_.size()) return false;
    for (int32_t node = 0; node < graph_.num_nodes(); ++node) {
      const size_t i = static_cast<size_t>(node);
      const bool is_same = identities_of_[i].is_valid() && other.identities_of_[i].is_valid()
                               ? identities_of_[i].equal(other.identities_of_[i])
                               : objects_[i].is(other.objects_[i]);
      if (!is_same) return false;
    }
    return true;
  }

  int Traverse(visitproc visit, void* arg) {
    for (const nb::object& object : objects_) Py_VISIT(object.ptr());
    for (const nb::object& identity : identities_of_) Py_VISIT(identity.ptr());
    return 0;
  }
  void Clear() {
    // What is destroyed may run code of Python, which must not find half of it.
    std::vector<nb::object> objects, identities;
    objects.swap(objects_);
    identities.swap(identities_of_);
  }

 private:
  int32_t CheckNode(int32_t node) const {
    if (node < 0 || static_cast<size_t>(node) >= objects_.size()) throw nb::index_error("no such node");
    return node;
  }

  bool IsPlainTensor(const nb::object& object) const {
    for (const nb::object& type : types_) {
      if (reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) == type.ptr()) return true;
    }
    return false;
  }

  // A copy: whoever is asked about a child may change the mapping.
  static std::vector<std::pair<nb::object, nb::object>> ItemsOf(nb::handle children) {
    std::vector<std::pair<nb::object, nb::object>> items;
    if (PyDict_CheckExact(children.ptr())) {
      items.reserve(static_cast<size_t>(PyDict_Size(children.ptr())));
      PyObject *name, *child;
      for (Py_ssize_t position = 0; PyDict_Next(children.ptr(), &position, &name, &child);) {
        items.emplace_back(nb::borrow(name), nb::borrow(child));
      }
    } else {
      for (nb::handle item : children.attr("items")()) items.emplace_back(item[0], item[1]);
    }
    return items;
  }

  void Keep(nb::handle object, nb::handle identity) {
    const auto node = static_cast<int32_t>(objects_.size());
    objects_.push_back(nb::borrow(object));
    identities_of_.push_back(nb::borrow(identity));
    AddNumber(objects_.back(), identities_of_.back(), node, &identities_);
  }

  static void AddNumber(const nb::object& object, const nb::object& identity, int32_t node,
                        Identities* identities) {
    if (identity.is_valid()) {
      identities->Add(identity, node);
    } else {
      identities->Add(AddressOf(object), node);
    }
  }

  void AddTensor(std::string_view name, const nb::object& tensor) {
    const int32_t known = identities_.Find(AddressOf(tensor));
    if (known != LiveGraph::kNone) return graph_.AddEdge(name, known);
    graph_.AddChild(name, true, false);
    Keep(tensor, nb::handle());
  }

  // `adapted` is None, or the trackable, its identity, and whether it stands for a module.
  void AddAdapted(const nb::object& name, const nb::object& adapted) {
    if (adapted.is_none()) return;
    const auto fields = nb::cast<nb::tuple>(adapted);
    const int32_t known = identities_.Find(fields[1]);
    if (known != LiveGraph::kNone) return graph_.AddEdge(Utf8(name), known);
    graph_.AddChild(Utf8(name), false, nb::cast<bool>(fields[2]));
    Keep(fields[0], fields[1]);
  }

  void ReadAttributes(const nb::list& attributes, LiveGraph::Contents* contents) const {
    for (nb::handle item : attributes) {
      const std::string_view full_name = nb::len(item) > 3 ? Utf8(item[3]) : std::string_view();
      contents->attributes.push_back(
          {CheckNode(nb::cast<int32_t>(item[0])), std::string(Utf8(item[1])), std::string(full_name)});
    }
  }

  // In the order of the keys: the values of leaves and attributes by node; python states apart.
  void CollectValues(const nb::list& attributes, nb::list* values, nb::list* states) const {
    size_t next = 0;
    for (int32_t node = 0; node < graph_.num_nodes(); ++node) {
      if (graph_.is_tensor(node)) values->append(objects_[static_cast<size_t>(node)]);
      for (; next < attributes.size() && nb::cast<int32_t>(attributes[next][0]) == node; ++next) {
        (Utf8(attributes[next][1]) == kPythonState ? states : values)->append(attributes[next][2]);
      }
    }
  }

  nb::object RecordOf(LiveGraph::Contents contents, nb::handle known) const {
    if (!known.is_none()) {
      const auto& before = nb::cast<const GraphRecord&>(known);
      if (before.contents == contents && before.graph == graph_) return nb::borrow(known);
    }
    nb::list keys;
    const std::string record =
        graph_.Encode(contents, [&](std::string_view key) { keys.append(TextOf(key)); });
    keys.append(TextOf(kObjectGraphKey));
    return nb::cast(
        GraphRecord{graph_, std::move(contents), nb::bytes(record.data(), record.size()), std::move(keys)});
  }

  std::vector<nb::object> types_;
  LiveGraph graph_;
  // By node: the tensor of a leaf, or a trackable; and its identity, nothing where that is the object's address.
  std::vector<nb::object> objects_, identities_of_;
  Identities identities_;
};

int TraverseLiveObjects(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  return nb::inst_ready(self) ? nb::inst_ptr<LiveObjects>(self)->Traverse(visit, arg) : 0;
}

int ClearLiveObjects(PyObject* self) {
  if (nb::inst_ready(self)) nb::inst_ptr<LiveObjects>(self)->Clear();
  return 0;
}

PyType_Slot kLiveObjectsSlots[] = {{Py_tp_traverse, reinterpret_cast<void*>(TraverseLiveObjects)},
                                   {Py_tp_clear, reinterpret_cast<void*>(ClearLiveObjects)},
                                   {0, nullptr}};

}  // namespace

void DefineLiveObjects(nb::module_& module) {
  nb::class_<GraphRecord>(module, "GraphRecord", nb::is_final(), "What is saved of an object graph.")
      .def_ro("record", &GraphRecord::record)
      .def_ro("keys", &GraphRecord::keys);
  nb::class_<LiveObjects>(module, "LiveObjects", nb::is_final(), nb::type_slots(kLiveObjectsSlots),
                          "The objects of a program and the graph that they form.")
      .def(nb::init<const nb::tuple&>(), "types"_a)
      .def("add_root", &LiveObjects::AddRoot, "trackable"_a, "identity"_a, "is_module"_a)
      .def("add_children", &LiveObjects::AddChildren, "node"_a, "children"_a, "adapt"_a)
      .def("renumber", &LiveObjects::Renumber)
      .def("__len__", &LiveObjects::size)
      .def("next_trackable", &LiveObjects::NextTrackable, "node"_a)
      .def("leaves", &LiveObjects::Leaves)
      .def("trackables", &LiveObjects::Trackables)
      .def("is_tensor", &LiveObjects::IsTensor, "node"_a)
      .def("object", &LiveObjects::Object, "node"_a)
      .def("identity", &LiveObjects::Identity, "node"_a)
      .def("find", &LiveObjects::Find, "identity"_a)
      .def("find_all", &LiveObjects::FindAll, "objects"_a)
      .def("names", &LiveObjects::Names, "node"_a)
      .def("path", &LiveObjects::Path, "node"_a)
      .def("full_name", &LiveObjects::FullName, "node"_a)
      .def("module_depth", &LiveObjects::ModuleDepth, "node"_a)
      .def("children", &LiveObjects::Children, "node"_a)
      .def("collect", &LiveObjects::Collect, "attributes"_a, "versions"_a, "slots"_a, "known"_a.none())
      .def("has_same_objects", &LiveObjects::HasSameObjects, "other"_a);
}

}  // namespace trackckpt
