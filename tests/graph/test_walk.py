"""From live objects to the object graph and its values: numbering, keys, names, order."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import planned
import pytest
import torch
import witness
from checkpoints import Text, walk
from graph_messages import encode_object_graph
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint, NoDependency, Trackable, list_objects, load_checkpoint
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.graph.messages import decode_object_graph
from torch_trackckpt.graph.object_graph import Attribute, Child, Node, ObjectGraph, SlotVariable
from torch_trackckpt.graph.walk import Snapshot, discover
from torch_trackckpt.trackable import VARIABLE_VALUE, SlotOwner, Value

GOLDEN = Path(__file__).parent.parent / "golden"
MANIFEST: dict[str, dict[str, Any]] = {
    vector["name"]: vector for vector in json.loads((GOLDEN / "manifest.json").read_text())["vectors"]
}


def thing(**children: object) -> AutoTrackable:
    made = AutoTrackable()
    for name, child in children.items():
        setattr(made, name, child)
    return made


def children(snapshot: Snapshot, node_id: int = 0) -> list[tuple[str, int]]:
    return [(child.local_name, child.node_id) for child in snapshot.graph.nodes[node_id].children]


def keys(snapshot: Snapshot) -> list[str]:
    return [value.key for value in snapshot.values]


# ----------------------------------------------------------------------------------------------- keys


def test_the_key_of_a_value_is_the_path_of_local_names_that_leads_to_it() -> None:
    """C001"""
    snapshot = walk(thing(model=thing(fc=nn.Linear(2, 1))))
    assert keys(snapshot) == [
        "model/fc/weight/.ATTRIBUTES/VARIABLE_VALUE",
        "model/fc/bias/.ATTRIBUTES/VARIABLE_VALUE",
        "_CHECKPOINTABLE_OBJECT_GRAPH",
    ]


def test_a_module_as_root_gives_keys_without_a_leading_component() -> None:
    """C002"""
    module = nn.Module()
    module.fc = nn.Linear(2, 1, bias=False)
    assert keys(walk(module))[0] == "fc/weight/.ATTRIBUTES/VARIABLE_VALUE"


class Pair(Trackable):
    """Two values under names of its own."""

    def __init__(self, names: tuple[str, str] = ("low", "high")) -> None:
        self.values = dict(zip(names, (torch.tensor(1.0), torch.tensor(2.0)), strict=True))

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        return self.values

    def _restore_from_tensors(self, values: Mapping[str, Value]) -> None:
        self.values = dict(values)


def test_several_attributes_lie_below_their_object_and_for_the_root_begin_with_a_slash() -> None:
    """C003, C015"""
    assert keys(walk(Pair()))[:2] == ["/.ATTRIBUTES/low", "/.ATTRIBUTES/high"]
    snapshot = walk(thing(c=Pair()))
    assert keys(snapshot)[:2] == ["c/.ATTRIBUTES/low", "c/.ATTRIBUTES/high"]
    assert snapshot.graph.nodes[1].attributes == (
        Attribute("low", "", "c/.ATTRIBUTES/low"),
        Attribute("high", "", "c/.ATTRIBUTES/high"),
    )


def test_local_names_are_escaped_in_keys_and_kept_as_they_are_in_the_graph() -> None:
    """C004, C005, C006"""
    names = ["a/b/c", "d/.S", ".ATTRIBUTES", "é"]
    snapshot = walk({name: torch.tensor(0) for name in names})
    assert [key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE") for key in keys(snapshot)[:-1]] == [
        "a.Sb.Sc",
        "d.S..S",
        "..ATTRIBUTES",
        "é",
    ]
    assert [name for name, _ in children(snapshot)] == names


def test_attribute_names_are_escaped_in_keys_and_restored_under_the_same_rule(prefix: str) -> None:
    """C007"""
    written, fresh = Pair(("a.b/c", ".ATTRIBUTES")), Pair(("a.b/c", ".ATTRIBUTES"))
    written.values["a.b/c"].fill_(7)
    assert keys(walk(thing(p=written)))[:2] == ["p/.ATTRIBUTES/a..b.Sc", "p/.ATTRIBUTES/..ATTRIBUTES"]
    Checkpoint(p=written).write(prefix)
    Checkpoint(p=fresh).read(prefix).assert_consumed()
    assert torch.equal(torch.as_tensor(fresh.values["a.b/c"]), torch.tensor(7.0))


def test_an_empty_local_name_does_not_mix_two_objects_up() -> None:
    """C001, C008: the children of the root's child without a name are not the root's own."""
    snapshot = walk({"": {"x": torch.tensor(1)}, "x": torch.tensor(2)})
    assert len(set(keys(snapshot))) == 3


def test_names_are_local_to_their_object() -> None:
    """C008"""
    snapshot = walk(thing(a=nn.Linear(1, 1, bias=False), b=nn.Linear(1, 1, bias=False)))
    assert keys(snapshot)[:2] == ["a/weight/.ATTRIBUTES/VARIABLE_VALUE", "b/weight/.ATTRIBUTES/VARIABLE_VALUE"]


# ------------------------------------------------------------------------------------- nodes and order


def test_nodes_are_numbered_breadth_first_with_children_in_the_order_of_insertion() -> None:
    """C013"""
    snapshot = walk(thing(z=thing(b=torch.tensor(0), a=torch.tensor(0)), y=thing(c=torch.tensor(0))))
    assert children(snapshot, 0) == [("z", 1), ("y", 2)]
    assert children(snapshot, 1) == [("b", 3), ("a", 4)]
    assert children(snapshot, 2) == [("c", 5)]


def test_values_lie_in_the_order_of_their_nodes_with_the_graph_last() -> None:
    """C360"""
    snapshot = walk(thing(z=thing(b=torch.tensor(0)), y=torch.tensor(0)))
    assert keys(snapshot) == [
        "y/.ATTRIBUTES/VARIABLE_VALUE",
        "z/b/.ATTRIBUTES/VARIABLE_VALUE",
        "_CHECKPOINTABLE_OBJECT_GRAPH",
    ]


def test_python_states_lie_after_all_tensors_slots_included() -> None:
    """C360"""
    weight = torch.tensor(0.0)
    snapshot = walk(thing(early=Text(), w=weight, opt=Slots(thing(), {"m": [(weight, torch.tensor(1.0))]})))
    assert keys(snapshot) == [
        "w/.ATTRIBUTES/VARIABLE_VALUE",
        "w/.OPTIMIZER_SLOT/opt/m/.ATTRIBUTES/VARIABLE_VALUE",
        "early/.ATTRIBUTES/py_state",
        "_CHECKPOINTABLE_OBJECT_GRAPH",
    ]


def test_an_object_reached_by_two_names_is_one_node_under_its_first_path_breadth_first() -> None:
    """C023"""
    shared = torch.tensor(1)
    snapshot = walk(thing(deep=thing(inner=shared), shallow=shared))
    assert keys(snapshot)[:-1] == ["shallow/.ATTRIBUTES/VARIABLE_VALUE"]
    assert children(snapshot, 0) == [("deep", 1), ("shallow", 2)]
    assert children(snapshot, 1) == [("inner", 2)]


def test_a_cycle_is_followed_once() -> None:
    """C013, C023"""
    first, second = thing(), thing(value=torch.tensor(1))
    first.second, second.first = second, first
    snapshot = walk(first)
    assert children(snapshot, 0) == [("second", 1)]
    assert children(snapshot, 1) == [("value", 2), ("first", 0)]


def test_a_graph_deeper_than_the_recursion_limit_is_walked() -> None:
    root = node = thing()
    for _ in range(3000):
        node.next = thing()
        node = node.next
    node.value = torch.tensor(1)
    assert len(walk(root).graph.nodes) == 3002


def test_attached_children_follow_the_roots_own_and_give_way_to_them() -> None:
    """C029"""
    own, other = torch.tensor(1), torch.tensor(2)
    root = thing(w=own)
    snapshot = walk(root, {"root": root, "v": other, "w": other})
    assert children(snapshot) == [("w", 1), ("root", 0), ("v", 2)]


def test_what_is_not_trackable_has_no_node() -> None:
    """C025: neither in a list nor as an attribute, where it is the object's own state."""
    state = Attribute("py_state", "", "/.ATTRIBUTES/py_state")
    assert walk(thing(a=1, b="text", c=print, d=None, e=[1, "x"])).graph == ObjectGraph(
        (
            Node(children=(Child(1, "e"),), attributes=(state,), has_checkpoint_values=True),
            Node(has_checkpoint_values=False),
        )
    )


def test_the_graph_is_there_even_when_there_is_nothing_else() -> None:
    """C017"""
    assert keys(walk(thing())) == ["_CHECKPOINTABLE_OBJECT_GRAPH"]


def test_the_last_value_is_the_encoded_graph() -> None:
    """C017"""
    snapshot = walk(thing(x=torch.tensor(1)))
    record = snapshot.values[-1].value
    assert isinstance(record, bytes)
    assert decode_object_graph(record, "") == snapshot.graph


# ------------------------------------------------------------------------------- has_checkpoint_values


def test_a_node_has_values_if_it_or_anything_below_it_owns_one() -> None:
    """C016"""
    snapshot = walk(thing(full=thing(inner=thing(x=torch.tensor(1))), empty=thing(inner=thing())))
    graph = snapshot.graph
    flags = {graph.readable(node_id): node.has_checkpoint_values for node_id, node in enumerate(graph.nodes)}
    assert flags == {
        "(root)": True,
        "(root).full": True,
        "(root).empty": False,
        "(root).full.inner": True,
        "(root).empty.inner": False,
        "(root).full.inner.x": True,
    }


def test_every_node_of_a_cycle_above_a_value_has_values() -> None:
    """C016"""
    first, second = thing(), thing()
    first.second, second.first = second, first
    assert [node.has_checkpoint_values for node in walk(first).graph.nodes] == [False, False]
    second.value = torch.tensor(1)
    assert [node.has_checkpoint_values for node in walk(first).graph.nodes] == [True, True, True]


# -------------------------------------------------------------------------------------------- full names


def full_names(root: object) -> dict[str, str]:
    return {a.checkpoint_key.split("/.ATTR")[0]: a.full_name for n in walk(root).graph.nodes for a in n.attributes}


def test_the_full_name_of_a_tensor_is_its_state_dict_name_in_the_outermost_module() -> None:
    model = nn.Sequential(nn.Sequential(nn.BatchNorm1d(1)))
    named = full_names(thing(nets=[model]))
    assert {name.removeprefix("nets/0/").replace("/", "."): name for name in named}.keys() == set(model.state_dict())
    assert all(path.removeprefix("nets/0/").replace("/", ".") == name for path, name in named.items())


def test_the_full_name_of_a_tensor_outside_modules_is_its_dotted_path() -> None:
    assert full_names(thing(a=thing(b=torch.tensor(1)))) == {"a/b": "a.b"}


def test_only_variables_have_full_names() -> None:
    assert full_names(thing(text=Text(), pair=Pair())) == {"text": "", "pair": ""}


# -------------------------------------------------------------------------------------------------- slots


class Slots(AutoTrackable, SlotOwner):
    """An optimizer of the simplest kind, with TensorFlow's slot names."""

    def __init__(self, own: AutoTrackable, slots: dict[str, list[tuple[torch.Tensor, torch.Tensor]]]) -> None:
        for name, value in own._trackable_children().items():
            setattr(self, name, value)
        self.slots = NoDependency(slots)

    def _slot_variables(self) -> Mapping[str, list[tuple[torch.Tensor, torch.Tensor]]]:
        return self.slots

    def _variables_with_state(self) -> list[torch.Tensor]:
        pairs = {id(variable): variable for pairs in self.slots.values() for variable, _ in pairs}
        return list(pairs.values())

    def _readable_variable(self, variable: torch.Tensor) -> str:
        return f"variable {[id(known) for known in self._variables_with_state()].index(id(variable))}"

    def _slot_destinations(self, variable: torch.Tensor, stored: Mapping[str, object]) -> Mapping[str, torch.Tensor]:
        return {name: slot for name, pairs in self.slots.items() for owner, slot in pairs if owner is variable}

    def _assign_slots(self, variable: torch.Tensor, slots: Mapping[str, torch.Tensor]) -> None:
        pass


def test_slots_are_numbered_last_by_name_and_then_by_node_of_their_variable() -> None:
    """C013, C015, C098"""
    v, w = torch.tensor(0.0), torch.tensor(0.0)
    slots = {name: [(w, torch.tensor(1.0)), (v, torch.tensor(1.0))] for name in ("n", "m")}
    snapshot = walk(thing(opt=Slots(thing(), slots), v=v, w=w))
    assert snapshot.graph.nodes[1].slot_variables == (
        SlotVariable(2, "n", 4),
        SlotVariable(3, "n", 5),
        SlotVariable(2, "m", 6),
        SlotVariable(3, "m", 7),
    )
    assert keys(snapshot)[2:4] == [
        "v/.OPTIMIZER_SLOT/opt/n/.ATTRIBUTES/VARIABLE_VALUE",
        "w/.OPTIMIZER_SLOT/opt/n/.ATTRIBUTES/VARIABLE_VALUE",
    ]


def test_a_node_whose_only_values_are_slots_has_values() -> None:
    """C016"""
    weight = torch.tensor(0.0)
    snapshot = walk(thing(w=weight, opt=Slots(thing(), {"m": [(weight, torch.tensor(1.0))]})))
    assert snapshot.graph.nodes[2].has_checkpoint_values is True


def test_slots_of_variables_that_the_root_does_not_reach_are_left_out_and_reported() -> None:
    """C024, C100"""
    hidden = torch.tensor(0.0)
    snapshot = walk(thing(opt=Slots(thing(), {"m": [(hidden, torch.tensor(1.0))]})))
    assert keys(snapshot) == ["_CHECKPOINTABLE_OBJECT_GRAPH"]
    assert snapshot.graph.nodes[1] == Node(has_checkpoint_values=False)
    assert snapshot.unreachable == ("(root).opt variable 0",)


def test_a_slot_that_is_also_a_dependency_is_refused() -> None:
    """C119"""
    weight, slot = torch.tensor(0.0), torch.tensor(1.0)
    root = thing(w=weight, seen=slot, opt=Slots(thing(), {"m": [(weight, slot)]}))
    with pytest.raises(UnsupportedValueError, match=r"'m' that \(root\)\.opt keeps for \(root\)\.w .* \(root\)\.seen"):
        walk(root)


def test_discovery_finds_every_object_and_the_slots_of_reachable_pairs() -> None:
    """C027"""
    weight, slot, hidden = torch.tensor(0.0), torch.tensor(1.0), torch.tensor(2.0)
    optimizer = Slots(thing(), {"m": [(weight, slot), (hidden, torch.tensor(3.0))]})
    root = thing(w=weight, opt=optimizer)
    live = discover(root)
    assert [node.readable for node in live.nodes.values()] == ["(root)", "(root).w", "(root).opt"]
    assert [(opt.path, name, variable.path, value is slot) for opt, name, variable, value in live.slots()] == [
        ("opt", "m", "w", True)
    ]


def test_the_objects_of_a_training_are_listed_with_the_slots_of_reachable_parameters() -> None:
    """C027, C024"""
    model, hidden = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *hidden.parameters()], lr=0.1, momentum=0.9)
    for module in (model, hidden):
        module(torch.ones(2)).backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    checkpoint = Checkpoint(model=model, optimizer=optimizer, schedule=schedule)

    found = list_objects(checkpoint)

    slots = [optimizer.state[parameter]["momentum_buffer"] for parameter in (model.weight, model.bias)]
    expected = [checkpoint, model, optimizer, schedule, model.weight, model.bias, *slots]
    assert [id(item) for item in found] == [id(item) for item in expected]


def test_what_is_no_object_of_a_checkpoint_cannot_be_listed() -> None:
    with pytest.raises(UnsupportedValueError, match="int, is not trackable"):
        list_objects(5)


# ------------------------------------------------------------------------------------------------ errors


class Broken(Trackable):
    """Cannot be saved."""

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        raise UnsupportedValueError("it is broken.")


def test_an_object_that_cannot_be_saved_is_named_by_its_path() -> None:
    with pytest.raises(UnsupportedValueError, match=r"^\(root\)\.a\.b cannot be saved: it is broken\.$"):
        walk(thing(a=thing(b=Broken())))


def test_a_root_that_is_not_trackable_is_refused() -> None:
    """C034"""
    with pytest.raises(UnsupportedValueError, match="The root, a int, is not trackable"):
        walk(3)


# ------------------------------------------------------------------------------- TensorFlow's own graphs


class Variable(Trackable):
    """A string variable."""

    def __init__(self, value: bytes = b"") -> None:
        self.value = value

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        return {VARIABLE_VALUE: self.value}

    def _restore_from_tensors(self, values: Mapping[str, Value]) -> None:
        value = values[VARIABLE_VALUE]
        assert isinstance(value, bytes)
        self.value = value


class Blob:
    """Bytes that encode themselves."""

    value = b""

    def serialize(self) -> bytes:
        return self.value

    def deserialize(self, string_value: bytes) -> None:
        self.value = string_value


def dense(num_inputs: int, num_outputs: int) -> AutoTrackable:
    return thing(w=torch.zeros(num_inputs, num_outputs), b=torch.zeros(num_outputs))


def net() -> AutoTrackable:
    """The module that the golden object checkpoints were made of."""
    made = thing(
        zz=dense(2, 3),
        layers=[dense(3, 2), dense(2, 1)],
        table={
            "x/y": torch.tensor(0.0),
            "a.b": torch.tensor(0, dtype=torch.int32),
            "plain": torch.tensor([False, False]),
        },
    )
    made.shared = made.zz
    made.text = Variable()
    made.frozen = AutoTrackable()
    return made


def integer() -> torch.Tensor:
    return torch.tensor(0)


def adam() -> Checkpoint:
    model = thing(w=torch.zeros(2, 2), b=torch.zeros(2))
    slots = {name: [(v, torch.zeros_like(v)) for v in (model.b, model.w)] for name in ("m", "v")}
    return Checkpoint(
        model=model, optimizer=Slots(thing(beta1_power=torch.tensor(0.0), beta2_power=torch.tensor(0.0)), slots)
    )


MADE_OF = {
    "obj_module": lambda: Checkpoint(net()),
    "obj_kwargs": lambda: Checkpoint(step=integer(), net=net(), blob=Blob()),
    "obj_root_and_kwargs": lambda: Checkpoint(net(), extra=torch.tensor(0.0), opt_step=integer()),
    "obj_adam_slots": adam,
}
made_of = pytest.mark.parametrize("name", list(MADE_OF))


def restored(name: str) -> tuple[Path, Checkpoint]:
    original = GOLDEN / MANIFEST[name]["prefix"]
    checkpoint = MADE_OF[name]()
    checkpoint.restore(original).assert_consumed()
    return original, checkpoint


def snapshot_of(checkpoint: Checkpoint) -> Snapshot:
    return walk(checkpoint._graph_root(), checkpoint._attached())


def without_full_names(graph: ObjectGraph) -> list[Node]:
    return [
        dataclasses.replace(n, attributes=tuple(dataclasses.replace(a, full_name="") for a in n.attributes))
        for n in graph.nodes
    ]


@made_of
def test_the_graph_of_the_same_objects_is_tensorflows_but_for_full_names(name: str) -> None:
    """C013, C014, C015, C016, C023, C029, C397"""
    original, checkpoint = restored(name)
    record = witness.read_bundle(original)[witness.GRAPH_KEY].data[0]
    ours, theirs = snapshot_of(checkpoint).graph, decode_object_graph(bytes(record), name)
    assert without_full_names(ours) == without_full_names(theirs)


@made_of
def test_with_tensorflows_full_names_the_files_are_tensorflows_byte_for_byte(name: str, prefix: str) -> None:
    """C360, C361"""
    original, checkpoint = restored(name)
    snapshot = snapshot_of(checkpoint)
    theirs = decode_object_graph(bytes(witness.read_bundle(original)[witness.GRAPH_KEY].data[0]), name)
    named = ObjectGraph(
        tuple(
            dataclasses.replace(
                node,
                attributes=tuple(
                    dataclasses.replace(attribute, full_name=other.full_name)
                    for attribute, other in zip(node.attributes, other_node.attributes, strict=True)
                ),
            )
            for node, other_node in zip(snapshot.graph.nodes, theirs.nodes, strict=True)
        )
    )
    values = {value.key: value.value for value in snapshot.values}
    files = planned.write(prefix, values | {snapshot.values[-1].key: encode_object_graph(named)})
    assert Path(files.data[0][0]).read_bytes() == Path(f"{original}.data-00000-of-00001").read_bytes()
    assert Path(files.index[0]).read_bytes() == Path(f"{original}.index").read_bytes()


@made_of
def test_every_value_of_a_restored_tensorflow_file_is_the_stored_one(name: str) -> None:
    """C397"""
    original, checkpoint = restored(name)
    reader = load_checkpoint(original)
    for value in snapshot_of(checkpoint).values[:-1]:
        stored = reader.get_tensor(value.key)
        if isinstance(value.value, torch.Tensor):
            assert torch.equal(value.value, torch.as_tensor(stored))
        else:
            assert value.value == stored
