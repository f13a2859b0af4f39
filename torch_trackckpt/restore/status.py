"""What a restore matched and what it did not; the assertions look at the program as it is when they are called."""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from torch_trackckpt.graph.walk import LiveGraph
from torch_trackckpt.restore.match import Match
from torch_trackckpt.trackable import SlotOwner

__all__ = ["CheckpointLoadStatus", "InitializationOnlyStatus", "LoadStatus", "NameBasedLoadStatus"]

_MOST_NAMED = 10

T = TypeVar("T")


class LoadStatus(abc.ABC):
    """The outcome of a restore. Each assertion returns the status, so that calls can be chained."""

    @abc.abstractmethod
    def assert_consumed(self) -> LoadStatus:
        """Asserts that every value of the checkpoint has an object, and every object with values got them.

        Raises:
            AssertionError: naming what did not match.
        """

    @abc.abstractmethod
    def assert_existing_objects_matched(self) -> LoadStatus:
        """Asserts that every live object with values got them; the checkpoint may hold more.

        Raises:
            AssertionError: naming what did not match.
        """

    @abc.abstractmethod
    def assert_nontrivial_match(self) -> LoadStatus:
        """Asserts that more than the root was matched.

        Raises:
            AssertionError: nothing else was.
        """

    def expect_partial(self) -> LoadStatus:
        """Says that a partial match is fine."""
        return self

    @abc.abstractmethod
    def run_restore_ops(self) -> None:
        """For TensorFlow's sake: values have been restored already."""

    @abc.abstractmethod
    def initialize_or_restore(self) -> None:
        """For TensorFlow's sake: values have been restored already."""


class CheckpointLoadStatus(LoadStatus):
    """The outcome of restoring a checkpoint with an object graph.

    Args:
        match: the pairing.
        discover: walks the live objects as they are now.
        prefix: the checkpoint.
        skips_slot_variables: whether slots are left out of every assertion.
    """

    def __init__(
        self, match: Match, discover: Callable[[], LiveGraph], prefix: str, *, skips_slot_variables: bool
    ) -> None:
        self._match = match
        self._discover = discover
        self._prefix = prefix
        self._skips_slot_variables = skips_slot_variables

    def assert_consumed(self) -> CheckpointLoadStatus:
        return self._assert_none([*self._complaints_of_program(), *self._complaints_of_checkpoint()])

    def assert_existing_objects_matched(self) -> CheckpointLoadStatus:
        return self._assert_none(self._complaints_of_program())

    def _assert_none(self, complaints: list[str]) -> CheckpointLoadStatus:
        if complaints:
            raise AssertionError("\n".join(complaints))
        return self

    def _complaints_of_program(self) -> list[str]:
        """What the program has and the checkpoint has not."""
        live = self._discover()
        bound = {trackable._identity() for trackable in self._match.bound.values()}
        skipped = self._skipped(live)
        unassigned: list[str] = []
        missing: list[str] = []
        for identity, node in live.nodes.items():
            if identity not in self._match.values and identity not in skipped and node.trackable._attribute_names():
                (unassigned if identity in bound else missing).append(node.readable)
        missing += self._missing_slots(live)
        complaints = []
        if unassigned:
            complaints.append(
                f"Object{_s(unassigned)} {_listed(unassigned)} not assigned a value from checkpoint {self._prefix!r}: "
                "what it holds under this name is of another kind."
            )
        if missing:
            complaints.append(
                f"Found {len(missing)} Python objects that were not bound to checkpointed values of "
                f"{self._prefix!r}: {_listed(missing)}. The checkpoint has nothing of their own under these names."
            )
        return complaints

    def _complaints_of_checkpoint(self) -> list[str]:
        """What the checkpoint has and the program has not."""
        complaints = []
        unresolved = self._unresolved()
        if unresolved:
            complaints.append(
                f"Unresolved object{_s(unresolved)} in checkpoint {self._prefix!r}: "
                f"{_listed(unresolved, self._match.graph.readable)}. The "
                "program has nothing of this name."
            )
        unused = [
            f"{self._match.graph.readable(node_id)}: {', '.join(names)}"
            for node_id, names in self._match.unused_attributes.items()
        ]
        if unused:
            complaints.append(
                f"Unused attributes in checkpoint {self._prefix!r}, which the objects of the program do not know: "
                f"{_listed(unused)}."
            )
        return complaints

    def assert_nontrivial_match(self) -> CheckpointLoadStatus:
        if len(self._match.bound) > 1:
            return self
        live, graph = self._discover(), self._match.graph
        root, *others = live.nodes.values()
        if not any(node.trackable._attribute_names() for node in others):
            raise AssertionError(f"Nothing to load. No dependencies have been added to {root.readable} yet.")
        raise AssertionError(
            f"Nothing except the root object matched a checkpointed value of {self._prefix!r}. The checkpoint has "
            f"{_listed([graph.readable(child.node_id) for child in graph.nodes[0].children])}; "
            f"the program has {_listed([node.readable for node in others])}."
        )

    def run_restore_ops(self) -> None:
        """Does nothing: `restore` has assigned the values."""

    def initialize_or_restore(self) -> None:
        """Does nothing: `restore` has assigned the values."""

    def _unresolved(self) -> list[int]:
        graph = self._match.graph
        resolved = self._match.bound.keys() | self._match.bound_slot_ids | self._match.skipped
        return [
            node_id
            for node_id, node in enumerate(graph.nodes)
            if (node.attributes or node.registered_saver) and node_id not in resolved
        ]

    def _skipped(self, live: LiveGraph) -> set[Hashable]:
        """What is left out of the assertions together with the slots."""
        if not self._skips_slot_variables:
            return set()
        return {
            child_id
            for node in live.nodes.values()
            if isinstance(node.trackable, SlotOwner)
            for name, child_id in node.children
            if name in node.trackable._children_with_slots
        }

    def _missing_slots(self, live: LiveGraph) -> list[str]:
        if self._skips_slot_variables:
            return []
        missing = []
        for optimizer, slot_name, variable, _ in live.slots():
            slots = self._match.slots.get((optimizer.trackable._identity(), variable.trackable._identity()))
            if slots is None or slot_name not in slots.slots:
                missing.append(f"{optimizer.readable}'s state '{slot_name}' for {variable.readable}")
        return missing


class NameBasedLoadStatus(LoadStatus):
    """The outcome of restoring a checkpoint without an object graph.

    The three assertions are one, as in TensorFlow: every variable of the program was found in the checkpoint. Each
    of them first restores what was attached meanwhile. What the checkpoint holds beyond that is nobody's concern, and
    python states, which no such checkpoint has, are left as they are.

    Args:
        missing: what the program wants and the checkpoint has not.
        prefix: the checkpoint.
    """

    def __init__(self, missing: Callable[[], list[str]], prefix: str) -> None:
        self._missing = missing
        self._prefix = prefix

    def assert_consumed(self) -> NameBasedLoadStatus:
        return self.assert_existing_objects_matched()

    def assert_existing_objects_matched(self) -> NameBasedLoadStatus:
        missing = self._missing()
        if missing:
            raise AssertionError(
                f"Some objects had attributes which were not restored from {self._prefix!r}, which holds nothing "
                f"under their names: {_listed(missing)}. list_variables({self._prefix!r}) shows the names that it "
                "has; CheckpointOptions(name_map=...) translates to them."
            )
        return self

    def assert_nontrivial_match(self) -> NameBasedLoadStatus:
        return self.assert_existing_objects_matched()

    def run_restore_ops(self) -> None:
        """Restores what was attached meanwhile."""
        self._missing()

    def initialize_or_restore(self) -> None:
        """Restores what was attached meanwhile."""
        self._missing()


class InitializationOnlyStatus(LoadStatus):
    """The outcome of ``restore(None)``: there was nothing to restore from."""

    def _refuse(self) -> AssertionError:
        return AssertionError("No checkpoint specified (save_path=None); nothing is being restored.")

    def assert_consumed(self) -> LoadStatus:
        raise self._refuse()

    def assert_existing_objects_matched(self) -> LoadStatus:
        raise self._refuse()

    def assert_nontrivial_match(self) -> LoadStatus:
        raise self._refuse()

    def run_restore_ops(self) -> None:
        raise self._refuse()

    def initialize_or_restore(self) -> None:
        """Nothing waits to be initialised: torch's modules are when they are made."""


def _s(names: Sequence[object]) -> str:
    return "s" if len(names) > 1 else ""


def _listed(names: Sequence[T], readable: Callable[[T], str] = str) -> str:
    # A path can be long, so only those that are shown are made.
    shown = ", ".join(readable(name) for name in names[:_MOST_NAMED])
    return shown + (f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
