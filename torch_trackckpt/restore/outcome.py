"""What a restore did with every value of the checkpoint and of the program, as it is now."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Hashable, Iterable, Sequence

import torch
from torch.nn.parameter import is_lazy

from torch_trackckpt.adapters.state_node import StateNode
from torch_trackckpt.bundle.reader import StoredTensor
from torch_trackckpt.graph.walk import LiveGraph, LiveNode, live_object
from torch_trackckpt.restore.deferred import Restoration
from torch_trackckpt.restore.name_based import WantedValue
from torch_trackckpt.restore.report import RestoreReport, ValueReport, with_hints
from torch_trackckpt.trackable import VARIABLE_VALUE, SlotOwner

__all__ = ["Program", "report_of_graph", "report_of_names", "report_of_nothing", "reported"]

_UNMADE = "on the meta device: call run_restore_ops()"
_UNNOTICED = "is there, but nobody told of it: call run_restore_ops()"
_USED_UP = "its module has made values of today from it, or has dropped it"
_REFUSED = "the object of this name does not take it"
_REPLACED = "waited for an object that is gone; another one has its name"
_OF_ANOTHER_NAME = "the object of this name has another name as well, and the value of that"


def report_of_graph(restoration: Restoration, live: LiveGraph) -> RestoreReport:
    """For a checkpoint with an object graph."""
    program = Program(restoration, live)
    stored = _StoredValues(restoration)
    values = {node_id: stored.of(node_id) for node_id in range(len(restoration.graph.nodes))}

    def listed(node_ids: Collection[int]) -> list[ValueReport]:
        # Each value once: what is listed is not there any more.
        return [value for node_id in sorted(node_ids) for value in values.pop(node_id, [])]

    restored = listed(restoration.restored | restoration.used_up)
    superseded = listed(restoration.superseded | stored.taken_from_elsewhere)
    skipped = listed(restoration.skipped)
    waiting = listed(restoration.waiting(restoration.unresolved()))
    unwanted = listed(list(values)) + stored.unused_parts()
    missing = [_reported_object(node) for node in (*program.unassigned, *program.missing)]
    missing += [
        ValueReport(f"{restoration.graph.readable(node_id)}: {name}")
        for node_id, names in sorted(restoration.missing_attributes.items())
        for name in names
    ]
    there = {value.name for value in missing}
    waiting = [_noted(value, _UNNOTICED) if value.name in there else value for value in waiting]
    unwanted = [_noted(value, _REPLACED) if value.name in there else value for value in unwanted]
    missing_slots = [_reported_slot(*slot) for slot in program.missing_slots]
    return RestoreReport(
        restoration.reader.file_prefix,
        tuple(restored),
        with_hints(waiting, missing),
        with_hints(unwanted, missing),
        (*with_hints(missing, [*waiting, *unwanted]), *missing_slots),
        tuple(superseded),
        tuple(skipped),
    )


def report_of_names(
    checkpoint: str, wanted_values: Sequence[WantedValue], stored_values: Iterable[StoredTensor]
) -> RestoreReport:
    """For a checkpoint without an object graph."""
    restored, waiting, missing, superseded = [], [], [], []
    for wanted in wanted_values:
        value = dataclasses.replace(reported(wanted), key=wanted.key if wanted.is_stored else "")
        if wanted.is_restored:
            restored.append(value)
        elif wanted.is_superseded:
            superseded.append(value)
        elif wanted.is_stored:
            waiting.append(_noted(value, _UNMADE if wanted.tensor.is_meta else _UNNOTICED))
        else:
            missing.append(value)
    names = {wanted.key for wanted in wanted_values}
    unwanted = [
        ValueReport(stored.key, stored.key, str(stored.dtype), stored.shape)
        for stored in stored_values
        if stored.key not in names
    ]
    return RestoreReport(
        checkpoint,
        tuple(restored),
        tuple(waiting),
        with_hints(unwanted, missing),
        with_hints(missing, unwanted),
        tuple(superseded),
    )


def report_of_nothing(live: LiveGraph) -> RestoreReport:
    """For no checkpoint."""
    values = [_reported_object(node) for node in live.nodes.values() if node.trackable._asks_for_values(False)]
    slots = [_reported_slot(*slot) for slot in live.slots()]
    return RestoreReport("", only_in_program=(*values, *slots))


class _StoredValues:
    """What there is to say of the values that a checkpoint holds."""

    def __init__(self, restoration: Restoration) -> None:
        self._restoration = restoration
        self._graph = restoration.graph
        self._unmade = {unmade.node_id for unmade in restoration.unmade()}
        self._slots = {
            slot.slot_id: (optimizer_id, slot)
            for optimizer_id in self._graph.nodes_with_slots()
            for slot in self._graph.nodes[optimizer_id].slot_variables
        }

    def of(self, node_id: int) -> list[ValueReport]:
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
        if node_id in self._restoration.used_up:
            return _USED_UP
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
            and node_id not in self._restoration.unused_attributes
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


class Program:
    """What the program holds that a restore has no values for.

    Args:
        restoration: the restore.
        live: the objects of the program.
    """

    def __init__(self, restoration: Restoration, live: LiveGraph) -> None:
        self.unassigned: list[LiveNode] = []
        """Objects for which the checkpoint holds something of another kind."""
        self.missing: list[LiveNode] = []
        """Objects that the checkpoint has nothing for."""
        self.unmade: list[LiveNode] = []
        """Tensors without memory, whose values wait."""
        self._restoration = restoration
        self._live = live
        self._nodes_of: dict[Hashable, list[int]] = {}
        for node_id, trackable in (*restoration.bindings.live_objects().items(), *restoration.others_instead()):
            self._nodes_of.setdefault(trackable._identity(), []).append(node_id)
        self._paired = self._paired_leaves()
        settled = restoration.restored | restoration.superseded
        skipped = self._skipped()
        unmade = {id(unmade.tensor) for unmade in restoration.unmade()}
        for number in self._unpaired():
            identity = live.objects.identity(number)
            node_ids = self._nodes_of.get(identity, ())
            if identity in skipped or not settled.isdisjoint(node_ids):
                continue
            # The node itself would name all its children, of which there may be very many.
            if live.trackable(number)._asks_for_values(bool(node_ids)):
                found = self.unassigned if node_ids else self.unmade if identity in unmade else self.missing
                found.append(live.node(number))

    def _paired_leaves(self) -> dict[int, int]:
        """By the numbers of live tensors, the nodes whose values they were paired with."""
        numbers, tensors = self._live.objects.leaves()
        node_ids = self._restoration.bindings.find_all(tensors)
        return {number: node_id for number, node_id in zip(numbers, node_ids, strict=True) if node_id >= 0}

    def _unpaired(self) -> list[int]:
        return [number for number in range(len(self._live.objects)) if number not in self._paired]

    def _nodes_at(self, number: int) -> Sequence[int]:
        """The nodes that a live object was paired with."""
        node_ids = self._nodes_of.get(self._live.objects.identity(number), ())
        return (self._paired[number], *node_ids) if number in self._paired else node_ids

    @functools.cached_property
    def missing_slots(self) -> list[tuple[LiveNode, str, LiveNode, torch.Tensor]]:
        """Slots that the checkpoint has nothing for: optimizer, slot name, variable, slot."""
        if self._restoration.options.experimental_skip_slot_variables:
            return []
        return [
            (self._live.node(optimizer), slot_name, self._live.node(variable), slot)
            for optimizer, slot_name, variables, slots in self._live.slot_columns
            for variable, slot in zip(variables, slots, strict=True)
            if not any(
                self._restoration.has_slot(optimizer_id, variable_id, slot_name)
                for optimizer_id in self._nodes_at(optimizer)
                for variable_id in self._nodes_at(variable)
            )
        ]

    def names_missing(self) -> list[str]:
        """What messages call all that the checkpoint has nothing for."""
        slots = [_reported_slot(*slot).name for slot in self.missing_slots]
        return [node.readable for node in self.missing] + slots

    def _skipped(self) -> set[Hashable]:
        """What is left out of the assertions together with the slots."""
        if not self._restoration.options.experimental_skip_slot_variables:
            return set()
        return {
            child_id
            for node in self._live.inner_nodes()
            if isinstance(node.trackable, SlotOwner)
            for name, child_id in node.children
            if name in node.trackable._children_with_slots
        }


def reported(value: WantedValue) -> ValueReport:
    """What there is to say of a live tensor."""
    if value.slot is None:
        return _reported_object(value.variable)
    return _reported_slot(*value.slot, value.variable, value.tensor)


def _reported_object(node: LiveNode) -> ValueReport:
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


def _slots_called(optimizer: str, variable: str) -> str:
    return f"{optimizer}'s state for {variable}"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _noted(value: ValueReport, note: str) -> ValueReport:
    return dataclasses.replace(value, note=value.note or note)
