"""Keras checkpoints in one line: views of a module and its optimizer, at the places where the checkpoint has them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, overload

from torch import nn
from torch.optim import Optimizer

from torch_trackckpt.checkpoint import Checkpoint
from torch_trackckpt.errors import MismatchError
from torch_trackckpt.graph.object_graph import ObjectGraph
from torch_trackckpt.interop.keras.binding import bind
from torch_trackckpt.interop.keras.bound_model import BoundLayer, BoundModel
from torch_trackckpt.interop.keras.epsilon import KerasEpsilon
from torch_trackckpt.interop.keras.given_map import KerasMap
from torch_trackckpt.interop.keras.inexact import Inexact
from torch_trackckpt.interop.keras.layout import Flavor, Layers
from torch_trackckpt.interop.keras.optimizer_view import KerasOptimizerView
from torch_trackckpt.interop.keras.saved import find_optimizers
from torch_trackckpt.interop.keras.units import AfterFlatten
from torch_trackckpt.interop.keras.view import KerasModelView, ViewNode, find_model, loose_variables, open_keras
from torch_trackckpt.options import CheckpointOptions
from torch_trackckpt.restore.materialize import Device
from torch_trackckpt.restore.report import RestoreReport
from torch_trackckpt.restore.status import LoadStatus
from torch_trackckpt.trackable import Trackable

__all__ = ["KerasLoadStatus", "keras_view", "load_keras"]

_MOST_NAMED = 10

_logger = logging.getLogger("torch_trackckpt")


def _listed(names: tuple[str, ...]) -> str:
    left = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f", and {left} more" if left > 0 else "")


@overload
def keras_view(
    module_or_optimizer: nn.Module,
    *,
    like: str | os.PathLike[str] | None = None,
    flavor: Flavor | str | None = None,
    layers: Layers | None = None,
    sequential: bool | None = None,
    map: KerasMap | None = None,
    after_flatten: AfterFlatten | None = None,
    model: str | None = None,
    optimizer: KerasOptimizerView | None = None,
    keep_others: bool = False,
) -> KerasModelView: ...
@overload
def keras_view(module_or_optimizer: Optimizer, *, model: KerasModelView | None = None) -> KerasOptimizerView: ...
def keras_view(module_or_optimizer: Any, **settings: Any) -> KerasModelView | KerasOptimizerView:
    """A module or an optimizer as Keras names and stores it, to be saved and restored by `Checkpoint`.

    The names come from the checkpoint that the view is restored from; where there is none yet, from ``like`` or
    ``flavor``. Modules are paired with Keras's layers by ``map``, else by names, else by their order if all shapes fit.
    Whatever is not clear is an error. The idea of a view is ours; the names are Keras's.

    Args:
        module_or_optimizer: the model, or an optimizer of its parameters.
        like: a checkpoint that the Keras program wrote, even before its first step: a prefix, a directory of
            checkpoints, or a SavedModel directory. What is saved has its names.
        flavor: the Keras program, where there is no such checkpoint: ``keras3``, ``tf_keras``,
            ``tf_keras_legacy_optimizer`` or ``sonnet``. A checkpoint of another one is refused.
        layers: with a flavor: Keras's ``model.layers`` in order, as names of torch modules; anything else stands for a
            layer without weights. Without, the Keras model has attributes of the module's names.
        sequential: with layers: whether the Keras model is a Sequential, or a functional one, whose ``model.layers``
            begin with its inputs; None if it is a Sequential where the module is an ``nn.Sequential``.
        map: names of torch modules (or of parameters), with the names or paths of Keras's layers (or of variables);
            None leaves one out. A module that is several layers has a list of them, and two modules may have one layer.
        after_flatten: for a ``Linear`` behind a flattened feature map: its ``(height, width, channels)``; None where
            the net itself flattens with channels last.
        model: for a module, where in ``like`` the model is, if that is not clear; for an optimizer, the view of the
            module, which is found by the parameters if it was not said.
        optimizer: for a module, the view of an optimizer that Keras has below the model, where that was compiled.
        keep_others: for a module, has variables that it has nothing for keep what was restored, or what ``like`` has.

    Returns:
        The view: `KerasModelView` or `KerasOptimizerView`.

    Raises:
        TypeError: it is neither a module nor an optimizer.
        UnsupportedValueError: Keras has no such optimizer.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint
        >>> from torch_trackckpt.interop import keras_view
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> view = keras_view(net, flavor="tf_keras")
        >>> path = Checkpoint(model=view).save(tempfile.mkdtemp() + "/ckpt")
        >>> other = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> status = Checkpoint(model=keras_view(other)).restore(path).assert_consumed()
        >>> torch.equal(net[0].weight, other[0].weight)
        True
    """
    if isinstance(module_or_optimizer, Optimizer):
        return KerasOptimizerView(module_or_optimizer, **settings)
    if not isinstance(module_or_optimizer, nn.Module):
        raise TypeError(f"keras_view takes a module or an optimizer, not a {type(module_or_optimizer).__name__}.")
    return KerasModelView(module_or_optimizer, **settings)


class KerasLoadStatus(LoadStatus):
    """What `load_keras` has matched. ``print`` shows which module took which layer, and why.

    Args:
        inner: the status of the restore.
        view: the module's.
        optimizer: the optimizer's, if there is one.
        optimizer_keys: what is stored of the optimizer that was restored.
    """

    def __init__(
        self,
        inner: LoadStatus,
        view: KerasModelView,
        optimizer: KerasOptimizerView | None,
        optimizer_keys: frozenset[str] = frozenset(),
    ) -> None:
        self._inner = inner
        self._view = view
        self._optimizer = optimizer
        self._optimizer_keys = optimizer_keys

    @property
    def unmatched_torch(self) -> tuple[str, ...]:
        """Tensors of the module that the checkpoint has nothing for; they keep their values."""
        return self._view.unmatched_torch

    @property
    def unused_keys(self) -> tuple[str, ...]:
        """Keys of the checkpoint, of the model's variables that the module has nothing for, and of the optimizer's if
        that was restored. Metrics, seed generators and the like are not counted."""
        report = self._inner.report()
        left = {value.key for value in (*report.waiting, *report.only_in_checkpoint)}
        return (*self._view.bound().unused_keys, *sorted(left & self._optimizer_keys))

    @property
    def inexact(self) -> tuple[Inexact, ...]:
        """What cannot be converted exactly: names of tensors or settings, and reasons."""
        return (*self._view.inexact, *(() if self._optimizer is None else self._optimizer.inexact))

    @property
    def frozen(self) -> tuple[str, ...]:
        """Tensors that Keras has no variable for. They got the value with which they make no difference, and
        ``requires_grad`` is off."""
        return self._view.bound().frozen

    @property
    def bound(self) -> tuple[BoundLayer, ...]:
        """Which module took which layer, in Keras's order, and how it was found."""
        return self._view.bound().table

    def assert_consumed(self) -> KerasLoadStatus:
        self._assert_torch()
        if unused := self.unused_keys:
            raise AssertionError(f"The checkpoint has values that nothing took: {_listed(unused)}.")
        return self

    def assert_existing_objects_matched(self) -> KerasLoadStatus:
        self._assert_torch()
        self._inner.assert_existing_objects_matched()
        return self

    def _assert_torch(self) -> None:
        if unmatched := self.unmatched_torch:
            raise AssertionError(
                f"The checkpoint has nothing for {_listed(unmatched)}. They keep their values; Keras 3 does not store "
                "what is in lists or dicts that are attributes, except for the weights that an optimizer trains."
            )

    def assert_nontrivial_match(self) -> KerasLoadStatus:
        if not self._view.bound().variables:
            raise AssertionError("Nothing of the module was matched.")
        return self

    def expect_partial(self) -> KerasLoadStatus:
        self._inner.expect_partial()
        return self

    def run_restore_ops(self, device: Device = None) -> None:
        self._inner.run_restore_ops(device)

    def initialize_or_restore(self, device: Device = None) -> None:
        self._inner.initialize_or_restore(device)

    def report(self) -> RestoreReport:
        return self._inner.report()

    def __str__(self) -> str:
        model = self._view.bound()
        lines = [f"{len(model.variables)} variables of {model.flavor.value}:", *(f"  {line}" for line in self.bound)]
        names_of = {variable.key: variable.full_name for variable in model.unused}
        unused = tuple(f"{key}  {names_of.get(key, '')}".rstrip() for key in self.unused_keys)
        for title, names in (
            ("unmatched in torch", self.unmatched_torch),
            ("unused keys", unused),
            ("frozen", self.frozen),
            ("inexact", tuple(map(str, self.inexact))),
        ):
            if names:
                lines += [f"{title}:", *(f"  {name}" for name in names)]
        if self._optimizer is not None:
            settings = (f"{name}={value!r}" for name, value in self._optimizer.settings_not_stored.items())
            lines += ["yours, since the checkpoint does not tell:", f"  {', '.join(settings)}"]
        return "\n".join(lines)


def load_keras(
    net: nn.Module,
    path: str | os.PathLike[str],
    optimizer: Optimizer | None = None,
    map: KerasMap | None = None,
    *,
    after_flatten: AfterFlatten | None = None,
    model: str | None = None,
    optimizer_path: str | None = None,
    keras_epsilon: bool = False,
    options: CheckpointOptions | None = None,
) -> KerasLoadStatus:
    """Loads what a Keras or Sonnet program has saved into a module, without TensorFlow.

    Reads checkpoints of Keras 3 and Keras 2 (``tf.train.Checkpoint``, ``model.save_weights``) and SavedModels
    (``model.export``, ``model.save``, ``tf.saved_model.save``). Everything is checked before anything changes. Ours.

    Args:
        net: the module; it computes what the Keras model computes.
        path: the prefix of a checkpoint; a directory of checkpoints, for the latest; or a SavedModel directory.
        optimizer: gets the state of Keras's optimizer, and its learning rate.
        map, after_flatten: see `keras_view`.
        model: where the model is in the checkpoint, such as ``"net"`` for ``Checkpoint(net=...)``; None where only one
            place fits. Empty for the root.
        optimizer_path: where the optimizer is; None where there is one.
        keras_epsilon: has the steps of an Adam or AdamW add epsilon where Keras adds it; see `KerasEpsilon`.
        options: see `CheckpointOptions`.

    Returns:
        The status, which tells what did not match and what is inexact.

    Raises:
        CheckpointNotFoundError, DataLossError: as `Checkpoint.read`.
        UnsupportedFormatError: the checkpoint has names only, as those of TensorFlow 1.
        MismatchError: modules and layers do not fit, or it is not clear which belong together; nothing has changed.
        UnsupportedValueError: Keras has no such optimizer; or with `keras_epsilon`, it is no Adam.
        ValueError: `keras_epsilon` without an optimizer.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint
        >>> from torch_trackckpt.interop import keras_view, load_keras
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> view = keras_view(net, flavor="keras3")
        >>> path = Checkpoint(model=view).write(tempfile.mkdtemp() + "/ckpt")
        >>> other = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> status = load_keras(other, path).assert_consumed()
        >>> print(status)
        2 variables of keras3:
          0  Linear  <-  Dense _functional/_operations/1  by order
    """
    if keras_epsilon:
        if optimizer is None:
            raise ValueError("keras_epsilon=True is about the steps of an optimizer, and none was given.")
        KerasEpsilon.check(optimizer)
    place = os.fsdecode(path)
    reader, graph = open_keras(place)
    saved, bound = find_model(graph, reader.stored, lambda saved: bind(net, saved, map, after_flatten), model)
    view = KerasModelView(net, map=map, after_flatten=after_flatten)
    tree: dict[tuple[str, ...], Trackable] = {_path_to(graph, saved.node_id): view}
    optimizer_view, optimizer_keys = None, frozenset[str]()
    loose = loose_variables(bound)
    if optimizer is not None:
        optimizer_view = KerasOptimizerView(optimizer, view)
        _check_optimises(optimizer, bound)
        optimizer_id = _optimizer_of(graph, optimizer_path, place)
        tree[_path_to(graph, optimizer_id)] = optimizer_view
        optimizer_keys = _keys_of(graph, optimizer_id, frozenset(bound.by_node))
    elif loose:
        tree |= _loose_places(graph, view, loose)
    root = _placed(tree, view)
    inner = Checkpoint(root).read(reader.file_prefix, options)
    # What is left is in this status.
    inner.expect_partial()
    if keras_epsilon and optimizer is not None:
        KerasEpsilon(optimizer)
    status = KerasLoadStatus(inner, view, optimizer_view, optimizer_keys)
    if unmatched := status.unmatched_torch:
        _logger.warning(
            "%r has nothing for %s; they keep their values. The status has all of them as unmatched_torch.",
            place,
            _listed(unmatched),
        )
    return status


def _check_optimises(optimizer: Optimizer, bound: BoundModel) -> None:
    """Refuses an optimizer of another module, which would get nothing."""
    members = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    parameters = [parameter for variable in bound.variables for _, parameter in variable.parameters()]
    if not any(id(parameter) in members for parameter in parameters):
        names = ", ".join(dict.fromkeys(variable.module_name or "the net" for variable in bound.variables))
        raise MismatchError(
            f"{type(optimizer).__name__} optimises no parameter of the layers that were found in the checkpoint, which "
            f"are {names}. Make it of the parameters of the net that is loaded; or load without optimizer=."
        )


def _path_to(graph: ObjectGraph, node_id: int) -> tuple[str, ...]:
    """The edges from the root on the shortest way."""
    paths: dict[int, tuple[str, ...]] = {0: ()}
    queue = [0]
    for parent in queue:
        for child in graph.nodes[parent].children:
            if child.node_id not in paths:
                paths[child.node_id] = (*paths[parent], child.local_name)
                queue.append(child.node_id)
    return paths[node_id]


def _optimizer_of(graph: ObjectGraph, path: str | None, place: str) -> int:
    found = find_optimizers(graph)
    if path is not None:
        node_id = graph.find(path)
        if node_id is not None:
            return node_id
    elif len(found) == 1:
        return found[0][1]
    names = ", ".join(repr(name) for name, _ in found) or "none"
    raise MismatchError(
        f"{place!r} has {'no optimizer' if not found else 'several optimizers'}"
        f"{f' at {path!r}' if path is not None else ''}: there is {names}. "
        + ("Say optimizer_path=, one of them." if found else "Load without optimizer=.")
    )


def _keys_of(graph: ObjectGraph, optimizer_id: int, others: frozenset[int]) -> frozenset[str]:
    """The keys of all that belongs to an optimizer, slots included."""
    seen, stack = {optimizer_id}, [optimizer_id]
    keys = set()
    while stack:
        node = graph.nodes[stack.pop()]
        keys |= {attribute.checkpoint_key for attribute in node.attributes}
        below = [child.node_id for child in node.children] + [slot.slot_id for slot in node.slot_variables]
        for node_id in below:
            if node_id not in seen and node_id not in others:
                seen.add(node_id)
                stack.append(node_id)
    return frozenset(keys)


class _LooseVariables(Trackable):
    """The place of an optimizer of which only the model's variables are taken."""

    def __init__(self, find: Callable[[], Mapping[int, Trackable]]) -> None:
        self._find = find
        self._children: dict[str, Trackable] = {}

    def _paired_with(self, graph: ObjectGraph, node_id: int, stored: Callable[[str], Any]) -> None:
        known = self._find()
        self._children = {
            child.local_name: known[child.node_id] for child in graph.nodes[node_id].children if child.node_id in known
        }

    def _lookup_dependency(self, name: str) -> object | None:
        return self._children.get(name)

    def _trackable_children(self) -> Mapping[str, object]:
        return self._children


def _loose_places(
    graph: ObjectGraph, view: KerasModelView, loose: Mapping[int, Trackable]
) -> dict[tuple[str, ...], Trackable]:
    """Where the model's variables are that only optimizers lead to."""
    found: dict[tuple[str, ...], Trackable] = {}
    for _, optimizer_id in find_optimizers(graph):
        list_id = graph.child(optimizer_id, "_trainable_variables")
        if list_id is not None and any(child.node_id in loose for child in graph.nodes[list_id].children):
            found[_path_to(graph, list_id)] = _LooseVariables(lambda: loose_variables(view.bound()))
    return found


def _placed(tree: Mapping[tuple[str, ...], Trackable], view: KerasModelView) -> Trackable:
    """The root of a program that has each object where the checkpoint has it."""
    own = next(path for path, each in tree.items() if each is view)
    root: Trackable = view if own == () else ViewNode()
    for path, each in sorted(tree.items(), key=lambda item: len(item[0])):
        node = root
        for depth, name in enumerate(path):
            beside = node.beside if isinstance(node, KerasModelView) else node.children  # type: ignore[attr-defined]
            if depth == len(path) - 1:
                beside[name] = each
            else:
                node = beside.setdefault(name, ViewNode())
    return root
