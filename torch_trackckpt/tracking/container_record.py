"""What a tracked list or dict knows beside its content: marks, changes that cannot be saved, and who waits.

Names are indices and keys, and a checkpoint is restored by names. So a record notes, once and for all, when a tracked
element has lost its name; and it watches the plain object in whose place its container is, which others may still hold.
"""

from __future__ import annotations

import copy
import itertools
import operator
import sys
from collections.abc import Iterable
from typing import Any

from torch_trackckpt.adapters.containers import is_tracked
from torch_trackckpt.trackable import NoDependency, Waiting

__all__ = ["ContainerRecord"]


class ContainerRecord:
    """What a tracked container knows beside its content."""

    def __init__(self) -> None:
        self.waiting = Waiting()
        self.is_plain = True
        """Nothing but numbers and text has ever been put in, so that no change of it needs a look at the elements."""
        self.change: str | None = None
        """What was done that the names of tracked elements do not bear; the first time."""
        self._no_dependency: dict[int, object] = {}
        """By ``id``, the elements that came marked as no part of checkpoints."""
        self._tidy_at = 16
        self._source: list[Any] | dict[Any, Any] | None = None
        self._snapshot: list[Any] | dict[Any, Any] | None = None
        """The plain object that was assigned, and a copy of it as it was then."""

    # Elements.

    def unmarked(self, element: Any) -> Any:
        """What is put into the container for an element; remembers whether it came marked as `NoDependency`."""
        self.is_plain = False
        if isinstance(element, NoDependency):
            self._no_dependency[id(element.value)] = element.value
            return element.value
        self._no_dependency.pop(id(element), None)
        return element

    @property
    def has_marked(self) -> bool:
        """Whether any element came marked as no part of checkpoints, and may still be there."""
        return bool(self._no_dependency)

    def is_part(self, element: object) -> bool:
        """Whether an element of the container may be a part of checkpoints."""
        return id(element) not in self._no_dependency

    def is_tracked(self, element: object) -> bool:
        """Whether an element of the container is tracked under its name."""
        return self.is_part(element) and is_tracked(element)

    def has_marks(self, content: list[Any] | dict[Any, Any]) -> bool:
        """Whether any element came marked as no part of checkpoints."""
        return bool(self._no_dependency) and not all(map(self.is_part, _elements(content)))

    # Changes.

    def renew(self, is_plain: bool) -> None:
        """Begins anew with other content, as if that were assigned; what waits goes on waiting.

        Args:
            is_plain: whether the content is nothing but numbers and text.
        """
        self.is_plain, self.change = is_plain, None
        self._no_dependency = {}
        self._source = self._snapshot = None

    def note(self, change: str, displaced: Iterable[object]) -> None:
        """Notes what was done to elements: where one of them is tracked, the container cannot be saved any more."""
        if self.is_plain or self.change is not None:
            return
        self._drop_unshared_source()
        if any(map(self.is_tracked, displaced)):
            self.change = f"an element was replaced, moved or taken out by {change}"
            self._source = self._snapshot = None

    def watch(self, source: list[Any] | dict[Any, Any]) -> None:
        """Remembers the plain object in whose place the container is."""
        self._source, self._snapshot = source, source.copy()

    def what_happened(self, content: list[Any] | dict[Any, Any]) -> str | None:
        """Why the container cannot be saved, if that is so."""
        if self.change is None and self._is_changed_outside(content):
            kind = type(self._source).__name__
            self.change = f"the {kind} that was assigned was modified outside the wrapper: change the attribute instead"
            self._source = self._snapshot = None
        return self.change

    def _is_changed_outside(self, content: list[Any] | dict[Any, Any]) -> bool:
        self._drop_unshared_source()
        source, snapshot = self._source, self._snapshot
        if source is None or snapshot is None or _is_same(source, snapshot):
            return False
        elements = itertools.chain.from_iterable(map(_elements, (content, source, snapshot)))
        if any(map(self.is_tracked, elements)):
            return True
        self._snapshot = source.copy()
        return False

    def _drop_unshared_source(self) -> None:
        """Lets go of a plain object that nobody else holds, which is what becomes of every literal: nobody can change
        it any more, and its elements should not outlive their places in the container."""
        # One reference is the attribute, the other the argument.
        if sys.getrefcount(self._source) <= 2 and _is_same(self._source, self._snapshot):
            self._source = self._snapshot = None

    def tidy(self, content: list[Any] | dict[Any, Any]) -> None:
        """As `forget_absent`, now and then: so that a window over many marked elements keeps few of them alive."""
        if len(self._no_dependency) > self._tidy_at:
            self.forget_absent(content)
            self._tidy_at = 2 * len(self._no_dependency) + 16

    def forget_absent(self, content: list[Any] | dict[Any, Any]) -> None:
        """Lets go of marked elements that were taken out meanwhile."""
        if self._no_dependency:
            present = set(map(id, _elements(content)))
            self._no_dependency = {key: value for key, value in self._no_dependency.items() if key in present}

    # Copies. Nothing waits for the elements of a copy.

    def copied(self, content: list[Any] | dict[Any, Any], memo: dict[int, Any] | None = None) -> ContainerRecord:
        """The record of a copy of the container, which can be saved only if the container can.

        Args:
            content: the container.
            memo: that of a deep copy.
        """
        twin = ContainerRecord()
        twin.is_plain, twin.change = self.is_plain, self.what_happened(content)
        self.forget_absent(content)
        marked = self._no_dependency.values()
        copies = marked if memo is None else [copy.deepcopy(element, memo) for element in marked]
        twin._no_dependency = {id(element): element for element in copies}
        return twin


def _elements(container: list[Any] | dict[Any, Any]) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _is_same(first: Any, second: Any) -> bool:
    """Whether two lists, or two dicts, hold the same objects; equality is nothing to ask tensors for."""
    if len(first) != len(second) or not all(map(operator.is_, first, second)):
        return False
    return not isinstance(first, dict) or all(map(operator.is_, first.values(), second.values()))
