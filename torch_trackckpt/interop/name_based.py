"""Loads TensorFlow checkpoints without an object graph into torch modules, by rules for the names.

    file, rules, module  ->  pairing  ->  an object graph of two levels  ->  restore.match, restore.assign

The graph is the one that the file would have had if a program had saved the module's tensors under their torch names.
Its leaves are the live tensors, seen in the layout of the file. So values are checked, read and assigned as those of
any other checkpoint are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from torch_trackckpt.adapters import Adapter, adapt
from torch_trackckpt.adapters.tensor import TensorAdapter
from torch_trackckpt.bundle.reader import CheckpointReader, StoredTensor
from torch_trackckpt.devices.access import Devices
from torch_trackckpt.errors import MismatchError, UnsupportedFormatError
from torch_trackckpt.graph.object_graph import Attribute, Child, Node, ObjectGraph, SlotVariable
from torch_trackckpt.interop.name_based_status import RulesLoadStatus
from torch_trackckpt.interop.pairing import LiveTensors, Pair, Pairing, epsilons, pair
from torch_trackckpt.interop.rules import RuleSet
from torch_trackckpt.interop.slot_pairing import PairedState, SlotPairing, pair_slots
from torch_trackckpt.interop.tf1_optimizers import new_step
from torch_trackckpt.interop.transforms import AS_IS, Transform
from torch_trackckpt.options import CheckpointOptions
from torch_trackckpt.reading import load_checkpoint
from torch_trackckpt.restore.assign import assign_values
from torch_trackckpt.restore.match import Matcher, slots_of
from torch_trackckpt.restore.report import RestoreReport, ValueReport
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY, VARIABLE_VALUE, Prepared, Resolve, SlotOwner, Trackable, Value
from torch_trackckpt.update_uid import new_uid

__all__ = ["load_name_based"]


def load_name_based(
    module: nn.Module,
    path: str | os.PathLike[str],
    rules: RuleSet,
    *,
    optimizer: Optimizer | None = None,
    use_ema: bool = False,
    drop_background_class: bool = False,
    step: int | None = None,
    optimizer_name: str | None = None,
    optimizer_scope: str = "",
    options: CheckpointOptions | None = None,
) -> RulesLoadStatus:
    """Loads a TensorFlow checkpoint whose keys are names of variables into a module, in place.

    Such files were written by ``tf.compat.v1.train.Saver``, Estimators and TF1-style SavedModels. What the rules drop
    is left out; everything else goes where the first rule for its name says, or is named in the status. Shapes,
    types and the rules are checked before anything changes; reading, checksums and what happens on damage are as in
    `Checkpoint.restore`.

    Args:
        module: the module; its tensors are filled in place, and have to have the stored types.
        path: a checkpoint of either format, a directory with a state file, or a SavedModel directory.
        rules: those of `torch_trackckpt.interop`, or your own.
        optimizer: gets the state of the optimizer that the program had: for `Adam` and `AdamW` that of Adam or of
            BERT's AdamWeightDecay, for `SGD` of Momentum, for `RMSprop`, `Adagrad` and `Adadelta` of the same. Its
            hyper-parameters are not in the file and have to be set before.
        use_ema: loads moving averages (``<name>/ExponentialMovingAverage``) in place of the values themselves. As in
            TensorFlow's ``variables_to_restore``, what has no average is loaded itself; the status says so.
        drop_background_class: leaves out class 0 of the layers that the rules know as classifiers. slim's Inception,
            MobileNet and ResNet v2 have 1001 classes, of which the first is the background.
        step: how many steps the optimizer has done, if the file does not tell it, or tells it of several.
        optimizer_name: what the names of the optimizer's values end in; by default that of the class in TensorFlow,
            such as ``Adam``.
        optimizer_scope: what stands, with a slash after it, before the variable's name in those of the optimizer's
            values.
        options: ``verify``, ``num_threads`` and ``progress`` are those of a restore.

    Returns:
        What was loaded, and what was not.

    Raises:
        MismatchError: values do not fit, several go to one tensor, or the optimizer cannot take its state; all of
            this in one error, and nothing has changed.
        UnsupportedFormatError: the file has an object graph.
        ValueError: ``use_ema`` and ``optimizer`` together, a negative ``step``, a rule that counts from what is no
            number, or no checkpoint in the directory.
        CheckpointNotFoundError: there is nothing at the path.
        DataLossError: damage. Nothing has changed, unless the text names what had been overwritten.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt.bundle.writer import BundleWriter
        >>> from torch_trackckpt.interop import TRANSPOSED, Rule, RuleSet, load_name_based
        >>> path = tempfile.mkdtemp() + "/model.ckpt"
        >>> with BundleWriter(path + ".data-00000-of-00001", path + ".index") as writer:
        ...     writer.add("dense/bias", torch.ones(2))
        ...     writer.add("dense/kernel", torch.arange(6.0).reshape(3, 2))
        >>> dense = (Rule("dense/kernel", "weight", TRANSPOSED), Rule("dense/bias", "bias"))
        >>> layer = torch.nn.Linear(3, 2)
        >>> load_name_based(layer, path, RuleSet("one layer", dense)).assert_consumed().bound
        {'bias': 'dense/bias', 'weight': 'dense/kernel'}
        >>> layer.weight.tolist()
        [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    """
    if use_ema and optimizer is not None:
        raise ValueError("use_ema=True loads averages for evaluation; the optimizer's state belongs to the values.")
    if step is not None and (type(step) is not int or step < 0):
        raise ValueError(f"step must be None or a number of steps, not {step!r}.")
    reader = load_checkpoint(path)
    if reader.has_tensor(OBJECT_GRAPH_KEY):
        raise UnsupportedFormatError(
            f"{reader.file_prefix!r} has an object graph, in which values are found by objects and not by names; "
            "restore it with torch_trackckpt.Checkpoint, or with what torch_trackckpt.interop has for its writer."
        )
    live = LiveTensors(module)
    found = pair(reader.all_stored(), live, rules, use_ema=use_ema, drop_background_class=drop_background_class)
    slots = SlotPairing()
    if optimizer is not None:
        slots = pair_slots(optimizer, found.pairs, reader, name=optimizer_name, scope=optimizer_scope, step=step)
    if conflicts := [*found.conflicts, *slots.conflicts]:
        raise MismatchError(
            f"{reader.file_prefix!r} cannot be loaded by the rules {rules.title!r} for "
            f"{len(conflicts)} reason{'s' if len(conflicts) > 1 else ''}; nothing has been assigned:\n  "
            + "\n  ".join(conflicts)
        )
    # Under a name of its own, the state of an optimizer looks like variables that no rule is for.
    found.unused = {key: why for key, why in found.unused.items() if key not in slots.keys}
    _restore(found, slots, live, reader, optimizer, options or CheckpointOptions())
    return _status(found, slots, module, rules, reader)


# Restoring.


def _restore(
    found: Pairing,
    slots: SlotPairing,
    live: LiveTensors,
    reader: CheckpointReader,
    optimizer: Optimizer | None,
    options: CheckpointOptions,
) -> None:
    leaves: dict[str, object] = {each.name: _leaf(each) for each in found.pairs}
    leaves |= {name: live.by_name[name] for name in found.constants}
    children: dict[str, object] = {"module": _Named(leaves)}
    if optimizer is not None:
        children["optimizer"] = _SlotsByName(optimizer, slots.states)
    constants = {
        3 + len(found.pairs) + index: torch.full_like(live.by_name[name], number, device="cpu", requires_grad=False)
        for index, (name, number) in enumerate(found.constants.items())
    }
    graph = _graph(found, slots)
    matcher = Matcher(graph, reader.stored, new_uid(), computed=constants)
    matcher.start(_Named(children), {})
    with torch.inference_mode(False):
        matcher.pair_slots(slots_of(graph))
        assign_values(matcher.match, reader, options, Devices())


def _graph(found: Pairing, slots: SlotPairing) -> ObjectGraph:
    """Node 0 is the root, 1 the module, 2 the optimizer; then come tensors, those that are constant, and slots."""
    variables = [
        *(Node(attributes=_value(each.variable, each.stored.key)) for each in found.pairs),
        *(Node() for _ in found.constants),
    ]
    names = [*(each.name for each in found.pairs), *found.constants]
    number_of = {each.name: 3 + index for index, each in enumerate(found.pairs)}
    slot_nodes: list[Node] = []
    slot_variables = []
    for state in slots.states:
        for slot_name, (_, stored) in state.slots.items():
            slot_id = 3 + len(variables) + len(slot_nodes)
            slot_variables.append(SlotVariable(number_of[state.pair.name], slot_name, slot_id))
            slot_nodes.append(Node(attributes=_value(stored.key, stored.key)))
    root = Node(children=(Child(1, "module"), Child(2, "optimizer")))
    module = Node(children=tuple(Child(3 + index, name) for index, name in enumerate(names)))
    return ObjectGraph((root, module, Node(slot_variables=tuple(slot_variables)), *variables, *slot_nodes))


def _value(name: str, key: str) -> tuple[Attribute, ...]:
    return (Attribute(VARIABLE_VALUE, name, key),)


class _Named(Trackable):
    """Objects by names."""

    def __init__(self, children: Mapping[str, object]) -> None:
        self._children = children

    def _trackable_children(self) -> Mapping[str, object]:
        return self._children


def _leaf(pair: Pair) -> Trackable:
    """A live tensor in the layout of the file."""
    plain = adapt(pair.tensor)
    if pair.transform == AS_IS:
        assert plain is not None
        return plain
    if pair.transform.is_view and type(plain) is TensorAdapter:
        return _SeenAsStored(pair)
    return _Transformed(pair)


class _SeenAsStored(TensorAdapter):
    """A tensor that values are read into through a view of the file's layout."""

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair.tensor)
        self._pair = pair

    def _restore_destinations(self) -> Mapping[str, torch.Tensor]:
        pair = self._pair
        return {VARIABLE_VALUE: pair.transform.to_stored(pair.tensor.detach(), pair.stored.shape)}


class _Transformed(TensorAdapter):
    """A tensor whose value is read into memory of its own, and copied."""

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair.tensor)
        self._pair = pair

    def _restore_destinations(self) -> Mapping[str, torch.Tensor]:
        return {}

    def _prepare_restore(self, values: Mapping[str, Value], resolve: Resolve) -> Prepared:
        stored = values[VARIABLE_VALUE]
        assert isinstance(stored, torch.Tensor)
        # Expanded tensors have rules of their own for what they take.
        inner = adapt(self.adapted)
        value = self._pair.transform.to_torch(stored)
        if inner is not None and type(inner) is not TensorAdapter:
            return inner._prepare_restore({VARIABLE_VALUE: value}, resolve)
        return Prepared(lambda: _copy(self.adapted, value))


def _copy(tensor: torch.Tensor, value: torch.Tensor) -> None:
    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        tensor.copy_(value)


class _SlotsByName(Adapter, SlotOwner):
    """An optimizer that gets new state: what is stored, in torch's layout, and the number of steps."""

    def __init__(self, optimizer: Optimizer, states: list[PairedState]) -> None:
        super().__init__(optimizer)
        self._states = {id(state.pair.tensor): state for state in states}
        self._made: dict[int, dict[str, torch.Tensor]] = {}

    def _slot_destinations(
        self, variable: torch.Tensor, stored: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    ) -> Mapping[str, torch.Tensor]:
        transform = self._states[id(variable)].pair.transform
        made = self._made[id(variable)] = {
            name: torch.zeros_like(variable, memory_format=torch.preserve_format, requires_grad=False)
            for name in stored
        }
        return {name: _destination(transform, made[name], *kind) for name, kind in stored.items()}

    def _assign_slots(self, variable: torch.Tensor, slots: Mapping[str, torch.Tensor]) -> None:
        state, made = self._states[id(variable)], self._made[id(variable)]
        for name, value in made.items():
            if not state.pair.transform.is_view:
                value.copy_(state.pair.transform.to_torch(slots[name]))
            if state.slots[name][0].is_per_lr:
                value.div_(float(state.group["lr"]))
        steps = {} if state.steps is None else {"step": new_step(variable, state.group, state.steps)}
        optimizer: Optimizer = self.adapted
        optimizer.state[variable] = {**steps, **made}


def _destination(
    transform: Transform, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> torch.Tensor:
    """What is read into for a slot: the slot itself as the file has it, or memory of its own."""
    return transform.to_stored(tensor, shape) if transform.is_view else torch.empty(shape, dtype=dtype)


# What is told.


def _status(
    found: Pairing, slots: SlotPairing, module: nn.Module, rules: RuleSet, reader: CheckpointReader
) -> RulesLoadStatus:
    kept = [key for key in found.ignored if key not in slots.keys]
    inexact = [*found.inexact, *slots.inexact]
    inexact += [
        (path, f"eps is {epsilon:g} here, and {rules.epsilon:g} in TensorFlow's model")
        for path, epsilon in epsilons(found, module, rules).items()
    ]
    inexact += [(rules.title, note) for note in rules.notes] if found.pairs else []
    unmatched = (*found.unmatched, *slots.unmatched)
    restored = [_reported(each.name, each.stored) for each in found.pairs]
    restored += [
        _reported(f"{state.pair.name}: {name}", stored)
        for state in slots.states
        for name, (_, stored) in state.slots.items()
    ]
    report = RestoreReport(
        reader.file_prefix,
        restored=tuple(restored),
        only_in_checkpoint=tuple(_reported(key, reader.stored(key), why) for key, why in found.unused.items()),
        only_in_program=tuple(ValueReport(name) for name in unmatched),
        skipped=tuple(_reported(key, reader.stored(key)) for key in kept),
    )
    return RulesLoadStatus(
        checkpoint=reader.file_prefix,
        rules=rules.title,
        bound={each.name: each.stored.key for each in found.pairs},
        slots={
            state.pair.name: {name: stored.key for name, (_, stored) in state.slots.items()} for state in slots.states
        },
        unmatched_torch=unmatched,
        unused_keys=found.unused,
        ignored=tuple(kept),
        inexact=tuple(inexact),
        global_step=_global_step(reader),
        _report=report,
    )


def _global_step(reader: CheckpointReader) -> int | None:
    value: Any = reader.get_tensor("global_step") if reader.has_tensor("global_step") else None
    return int(value) if isinstance(value, torch.Tensor) and value.numel() == 1 else None


def _reported(name: str, stored: StoredTensor, note: str = "") -> ValueReport:
    return ValueReport(name, stored.key, str(stored.dtype), stored.shape, note=note)
