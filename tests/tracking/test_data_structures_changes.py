"""What may be done to tracked lists and dicts, and what ends in an error when they are saved."""

import gc
import itertools
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import walk
from hypothesis import given
from hypothesis import strategies as st

from torch_trackckpt import AutoTrackable, Checkpoint, NoDependency, list_objects
from torch_trackckpt.errors import UnsavableContainerError, UnsupportedValueError
from torch_trackckpt.tracking.data_structures import wrap


def saved_paths(root: object) -> list[str]:
    """The object paths of all tensors that a checkpoint of the object holds."""
    values = [value for value in walk(root).values[:-1] if isinstance(value.value, torch.Tensor)]
    return [value.key.split("/.ATTRIBUTES")[0] for value in values]


def thing(**attributes: Any) -> AutoTrackable:
    made = AutoTrackable()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def one() -> torch.Tensor:
    return torch.ones(1)


def delete(container: Any, key: Any) -> None:
    del container[key]


def assign(container: Any, key: Any, value: Any) -> None:
    container[key] = value


def multiply(container: Any, count: int) -> None:
    container *= count


# ------------------------------------------------------------------------------------------------------- lists

EVEN = slice(None, None, 2)

# By what the message calls them: changes of a list of four, of which the last is tracked.
LIST_CHANGES: dict[str, list[Callable[[Any], object]]] = {
    "insert()": [lambda x: x.insert(0, 1), lambda x: x.insert(-1, 1)],
    "pop()": [lambda x: x.pop(), lambda x: x.pop(0), lambda x: x.pop(-2)],
    "remove()": [lambda x: x.remove(2)],
    "del": [lambda x: delete(x, 0), lambda x: delete(x, -1), lambda x: delete(x, slice(2)), lambda x: delete(x, EVEN)],
    "reverse()": [lambda x: x.reverse()],
    "sort()": [lambda x: x.sort(key=id), lambda x: x.sort(key=str, reverse=True)],
    "clear()": [lambda x: x.clear(), lambda x: multiply(x, 0), lambda x: multiply(x, -1)],
    "item assignment": [lambda x: assign(x, 3, 1), lambda x: assign(x, -1, 2)],
    "slice assignment": [
        lambda x: assign(x, slice(None), []),
        lambda x: assign(x, slice(0, 1), [1, 2]),
        lambda x: assign(x, slice(None), [1, 2, 3, 4]),
        lambda x: assign(x, slice(None, None, -1), [1, 2, 3, 4]),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "change"), [(n, c) for n, changes in LIST_CHANGES.items() for c in changes])
@pytest.mark.parametrize("tracked", [one, lambda: [4], dict, lambda: (1, [2])], ids=["tensor", "list", "dict", "tuple"])
def test_a_change_that_moves_or_replaces_what_is_tracked_is_refused_when_it_is_saved(
    name: str, change: Callable[[Any], object], tracked: Callable[[], object], tmp_path: Path
) -> None:
    """C176, C180: in Python it does what it does with any list."""
    last = tracked()
    plain = [1, 2, 3, last]
    root = Checkpoint(a=thing(l=list(plain)))
    root.a.l[3] = root.a.l[3]
    root.write(tmp_path / "before")
    change(root.a.l)
    reference = [1, 2, 3, last]
    change(reference)
    assert len(root.a.l) == len(reference)
    pattern = rf"^\(root\)\.a\.l cannot be saved: .*an element was replaced, moved or taken out by {re.escape(name)}\. "
    for _ in range(2):
        with pytest.raises(ValueError, match=pattern + ".*Assign it anew.*NoDependency"):
            root.save(tmp_path / "ckpt")
    assert not list(tmp_path.glob("ckpt*"))


@pytest.mark.parametrize("change", [change for changes in LIST_CHANGES.values() for change in changes])
@pytest.mark.parametrize("last", ["4", (4, "5"), object()], ids=["text", "tuple", "object"])
def test_the_same_changes_of_what_is_not_tracked_are_free(change: Callable[[Any], object], last: object) -> None:
    """C177"""
    root = thing(l=[1, 2, 3, last])
    reference = [1, 2, 3, last]
    change(root.l)
    change(reference)
    assert root.l == reference
    root.l.append(one())
    assert saved_paths(root) == [f"l/{len(reference)}"]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_to_insert_something_tracked_is_refused_wherever_it_goes(index: int) -> None:
    """C176: where it goes may differ from run to run."""
    root = thing(l=[1, 2])
    root.l.insert(index, thing())
    with pytest.raises(ValueError, match=r"insert\(\)"):
        walk(root)


def test_what_leaves_every_tracked_element_in_its_place_is_free() -> None:
    """C177"""
    root = thing(l=[0, one(), 2, 3])
    root.l[0] = "replaced"
    root.l[3] = one()
    root.l[0:1] = [5]
    root.l[2:3] = [one()]
    root.l[4:] = [6, one()]
    assert saved_paths(root) == ["l/1", "l/2", "l/3", "l/5"]
    root.l.append(7)
    assert root.l.pop() == 7
    root.l.insert(6, 8)
    del root.l[6:]
    root.l[1] += 1
    root.l[:] = root.l
    assert saved_paths(root) == ["l/1", "l/2", "l/3", "l/5"]


def test_sorting_is_refused_even_where_everything_was_in_order_already() -> None:
    """C178"""
    root = thing(l=[[1], [2], [3]])
    root.l.sort()
    assert root.l == [[1], [2], [3]]
    with pytest.raises(ValueError, match=r"sort\(\)"):
        walk(root)


def test_a_change_that_raises_half_way_counts_as_made() -> None:
    """C176"""
    root = thing(l=[[1], [2], 3])
    with pytest.raises(TypeError):
        root.l.sort()
    with pytest.raises(ValueError, match=r"sort\(\)"):
        walk(root)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda x: x.pop(9), IndexError),
        (lambda x: assign(x, 9, 1), IndexError),
        (lambda x: delete(x, 9), IndexError),
        (lambda x: x.remove(9), ValueError),
        (lambda x: assign(x, slice(None, None, 2), []), ValueError),
        (lambda x: assign(x, slice(None), 1), TypeError),
        (lambda x: assign(x, "a", 1), TypeError),
        (lambda x: x.insert("a", 1), TypeError),
        (lambda x: x.insert(None, 1), TypeError),
        (lambda x: x.extend(1), TypeError),
        (lambda x: multiply(x, 1.5), TypeError),  # type: ignore[arg-type]
    ],
)
def test_a_change_that_is_refused_by_the_list_changes_nothing(
    change: Callable[[Any], object], error: type[Exception]
) -> None:
    """C175"""
    root = thing(l=[1, [one()]])
    with pytest.raises(error):
        change(root.l)
    assert (root.l[0], len(root.l), saved_paths(root)) == (1, 2, ["l/1/0"])


def test_a_list_that_was_changed_outside_is_refused(tmp_path: Path) -> None:
    """C181"""
    held = [one()]
    root = Checkpoint(l=held)
    root.write(tmp_path / "before")
    held.append(one())
    with pytest.raises(
        ValueError, match=r"^\(root\)\.l cannot be saved: .*the list that was assigned was modified out"
    ):
        root.write(tmp_path / "ckpt")
    held.pop()
    with pytest.raises(ValueError, match="modified outside"):
        root.write(tmp_path / "ckpt")


def test_a_change_outside_counts_although_nobody_holds_the_list_any_more() -> None:
    """C181: a function that goes on to fill a list which it has assigned."""

    def build() -> AutoTrackable:
        layers: list[Any] = []
        root = thing(layers=layers)
        layers.append(one())
        return root

    root = build()
    root.layers.append(1)
    with pytest.raises(ValueError, match="modified outside the wrapper"):
        walk(root)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.append(1),
        lambda x: x.reverse(),
        lambda x: assign(x, 0, 2),
        lambda x: x.clear(),
        lambda x: x[1].append(3),
    ],
)
def test_any_change_outside_counts_where_something_is_tracked(change: Callable[[Any], object]) -> None:
    """C181"""
    held: list[Any] = [1, [one()]]
    root = thing(l=held)
    root.l.append(one())
    assert saved_paths(root) == ["l/2", "l/1/0"]
    change(held)
    with pytest.raises(ValueError, match="modified outside the wrapper"):
        walk(root)


def test_a_list_that_was_changed_outside_is_free_where_nothing_is_tracked() -> None:
    """C181: a list of losses that a program goes on to append to never gets in the way of its checkpoints."""
    losses: list[Any] = []
    root = thing(losses=losses, x=one())
    for step in range(3):
        losses.append(step)
        assert saved_paths(root) == ["x"]
    losses.append(one())
    with pytest.raises(ValueError, match="modified outside the wrapper"):
        walk(root)


def test_dirt_in_an_inner_container_makes_the_whole_root_unsavable() -> None:
    """C182"""
    root = thing(l=[[], [thing()]], d={"a": ({"b": [one()]},)})
    root.l[0].append([one(), 1])
    root.l[0].append(NoDependency([]))
    root.l[0][-1].append(5)
    root.l[0][0][1] = 2
    assert saved_paths(root) == ["l/0/0/0", "d/a/0/b/0"]
    root.l[0][0][0] = 2
    with pytest.raises(ValueError, match=r"^\(root\)\.l\.0\.0 cannot be saved"):
        walk(Checkpoint(above=root, other=one()).above)
    root.l = []
    root.d["a"][0]["b"].clear()
    with pytest.raises(ValueError, match=r"^\(root\)\.above\.d\.a\.0\.b cannot be saved"):
        walk(Checkpoint(above=root, other=one()))


def test_a_clean_list_in_its_place_makes_everything_well() -> None:
    """C184"""
    root = thing(l=[one(), [one()]])
    root.l.reverse()
    root.l[0].clear()
    for remedy in (lambda: list(root.l), lambda: root.l[:]):
        root.l = remedy()
        with pytest.raises(ValueError, match=r"^\(root\)\.l\.0 cannot be saved"):
            walk(root)
    root.l = [list(root.l[0]), root.l[1]]
    assert saved_paths(root) == ["l/1"]
    root.l.sort(key=id)
    root.l = NoDependency(root.l)
    assert saved_paths(root) == []


def test_the_error_is_of_both_kinds_and_belongs_to_saving_alone(tmp_path: Path) -> None:
    """C176: what looks at the objects without saving them goes on as ever."""
    root = Checkpoint(l=[torch.tensor(1.0)], d={})
    root.write(tmp_path / "ckpt")
    root.l.insert(0, torch.tensor(0.0))
    root.l.pop()
    root.d[1] = torch.tensor(3.0)
    assert len(list_objects(root)) == 4
    root.read(tmp_path / "ckpt").assert_consumed()
    assert root.l == [1.0]
    with pytest.raises(UnsavableContainerError) as caught:
        root.write(tmp_path / "ckpt")
    assert isinstance(caught.value, UnsupportedValueError)
    assert isinstance(caught.value, ValueError)


# ------------------------------------------------------------------------------------------------------- dicts


@pytest.mark.parametrize("value", [one, list, dict, AutoTrackable])
def test_a_trackable_under_a_key_that_is_no_text_is_refused_when_it_is_saved(value: Callable[[], object]) -> None:
    """C186"""
    root = thing(a=thing(d={}))
    root.a.d[1] = value()
    with pytest.raises(ValueError, match=r"^\(root\)\.a\.d cannot be saved: .*non-string key 1"):
        walk(root)
    del root.a.d[1]
    assert saved_paths(root) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [("pop()", lambda d: d.pop("b")), ("popitem()", lambda d: d.popitem()), ("clear()", lambda d: d.clear())],
)
@pytest.mark.parametrize("tracked", [one, list, lambda: (one(), 1)], ids=["tensor", "list", "tuple"])
def test_taking_a_tracked_entry_out_by_a_method_is_refused_when_it_is_saved(
    name: str, change: Callable[[Any], object], tracked: Callable[[], object]
) -> None:
    """C188"""
    root = thing(d={"a": 1, "b": tracked()})
    change(root.d)
    assert "b" not in root.d
    with pytest.raises(ValueError, match=rf"^\(root\)\.d cannot be saved: .*taken out by {re.escape(name)}\. "):
        walk(root)
    root.d = dict(root.d)
    assert saved_paths(root) == []


def test_deleting_an_entry_is_free_and_so_is_taking_out_what_is_not_tracked() -> None:
    """C188"""
    root = thing(d={"a": one(), "b": 1, 2: 3, "c": one(), "d": (1, 2)})
    del root.d["a"]
    assert (root.d.pop("b"), root.d.pop(2), root.d.pop("z", 4), root.d.popitem()) == (1, 3, 4, ("d", (1, 2)))
    with pytest.raises(KeyError):
        root.d.pop("z")
    root.d["a"] = one()
    assert saved_paths(root) == ["d/c", "d/a"]


@pytest.mark.parametrize(
    "change",
    [lambda d: assign(d, "b", []), lambda d: assign(d, "a", 2), lambda d: d.clear(), lambda d: d.update(c=1)],
)
def test_a_dict_that_was_changed_outside_is_refused(change: Callable[[Any], object]) -> None:
    """C189"""
    held: dict[str, Any] = {"a": one()}
    root = thing(d=held)
    assert saved_paths(root) == ["d/a"]
    change(held)
    with pytest.raises(
        ValueError, match=r"^\(root\)\.d cannot be saved: .*the dict that was assigned was modified out"
    ):
        walk(root)


def test_an_empty_dict_that_got_something_tracked_outside_is_refused_and_with_numbers_it_is_free() -> None:
    """C189"""
    held: dict[str, Any] = {}
    root = thing(d=held)
    held["a"] = 1
    held["a"] = 2
    assert saved_paths(root) == []
    held["b"] = []
    with pytest.raises(ValueError, match="modified outside the wrapper"):
        walk(root)


# ------------------------------------------------------------------------------------------------------ memory


def test_what_was_assigned_is_not_kept_alive_when_nobody_else_holds_it() -> None:
    """What leaves a list can be freed; it is let go of by the change itself, or by the next save."""
    root = thing(l=[object(), thing(), [thing()]], d={"a": thing()})
    gone = [weakref.ref(root.l[1]), weakref.ref(root.l[2][0]), weakref.ref(root.d["a"])]
    root.l.clear()
    root.d.clear()
    gc.collect()
    assert [reference() for reference in gone] == [None, None, None]
    root.d = {}
    root.l = [NoDependency(thing()), 1]
    gone = [weakref.ref(root.l[0])]
    root.l[0] = 2
    walk(root)
    gc.collect()
    assert gone[0]() is None


# ------------------------------------------------------------------------------- any sequence of operations

ELEMENTS = st.recursive(
    st.one_of(st.integers(-3, 3), st.none(), st.sampled_from(["a", "b"])),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.tuples(inner), st.dictionaries(st.just("k"), inner)),
    max_leaves=4,
)
INDICES = st.integers(-4, 4)
SLICES = st.builds(slice, st.none() | INDICES, st.none() | INDICES, st.none() | st.sampled_from([-2, -1, 1, 2]))
LISTS = st.lists(ELEMENTS, max_size=4)

LIST_OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(["append", "remove", "index", "count", "__contains__", "__eq__"]), ELEMENTS),
    st.tuples(st.sampled_from(["extend", "__iadd__", "__add__", "__eq__", "__lt__"]), LISTS),
    st.tuples(st.sampled_from(["pop", "__getitem__", "__delitem__", "__imul__", "__mul__"]), INDICES),
    st.tuples(st.sampled_from(["__getitem__", "__delitem__"]), SLICES),
    st.tuples(st.sampled_from(["insert", "__setitem__"]), INDICES, ELEMENTS),
    st.tuples(st.just("__setitem__"), SLICES, LISTS),
    st.tuples(st.sampled_from(["pop", "clear", "reverse", "sort", "copy", "__len__", "__repr__"])),
)
KEYS = st.sampled_from(["a", "b", 1, (2,)])
DICT_OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(["__setitem__", "setdefault", "pop", "get"]), KEYS, ELEMENTS),
    st.tuples(st.sampled_from(["__delitem__", "__getitem__", "pop", "get", "setdefault", "__contains__"]), KEYS),
    st.tuples(st.sampled_from(["update", "__ior__", "__or__", "__eq__"]), st.dictionaries(KEYS, ELEMENTS, max_size=3)),
    st.tuples(st.just("update"), st.lists(st.tuples(KEYS, ELEMENTS), max_size=2)),
    st.tuples(st.sampled_from(["popitem", "clear", "copy", "__len__", "__repr__"])),
)


def outcome(container: Any, operation: tuple[Any, ...]) -> object:
    method, *arguments = operation
    try:
        result = getattr(container, method)(*arguments)
    except Exception as error:
        return type(error)
    return "itself" if result is container else result


@given(LISTS, st.lists(LIST_OPERATIONS, max_size=8))
def test_any_operations_do_to_a_tracked_list_what_they_do_to_a_plain_one(
    start: list[Any], operations: list[tuple[Any, ...]]
) -> None:
    """C175"""
    tracked, plain = wrap(list(start)), list(start)
    for operation in operations:
        assert outcome(tracked, operation) == outcome(plain, operation)
        assert (list(tracked), tracked, repr(tracked)) == (plain, plain, repr(plain))
    assert all(type(element) is not list for element in tracked)


@given(st.dictionaries(KEYS, ELEMENTS, max_size=3), st.lists(DICT_OPERATIONS, max_size=8))
def test_any_operations_do_to_a_tracked_dict_what_they_do_to_a_plain_one(
    start: dict[Any, Any], operations: list[tuple[Any, ...]]
) -> None:
    """C185"""
    tracked, plain = wrap(dict(start)), dict(start)
    for operation in operations:
        assert outcome(tracked, operation) == outcome(plain, operation)
        assert (list(tracked.items()), tracked, repr(tracked)) == (list(plain.items()), plain, repr(plain))
    assert all(type(element) is not dict for element in tracked.values())


def is_tracked(element: object) -> bool:
    return isinstance(element, (list, dict)) or (isinstance(element, tuple) and any(map(is_tracked, element)))


def displaces(before: list[Any], after: list[Any], operation: tuple[Any, ...]) -> bool:
    """Whether an operation should end in an error at the next save."""
    if operation[0] in ("sort", "reverse"):
        return any(map(is_tracked, before))
    if operation[0] == "insert" and is_tracked(operation[2]):
        return True
    pairs = itertools.zip_longest(before, after[: len(before)])
    return any(old is not new and is_tracked(old) for old, new in pairs)


@given(LISTS, st.lists(LIST_OPERATIONS, max_size=5))
def test_a_list_is_refused_if_and_only_if_something_tracked_was_moved_replaced_or_inserted(
    start: list[Any], operations: list[tuple[Any, ...]]
) -> None:
    """C176, C177, C178, C180"""
    root = thing(l=list(start))
    is_refused = False
    for operation in operations:
        before = list(root.l)
        outcome(root.l, operation)
        is_refused = is_refused or displaces(before, list(root.l), operation)
        if is_refused:
            with pytest.raises(ValueError, match=r"^\(root\)\.l cannot be saved"):
                walk(root)
        else:
            walk(root)
