"""Numbers, names and records that native code gives to live objects, against plain Python."""

from collections import deque
from typing import Any

import pytest
import torch
from checkpoints import thing, walk
from graph_messages import encode_object_graph, parse_object_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torch_trackckpt import AutoTrackable, Trackable, _native
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.graph.keys import attribute_key, object_path
from torch_trackckpt.graph.walk import capture, collect, discover

names = st.sampled_from(["a", "b.c", "d/e", "é", "x", "layer", "0"])


@st.composite
def programs(draw: st.DrawFn) -> AutoTrackable:
    """Objects, modules and tensors with shared children and cycles."""
    kinds = [AutoTrackable, nn.Module, lambda: nn.Parameter(torch.zeros(1)), lambda: torch.zeros(2)]
    objects: list[Any] = [AutoTrackable(), *(draw(st.sampled_from(kinds))() for _ in range(draw(st.integers(0, 8))))]
    inner = [item for item in objects if not isinstance(item, torch.Tensor)]
    for _ in range(draw(st.integers(0, 14))):
        parent, name, child = draw(st.sampled_from(inner)), draw(names), draw(st.sampled_from(objects))
        if isinstance(parent, nn.Module):
            if "." in name or not isinstance(child, (nn.Module, nn.Parameter)) or hasattr(parent, name):
                continue
            # A cycle of modules is none that torch could walk.
            if isinstance(child, nn.Module) and any(part is parent for part in child.modules()):
                continue
        setattr(parent, name, child)
    return objects[0]  # type: ignore[no-any-return]


def children(value: Any) -> dict[str, Any]:
    if isinstance(value, nn.Module):
        named = {**value._parameters, **value._modules}
        return {name: child for name, child in named.items() if child is not None}
    return {} if isinstance(value, torch.Tensor) else dict(value._trackable_children())


def expected_paths(root: Any) -> list[tuple[int, tuple[str, ...]]]:
    """Breadth first, by the book."""
    found = {id(root): ()}
    queue: deque[tuple[Any, tuple[str, ...]]] = deque([(root, ())])
    while queue:
        parent, path = queue.popleft()
        for name, child in children(parent).items():
            if id(child) not in found:
                found[id(child)] = (*path, name)  # type: ignore[assignment]
                queue.append((child, (*path, name)))
    return list(found.items())


@given(programs())
@settings(deadline=None)
def test_objects_have_the_numbers_and_names_of_a_breadth_first_search(root: AutoTrackable) -> None:
    live = discover(root)
    expected = expected_paths(root)
    assert [(live.objects.identity(n), live.objects.names(n)) for n in range(len(live.objects))] == expected
    for number, (identity, path) in enumerate(expected):
        assert live.objects.find(identity) == number
        assert live.objects.path(number) == object_path(path)
    assert [node.names for node in live.nodes.values()] == [path for _, path in expected]


@given(programs())
@settings(deadline=None)
def test_the_record_is_what_protobuf_writes_and_its_keys_are_those_of_the_values(root: AutoTrackable) -> None:
    live = capture(root)
    snapshot = collect(live)
    graph = parse_object_graph(snapshot.graph.record)
    assert encode_object_graph(graph) == snapshot.graph.record
    for number, node in enumerate(graph.nodes):
        assert [(child.local_name, child.node_id) for child in node.children] == live.objects.children(number)
        path = live.objects.path(number)
        for attribute in node.attributes:
            assert attribute.checkpoint_key == attribute_key(path, attribute.name)
            if live.objects.is_tensor(number):
                assert attribute.full_name == live.objects.full_name(number)
                assert live.objects.full_name(number) == list(live.nodes.values())[number].full_name
    keys = [attribute.checkpoint_key for node in graph.nodes for attribute in node.attributes]
    assert sorted(keys) == sorted(snapshot.keys[:-1])
    assert len(snapshot.keys) == len(snapshot.values)


@given(programs(), programs())
@settings(deadline=None)
def test_a_record_is_taken_over_for_the_same_graph_and_only_where_it_would_be_the_same(
    first: AutoTrackable, second: AutoTrackable
) -> None:
    known = collect(capture(first)).graph
    again = collect(capture(first), known).graph
    other = collect(capture(second), known).graph
    assert again is known
    # The reverse need not be: what differs may not show in the record.
    assert other is not known or collect(capture(second)).graph.record == known.record


def test_objects_are_the_same_only_if_none_was_replaced() -> None:
    root = thing(a=torch.zeros(1), b=thing())
    before = discover(root).objects
    assert discover(root).objects.has_same_objects(before)
    root.b = thing()
    assert not discover(root).objects.has_same_objects(before)


def test_a_name_that_is_no_text_is_refused_with_the_path_of_its_parent() -> None:
    root = thing(inner={"\udc80": torch.zeros(1)})
    with pytest.raises(UnsupportedValueError, match=r"\(root\)\.inner cannot be saved: .*'\\udc80'"):
        walk(root)


def test_a_module_knows_which_of_its_tensors_are_views_of_what_torch_would_save() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1, bias=False))
    graph = parse_object_graph(collect(capture({"net": module})).graph.record)
    full_names = [attribute.full_name for node in graph.nodes for attribute in node.attributes]
    assert sorted(filter(None, full_names)) == sorted(module.state_dict())


class Odd(Trackable):
    """Names its children, or its values, as it is told."""

    def __init__(self, *, child: object = "fine", attribute: object = "fine") -> None:
        self.child, self.attribute = child, attribute

    def _trackable_children(self) -> Any:
        return {self.child: torch.ones(1)}

    def _serialize_to_tensors(self) -> Any:
        return {self.attribute: torch.ones(1)}


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (Odd(child="\udcff"), "one of its children has the name '\\\\udcff', which cannot be stored as text"),
        (Odd(child=1), "one of its children has the name 1, of the type int; names are texts"),
        (Odd(attribute="\udcff"), "one of its attributes has the name '\\\\udcff', which cannot be stored as text"),
        (Odd(attribute=1), "one of its attributes has the name 1, of the type int; names are texts"),
    ],
    ids=["child", "child's number", "attribute", "attribute's number"],
)
def test_a_name_that_is_no_text_is_refused_with_whose_it_is(odd: Odd, told: str) -> None:
    root = AutoTrackable()
    root.thing = odd
    with pytest.raises(UnsupportedValueError, match=rf"^\(root\)\.thing cannot be saved: {told}"):
        collect(capture(root))


def live_objects() -> _native.LiveObjects:
    objects = _native.LiveObjects((torch.Tensor,))
    objects.add_root(object(), 1, False)
    objects.add_children(0, {"a": object()}, lambda value: (value, id(value), False))
    return objects


@pytest.mark.parametrize("number", [-1, 2, 10**6])
def test_what_is_said_of_nodes_that_are_not_there_is_refused(number: int) -> None:
    for arguments in (
        ([(number, "x", b"1")], [], []),
        ([], [(number, 2)], []),
        ([], [], [(number, "s", [0], [torch.zeros(1)])]),
        ([], [], [(0, "s", [number], [torch.zeros(1)])]),
    ):
        with pytest.raises(IndexError, match="no such node"):
            live_objects().collect(*arguments, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [-1, -(10**9)])
def test_no_trackable_is_looked_for_before_the_first_node(number: int) -> None:
    assert live_objects().next_trackable(2) is None
    with pytest.raises(IndexError, match="no such node"):
        live_objects().next_trackable(number)


def test_a_graph_has_one_root() -> None:
    objects = live_objects()
    with pytest.raises(ValueError, match="one root"):
        objects.add_root(object(), 2, False)
    assert len(objects) == 2
    assert objects.path(1) == "a"


def test_a_graph_without_a_root_has_nothing_to_number() -> None:
    objects = _native.LiveObjects((torch.Tensor,))
    objects.renumber()
    assert len(objects) == 0


def test_what_is_said_of_nodes_out_of_their_order_is_refused_and_not_left_out() -> None:
    with pytest.raises(ValueError, match="not in the order of the nodes"):
        live_objects().collect([(1, "x", b"1"), (0, "y", b"2")], [], [], None)
