"""What a checkpoint has of a Keras optimizer: its layout, and which node is which of its variables.

Lists are known by their names, ``_variables`` by the nodes that it has in common with them or, where they are empty, by
its order. Which variable of the model an entry belongs to is said by the nodes of ``_trainable_variables``, by full
names, or by the model's own order, whichever there is.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from torch_trackckpt.errors import DataLossError, MismatchError
from torch_trackckpt.graph.object_graph import Attribute, ObjectGraph
from torch_trackckpt.interop.keras.binding import BoundModel
from torch_trackckpt.interop.keras.bound import BoundVariable
from torch_trackckpt.interop.keras.inexact import Inexact
from torch_trackckpt.interop.keras.layout import Flavor
from torch_trackckpt.interop.keras.optimizer_state import OptimizerState
from torch_trackckpt.interop.keras.optimizers import Kind, Moment, places_in_variables
from torch_trackckpt.interop.keras.saved import find_optimizers
from torch_trackckpt.trackable import Trackable

__all__ = ["OptimizerLayout", "SavedOptimizer", "find_optimizer", "layout_of", "list_name"]

_NOT_MOMENTS = {"_variables", "_trainable_variables", "_trainable_variables_indices", "_index_dict"}
_WITHOUT_COUNTERPART = {
    "_model_variables_moving_average": "torch.optim keeps no moving average of the weights",
    "_accumulated_gradients": "torch accumulates gradients in the parameters",
    "_linears": "torch.optim has no Ftrl",
}


@dataclasses.dataclass(frozen=True)
class OptimizerLayout:
    """Which variables a Keras optimizer has, and under which names."""

    flavor: Flavor
    moments: tuple[Moment, ...]
    has_rate: bool = True
    """Whether the learning rate is a variable; with a schedule it is none."""


def list_name(flavor: Flavor, moment: Moment) -> str:
    """The list that an optimizer has a moment in."""
    return moment.keras if flavor is not Flavor.SONNET or moment.sonnet is None else moment.sonnet


class SavedOptimizer:
    """The node of a checkpoint that a view of an optimizer was paired with.

    Args:
        state: the live optimizer.
        bound: the model's variables, as they were bound to the same checkpoint; asked for when all are bound.
        graph, node_id, stored: see `Trackable._paired_with`.

    Raises:
        MismatchError: it is no optimizer of the same kind.
    """

    def __init__(
        self,
        state: OptimizerState,
        bound: Callable[[], BoundModel],
        graph: ObjectGraph,
        node_id: int,
        stored: Callable[[str], Any],
    ) -> None:
        self._state = state
        self._bound = bound
        self._graph = graph
        self._stored = stored
        self._node_id = node_id
        self._inner = _inner(graph, node_id)
        self.layout = layout_of(graph, self._inner, state.kind, state.moments)
        self._check_kind()

    def child(self, name: str, node_id: int | None = None) -> Trackable | None:
        """What the child of the optimizer's node, or of one below it, is."""
        child = self._graph.child(self._node_id if node_id is None else node_id, name)
        if child is None:
            return None
        if child in self._leaves:
            return self._leaves[child]
        return None if self._graph.nodes[child].attributes else _SavedList(self, child)

    @property
    def without_counterpart(self) -> list[str]:
        """What is stored besides that torch has nothing like, and that stands before or around the rest."""
        found = [name for name in _WITHOUT_COUNTERPART if self._entries(name)]
        return found if self._inner == self._node_id else [*found, "loss scaling (inner_optimizer)"]

    def _bound_here(self) -> BoundModel:
        """The model, as it was bound to this checkpoint: the nodes of another one mean something else."""
        bound = self._bound()
        if bound.saved is None or bound.saved.stored != self._stored:
            raise MismatchError(
                f"{self._graph.readable(self._node_id)} in the checkpoint belongs to a model, and the Keras view of "
                "the module was not restored from this checkpoint, or lies deeper in it. Restore both together, as "
                "Checkpoint(model=view, optimizer=keras_view(optimizer, model=view)) does; load_keras does so as well."
            )
        return bound

    @cached_property
    def inexact(self) -> tuple[Inexact, ...]:
        """What is stored and has no counterpart."""
        names, flavor = self._names(self._inner), self.layout.flavor
        found = [Inexact(name, why) for name, why in _WITHOUT_COUNTERPART.items() if self._entries(name)]
        found += [
            Inexact(moment.state, f"torch's {self._state.name} keeps it with {moment.option} only, which is off here")
            for moment in self.layout.moments
            # The new SGD of tf_keras keeps momenta even where there is no momentum.
            if moment not in self._state.moments and not (flavor is Flavor.TF_KERAS and moment.option == "momentum")
        ]
        found += [
            Inexact(moment.state, "the checkpoint has nothing of the kind; it begins as torch's does")
            for which, moment in enumerate(self.layout.moments)
            if moment in self._state.moments and self._lacks(which, moment)
        ]
        found += [
            Inexact(moment.state, "the checkpoint has nothing of the kind; it begins as torch's does")
            for moment in self._state.moments
            if moment not in self.layout.moments
        ]
        if self._inner != self._node_id:
            found.append(Inexact("loss scaling", "torch.amp.GradScaler scales losses, in another way"))
        if "_learning_rate" not in names and "learning_rate" not in names and flavor is not Flavor.SONNET:
            found.append(
                Inexact("lr", "a schedule made the learning rate, which is not stored; set it, or a scheduler")
            )
        if self._state.decay:
            found.append(
                Inexact("decay", f"the learning rate is divided by 1 + {self._state.decay:g} x step; use a scheduler")
            )
        return tuple(found)

    def _names(self, node_id: int) -> dict[str, int]:
        return {child.local_name: child.node_id for child in reversed(self._graph.nodes[node_id].children)}

    def _entries(self, name: str) -> list[int]:
        """The nodes of a list of the optimizer."""
        node_id = self._names(self._inner).get(name)
        if node_id is None:
            return []
        entries = self._names(node_id)
        return [entries[str(index)] for index in itertools.takewhile(lambda i: str(i) in entries, itertools.count())]

    def _check_kind(self) -> None:
        """Refuses the state of another algorithm."""
        kind, live = self._state.kind, self._state.name
        where = self._graph.readable(self._node_id)
        if self.layout.flavor is Flavor.TF_KERAS_LEGACY_OPTIMIZER:
            stored = {slot.slot_name for slot in self._graph.nodes[self._inner].slot_variables}
            known = {moment.legacy for moment in kind.moments}
        else:
            stored = {
                name for name in self._names(self._inner) if name not in _WITHOUT_COUNTERPART and self._entries(name)
            }
            stored -= _NOT_MOMENTS
            known = {list_name(self.layout.flavor, moment) for moment in kind.moments}
        if not stored <= known or self._has_other_order():
            raise MismatchError(
                f"{where} in the checkpoint is no optimizer of the kind of {live}: it keeps {sorted(stored)}"
                f"{' in the order of another one' if stored <= known else ''}, and {kind.keras} of Keras keeps "
                f"{sorted(known)}. Use the counterpart of the stored optimizer, or leave the optimizer out."
            )

    def _has_other_order(self) -> bool:
        """Adam and RMSprop with momentum have lists of the same names, but not the same order of all variables."""
        order = {node_id: index for index, node_id in enumerate(self._entries("_variables"))}
        first = self._entries("_velocities")[:2]
        if len(first) < 2 or not self._entries("_momentums") or not all(node_id in order for node_id in first):
            return False
        return (order[first[1]] - order[first[0]] > 1) != (self._state.kind.together > 1)

    @cached_property
    def variables(self) -> list[BoundVariable | None]:
        """The model's variables in the order of the lists; None for one that torch has not."""
        if trainable := self._entries("_trainable_variables"):
            bound = self._bound_here()
            return [bound.by_node.get(node_id) for node_id in trainable]
        lists = [self._entries(list_name(self.layout.flavor, moment)) for moment in self.layout.moments]
        lists = [entries for entries in lists if entries]
        if not lists:
            lists = [self._by_order(index) for index in range(len(self.layout.moments))]
            lists = [entries for entries in lists if entries]
        if not lists:
            return []
        bound = self._bound_here()
        return self._by_full_names(lists[0], bound) or self._by_model_order(lists[0], bound)

    def _by_full_names(self, entries: Sequence[int], bound: BoundModel) -> list[BoundVariable | None] | None:
        """tf_keras names what it keeps after the variable: ``Adam/m/dense/kernel``."""
        named: dict[str, list[BoundVariable]] = {}
        for node_id, variable in bound.by_node.items():
            for attribute in self._graph.nodes[node_id].attributes:
                named.setdefault(attribute.full_name, []).append(variable)
        found: list[BoundVariable | None] = []
        for node_id in entries:
            parts = self._value_of(node_id).full_name.split("/")
            suffixes = ("/".join(parts[begin:]) for begin in range(1, len(parts)))
            match = next((named[suffix] for suffix in suffixes if suffix in named), [])
            if len(match) != 1:
                return None
            found.append(match[0])
        return found if len({id(variable) for variable in found}) == len(found) else None

    def _by_model_order(self, entries: Sequence[int], bound: BoundModel) -> list[BoundVariable | None]:
        trainable = bound.trainable()
        shapes = [self._shape(node_id) for node_id in entries]
        mine = [variable.array.shape for variable in trainable]
        if shapes != mine:
            raise MismatchError(
                f"{self._graph.readable(self._node_id)} in the checkpoint keeps state for {len(shapes)} variables of "
                f"the shapes {[list(shape) for shape in shapes]}, and names none of them; the module has {len(mine)} "
                f"that are trained, {[f'{v.readable} {list(v.array.shape)}' for v in trainable]} in Keras's order. "
                "Freeze what was frozen (requires_grad_(False)), or leave the optimizer out."
            )
        return list(trainable)

    def _by_order(self, which: int) -> list[int]:
        """The nodes of a moment in ``_variables``, where the lists are empty."""
        if "_variables" not in self._names(self._inner) or not self.layout.moments:
            return []
        values = self._entries("_variables")[self._head :]
        if self._state.kind.has_product and values:
            # A scalar among tensors: first in Keras 3.3, last from then on.
            values = [node_id for node_id in values if node_id != self._product]
        num_variables, left = divmod(len(values), len(self.layout.moments))
        if left:
            raise MismatchError(
                f"{self._graph.readable(self._node_id)} in the checkpoint keeps {len(values)} values, which are not "
                f"{len(self.layout.moments)} for each variable, as {self._state.kind.keras} keeps; leave the optimizer "
                "out, or use the counterpart of the stored one."
            )
        places = list(places_in_variables(self._state.kind, self.layout.moments, num_variables))
        wanted = self.layout.moments[which]
        return [node_id for node_id, (moment, _) in zip(values, places, strict=True) if moment is wanted]

    @property
    def _head(self) -> int:
        """How many values come before the moments in ``_variables``: the iterations, and the learning rate."""
        names, values = self._names(self._inner), self._entries("_variables")
        scalars = {names.get(name) for name in ("_iterations", "iterations", "_learning_rate", "learning_rate")}
        return sum(1 for _ in itertools.takewhile(lambda node_id: node_id in scalars, values))

    @property
    def _product(self) -> int | None:
        named = self._names(self._inner).get("_u_product")
        if named is not None:
            return named
        values = self._entries("_variables")[self._head :]
        for node_id in (values[:1] + values[-1:]) if values else []:
            if not self._shape(node_id):
                return node_id
        return None

    @cached_property
    def _leaves(self) -> dict[int, Trackable]:
        """By node: what takes the value."""
        state, names = self._state, self._names(self._inner)
        leaves: dict[int, Trackable] = {}
        for name in ("_iterations", "iterations", "iter", "step"):
            if name in names:
                leaves[names[name]] = state.scalar("iterations")
        for name in ("_learning_rate", "learning_rate"):
            if name in names:
                leaves[names[name]] = state.scalar("learning_rate")
        if self.layout.flavor is Flavor.TF_KERAS_LEGACY_OPTIMIZER:
            leaves |= {names[name]: state.scalar(name) for name in state.kind.hyper_parameters if name in names}
            return leaves
        if state.kind.has_product and (product := self._product) is not None:
            leaves[product] = state.scalar("u_product")
        for which, moment in enumerate(self.layout.moments):
            entries = self._entries(list_name(self.layout.flavor, moment)) or self._by_order(which)
            if entries and len(entries) != len(self.variables):
                raise MismatchError(
                    f"{self._graph.readable(self._node_id)} in the checkpoint keeps {len(entries)} values of "
                    f"{moment.state} for {len(self.variables)} variables; it is damaged, or of another optimizer than "
                    f"{state.kind.keras}."
                )
            # Before its first step an optimizer of Keras has none, and one without momentum never.
            for node_id, variable in zip(entries, self.variables, strict=False):
                if variable is not None and state.has_all(variable):
                    leaves[node_id] = state.moment(moment, variable)
        if trainable := self._entries("_trainable_variables"):
            by_node = self._bound_here().by_node
            leaves |= {node_id: by_node[node_id] for node_id in trainable if node_id in by_node}
        return leaves

    def _lacks(self, which: int, moment: Moment) -> bool:
        is_legacy = self.layout.flavor is Flavor.TF_KERAS_LEGACY_OPTIMIZER
        return not is_legacy and not (self._entries(list_name(self.layout.flavor, moment)) or self._by_order(which))

    def _value_of(self, node_id: int) -> Attribute:
        attributes = self._graph.attributes(node_id)
        if not attributes:
            raise DataLossError(f"{self._graph.readable(node_id)} in the checkpoint is a variable without a value.")
        return attributes[0]

    def _shape(self, node_id: int) -> tuple[int, ...]:
        return tuple(self._stored(self._value_of(node_id).checkpoint_key).shape)


class _SavedList(Trackable):
    """A node below the optimizer's that has no value of its own."""

    def __init__(self, saved: SavedOptimizer, node_id: int) -> None:
        self._saved = saved
        self._node_id = node_id

    def _lookup_dependency(self, name: str) -> object | None:
        return self._saved.child(name, self._node_id)


def _inner(graph: ObjectGraph, node_id: int) -> int:
    """The optimizer within one that scales losses."""
    inner = graph.child(node_id, "inner_optimizer")
    return node_id if inner is None else inner


def find_optimizer(graph: ObjectGraph) -> int | None:
    """The one node of a graph that is an optimizer."""
    found = find_optimizers(graph)
    return found[0][1] if len(found) == 1 else None


def layout_of(graph: ObjectGraph, node_id: int, kind: Kind, kept: tuple[Moment, ...]) -> OptimizerLayout:
    """What a saved optimizer has."""
    names = {child.local_name: child.node_id for child in graph.nodes[node_id].children}
    if "_variables" in names:
        flavor = Flavor.KERAS3 if {"_trainable_variables", "iterations"} & names.keys() else Flavor.TF_KERAS
        moments = tuple(m for m in kind.moments if m.keras in names and graph.nodes[names[m.keras]].children)
        return OptimizerLayout(flavor, moments or kept, "_learning_rate" in names)
    if "iter" in names:
        slots = {slot.slot_name for slot in graph.nodes[node_id].slot_variables}
        moments = tuple(moment for moment in kind.moments if moment.legacy in slots)
        # Keras makes slots at its first step.
        return OptimizerLayout(Flavor.TF_KERAS_LEGACY_OPTIMIZER, moments or kept, "learning_rate" in names)
    if "step" in names:
        return OptimizerLayout(Flavor.SONNET, tuple(m for m in kind.moments if m.sonnet in names), False)
    if "_iterations" in names:
        moments = tuple(moment for moment in kind.moments if moment.keras in names)
        return OptimizerLayout(Flavor.KERAS3, moments or kept, "_learning_rate" in names)
    raise MismatchError(
        f"{graph.readable(node_id)} in the checkpoint is no optimizer of Keras or Sonnet: it has {sorted(names)}. "
        "Keras 3 has _iterations and _variables, tf_keras the same or iter, Sonnet step."
    )
