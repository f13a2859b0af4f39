"""The native reading of an object graph's record, against protobuf's own."""

import pytest
from google.protobuf import message
from graph_messages import encode_object_graph, parse_object_graph
from hypothesis import given
from hypothesis import strategies as st

from torch_trackckpt import _native
from torch_trackckpt.errors import DataLossError
from torch_trackckpt.graph.messages import decode_object_graph
from torch_trackckpt.graph.object_graph import Attribute, Child, Node, ObjectGraph, SlotVariable

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@st.composite
def graphs(draw: st.DrawFn) -> ObjectGraph:
    number = draw(st.integers(1, 6))
    ids = st.integers(0, number - 1)
    nodes = st.builds(
        Node,
        children=st.lists(st.builds(Child, ids, texts), max_size=3).map(tuple),
        attributes=st.lists(st.builds(Attribute, texts, texts, texts), max_size=2).map(tuple),
        slot_variables=st.lists(st.builds(SlotVariable, ids, texts, ids), max_size=2).map(tuple),
        registered_saver=st.none() | st.tuples(texts, texts),
        has_checkpoint_values=st.none() | st.booleans(),
        module_version=st.none() | st.integers(-(2**63), 2**63 - 1),
    )
    return ObjectGraph(tuple(draw(nodes) for _ in range(number)))


@given(graphs())
def test_every_field_of_every_node_is_what_protobuf_wrote(graph: ObjectGraph) -> None:
    """C015"""
    decoded = decode_object_graph(encode_object_graph(graph), "ckpt")
    assert list(decoded.nodes) == list(graph.nodes)
    for node_id, node in enumerate(graph.nodes):
        assert decoded.attributes(node_id) == node.attributes
        for name in {child.local_name for child in node.children} | {"not there"}:
            assert decoded.child(node_id, name) == graph.child(node_id, name)
        assert decoded.readable(node_id) == graph.readable(node_id)
    assert list(decoded.nodes_with_slots()) == list(graph.nodes_with_slots())
    assert list(decoded.nodes_with_values()) == list(graph.nodes_with_values())


def altered(record: bytes, changes: list[tuple[int, int]]) -> bytes:
    data = bytearray(record)
    for place, value in changes:
        data[place % len(data)] = value
    return bytes(data)


@given(graphs(), st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4))
def test_altered_bytes_are_read_as_protobuf_reads_them_or_are_an_error(
    graph: ObjectGraph, changes: list[tuple[int, int]]
) -> None:
    """C391: what is accepted means the same; a reference to no node, and a group, are refused here alone."""
    record = altered(encode_object_graph(graph), changes)
    try:
        decoded = decode_object_graph(record, "ckpt")
    except DataLossError:
        return
    assert list(decoded.nodes) == list(parse_object_graph(record).nodes)


@pytest.mark.parametrize(
    "name", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"abcdefgh\x80"]
)
def test_a_name_that_is_no_text_is_refused_as_by_protobuf(name: bytes) -> None:
    child = b"\x12" + bytes([len(name)]) + name
    node = b"\x0a" + bytes([len(child)]) + child
    record = b"\x0a" + bytes([len(node)]) + node
    with pytest.raises(message.DecodeError):
        parse_object_graph(record)
    with pytest.raises(DataLossError, match="a name is no UTF-8"):
        decode_object_graph(record, "ckpt")


@pytest.mark.parametrize("name", ["", "a", "é", "€", "𐍈", "plain text that is longer", "mixed é after eight"])
def test_every_text_comes_back(name: str) -> None:
    graph = ObjectGraph((Node(children=(Child(0, name),)),))
    assert list(decode_object_graph(encode_object_graph(graph), "ckpt").nodes) == list(graph.nodes)


def test_unknown_fields_are_passed_over() -> None:
    """C016"""
    record = encode_object_graph(ObjectGraph((Node(has_checkpoint_values=True),)))
    unknown = b"\x78\x05" + b"\x7a\x02ab" + b"\x79" + bytes(8) + b"\x7d" + bytes(4)
    assert list(decode_object_graph(unknown + record + unknown, "ckpt").nodes) == [Node(has_checkpoint_values=True)]


def test_graphs_are_equal_where_their_nodes_are() -> None:
    graph = ObjectGraph((Node(children=(Child(0, "a"),)),))
    record = encode_object_graph(graph)
    assert decode_object_graph(record, "x") == decode_object_graph(record, "y")
    assert decode_object_graph(record, "x") == decode_object_graph(b"\x78\x05" + record, "y")
    assert decode_object_graph(record, "x") != decode_object_graph(encode_object_graph(ObjectGraph((Node(),))), "y")


def test_a_node_that_is_not_there_is_an_error() -> None:
    saved = _native.SavedGraph(encode_object_graph(ObjectGraph((Node(),))))
    for ask in (saved.children, saved.attributes, saved.slots, saved.has_values):
        with pytest.raises(IndexError):
            ask(1)
        with pytest.raises(IndexError):
            ask(-1)
    with pytest.raises(IndexError):
        saved.child(0, 0)
