"""Lists and dicts that notice what is done to them, in place of the plain ones that are assigned to attributes.

The names of elements are their indices and keys. An element that comes later gets the values which wait under its
name; and where elements lose their names, a checkpoint could not be restored the way it was made, so that saving is
refused. The rules are TensorFlow's (its ``ListWrapper`` and ``_DictWrapper``):

    list    append, extend, +=, *=         more elements under new names
            [i] = x, insert, pop, remove,  refused at the next save where they replace, move or take out an element
            del, reverse, sort, clear      that is tracked, or insert one; free for numbers and other values
    dict    [key] = x, update, setdefault, del   free: names stay with their entries
            pop, popitem, clear            refused at the next save where they take out an entry that is tracked

The plain object itself stays with whoever holds it, and is not seen any more: if it is changed, so that the two differ
where anything is tracked, saving is refused as well. Assigning a plain list or dict anew makes everything well.

Lists and dicts of derived classes (``OrderedDict``, ``defaultdict``, a user's own) are left as they are: nodes, whose
elements are those at the time of each save or restore. So are sets, which have no names for their elements.
"""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

from torch_trackckpt.adapters.containers import PLAIN_TYPES, DictAdapter, SequenceAdapter, rebuilt
from torch_trackckpt.adapters.registry import Adapter, register_adapter
from torch_trackckpt.errors import UnsavableContainerError
from torch_trackckpt.trackable import NoDependency, TrackedContainer, Value, Waiting
from torch_trackckpt.tracking.container_record import ContainerRecord

__all__ = ["TrackedDict", "TrackedList", "wrap"]

_GONE = object()


def wrap(value: Any, wrapped: dict[int, Any] | None = None) -> Any:
    """What takes the place of a value that is assigned to an attribute.

    Args:
        value: any object.
        wrapped: what took the place of which list or dict, by ``id``; one object in two places stays one.

    Returns:
        A tracked list or dict for a plain one, with tracked ones inside; a tuple of the same class for one that holds
        any; and every other object itself.

    Example:
        >>> from torch_trackckpt.tracking.data_structures import wrap
        >>> tracked = wrap([1, {"a": 2}])
        >>> tracked, type(tracked).__name__, type(tracked[1]).__name__
        ([1, {'a': 2}], 'TrackedList', 'TrackedDict')
    """
    wrapped = {} if wrapped is None else wrapped
    if type(value) is list:
        return wrapped[id(value)] if id(value) in wrapped else _wrap_list(value, wrapped)
    if type(value) is dict:
        return wrapped[id(value)] if id(value) in wrapped else _wrap_dict(value, wrapped)
    if isinstance(value, tuple):
        return _wrap_tuple(value, wrapped)
    return value


def _wrap_list(source: list[Any], wrapped: dict[int, Any]) -> TrackedList:
    tracked = wrapped[id(source)] = TrackedList()
    record = tracked._record
    # A long list of numbers is copied at once.
    is_plain = PLAIN_TYPES.issuperset(map(type, source))
    list.extend(tracked, source if is_plain else (_take(record, element, wrapped) for element in source))
    record.watch(source)
    return tracked


def _wrap_dict(source: dict[Any, Any], wrapped: dict[int, Any]) -> TrackedDict:
    tracked = wrapped[id(source)] = TrackedDict()
    record = tracked._record
    dict.update(tracked, ((key, _take(record, value, wrapped)) for key, value in source.items()))
    record.watch(source)
    return tracked


def _wrap_tuple(value: tuple[Any, ...], wrapped: dict[int, Any]) -> tuple[Any, ...]:
    elements = [wrap(element, wrapped) for element in value]
    if all(map(operator.is_, elements, value)):
        return value
    # A tuple that cannot be rebuilt keeps its plain lists; its adapter refuses to save what could get lost by that.
    made = rebuilt(value, elements)
    return value if made is None else made


def _take(record: ContainerRecord, element: Any, wrapped: dict[int, Any] | None = None) -> Any:
    """What is put into a container for an element."""
    if type(element) in PLAIN_TYPES:
        return element
    element = record.unmarked(element)
    return wrap(element, wrapped) if record.is_part(element) else element


def _take_as(record: ContainerRecord, name: str, element: Any) -> Any:
    """As `_take`, where something may wait: the element gets the values that wait for a child of its name."""
    taken = _take(record, element)
    if type(taken) not in PLAIN_TYPES and record.is_part(taken):
        record.waiting.attach(name, taken)
    return taken


def _taken(record: ContainerRecord, element: object) -> None:
    """To be called when what `_take_as` gave is in its place."""
    if type(element) not in PLAIN_TYPES and record.is_part(element):
        record.waiting.attached()


class TrackedList(TrackedContainer, list[Any]):
    """A list whose elements are tracked under their indices. It is made by assigning a plain list to an attribute.

    Everything that a list can do it does in the same way, and gives the same results: plain lists for slices and sums.
    It is pickled as a plain list. Functions that change the memory of a list from C, such as those of ``heapq``, go
    unnoticed.

    Example:
        >>> import torch
        >>> from torch_trackckpt import AutoTrackable
        >>> thing = AutoTrackable()
        >>> thing.layers = [torch.nn.Linear(2, 2)]
        >>> thing.layers.append(torch.nn.ReLU())
        >>> thing.layers
        [Linear(in_features=2, out_features=2, bias=True), ReLU()]
    """

    plain_type = list

    def __init__(self, elements: Iterable[Any] = ()) -> None:
        super().__init__()
        self._record = ContainerRecord()
        self.extend(elements)

    # Elements under new names.

    def append(self, value: Any, /) -> None:
        value = _take_as(self._record, str(len(self)), value)
        super().append(value)
        self._record.tidy(self)
        _taken(self._record, value)

    def extend(self, values: Iterable[Any], /) -> None:
        for value in list(values) if values is self else values:
            self.append(value)

    def __iadd__(self, values: Iterable[Any], /) -> TrackedList:  # type: ignore[misc]
        self.extend(values)
        return self

    def __imul__(self, count: SupportsIndex, /) -> TrackedList:
        repeated = list(self) * count
        if len(repeated) < len(self):
            self.clear()
        for value in repeated[len(self) :]:
            self.append(value if self._record.is_part(value) else NoDependency(value))
        return self

    # Elements under other names than before.

    def __setitem__(self, key: Any, value: Any, /) -> None:
        if isinstance(key, slice):
            self._set_slice(key, list(value))
            return
        replaced = self[key]
        if value is replaced:
            return
        value = _take_as(self._record, str(range(len(self))[key]), value)
        super().__setitem__(key, value)
        self._record.note("item assignment", (replaced,))
        _taken(self._record, value)

    def _set_slice(self, key: slice, values: list[Any]) -> None:
        # What a list refuses is refused before anything is restored.
        list(self)[key] = values
        places = range(len(self))[key]
        names: Iterable[int] = places if places.step != 1 else itertools.count(places.start)
        before = self._before()
        values = [_take_as(self._record, str(index), value) for index, value in zip(names, values, strict=False)]
        super().__setitem__(key, values)
        self._note_moved("slice assignment", before)
        for value in values:
            _taken(self._record, value)

    def insert(self, index: SupportsIndex, value: Any, /) -> None:
        place = slice(operator.index(index)).indices(len(self))[1]
        value = _take_as(self._record, str(place), value)
        super().insert(place, value)
        self._record.note("insert()", itertools.islice(self, place, None))
        _taken(self._record, value)

    def pop(self, index: SupportsIndex = -1, /) -> Any:
        place = operator.index(index)
        value = super().pop(place)
        moved = itertools.islice(self, place if place >= 0 else place + len(self) + 1, None)
        self._record.note("pop()", itertools.chain((value,), moved))
        return value

    def remove(self, value: Any, /) -> None:
        before = self._before()
        super().remove(value)
        self._note_moved("remove()", before)

    def __delitem__(self, key: SupportsIndex | slice, /) -> None:
        before = self._before()
        super().__delitem__(key)
        self._note_moved("del", before)

    def clear(self) -> None:
        self._record.note("clear()", self)
        super().clear()

    def reverse(self) -> None:
        self._record.note("reverse()", self)
        super().reverse()

    def sort(self, *, key: Any = None, reverse: bool = False) -> None:
        # Noted whatever the order was: whether a program can save should not depend on it.
        self._record.note("sort()", self)
        super().sort(key=key, reverse=reverse)

    def _before(self) -> list[Any]:
        return [] if self._record.is_plain else list(self)

    def _note_moved(self, change: str, before: list[Any]) -> None:
        pairs = itertools.zip_longest(before, itertools.islice(self, len(before)), fillvalue=_GONE)
        self._record.note(change, (old for old, new in pairs if old is not new))

    def _replace_all(self, elements: Iterable[Any]) -> None:
        """Takes other content, as if it were assigned anew; for lists that hold nothing trackable."""
        super().__setitem__(slice(None), [wrap(element) for element in elements])
        self._record.renew(PLAIN_TYPES.issuperset(map(type, self)))

    # Copies.

    def copy(self) -> TrackedList:
        return copy.copy(self)

    def __copy__(self) -> TrackedList:
        twin = TrackedList()
        list.extend(twin, self)
        twin._record = self._record.copied(self)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> TrackedList:
        twin = memo[id(self)] = TrackedList()
        list.extend(twin, (copy.deepcopy(element, memo) for element in self))
        twin._record = self._record.copied(self, memo)
        return twin

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> tuple[Any, ...]:
        return list, (), None, iter(self)


class TrackedDict(TrackedContainer, dict[Any, Any]):
    """A dict whose entries are tracked under their keys. It is made by assigning a plain dict to an attribute.

    Everything that a dict can do it does in the same way, and gives the same results. It is pickled as a plain dict.
    An entry whose key is not text has no name: saving is refused where its value is tracked.

    Example:
        >>> import torch
        >>> from torch_trackckpt import AutoTrackable
        >>> thing = AutoTrackable()
        >>> thing.heads = {"a": torch.nn.Linear(2, 2)}
        >>> thing.heads["b"] = torch.nn.Linear(2, 3)
        >>> list(thing.heads)
        ['a', 'b']
    """

    plain_type = dict

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self._record = ContainerRecord()
        self.update(*args, **kwargs)

    def __setitem__(self, key: Any, value: Any, /) -> None:
        value = _take_as(self._record, key, value) if isinstance(key, str) else _take(self._record, value)
        super().__setitem__(key, value)
        self._record.tidy(self)
        _taken(self._record, value)

    def setdefault(self, key: Any, default: Any = None, /) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __ior__(self, other: Any, /) -> TrackedDict:  # type: ignore[misc]
        self.update(other)
        return self

    def pop(self, key: Any, /, *default: Any) -> Any:
        is_present = key in self
        value = super().pop(key, *default)
        if is_present:
            self._note_gone("pop()", [(key, value)])
        return value

    def popitem(self) -> tuple[Any, Any]:
        item = super().popitem()
        self._note_gone("popitem()", [item])
        return item

    def clear(self) -> None:
        self._note_gone("clear()", self.items())
        super().clear()

    def _note_gone(self, change: str, items: Iterable[tuple[Any, Any]]) -> None:
        self._record.note(change, (value for key, value in items if isinstance(key, str)))

    def _replace_all(self, items: Mapping[Any, Any]) -> None:
        """As a list's."""
        super().clear()
        super().update({key: wrap(value) for key, value in items.items()})
        self._record.renew(PLAIN_TYPES.issuperset(map(type, self.values())))

    # Copies.

    def copy(self) -> TrackedDict:
        return copy.copy(self)

    def __copy__(self) -> TrackedDict:
        twin = TrackedDict()
        dict.update(twin, self)
        twin._record = self._record.copied(self)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> TrackedDict:
        twin = memo[id(self)] = TrackedDict()
        items: Iterator[tuple[Any, Any]] = ((copy.deepcopy(k, memo), copy.deepcopy(v, memo)) for k, v in self.items())
        dict.update(twin, items)
        twin._record = self._record.copied(self, memo)
        return twin

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> tuple[Any, ...]:
        return dict, (), None, None, iter(self.items())


class _TrackedAdapter(Adapter):
    """What the nodes of both have in common."""

    adapted: TrackedList | TrackedDict

    @property
    def _record(self) -> ContainerRecord:
        return self.adapted._record

    def _trackable_children(self) -> Mapping[str, object]:
        children = super()._trackable_children()
        if not self._record.has_marked:
            return children
        return {name: child for name, child in children.items() if self._record.is_part(child)}

    def _lookup_dependency(self, name: str) -> object | None:
        child = super()._lookup_dependency(name)
        return child if self._record.is_part(child) else None

    def _leaf_sources(self) -> tuple[object, ...]:
        return () if self._record.has_marked else (self.adapted,)

    def _waiting(self) -> Waiting:
        return self._record.waiting

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        self._record.forget_absent(self.adapted)
        happened = self._record.what_happened(self.adapted)
        if happened is not None:
            kind = self.adapted.plain_type.__name__
            raise UnsavableContainerError(
                f"it is a tracked {kind}, and {happened}. Its elements might not be found again by their names. "
                f"Assign it anew, as in `owner.attribute = {kind}(owner.attribute)` (a {kind} inside of another, "
                "together with the outer one), or mark it as NoDependency where it need not be saved."
            )
        return super()._serialize_to_tensors()


class _TrackedListAdapter(_TrackedAdapter, SequenceAdapter):
    """The node of a tracked list."""


class _TrackedDictAdapter(_TrackedAdapter, DictAdapter):
    """The node of a tracked dict."""

    def _is_child(self, value: object) -> bool:
        return self._record.is_tracked(value)


register_adapter(TrackedList, _TrackedListAdapter)
register_adapter(TrackedDict, _TrackedDictAdapter)
