"""What a restore matched and what it did not; the assertions look at the program as it is when they are called."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import TypeVar

import torch
from torch.nn.parameter import is_lazy

from torch_trackckpt.adapters.state_node import StateNode
from torch_trackckpt.graph.walk import LiveGraph, LiveNode
from torch_trackckpt.restore.bindings import live_object
from torch_trackckpt.restore.deferred import Restoration
from torch_trackckpt.restore.holder import Holder
from torch_trackckpt.restore.materialize import Device, device_with_memory, initialize
from torch_trackckpt.restore.name_based import NameBasedRestoration, WantedValue
from torch_trackckpt.restore.report import RestoreReport, ValueReport, with_hints
from torch_trackckpt.trackable import VARIABLE_VALUE, SlotOwner

__all__ = [
    "CheckpointLoadStatus",
    "InitializationOnlyStatus",
    "LoadStatus",
    "NameBasedLoadStatus",
    "streaming_restore",
]

_MOST_NAMED = 10

_UNMADE = "on the meta device: call run_restore_ops()"
_UNNOTICED = "is there, but nobody told of it: call run_restore_ops()"
_REFUSED = "the object of this name does not take it"
_REPLACED = "waited for an object that is gone; another one has its name"
_OF_ANOTHER_NAME = "the object of this name has another name as well, and the value of that"

T = TypeVar("T")


class LoadStatus(abc.ABC):
    """The outcome of a restore. Each assertion returns the status, so that calls can be chained.

    ``print`` shows a table of what was restored and what was not, and notebooks show it as HTML.
    """

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
        """Says that a partial match is fine: nothing is said in the log when unrestored values are dropped."""
        return self

    @abc.abstractmethod
    def run_restore_ops(self, device: Device = None) -> None:
        """Gives tensors on the meta device their memory and their values.

        Args:
            device: where to make them; None is torch's default device.
        """

    @abc.abstractmethod
    def initialize_or_restore(self, device: Device = None) -> None:
        """As `run_restore_ops`; modules that the checkpoint has not all values for are made and initialised first, by
        their ``reset_parameters``.

        Args:
            device: where to make them; None is torch's default device.

        Raises:
            UninitializedError: a module has no ``reset_parameters``.
        """

    @abc.abstractmethod
    def report(self) -> RestoreReport:
        """What became of each value, as it is now."""

    def __str__(self) -> str:
        return str(self.report())

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()


class CheckpointLoadStatus(LoadStatus):
    """The outcome of restoring a checkpoint with an object graph.

    Args:
        restoration: the restore, which may still go on.
        discover: walks the live objects as they are now.
    """

    def __init__(self, restoration: Restoration, discover: Callable[[], LiveGraph]) -> None:
        self._restoration = restoration
        self._discover = discover
        self._prefix = restoration.reader.file_prefix

    def assert_consumed(self) -> CheckpointLoadStatus:
        return self._assert_none([*self._complaints_of_program(), *self._complaints_of_checkpoint()])

    def assert_existing_objects_matched(self) -> CheckpointLoadStatus:
        return self._assert_none(self._complaints_of_program())

    def expect_partial(self) -> CheckpointLoadStatus:
        self._restoration.expects_partial = True
        return self

    def _assert_none(self, complaints: list[str]) -> CheckpointLoadStatus:
        if complaints:
            raise AssertionError("\n".join(complaints))
        return self

    def _complaints_of_program(self) -> list[str]:
        """What the program has and the checkpoint has not."""
        program = _Program(self._restoration, self._discover())
        unassigned = [node.readable for node in program.unassigned]
        missing = [node.readable for node in program.missing]
        missing += [slot.name for slot in program.missing_slots()]
        complaints = []
        if program.unmade:
            complaints.append(_complaint_of_unmade([node.readable for node in program.unmade], self._prefix))
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
        graph = self._restoration.graph
        unresolved = self._restoration.unresolved()
        if unresolved:
            complaints.append(
                f"Unresolved object{_s(unresolved)} in checkpoint {self._prefix!r}: "
                f"{_listed(unresolved, graph.readable)}. The "
                "program has nothing of this name."
            )
        unused = [
            f"{graph.readable(node_id)}: {', '.join(names)}"
            for node_id, names in self._restoration.unused_attributes.items()
        ]
        if unused:
            complaints.append(
                f"Unused attributes in checkpoint {self._prefix!r}, which the objects of the program do not know: "
                f"{_listed(unused)}."
            )
        return complaints

    def assert_nontrivial_match(self) -> CheckpointLoadStatus:
        if len(self._restoration.bindings) > 1:
            return self
        live, graph = self._discover(), self._restoration.graph
        root, *others = live.nodes.values()
        if not any(node.trackable._attribute_names() for node in others):
            raise AssertionError(f"Nothing to load. No dependencies have been added to {root.readable} yet.")
        raise AssertionError(
            f"Nothing except the root object matched a checkpointed value of {self._prefix!r}. The checkpoint has "
            f"{_listed([graph.readable(child.node_id) for child in graph.nodes[0].children])}; "
            f"the program has {_listed([node.readable for node in others])}."
        )

    def run_restore_ops(self, device: Device = None) -> None:
        """As `LoadStatus.run_restore_ops`. Everything else was restored at once; what has appeared since then where
        nobody told of it, as in a plain list, is restored now."""
        device = device_with_memory(device)
        self._restoration.look()
        self._restoration.materialize(device)

    def initialize_or_restore(self, device: Device = None) -> None:
        device = device_with_memory(device)
        self._restoration.look()
        stored = [unmade.tensor for unmade in self._restoration.unmade()]
        with contextlib.ExitStack() as undo:
            initialize(self._discover(), stored, device, undo)
            self._restoration.materialize(device)
            undo.pop_all()

    def report(self) -> RestoreReport:
        restoration = self._restoration
        program = _Program(restoration, self._discover())
        stored = _Stored(restoration)
        values = {node_id: stored.values_of(node_id) for node_id in range(len(restoration.graph.nodes))}

        def listed(node_ids: Collection[int]) -> list[ValueReport]:
            return [value for node_id in sorted(node_ids) for value in values.pop(node_id, [])]

        restored = listed(restoration.restored)
        superseded = listed(restoration.superseded | stored.taken_from_elsewhere)
        skipped = listed(restoration.skipped)
        waiting = listed(restoration.waiting(restoration.unresolved()))
        unwanted = listed(list(values)) + stored.unused_parts()
        missing = [_reported(node) for node in (*program.unassigned, *program.missing)]
        there = {value.name for value in missing}
        waiting = [_noted(value, _UNNOTICED) if value.name in there else value for value in waiting]
        unwanted = [_noted(value, _REPLACED) if value.name in there else value for value in unwanted]
        return RestoreReport(
            self._prefix,
            tuple(restored),
            with_hints(waiting, missing),
            with_hints(unwanted, missing),
            (*with_hints(missing, [*waiting, *unwanted]), *program.missing_slots()),
            tuple(superseded),
            tuple(skipped),
        )


class _Stored:
    """What there is to say of the values that a checkpoint holds."""

    def __init__(self, restoration: Restoration) -> None:
        self._restoration = restoration
        self._graph = restoration.graph
        self._unmade = {unmade.node_id for unmade in restoration.unmade()}
        self._slots = {
            slot.slot_id: (optimizer_id, slot)
            for optimizer_id, node in enumerate(self._graph.nodes)
            for slot in node.slot_variables
        }

    def values_of(self, node_id: int) -> list[ValueReport]:
        """The stored values of a node."""
        node = self._graph.nodes[node_id]
        name = self._graph.readable(node_id)
        if not node.attributes and node.registered_saver:
            return [ValueReport(name, note=f"written by a saver of the name {node.registered_saver[0]!r}")]
        found = []
        for attribute in node.attributes:
            value = ValueReport(name, attribute.checkpoint_key, note=self._note(node_id))
            if attribute.name != VARIABLE_VALUE:
                value = dataclasses.replace(value, name=f"{name}: {attribute.name}")
            if self._restoration.reader.has_tensor(value.key):
                stored = self._restoration.reader.stored(value.key)
                value = dataclasses.replace(value, dtype=str(stored.dtype), shape=stored.shape)
            if node_id in self._slots:
                optimizer_id, slot = self._slots[node_id]
                slots = _slots_called(self._graph.readable(optimizer_id), self._graph.readable(slot.variable_id))
                value = dataclasses.replace(value, slot_name=slot.slot_name, slots=slots)
            found.append(value)
        return found

    def _note(self, node_id: int) -> str:
        if node_id in self._unmade:
            return _UNMADE
        if node_id in self.taken_from_elsewhere:
            return _OF_ANOTHER_NAME
        is_settled = node_id in self._restoration.restored or node_id in self._restoration.superseded
        return _REFUSED if node_id in self._restoration.bindings and not is_settled else ""

    @functools.cached_property
    def taken_from_elsewhere(self) -> set[int]:
        """Nodes whose objects took the value of another node, which leads to them as well."""
        bindings, restored = self._restoration.bindings, self._restoration.restored
        taken = {bindings.identity(node_id) for node_id in restored if node_id in bindings}
        return {
            node_id
            for node_id, node in enumerate(self._graph.nodes)
            if node.attributes
            and node_id not in restored
            and node_id in bindings
            and bindings.identity(node_id) in taken
        }

    def unused_parts(self) -> list[ValueReport]:
        """What live objects have no place for among the values that they have taken."""
        return [
            ValueReport(f"{self._graph.readable(node_id)}: {name}")
            for node_id, names in sorted(self._restoration.unused_attributes.items())
            for name in names
            if node_id in self._restoration.restored
        ]


class _Program:
    """What the program holds that a restore has no values for."""

    def __init__(self, restoration: Restoration, live: LiveGraph) -> None:
        self._restoration = restoration
        self._live = live
        self._nodes_of: dict[Hashable, list[int]] = {}
        for node_id, trackable in (*restoration.bindings.live().items(), *restoration.others_instead()):
            self._nodes_of.setdefault(trackable._identity(), []).append(node_id)
        settled = restoration.restored | restoration.superseded
        skipped = self._skipped()
        self.unassigned: list[LiveNode] = []
        """Objects for which the checkpoint holds something of another kind."""
        self.missing: list[LiveNode] = []
        """Objects that the checkpoint has nothing for."""
        self.unmade: list[LiveNode] = []
        """Tensors without memory, whose values wait."""
        unmade = {id(unmade.tensor) for unmade in restoration.unmade()}
        for identity, node in live.nodes.items():
            node_ids = self._nodes_of.get(identity, ())
            if identity not in skipped and settled.isdisjoint(node_ids) and node.trackable._attribute_names():
                found = self.unassigned if node_ids else self.unmade if identity in unmade else self.missing
                found.append(node)

    def missing_slots(self) -> list[ValueReport]:
        """Slots that the checkpoint has nothing for."""
        if self._restoration.options.experimental_skip_slot_variables:
            return []
        return [
            _reported_slot(optimizer, slot_name, variable, slot)
            for optimizer, slot_name, variable, slot in self._live.slots()
            if not any(
                self._restoration.has_slot(optimizer_id, variable_id, slot_name)
                for optimizer_id in self._nodes_of.get(optimizer.trackable._identity(), ())
                for variable_id in self._nodes_of.get(variable.trackable._identity(), ())
            )
        ]

    def _skipped(self) -> set[Hashable]:
        """What is left out of the assertions together with the slots."""
        if not self._restoration.options.experimental_skip_slot_variables:
            return set()
        return {
            child_id
            for node in self._live.nodes.values()
            if isinstance(node.trackable, SlotOwner)
            for name, child_id in node.children
            if name in node.trackable._children_with_slots
        }


def _reported(node: LiveNode) -> ValueReport:
    value = live_object(node.trackable)
    if not isinstance(value, torch.Tensor):
        return ValueReport(node.readable, dtype="" if isinstance(value, StateNode) else type(value).__name__)
    return ValueReport(node.readable, dtype=_dtype(value), shape=None if is_lazy(value) else tuple(value.shape))


def _reported_slot(optimizer: LiveNode, slot_name: str, variable: LiveNode, slot: torch.Tensor) -> ValueReport:
    return ValueReport(
        f"{optimizer.readable}'s state '{slot_name}' for {variable.readable}",
        dtype=_dtype(slot),
        shape=tuple(slot.shape),
        slot_name=slot_name,
        slots=_slots_called(optimizer.readable, variable.readable),
    )


def _reported_wanted(value: WantedValue) -> ValueReport:
    if value.slot is None:
        return _reported(value.variable)
    return _reported_slot(*value.slot, value.variable, value.tensor)


def _complaint_of_unmade(names: Sequence[str], prefix: str) -> str:
    return (
        f"{len(names)} tensor{_s(names)} of the meta device wait{'' if len(names) > 1 else 's'} for values of "
        f"checkpoint {prefix!r}: {_listed(names)}. Call run_restore_ops() on the status."
    )


def _noted(value: ValueReport, note: str) -> ValueReport:
    return dataclasses.replace(value, note=value.note or note)


def _slots_called(optimizer: str, variable: str) -> str:
    return f"{optimizer}'s state for {variable}"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def streaming_restore(status: LoadStatus, device: Device = None) -> None:
    """Has values land as soon as there is a module for them. TensorFlow's ``streaming_restore``.

    Tensors on the meta device that are bound get their memory and values now, and those of modules that are attached
    later when these are attached, so that a large model can be made and filled one part at a time. Other objects are
    restored at once in any case.

    Args:
        status: what `Checkpoint.restore` or `Checkpoint.read` returned.
        device: where to make the tensors; None is torch's default device.

    Raises:
        TypeError: the status is that of a checkpoint without an object graph, or of none.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint, streaming_restore
        >>> path = Checkpoint(net=torch.nn.Linear(2, 1)).write(tempfile.mkdtemp() + "/ckpt")
        >>> checkpoint = Checkpoint()
        >>> streaming_restore(checkpoint.read(path))
        >>> checkpoint.net = torch.nn.Linear(2, 1, device="meta")
        >>> checkpoint.net.weight.device
        device(type='cpu')
    """
    if not isinstance(status, CheckpointLoadStatus):
        raise TypeError(
            f"streaming_restore needs the status of a checkpoint with an object graph, not a {type(status).__name__}."
        )
    # The default device is that of now, not the one where a module is made later, which may well be meta.
    status._restoration.stream(device_with_memory(device))


class NameBasedLoadStatus(LoadStatus):
    """The outcome of restoring a checkpoint without an object graph.

    The three assertions are one, as in TensorFlow: every variable of the program was found in the checkpoint. Each
    of them first restores what was attached meanwhile. What the checkpoint holds beyond that is nobody's concern, and
    python states, which no such checkpoint has, are left as they are.

    Args:
        restoration: the restore.
        holder: the checkpoint object that it was called on.
        prefix: the checkpoint.
        optional: a live object that need not be in the checkpoint.
    """

    def __init__(self, restoration: NameBasedRestoration, holder: Holder, prefix: str, optional: object = None) -> None:
        self._restoration = restoration
        self._holder = holder
        self._prefix = prefix
        self._optional = optional

    def assert_consumed(self) -> NameBasedLoadStatus:
        return self.assert_existing_objects_matched()

    def assert_existing_objects_matched(self) -> NameBasedLoadStatus:
        self._restoration.run()
        wanted = [
            value for value in self._wanted() if not (value.is_restored or value.is_superseded or self._may_miss(value))
        ]
        unmade = [_reported_wanted(value).name for value in wanted if value.is_stored and value.tensor.is_meta]
        if unmade:
            raise AssertionError(_complaint_of_unmade(unmade, self._prefix))
        missing = [_reported_wanted(value).name for value in wanted]
        if missing:
            raise AssertionError(
                f"Some objects had attributes which were not restored from {self._prefix!r}, which holds nothing "
                f"under their names: {_listed(missing)}. list_variables({self._prefix!r}) shows the names that it "
                "has; CheckpointOptions(name_map=...) translates to them."
            )
        return self

    def assert_nontrivial_match(self) -> NameBasedLoadStatus:
        return self.assert_existing_objects_matched()

    def run_restore_ops(self, device: Device = None) -> None:
        self._restoration.materialize(device_with_memory(device))

    def initialize_or_restore(self, device: Device = None) -> None:
        self._restoration.initialize(device_with_memory(device))

    def report(self) -> RestoreReport:
        restored, superseded, waiting, missing = [], [], [], []
        wanted = self._wanted()
        for value in wanted:
            reported = dataclasses.replace(_reported_wanted(value), key=value.key if value.is_stored else "")
            if value.is_restored:
                restored.append(reported)
            elif value.is_superseded:
                superseded.append(reported)
            elif value.is_stored:
                note = _UNMADE if value.tensor.is_meta else _UNNOTICED
                waiting.append(dataclasses.replace(reported, note=note))
            elif not self._may_miss(value):
                missing.append(reported)
        names = {value.key for value in wanted}
        unwanted = [
            ValueReport(stored.key, stored.key, str(stored.dtype), stored.shape)
            for stored in self._restoration.stored_values()
            if stored.key not in names
        ]
        return RestoreReport(
            self._prefix,
            tuple(restored),
            tuple(waiting),
            with_hints(unwanted, missing),
            with_hints(missing, unwanted),
            tuple(superseded),
        )

    def _wanted(self) -> list[WantedValue]:
        return self._restoration.wanted(self._holder)

    def _may_miss(self, value: WantedValue) -> bool:
        return value.tensor is self._optional and not value.is_stored


class InitializationOnlyStatus(LoadStatus):
    """The outcome of ``restore(None)``: there was nothing to restore from.

    Args:
        discover: walks the live objects as they are now.
    """

    def __init__(self, discover: Callable[[], LiveGraph]) -> None:
        self._discover = discover

    def _refuse(self) -> AssertionError:
        return AssertionError("No checkpoint specified (save_path=None); nothing is being restored.")

    def assert_consumed(self) -> LoadStatus:
        raise self._refuse()

    def assert_existing_objects_matched(self) -> LoadStatus:
        raise self._refuse()

    def assert_nontrivial_match(self) -> LoadStatus:
        raise self._refuse()

    def run_restore_ops(self, device: Device = None) -> None:
        raise self._refuse()

    def initialize_or_restore(self, device: Device = None) -> None:
        """Makes and initialises modules on the meta device; others were initialised when they were made."""
        with contextlib.ExitStack() as undo:
            initialize(self._discover(), (), device_with_memory(device), undo)
            undo.pop_all()

    def report(self) -> RestoreReport:
        live = self._discover().nodes.values()
        return RestoreReport(
            "",
            only_in_program=tuple(_reported(node) for node in live if node.trackable._attribute_names()),
        )


def _s(names: Sequence[object]) -> str:
    return "s" if len(names) > 1 else ""


def _listed(names: Sequence[T], readable: Callable[[T], str] = str) -> str:
    # A path can be long, so only those that are shown are made.
    shown = ", ".join(readable(name) for name in names[:_MOST_NAMED])
    return shown + (f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
