"""Which variables of a saved graph are paired with which live tensors, many at once."""

import pytest
import torch
from graph_messages import encode_object_graph
from torch import nn

from torch_trackckpt import _native
from torch_trackckpt.graph.object_graph import Attribute, Child, Node, ObjectGraph
from torch_trackckpt.trackable import VARIABLE_VALUE

TYPES = (torch.Tensor, nn.Parameter)


def variable(key: str) -> Node:
    return Node(attributes=(Attribute(VARIABLE_VALUE, "", key),), has_checkpoint_values=True)


def pairs_for(names: dict[str, Node]) -> _native.PairedTensors:
    """For a root with children of these names."""
    children = tuple(Child(number, name) for number, name in enumerate(names, start=1))
    graph = ObjectGraph((Node(children=children), *names.values()))
    return _native.PairedTensors(_native.SavedGraph(encode_object_graph(graph)), TYPES)


def test_tensors_are_paired_by_name_with_their_keys() -> None:
    pairs = pairs_for({"a": variable("ka"), "b": variable("kb")})
    a, b = torch.ones(1), nn.Parameter(torch.ones(2))
    assert pairs.pair(0, ({"b": b, "a": a, "c": torch.ones(3)},)) == []
    assert (pairs.nodes(), pairs.keys()) == ([1, 2], ["ka", "kb"])
    assert [tensor is other for tensor, other in zip(pairs.tensors(), (a, b), strict=True)] == [True, True]
    assert [pairs.place(1), pairs.place(2)] == [(0, "a"), (0, "b")]
    assert [pairs.order(node) for node in range(4)] == [-1, 0, 1, -1]


def test_the_elements_of_a_list_are_found_by_their_numbers() -> None:
    pairs = pairs_for({name: variable(name) for name in ("0", "01", "1", "2", "-1", "x", "")})
    assert pairs.pair(0, ([torch.ones(1), torch.ones(2)],)) == [1, 3, 4, 5, 6]
    assert pairs.keys() == ["0", "1"]


def test_what_needs_a_closer_look_is_left() -> None:
    names = ("number", "strided", "meta", "absent", "none", "object", "subclass")
    pairs = pairs_for({name: variable(name) for name in names})
    values = {
        "number": 1,
        "strided": torch.rand(2, 2).t(),
        "meta": torch.empty(1, device="meta"),
        "none": None,
        "object": nn.Linear(1, 1),
        "subclass": torch.rand(1).as_subclass(type("Other", (torch.Tensor,), {})),
    }
    assert pairs.pair(0, (values,)) == list(range(7))
    assert len(pairs) == 0


def test_nodes_that_are_more_than_a_variable_are_left() -> None:
    nodes = {
        "two": Node(attributes=(Attribute(VARIABLE_VALUE, "", "k"), Attribute("other", "", "o"))),
        "named": Node(attributes=(Attribute("other", "", "o"),)),
        "parent": Node(children=(Child(0, "x"),), attributes=(Attribute(VARIABLE_VALUE, "", "k"),)),
        "saver": Node(attributes=(Attribute(VARIABLE_VALUE, "", "k"),), registered_saver=("a", "b")),
        "empty": Node(),
    }
    pairs = pairs_for(nodes)
    assert pairs.pair(0, ({name: torch.ones(1) for name in nodes},)) == [0, 1, 2, 3, 4]


def test_one_tensor_takes_the_values_of_one_node() -> None:
    pairs = pairs_for({"a": variable("ka"), "b": variable("kb")})
    tensor = torch.ones(1)
    assert pairs.pair(0, ({"a": tensor, "b": tensor},)) == [1]
    assert pairs.has_taken(id(tensor))
    assert (1 in pairs, 2 in pairs) == (True, False)


def test_a_tensor_or_node_that_is_known_elsewhere_is_left() -> None:
    pairs = pairs_for({"a": variable("ka"), "b": variable("kb"), "c": variable("kc")})
    values = {"a": torch.ones(1), "b": torch.ones(1), "c": torch.ones(1)}
    pairs.claim(id(values["a"]))
    pairs.mark(2)
    assert pairs.pair(0, (values,)) == [0, 1]
    assert [pairs.order(node) for node in (1, 2, 3)] == [-1, 0, 1]


def test_what_is_left_goes_before_what_follows_it() -> None:
    """The first name of a node counts, and the first node of a tensor."""
    graph = ObjectGraph(
        (
            Node(children=(Child(1, "a"), Child(1, "b"), Child(2, "c"), Child(3, "d"))),
            *[
                variable("k1"),
                Node(),
                variable("k3"),
            ],
        )
    )
    pairs = _native.PairedTensors(_native.SavedGraph(encode_object_graph(graph)), TYPES)
    shared = torch.ones(1)
    # Node 1 goes to the module; the shared tensor to node 2, which has no value for it.
    assert pairs.pair(0, ({"a": nn.Linear(1, 1), "b": torch.ones(1), "c": shared, "d": shared},)) == [0, 1, 2, 3]


def test_released_tensors_live_no_longer_than_their_owners() -> None:
    pairs = pairs_for({"a": variable("ka")})
    values = {"a": torch.ones(1)}
    address = id(values["a"])
    pairs.pair(0, (values,))
    pairs.set_attribute("mark", 7)
    assert values["a"].mark == 7  # type: ignore[attr-defined]
    pairs.release()
    assert pairs.tensor(1) is None
    assert (1 in pairs, pairs.address(1), pairs.place(1)) == (True, address, (0, "a"))


def test_tensors_that_were_released_take_no_attribute() -> None:
    pairs = pairs_for({"a": variable("ka")})
    pairs.pair(0, ({"a": torch.ones(1)},))
    pairs.release()
    with pytest.raises(ValueError, match="released"):
        pairs.set_attribute("x", 1)
