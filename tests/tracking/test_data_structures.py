"""Lists and dicts that take the place of plain ones in attributes: what they are, and how they are used."""

import collections
import copy
import json
import pickle
import weakref
from typing import Any, NamedTuple

import pytest
import torch
from checkpoints import walk
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint, NoDependency, list_objects
from torch_trackckpt.adapters import adapt
from torch_trackckpt.tracking.data_structures import TrackedList, wrap


def saved_paths(root: object) -> list[str]:
    """The object paths of all tensors that a checkpoint of the object holds."""
    values = [value for value in walk(root).values[:-1] if isinstance(value.value, torch.Tensor)]
    return [value.key.split("/.ATTRIBUTES")[0] for value in values]


def child_names(root: object) -> list[str]:
    """The object paths of everything below an object, values or not."""
    return [child.local_name for node in walk(root).graph.nodes for child in node.children]


def thing(**attributes: Any) -> AutoTrackable:
    made = AutoTrackable()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def one() -> torch.Tensor:
    return torch.ones(1)


class Pair(NamedTuple):
    x: Any
    y: Any


# ---------------------------------------------------------------------------------------- what is replaced


def test_a_list_that_is_assigned_has_its_elements_as_children_by_index() -> None:
    """C172: an element that is not trackable keeps its index."""
    root = thing(l=[one(), 3, "text", one()])
    assert saved_paths(root) == ["l/0", "l/3"]
    assert saved_paths(Checkpoint(l=[one(), None, one()])) == ["l/0", "l/2"]
    assert child_names(root) == ["l", "0", "3"]


def test_nested_lists_and_dicts_have_nested_paths() -> None:
    """C173"""
    root = thing(l=[1, [one(), {"k": [one()]}]])
    assert saved_paths(root) == ["l/1/0", "l/1/1/k/0"]
    root.l[1][1]["k"].append([])
    root.l[1][1]["k"][1].append(one())
    assert saved_paths(root) == ["l/1/0", "l/1/1/k/0", "l/1/1/k/1/0"]


def test_what_is_appended_extended_or_added_is_tracked() -> None:
    """C174"""
    root = thing(l=[one()])
    root.l.append(one())
    root.l.extend(one() for _ in range(2))
    root.l += [[one()]]
    assert saved_paths(root) == ["l/0", "l/1", "l/2", "l/3", "l/4/0"]
    assert type(root.l[4]) is TrackedList


def test_repeats_are_tracked_as_well_and_what_was_written_before_is_still_restored(prefix: str) -> None:
    """C179"""
    root = Checkpoint(l=[1, torch.tensor(5.0)])
    root.write(prefix)
    root.l *= 2
    root.l[1].fill_(0)
    assert root.l[1] is root.l[3]
    assert [child.local_name for child in walk(root).graph.nodes[1].children] == ["1", "3"]
    root.read(prefix).assert_consumed().assert_existing_objects_matched()
    assert root.l[3] == 5.0


def test_entries_of_a_dict_are_children_by_key_and_may_be_added_and_overwritten() -> None:
    """C185"""
    replacement = one()
    root = thing(d={"b": one(), "a": one()})
    root.d["c"] = one()
    root.d["a"] = replacement
    root.d.update({"d": one()}, e=[one()])
    root.d |= {"f": one()}
    assert root.d.setdefault("g", replacement) is replacement
    assert root.d.setdefault("b") is not None
    assert saved_paths(root) == ["d/b", "d/a", "d/c", "d/d", "d/f", "d/e/0"]
    assert walk(root).values[1].value is replacement


def test_a_plain_value_under_a_key_that_is_no_text_is_ignored() -> None:
    """C187: also a tuple of plain values, and what is marked as no dependency."""
    root = thing(d={1: 2, (3, 4): "text", "a": one()})
    root.d[5] = (0.5, 0.6)
    root.d[6] = NoDependency([3])
    assert root.d[6] == [3]
    assert saved_paths(root) == ["d/a"]


@pytest.mark.parametrize(
    "value",
    [
        collections.OrderedDict(a=[one()]),
        collections.defaultdict(list, a=[one()]),
        collections.Counter("ab"),
        {1, 2},
        frozenset({1}),
        range(3),
        type("Mine", (list,), {})([one()]),
        (1, (2, one())),
        torch.Size([1, 2]),
        nn.ModuleList([nn.Linear(1, 1)]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_containers_are_left_as_they_are(value: object) -> None:
    """Containers of derived classes are nodes nevertheless."""
    root = thing(x=value)
    assert root.x is value
    assert saved_paths(root) == saved_paths({"x": value})


def test_a_list_that_was_tracked_before_stays_the_same_object() -> None:
    first = thing(l=[one()])
    second = thing(l=first.l, both=[first.l])
    assert second.l is first.l is second.both[0]
    assert saved_paths(second) == ["l/0"]


def test_a_list_in_two_places_of_what_is_assigned_is_one_object() -> None:
    shared = [one()]
    root = thing(l=[shared, {"k": shared}])
    assert root.l[0] is root.l[1]["k"]
    root.l[0].append(one())
    assert saved_paths(root) == ["l/0/0", "l/0/1"]


def test_equal_lists_are_different_objects() -> None:
    """C199"""
    root = thing(a=[], b=[], c={}, d={})
    root.b.append(one())
    root.d["x"] = one()
    assert root.a == []
    assert root.c == {}
    assert len(list_objects(root)) == 7
    shared = one()
    root = thing(a=[shared], b=[shared])
    assert root.a == root.b
    assert len(list_objects(root)) == 4


@pytest.mark.parametrize("kind", [list, tuple])
def test_an_object_that_contains_itself_through_a_container_is_saved(kind: type) -> None:
    """C194"""
    root = thing(x=one())
    root.s = kind([root])
    graph = walk(root).graph
    assert [(child.local_name, child.node_id) for child in graph.nodes[2].children] == [("0", 0)]


def test_a_list_that_contains_itself_is_one_tracked_list() -> None:
    """C194"""
    loop: list[Any] = [one()]
    loop += [loop, {"again": loop}, (loop,)]
    root = thing(l=loop)
    assert root.l[1] is root.l is root.l[2]["again"] is root.l[3][0]
    assert saved_paths(root) == ["l/0"]


def test_a_subclass_of_nothing_but_lists_of_plain_values_has_no_children_below_them() -> None:
    root = thing(losses=[], notes={}, rows=[(1, 2.0), (3, None)])
    root.losses.extend(range(1000))
    root.notes["a"] = "b"
    assert child_names(root) == ["losses", "notes", "rows", "0", "1"]


# -------------------------------------------------------------------------------------------------- tuples


def test_a_tuple_stays_a_tuple_that_is_hashable_and_equal() -> None:
    """C191"""
    shared = thing()
    root = thing(t=(1, shared, (2, shared)))
    assert type(root.t) is tuple
    assert root.t == (1, shared, (2, shared))
    assert {root.t: 1}[(1, shared, (2, shared))] == 1
    root.t = (one(), (1, one()))
    assert saved_paths(root) == ["t/0", "t/1/1"]


def test_lists_and_dicts_in_a_tuple_are_tracked() -> None:
    """C191"""
    root = thing(t=([one()], ({"a": one()},)))
    assert type(root.t) is tuple
    root.t[0].append(one())
    root.t[1][0]["b"] = one()
    assert saved_paths(root) == ["t/0/0", "t/0/1", "t/1/0/a", "t/1/0/b"]
    root.t[0].reverse()
    with pytest.raises(ValueError, match=r"^\(root\)\.t\.0 cannot be saved: .*reverse\(\)"):
        walk(root)


def test_the_values_of_a_named_tuple_are_stored_under_its_fields_and_found_by_index_too(prefix: str) -> None:
    """C192"""
    root = Checkpoint(p=Pair(torch.tensor(1.0), [torch.tensor(2.0)]))
    assert type(root.p) is Pair
    assert (root.p.x is root.p[0], type(root.p.y)) == (True, TrackedList)
    assert saved_paths(root) == ["p/x", "p/y/0"]
    node = walk(root).graph.nodes[1]
    assert [child.local_name for child in node.children] == ["x", "y", "0", "1"]
    assert node.children[0].node_id == node.children[2].node_id
    root.write(prefix)
    other = Checkpoint(p=(torch.tensor(0.0), (torch.tensor(0.0),)))
    other.read(prefix).assert_consumed()
    assert other.p == (torch.tensor(1.0), (torch.tensor(2.0),))
    again = Checkpoint(p={"x": torch.tensor(0.0), "y": [torch.tensor(0.0)]})
    again.read(prefix).assert_consumed()
    assert (again.p["x"], again.p["y"]) == (torch.tensor(1.0), [torch.tensor(2.0)])


def test_a_named_tuple_of_a_derived_class_is_made_by_its_constructor() -> None:
    """C192: methods, properties and attributes of its own stay."""

    class Derived(Pair):
        def __new__(cls, x: Any, y: Any) -> Any:
            return super().__new__(cls, x, y)

        @property
        def both(self) -> Any:
            return self.x + self.y

    pair = Derived([1], [2])
    pair.note = "kept"
    root = thing(p=pair)
    assert (type(root.p), root.p.both, root.p.note) == (Derived, [1, 2], "kept")
    root.p.x.append(one())
    assert saved_paths(root) == ["p/x/1"]


class Peculiar(Pair):
    """Cannot be made of its fields."""

    def __new__(cls, elements: Any) -> Any:
        return super().__new__(cls, elements, 1)


class Altering(Pair):
    """Makes something else of what it is given."""

    def __new__(cls, x: Any, y: Any) -> Any:
        return super().__new__(cls, list(x), y)


@pytest.mark.parametrize("made", [lambda: Peculiar([]), lambda: Altering([], 1)])
def test_a_named_tuple_that_its_class_cannot_rebuild_is_refused_once_its_content_is_tracked(made: Any) -> None:
    """C193"""
    pair = made()
    root = thing(a=1, p=pair)
    assert root.p is pair
    assert saved_paths(root) == []
    root.p.x.append(one())
    with pytest.raises(ValueError, match=r"^\(root\)\.p cannot be saved: .*not constructable from its elements"):
        walk(root)


def test_a_tuple_without_lists_needs_no_constructor() -> None:
    root = thing(p=Peculiar(one()))
    assert saved_paths(root) == ["p/x"]


# ----------------------------------------------------------------------------------------- used as the plain ones


def test_a_tracked_list_is_a_list() -> None:
    """C175"""
    a, b = thing(), thing()
    root = thing(l=[a, b], n=[3, 1, 2])
    assert isinstance(root.l, list)
    assert root.l == [a, b]
    assert [a, b] == root.l
    assert root.l != [b, a]
    assert [1, 2] < root.n <= [3, 1, 2] < [4]
    plain = [a]
    assert (root.l + plain, plain + root.l, root.l * 2) == ([a, b, a], [a, a, b], [a, b, a, b])
    assert root.n[1:] + root.n[::-1] == [1, 2, 2, 1, 3]
    assert type(root.n[:]) is type(root.n + root.n) is list
    assert (list(root.l), len(root.l), a in root.l, root.l.index(b), root.n.count(3)) == ([a, b], 2, True, 1, 1)
    assert (sorted(root.n), max(root.n), [*reversed(root.n)]) == ([1, 2, 3], 3, [2, 1, 3])
    assert repr(root.n) == "[3, 1, 2]"
    assert not thing(l=[]).l
    first, *rest = root.n
    assert (first, rest) == (3, [1, 2])
    assert torch.equal(torch.tensor(root.n), torch.tensor([3, 1, 2]))
    assert torch.stack(wrap([one(), one()])).shape == (2, 1)


def test_a_tracked_dict_is_a_dict() -> None:
    root = thing(d={"b": 1, "a": [2]})
    assert isinstance(root.d, dict)
    assert root.d == {"a": [2], "b": 1}
    assert (list(root.d), list(root.d.values()), {**root.d}) == (["b", "a"], [1, [2]], {"b": 1, "a": [2]})
    assert repr(root.d) == "{'b': 1, 'a': [2]}"
    assert (type(root.d | {}), root.d | {"c": 3}) == (dict, {"b": 1, "a": [2], "c": 3})
    plain: dict[str, Any] = {}
    plain.update(root.d)
    assert plain == root.d
    assert (root.d.get("z", 7), root.d.pop("b"), root.d.popitem(), root.d) == (7, 1, ("a", [2]), {})


@pytest.mark.parametrize("value", [[], {}, [[1]], {"a": {}}])
def test_tracked_lists_and_dicts_are_unhashable(value: Any) -> None:
    """C190"""
    with pytest.raises(TypeError, match="unhashable"):
        hash(thing(x=value).x)


@pytest.mark.parametrize("value", [[1, [2.5, {"a": None}]], {"a": [1, {"b": "c"}], "d": {}}])
def test_they_are_pickled_and_encoded_as_their_plain_content(value: Any) -> None:
    """C190"""
    tracked = thing(x=value).x
    assert json.dumps(tracked) == json.dumps(value)
    assert json.dumps(tracked, indent=1, sort_keys=True) == json.dumps(value, indent=1, sort_keys=True)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.dumps(tracked, protocol) is not None
        loaded = pickle.loads(pickle.dumps(tracked, protocol))
        assert (loaded, repr(type(loaded))) == (value, repr(type(value)))
    assert b"torch_trackckpt" not in pickle.dumps(tracked)


def test_a_list_that_contains_itself_is_pickled() -> None:
    """C190"""
    root = thing(l=[])
    root.l.append(root.l)
    loaded = pickle.loads(pickle.dumps(root.l))
    assert loaded[0] is loaded


def test_the_attributes_of_a_pickled_object_are_tracked_again() -> None:
    """C190"""
    root = thing(l=[[1]], n=NoDependency([2]))
    root.same = root.l
    loaded = pickle.loads(pickle.dumps(root))
    assert (type(loaded.l), type(loaded.l[0]), type(loaded.n)) == (TrackedList, TrackedList, list)
    assert loaded.same is loaded.l
    loaded.l[0].append(one())
    assert saved_paths(loaded) == ["l/0/1"]


def test_a_checkpoint_of_a_plain_list_survives_copying_and_pickling() -> None:
    for twin in (copy.deepcopy(Checkpoint([one(), [one()]])), pickle.loads(pickle.dumps(Checkpoint([one(), [one()]])))):
        assert saved_paths(twin.root) == ["0", "1/0"]
        assert twin._attached()["root"] is twin.root is twin._graph_root()


def test_they_are_part_of_a_python_state_as_plain_ones(prefix: str) -> None:
    class Sampler:
        def __init__(self, order: Any) -> None:
            self.order = order

        def state_dict(self) -> dict[str, Any]:
            return {"order": self.order}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.order = state["order"]

    root = Checkpoint(order=[2, {"a": 1}])
    root.sampler = Sampler(root.order)
    root.write(prefix)
    sampler = Sampler(None)
    Checkpoint(sampler=sampler).read(prefix).expect_partial()
    assert (type(sampler.order), sampler.order) == (list, [2, {"a": 1}])


# ------------------------------------------------------------------------------------------------------ copies


def test_shallow_copies_share_their_elements_and_deep_copies_do_not() -> None:
    """C183"""
    for tracked, key in ((thing(x=[[1.0]]).x, 0), (thing(x={"a": [1.0]}).x, "a")):
        for shallow in (copy.copy(tracked), tracked.copy()):
            assert (type(shallow), shallow, shallow is tracked) == (type(tracked), tracked, False)
            assert shallow[key] is tracked[key]
        deep = copy.deepcopy(tracked)
        assert (type(deep), deep, deep is tracked, deep[key] is tracked[key]) == (type(tracked), tracked, False, False)
        assert type(deep[key]) is TrackedList


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda tracked: tracked.copy()])
def test_copies_of_what_cannot_be_saved_cannot_be_saved(copied: Any) -> None:
    """C183: whatever it was that was done."""
    outside: dict[str, Any] = {"a": [1.0]}
    root = thing(l=[one()], d=outside)
    assert saved_paths(thing(l=copied(root.l), d=copied(root.d))) == ["l/0"]
    root.l.reverse()
    outside["b"] = []
    for tracked in (root.l, root.d):
        with pytest.raises(ValueError, match=r"^\(root\)\.x cannot be saved"):
            walk(thing(x=copied(tracked)))


def test_a_copy_of_a_clean_list_goes_its_own_way() -> None:
    """C183"""
    root = thing(l=[one()])
    twin = thing(l=copy.copy(root.l))
    twin.l.reverse()
    root.l.append(one())
    assert (saved_paths(root), len(twin.l)) == (["l/0", "l/1"], 1)


def test_a_deep_copy_of_a_list_that_contains_itself_contains_itself() -> None:
    """C183"""
    root = thing(l=[], d={})
    root.l.append(root.l)
    root.d["d"] = root.d
    deep = copy.deepcopy(root)
    assert (deep.l[0] is deep.l, deep.l is root.l, deep.d["d"] is deep.d, deep.d is root.d) == (
        True,
        False,
        True,
        False,
    )


# ----------------------------------------------------------------------------------------------- no dependency


def test_an_attribute_without_dependency_is_the_plain_object_and_free(prefix: str) -> None:
    """C197: it is neither saved nor restored."""
    plain, by_number = [one()], {1: one()}
    root = Checkpoint(d=torch.tensor(1.0))
    root.l, root.n = NoDependency(plain), NoDependency(by_number)
    assert root.l is plain
    assert root.n is by_number
    root.l.insert(0, one())
    root.l.sort(key=id)
    del root.n[1]
    root.n[2] = [3]
    root.write(prefix)
    assert saved_paths(root) == ["d"]
    other = Checkpoint(d=torch.zeros(()))
    other.l = NoDependency([torch.zeros(1)])
    other.read(prefix).assert_consumed().assert_existing_objects_matched()
    assert other.l == [torch.zeros(1)]


def test_an_element_without_dependency_is_no_child_and_free() -> None:
    """C197"""
    inner, module = [one()], thing(x=one())
    root = thing(l=[NoDependency(inner), one()], d={"a": NoDependency(module), 1: NoDependency(module)})
    root.l.append(NoDependency(module))
    assert root.l[0] is inner
    assert root.d["a"] is root.d[1] is root.l[2] is module
    assert saved_paths(root) == ["l/1"]
    assert adapt(root.l)._lookup_dependency("0") is None  # type: ignore[union-attr]
    root.l.pop()
    root.l[0] = NoDependency([2])
    root.d.clear()
    assert saved_paths(root) == ["l/1"]


def test_copies_keep_the_marks_of_elements() -> None:
    """C197"""
    root = thing(l=[NoDependency([one()]), one()])
    for twin in (copy.copy(root.l), copy.deepcopy(root.l)):
        assert saved_paths(thing(l=twin)) == ["l/1"]
    root.l *= 2
    assert saved_paths(root) == ["l/1"]


def test_an_element_that_is_put_in_again_without_the_mark_is_a_child() -> None:
    """C197"""
    module = thing(x=one())
    root = thing(d={"a": NoDependency(module)})
    root.d["a"] = module
    assert saved_paths(root) == ["d/a/x"]


# ---------------------------------------------------------------------------------------------------- empty


def test_an_empty_container_is_nobodys_concern_whatever_becomes_of_it(prefix: str) -> None:
    """C198"""
    Checkpoint(a=[], b={}, x=one()).write(prefix)
    live = Checkpoint(c=[], x=torch.zeros(1))
    live.a = []
    live.a.append([])
    live.b = {"k": [1, 2]}
    status = live.read(prefix)
    status.assert_consumed().assert_existing_objects_matched().assert_nontrivial_match()
    live.a.append({"more": [nn.ReLU()]})
    status.assert_consumed().assert_existing_objects_matched()
    assert saved_paths(live) == ["x"]


def test_a_window_over_marked_elements_keeps_few_of_them_alive() -> None:
    """C197"""
    thing = AutoTrackable()
    thing.window = []
    seen = []
    for _ in range(500):
        element = torch.zeros(1)
        seen.append(weakref.ref(element))
        thing.window.append(NoDependency(element))
        del element
        if len(thing.window) > 5:
            thing.window.pop(0)
    assert sum(reference() is not None for reference in seen) < 50
