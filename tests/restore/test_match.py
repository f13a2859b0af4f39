"""Pairing saved nodes with live objects, by local names."""

import dataclasses
import logging
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint, Trackable
from torch_trackckpt.bundle.dtypes import data_type_of_torch
from torch_trackckpt.bundle.reader import StoredTensor
from torch_trackckpt.graph.object_graph import Attribute, Child, Node, ObjectGraph, SlotVariable
from torch_trackckpt.restore.match import Match, match
from torch_trackckpt.trackable import Value


def thing(**children: object) -> AutoTrackable:
    made = AutoTrackable()
    for name, child in children.items():
        setattr(made, name, child)
    return made


def leaf(key: str = "key") -> Node:
    return Node(attributes=(Attribute("VARIABLE_VALUE", "", key),), has_checkpoint_values=True)


def inner(**children: int) -> Node:
    return Node(children=tuple(Child(node_id, name) for name, node_id in children.items()))


def stored(key: str) -> StoredTensor:
    return StoredTensor(key, data_type_of_torch(torch.float32), (), 4)


def matched(nodes: list[Node], root: object, attached: Mapping[str, object] | None = None) -> Match:
    return match(ObjectGraph(tuple(nodes)), root, attached or {}, stored)


def taken(result: Match, value: object) -> int | None:
    """The saved node whose values a live tensor takes."""
    return next((b.node_id for b in result.values.values() if getattr(b.trackable, "adapted", None) is value), None)


# --------------------------------------------------------------------------------------- which goes where


def test_a_child_goes_to_the_live_child_of_its_local_name_whatever_its_key_says() -> None:
    """C031"""
    x, y = torch.tensor(0.0), torch.tensor(0.0)
    result = matched([inner(y=1, x=2), leaf("x/.ATTRIBUTES/VARIABLE_VALUE"), leaf("elsewhere")], thing(x=x, y=y))
    assert (taken(result, y), taken(result, x)) == (1, 2)


def test_a_saved_child_without_a_live_one_is_left_unbound_with_all_below_it() -> None:
    """C127"""
    result = matched([inner(a=1), inner(b=2), leaf()], thing(other=torch.tensor(0.0)))
    assert result.bound.keys() == {0}


def test_an_attached_object_takes_the_roots_child_of_its_name() -> None:
    """C031"""
    w, v = torch.tensor(0.0), torch.tensor(0.0)
    result = matched([inner(v=1, w=2), leaf(), leaf()], thing(w=w), {"v": v})
    assert (taken(result, w), taken(result, v)) == (2, 1)


def test_the_roots_own_child_wins_over_an_attached_one() -> None:
    """C031"""
    own, attached = torch.tensor(0.0), torch.tensor(0.0)
    result = matched([inner(w=1), leaf()], thing(w=own), {"w": attached})
    assert (taken(result, own), taken(result, attached)) == (1, None)


def test_a_saved_object_that_two_paths_lead_to_goes_to_the_first_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """C134"""
    first, second, third = torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.0)
    result = matched([inner(a=1, b=1, c=1), leaf()], thing(c=third, b=second, a=first))
    assert [taken(result, value) for value in (first, second, third)] == [1, None, None]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("torch_trackckpt", logging.WARNING)
    assert record.getMessage().startswith("Inconsistent references")
    assert "(root).a is one object in the checkpoint but several in the program" in record.getMessage()


def test_one_live_object_under_both_names_of_a_shared_one_is_consistent(caplog: pytest.LogCaptureFixture) -> None:
    """C023"""
    shared = torch.tensor(0.0)
    result = matched([inner(a=1, b=1), leaf()], thing(a=shared, b=shared))
    assert taken(result, shared) == 1
    assert caplog.records == []


def test_one_live_tensor_where_two_were_saved_takes_the_first_breadth_first() -> None:
    """C136"""
    tied = torch.tensor(0.0)
    result = matched([inner(a=1, b=2), leaf(), leaf()], thing(a=tied, b=tied))
    assert taken(result, tied) == 1
    assert result.bound.keys() == {0, 1, 2}


def test_one_live_container_where_two_were_saved_takes_the_children_of_both() -> None:
    """C135"""
    x, y = torch.tensor(0.0), torch.tensor(0.0)
    both = thing(x=x, y=y)
    result = matched([inner(a=1, b=2), inner(x=3), inner(y=4), leaf(), leaf()], thing(a=both, b=both))
    assert (taken(result, x), taken(result, y)) == (3, 4)


def test_a_cycle_is_followed_once() -> None:
    """C091"""
    first, second = thing(), thing(value=torch.tensor(0.0))
    first.second, second.first = second, first
    result = matched([inner(second=1), inner(first=0, value=2), leaf()], first)
    assert taken(result, second.value) == 2


def test_a_graph_deeper_than_the_recursion_limit_is_matched() -> None:
    root = node = thing()
    for _ in range(3000):
        node.next = thing()
        node = node.next
    node.next = torch.tensor(0.0)
    chain = [inner(next=index + 1) for index in range(3001)]
    assert taken(matched([*chain, leaf()], root), node.next) == 3001


def test_values_are_resolved_by_the_path_that_they_had_when_saved() -> None:
    x = torch.tensor(0.0)
    root = thing(**{"a/b": thing(x=x)})
    graph = ObjectGraph((Node(children=(Child(1, "a/b"),)), inner(x=2), leaf()))
    result = match(graph, root, {}, stored)
    assert result.resolve("a.Sb/x") is x
    assert result.resolve("") is root
    assert result.resolve("missing") is None


# ------------------------------------------------------------------------------------------- attributes


class Pair(Trackable):
    """Two values, or three."""

    def __init__(self, *names: str) -> None:
        self.values: dict[str, Value] = {name: torch.tensor(0.0) for name in names}

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        return self.values

    def _restore_from_tensors(self, values: Mapping[str, Value]) -> None:
        self.values = dict(values)


def attributes(*names: str) -> Node:
    return Node(attributes=tuple(Attribute(name, "", f"key of {name}") for name in names))


def test_a_stored_attribute_that_the_live_object_does_not_know_is_recorded_as_unused() -> None:
    """C133"""
    result = matched([attributes("low", "middle", "high")], Pair("high", "low"))
    assert result.unused_attributes == {0: ["middle"]}
    (bound,) = result.values.values()
    assert bound.keys == {"low": "key of low", "high": "key of high"}


def test_an_object_with_an_attribute_that_is_not_stored_takes_no_value_at_all() -> None:
    """C133"""
    result = matched([attributes("low")], Pair("low", "high"))
    assert result.values == {}


def test_a_tensor_where_a_text_was_saved_takes_nothing_and_is_reported(prefix: str) -> None:
    """C162, C163"""

    class Text:
        def serialize(self) -> str:
            return "state"

        def deserialize(self, string_value: bytes) -> None:
            raise AssertionError("never called with a tensor")

    Checkpoint(x=Text()).write(prefix)
    x = torch.tensor(0.0)
    status = Checkpoint(x=x).read(prefix)
    assert x.item() == 0.0
    with pytest.raises(AssertionError, match=r"\(root\)\.x: py_state"):
        status.assert_consumed()
    Checkpoint(x=torch.tensor(1.0)).write(prefix)
    with pytest.raises(AssertionError, match=r"\(root\)\.x not assigned"):
        Checkpoint(x=Text()).read(prefix).assert_existing_objects_matched()


# ------------------------------------------------------------------------------------------------ slots


def momentum(weight: nn.Parameter) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def with_slots(*slots: SlotVariable) -> list[Node]:
    return [inner(w=1, opt=2), leaf("w"), Node(slot_variables=slots), leaf("slot"), leaf("other")]


def test_a_slot_goes_to_the_live_slot_of_its_variable() -> None:
    """C104"""
    weight = nn.Parameter(torch.tensor(0.0))
    optimizer = momentum(weight)
    result = matched(with_slots(SlotVariable(1, "momentum_buffer", 3)), thing(w=weight, opt=optimizer))
    (slots,) = result.slots.values()
    (node_id, key, tensor) = slots.slots["momentum_buffer"]
    assert (node_id, key) == (3, "slot")
    assert tensor is optimizer.state[weight]["momentum_buffer"]
    assert result.settled_slots == {(2, 1)}


def test_slots_are_left_alone_when_asked_to() -> None:
    """C116"""
    weight = nn.Parameter(torch.tensor(0.0))
    root = thing(w=weight, opt=momentum(weight))
    graph = ObjectGraph(tuple(with_slots(SlotVariable(1, "momentum_buffer", 3))))
    assert match(graph, root, {}, stored, skip_slot_variables=True).slots == {}


def test_slots_where_the_program_has_no_optimizer_are_skipped_and_children_are_not() -> None:
    """C115"""
    weight, x = nn.Parameter(torch.tensor(0.0)), torch.tensor(0.0)
    nodes = with_slots(SlotVariable(1, "momentum_buffer", 3))
    nodes[2] = dataclasses.replace(nodes[2], children=(Child(4, "x"),))
    result = matched(nodes, thing(w=weight, opt=thing(x=x)))
    assert result.slots == {}
    assert taken(result, x) == 4


@pytest.mark.parametrize(
    "slot",
    [
        SlotVariable(2, "momentum_buffer", 3),
        SlotVariable(0, "momentum_buffer", 3),
        SlotVariable(1, "momentum_buffer", 2),
        SlotVariable(1, "momentum_buffer", 0),
        SlotVariable(4, "momentum_buffer", 4),
    ],
    ids=["of itself", "of the root", "is the optimizer", "is the root", "of nothing"],
)
def test_slots_that_refer_in_circles_or_to_no_variable_are_ignored(slot: SlotVariable) -> None:
    """C391"""
    weight = nn.Parameter(torch.tensor(0.0))
    result = matched(with_slots(slot), thing(w=weight, opt=momentum(weight)))
    assert result.slots == {}
    assert taken(result, weight) == 1


def test_a_child_that_leads_back_to_a_node_of_another_kind_is_harmless() -> None:
    """C391"""
    x = torch.tensor(0.0)
    nodes = [inner(x=1), dataclasses.replace(leaf(), children=(Child(0, "x"), Child(1, "x")))]
    assert taken(matched(nodes, thing(x=x)), x) == 1


def test_two_children_under_one_name_do_not_crash() -> None:
    """C391"""
    x = torch.tensor(0.0)
    nodes = [Node(children=(Child(1, "x"), Child(2, "x"))), leaf("first"), leaf("second")]
    assert taken(matched(nodes, thing(x=x)), x) == 1
