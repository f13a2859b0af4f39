"""Which values of a file belong to which parameters of a torch optimizer, by the names of the variables."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from torch_trackckpt.bundle.reader import CheckpointReader, StoredTensor
from torch_trackckpt.interop.pairing import Pair, misfit
from torch_trackckpt.interop.tf1_optimizers import FAMILIES, Counters, Family, Slot, family_of, number_of_steps

__all__ = ["PairedState", "SlotPairing", "pair_slots"]


@dataclasses.dataclass(frozen=True)
class PairedState:
    """All that is stored for one parameter."""

    pair: Pair
    """The parameter, and where its own value comes from."""
    slots: Mapping[str, tuple[Slot, StoredTensor]]
    """By torch's names."""
    steps: int | None
    """How many steps were done; None where the optimizer does not count them."""
    group: Mapping[str, Any]


@dataclasses.dataclass
class SlotPairing:
    """What was found."""

    states: list[PairedState] = dataclasses.field(default_factory=list)
    unmatched: list[str] = dataclasses.field(default_factory=list)
    """Parameters, as ``name: slot``, for which nothing is stored."""
    inexact: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    conflicts: list[str] = dataclasses.field(default_factory=list)

    @property
    def keys(self) -> set[str]:
        """What is read."""
        return {stored.key for state in self.states for _, stored in state.slots.values()}


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a file has the slots of an optimizer."""

    reader: CheckpointReader
    scope: str
    family: Family
    name: str

    def key(self, variable: str, suffix: str) -> str:
        return f"{self.scope}/{variable}/{suffix}" if self.scope else f"{variable}/{suffix}"


def pair_slots(
    optimizer: Optimizer,
    pairs: Iterable[Pair],
    reader: CheckpointReader,
    *,
    name: str | None,
    scope: str,
    step: int | None,
) -> SlotPairing:
    """Finds the state of an optimizer's parameters.

    Args:
        optimizer: the optimizer.
        pairs: the tensors of the module that have values.
        reader: the file.
        name: what the slots' names end in; None for what TensorFlow calls them.
        scope: what stands before the variable's name in those of its slots.
        step: how many steps have been done; None for what the file tells.
    """
    found = SlotPairing()
    kind = type(optimizer).__name__
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    wanted = [pair for pair in pairs if id(pair.tensor) in groups]
    if not wanted:
        found.conflicts.append(f"{kind}: none of its parameters is among the tensors of the module that have values")
        return found
    source = _source(optimizer, groups[id(wanted[0].tensor)], wanted, reader, name, scope)
    if isinstance(source, str):
        found.conflicts.append(f"{kind}: {source}")
        return found
    counters = _counters(kind, source, step, found)
    steps_of: dict[int, int | None] = {}
    for group in optimizer.param_groups:
        if not any(groups[id(pair.tensor)] is group for pair in wanted):
            continue
        try:
            steps, doubt = number_of_steps(source.family, group, counters, step)
        except ValueError as error:
            found.conflicts.append(f"{kind}: {error}")
            continue
        steps_of[id(group)] = steps if source.family.has_step else None
        told = [(kind, text) for text in (doubt, *source.family.inexact(optimizer, group)) if text]
        found.inexact += [each for each in told if each not in found.inexact]
        if conflict := source.family.conflict(group):
            found.conflicts.append(f"{kind}: {conflict}")
    for pair in wanted:
        group = groups[id(pair.tensor)]
        if id(group) in steps_of:
            _pair_one(pair, source, group, steps_of[id(group)], found)
    return found


def _source(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    wanted: list[Pair],
    reader: CheckpointReader,
    name: str | None,
    scope: str,
) -> _Source | str:
    """Where the slots are, or why there are none."""
    kind = type(optimizer).__name__
    if name is not None:
        family = family_of(name, optimizer)
        sources = [_Source(reader, scope, family, name)] if family else []
    else:
        families = [family for family in FAMILIES if isinstance(optimizer, family.classes)]
        sources = [_Source(reader, scope, family, family.name) for family in families]
    if not sources:
        fitting = ", ".join(dict.fromkeys(cls.__name__ for family in FAMILIES for cls in family.classes))
        return f"no optimizer of TensorFlow 1 keeps what {kind} needs; these can be loaded: {fitting}"
    for source in sources:
        suffixes = [slot.suffix for slot in source.family.slots(source.name, group)]
        if any(reader.has_tensor(source.key(pair.variable, suffix)) for pair in wanted for suffix in suffixes):
            return source
    asked = " or ".join(repr(sources[0].key(wanted[0].variable, source.name)) for source in sources)
    return (
        f"the file has no state that it could take, such as {asked}; optimizer_name= and optimizer_scope= say what "
        "slots are called, or leave the optimizer out"
    )


def _pair_one(pair: Pair, source: _Source, group: Mapping[str, Any], steps: int | None, found: SlotPairing) -> None:
    """What is stored for one parameter: all of it, or none."""
    slots: dict[str, tuple[Slot, StoredTensor]] = {}
    missing = []
    for slot in source.family.slots(source.name, group):
        key = source.key(pair.variable, slot.suffix)
        if source.reader.has_tensor(key):
            slots[slot.state] = (slot, source.reader.stored(key))
        else:
            missing.append(f"{pair.name}: {slot.state}")
    found.unmatched += missing
    if missing:
        return
    for state, (_, stored) in slots.items():
        found.conflicts += misfit(f"{pair.name}: {state}", pair.tensor, stored, pair.transform)
    found.states.append(PairedState(pair, slots, steps, group))


def _counters(kind: str, source: _Source, step: int | None, found: SlotPairing) -> Counters:
    if step is not None:
        return Counters()
    reader = source.reader
    powers: dict[str, float | None] = {}
    for name in ("beta1_power", "beta2_power"):
        before = re.escape(source.scope + "/") if source.scope else "(?:.*/)?"
        keys = [key for key in reader if re.fullmatch(f"{before}{name}(?:_[0-9]+)?", key)]
        values = {key: value for key in keys if (value := _scalar(reader, key)) is not None}
        if len(set(values.values())) > 1 and source.family.corrects_bias:
            listed = ", ".join(f"{key} = {value:.6g}" for key, value in values.items())
            found.conflicts.append(
                f"{kind}: the file counts the steps of several optimizers ({listed}); tell the number of steps (step=)"
            )
            # The load fails; one complaint is enough.
            return Counters(global_step=0)
        powers[name] = next(iter(values.values()), None)
    global_step = _scalar(reader, "global_step")
    return Counters(powers["beta1_power"], powers["beta2_power"], None if global_step is None else int(global_step))


def _scalar(reader: CheckpointReader, key: str) -> float | None:
    """A stored number; None where there is none of the name."""
    if not reader.has_tensor(key) or reader.stored(key).shape != ():
        return None
    value = reader.get_tensor(key)
    return float(value.item()) if isinstance(value, torch.Tensor) else None
