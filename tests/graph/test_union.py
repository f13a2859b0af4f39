"""One graph of several processes' graphs."""

from __future__ import annotations

import pytest
import torch
from graph_messages import encode_object_graph
from torch import nn

from torch_trackckpt import _native
from torch_trackckpt.errors import DataLossError
from torch_trackckpt.graph.messages import decode_object_graph
from torch_trackckpt.graph.object_graph import Attribute, Child, Node, ObjectGraph, SlotVariable
from torch_trackckpt.graph.walk import capture, collect


def union(*graphs: ObjectGraph, renamed: dict[str, str] | None = None) -> ObjectGraph:
    records = [encode_object_graph(graph) for graph in graphs]
    return decode_object_graph(_native.union_of_graphs(records, renamed or {}), "the union")


def variable(key: str) -> Node:
    return Node(
        attributes=(Attribute("VARIABLE_VALUE", key, f"{key}/.ATTRIBUTES/VARIABLE_VALUE"),), has_checkpoint_values=True
    )


def inner(*children: tuple[int, str], has_values: bool = True) -> Node:
    return Node(children=tuple(Child(*child) for child in children), has_checkpoint_values=has_values)


def test_what_has_the_same_names_is_one_object() -> None:
    first = ObjectGraph((inner((1, "net")), inner((2, "a")), variable("net/a")))
    second = ObjectGraph(
        (inner((1, "net"), (2, "x")), inner((3, "b"), (4, "a")), variable("x"), variable("net/b"), variable("net/a"))
    )
    assert union(first, second).nodes == (
        inner((1, "net"), (2, "x")),
        inner((3, "a"), (4, "b")),
        variable("x"),
        variable("net/a"),
        variable("net/b"),
    )


def test_the_union_of_equal_graphs_is_that_graph() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(4, 2)).sum().backward()
    optimizer.step()
    record = collect(capture({"model": model, "optimizer": optimizer})).graph.record
    for count in (1, 2, 5):
        assert _native.union_of_graphs([record] * count, {}) == record


def test_an_object_that_one_process_knows_by_two_names_is_one_object() -> None:
    first = ObjectGraph((inner((1, "a"), (1, "b")), variable("a")))
    second = ObjectGraph((inner((1, "b")), variable("b")))
    with pytest.raises(
        ValueError, match=r"\(root\)\.b has its value under b/.* in one process and under a/.* in another"
    ):
        union(first, second)
    # Where the name that the key is made of is the same, both names lead to it.
    third = ObjectGraph((inner((1, "a")), variable("a")))
    assert union(first, third).nodes == first.nodes
    assert union(third, first).nodes == first.nodes


def test_objects_that_are_one_in_one_process_and_two_in_another_are_refused() -> None:
    tied = ObjectGraph((inner((1, "a"), (1, "b")), variable("a")))
    apart = ObjectGraph((inner((1, "a"), (2, "b")), variable("a"), variable("b")))
    for graphs in ((tied, apart), (apart, tied)):
        with pytest.raises(ValueError, match=r"two objects of one process .*: \(root\)\.a and \(root\)\.b"):
            union(*graphs)


def test_slots_belong_to_their_optimizer_and_variable() -> None:
    def graph(name: str) -> ObjectGraph:
        optimizer = Node(slot_variables=(SlotVariable(2, "m", 3),), has_checkpoint_values=False)
        return ObjectGraph((inner((1, "optimizer"), (2, name)), optimizer, variable(name), variable(f"{name}/slot")))

    joined = union(graph("a"), graph("b"), graph("a"))
    assert [child.local_name for child in joined.nodes[0].children] == ["optimizer", "a", "b"]
    assert joined.nodes[1].slot_variables == (SlotVariable(2, "m", 4), SlotVariable(3, "m", 5))
    assert joined.nodes[4:] == (variable("a/slot"), variable("b/slot"))


def test_cycles_are_no_obstacle() -> None:
    first = ObjectGraph((inner((1, "child")), inner((0, "parent"), (2, "a")), variable("child/a")))
    second = ObjectGraph((inner((1, "child")), inner((0, "parent"), (2, "b")), variable("child/b")))
    assert union(first, second).nodes == (
        inner((1, "child")),
        inner((0, "parent"), (2, "a"), (3, "b")),
        variable("child/a"),
        variable("child/b"),
    )


def test_keys_are_written_as_what_they_are_called_now() -> None:
    graph = ObjectGraph((inner((1, "a"), (2, "b")), variable("a"), variable("b")))
    key = "a/.ATTRIBUTES/VARIABLE_VALUE"
    renamed = union(graph, renamed={key: f"{key}/.BY_RANK"})
    assert renamed.nodes[1].attributes[0].checkpoint_key == f"{key}/.BY_RANK"
    assert renamed.nodes[2] == graph.nodes[2]


def test_a_version_and_the_flag_of_values_are_those_of_any() -> None:
    first = ObjectGraph((Node(has_checkpoint_values=False),))
    second = ObjectGraph((Node(has_checkpoint_values=True, module_version=3),))
    assert union(first, second).nodes == second.nodes


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="no graph to join"):
        _native.union_of_graphs([], {})
    with pytest.raises(DataLossError):
        _native.union_of_graphs([b"\x0a\xff"], {})
