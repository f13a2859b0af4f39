"""The object graph as bytes."""

import json
from pathlib import Path
from typing import Any

import pytest
import witness
from graph_messages import encode_object_graph

from torch_trackckpt.errors import DataLossError
from torch_trackckpt.graph.messages import decode_object_graph
from torch_trackckpt.graph.object_graph import Attribute, Child, Node, ObjectGraph, SlotVariable

GOLDEN = Path(__file__).parent.parent / "golden"
WITH_GRAPH: list[dict[str, Any]] = [
    vector for vector in json.loads((GOLDEN / "manifest.json").read_text())["vectors"] if "object_graph" in vector
]
with_graph = pytest.mark.parametrize("vector", WITH_GRAPH, ids=lambda vector: vector["name"])


def record(vector: dict[str, Any]) -> bytes:
    return bytes(witness.read_bundle(GOLDEN / vector["prefix"])[witness.GRAPH_KEY].data[0])


def as_manifest(node: Node) -> dict[str, Any]:
    described: dict[str, Any] = {
        "children": [[child.local_name, child.node_id] for child in node.children],
        "attributes": [[a.name, a.full_name, a.checkpoint_key] for a in node.attributes],
        "slot_variables": [[slot.slot_name, slot.variable_id, slot.slot_id] for slot in node.slot_variables],
        "has_checkpoint_values": node.has_checkpoint_values,
    }
    if node.registered_saver is not None:
        described["registered_saver"] = list(node.registered_saver)
    return described


@with_graph
def test_a_graph_of_tensorflow_is_decoded_as_tensorflow_decodes_it(vector: dict[str, Any]) -> None:
    """C015"""
    graph = decode_object_graph(record(vector), vector["name"])
    assert [as_manifest(node) for node in graph.nodes] == vector["object_graph"]


@with_graph
def test_a_graph_of_tensorflow_is_encoded_to_the_same_bytes(vector: dict[str, Any]) -> None:
    """C015, C361"""
    stored = record(vector)
    assert encode_object_graph(decode_object_graph(stored, vector["name"])) == stored


@pytest.mark.parametrize(
    ("node", "encoded"),
    [
        (Node(), b""),
        (Node(has_checkpoint_values=False), b"\x2a\x00"),
        (Node(has_checkpoint_values=True), b"\x2a\x02\x08\x01"),
        (Node(children=(Child(0, "é"),)), b"\x0a\x04\x12\x02\xc3\xa9"),
        (Node(attributes=(Attribute("n", "", "k"),)), b"\x12\x06\x0a\x01n\x1a\x01k"),
        (Node(attributes=(Attribute("n", "f", "k"),)), b"\x12\x09\x0a\x01n\x12\x01f\x1a\x01k"),
        (Node(slot_variables=(SlotVariable(0, "m", 0),)), b"\x1a\x03\x12\x01m"),
        (Node(registered_saver=("p.S", "a")), b"\x22\x08\x0a\x03p.S\x12\x01a"),
        (Node(module_version=2), b"\x8a\xb5\x18\x02\x08\x02"),
        (Node(module_version=0), b"\x8a\xb5\x18\x00"),
        (Node(module_version=-1), b"\x8a\xb5\x18\x0b\x08" + b"\xff" * 9 + b"\x01"),
    ],
)
def test_each_field_of_a_node_has_its_bytes_and_comes_back(node: Node, encoded: bytes) -> None:
    """C015, C016: a false flag is present and empty; an absent one, as in old files, stays absent."""
    graph = ObjectGraph((node,))
    record = b"\x0a" + bytes([len(encoded)]) + encoded
    assert encode_object_graph(graph) == record
    assert decode_object_graph(record, "ckpt") == graph


@pytest.mark.parametrize("record", [b"\x0a", b"\x0a\x05ab", b"\xff\xff\xff", b"\x0a\x03\x12\x05n"])
def test_bytes_that_are_no_graph_are_an_error_that_names_the_checkpoint(record: bytes) -> None:
    """C391"""
    with pytest.raises(DataLossError, match=r"The object graph of 'run/ckpt-1' is damaged: it does not parse"):
        decode_object_graph(record, "run/ckpt-1")


def test_a_local_name_that_is_no_utf8_is_an_error() -> None:
    """C391"""
    with pytest.raises(DataLossError, match=r"'run/ckpt-1' is damaged"):
        decode_object_graph(b"\x0a\x05\x0a\x03\x12\x01\xff", "run/ckpt-1")


def test_a_graph_without_nodes_is_an_error() -> None:
    """C391"""
    with pytest.raises(DataLossError, match=r"The object graph of 'run/ckpt-1' is damaged: it has no root node"):
        decode_object_graph(b"", "run/ckpt-1")


@pytest.mark.parametrize("other", [2, -1, 2**31 - 1])
@pytest.mark.parametrize("field", ["child", "variable", "slot"])
def test_a_reference_to_a_node_that_is_not_there_is_an_error_that_names_both(field: str, other: int) -> None:
    """C391"""
    node = {
        "child": Node(children=(Child(other, "x"),)),
        "variable": Node(slot_variables=(SlotVariable(other, "m", 0),)),
        "slot": Node(slot_variables=(SlotVariable(0, "m", other),)),
    }[field]
    record = encode_object_graph(ObjectGraph((Node(), node)))
    with pytest.raises(DataLossError, match=rf"node 1 refers to node {other}, but there are 2 nodes"):
        decode_object_graph(record, "ckpt")


def test_fields_that_are_not_known_are_passed_over() -> None:
    assert decode_object_graph(b"\x0a\x02\x78\x05", "ckpt") == ObjectGraph((Node(),))


@pytest.mark.parametrize("field", [b"text", b"\x08", b"\x08" + b"\xff" * 11, b"\x00"])
def test_a_version_that_is_none_is_an_error_and_no_crash(field: bytes) -> None:
    node = b"\x8a\xb5\x18" + bytes([len(field)]) + field
    with pytest.raises(DataLossError, match="does not parse"):
        decode_object_graph(b"\x0a" + bytes([len(node)]) + node, "ckpt")


@pytest.mark.parametrize("field", [b"\x88\xb5\x18\x02", b"\x8a\xb5\x18\x03\x0a\x01x"])
def test_a_version_of_another_kind_is_passed_over(field: bytes) -> None:
    """As a field that is not known: what TensorFlow may do with this number one day is not taken for a version."""
    (node,) = decode_object_graph(b"\x0a" + bytes([len(field)]) + field, "ckpt").nodes
    assert not node.module_version


def test_a_graph_with_names_of_today_finds_and_calls_by_those_of_the_file_what_has_no_other() -> None:
    saved = ObjectGraph((Node(children=(Child(1, "a"), Child(2, "b"))), Node(), Node()))
    graph = ObjectGraph((Node(children=(Child(1, "b"), Child(3, "c"))), Node(), Node(), Node()), saved)
    assert [graph.find(path) for path in ("a", "b", "c")] == [1, 2, None]
    assert [graph.readable(node_id) for node_id in range(1, 4)] == ["(root).b", "(root).b", "(root).c"]


def test_paths_lead_to_the_node_of_their_first_discovery() -> None:
    """C013, C023"""
    graph = ObjectGraph(
        (
            Node(children=(Child(1, "a"), Child(2, "b"), Child(0, "self"))),
            Node(children=(Child(2, "x/y"), Child(3, "c"))),
            Node(),
            Node(),
        )
    )
    assert [graph.find(path) for path in ("", "a", "b", "a/c", "a/d", "c/a")] == [0, 1, 2, 3, None, None]
    assert [graph.readable(node_id) for node_id in range(4)] == ["(root)", "(root).a", "(root).b", "(root).a.c"]


def test_a_slot_is_called_after_its_optimizer_and_its_variable() -> None:
    """C118"""
    graph = ObjectGraph(
        (
            Node(children=(Child(1, "opt"), Child(2, "w"))),
            Node(slot_variables=(SlotVariable(2, "m", 3),)),
            Node(),
            Node(),
        )
    )
    assert graph.readable(3) == "(root).opt's state 'm' for (root).w"
