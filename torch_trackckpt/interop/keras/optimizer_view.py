"""A torch optimizer as a node with the names of a Keras optimizer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from torch_trackckpt.errors import MismatchError, UnsupportedValueError
from torch_trackckpt.graph.object_graph import ObjectGraph
from torch_trackckpt.interop.keras.bound import BoundVariable
from torch_trackckpt.interop.keras.bound_model import BoundModel
from torch_trackckpt.interop.keras.inexact import Inexact
from torch_trackckpt.interop.keras.inexact_steps import inexact_formulas, inexact_parameters
from torch_trackckpt.interop.keras.layout import Flavor
from torch_trackckpt.interop.keras.optimizer_state import OptimizerState
from torch_trackckpt.interop.keras.optimizers import hyper_parameter, places_in_variables
from torch_trackckpt.interop.keras.saved_optimizer import (
    OptimizerLayout,
    SavedOptimizer,
    find_optimizer,
    layout_of,
    list_name,
)
from torch_trackckpt.interop.keras.view import KerasModelView, find_view
from torch_trackckpt.trackable import SlotOwner, Trackable, Value

__all__ = ["KerasOptimizerView"]

_SETTINGS = (
    "lr",
    "betas",
    "alpha",
    "rho",
    "momentum",
    "nesterov",
    "momentum_decay",
    "eps",
    "weight_decay",
    "amsgrad",
    "centered",
)
"""Those that both sides have."""


class KerasOptimizerView(SlotOwner):
    """A torch optimizer as Keras stores one; made by `keras_view`.

    Args:
        optimizer: the optimizer.
        model: the view of the model whose parameters it optimises; found by the parameters where it is None.

    Raises:
        UnsupportedValueError: Keras has no optimizer that keeps the same.
    """

    def __init__(self, optimizer: Optimizer, model: KerasModelView | None = None) -> None:
        self.optimizer = optimizer
        self._model = model
        self._state = OptimizerState(optimizer, self._variables)
        self._saved: SavedOptimizer | None = None
        self._template: tuple[BoundModel, SavedOptimizer | None] | None = None
        self._lists: dict[str, _List] = {}

    @property
    def model(self) -> KerasModelView:
        """The view of the model.

        Raises:
            UnsupportedValueError: there is none.
        """
        if self._model is None:
            parameters = itertools.chain.from_iterable(group["params"] for group in self.optimizer.param_groups)
            found = map(find_view, parameters)
            self._model = next((view for view in found if view is not None), None)
        if self._model is None:
            raise UnsupportedValueError(
                f"The Keras view of {self._state.name} knows no Keras view of the model: make one of the module whose "
                "parameters it optimises, keras_view(module), and keep it; or say keras_view(optimizer, model=view)."
            )
        self._model.is_optimised_by(self)
        return self._model

    @property
    def inexact(self) -> tuple[Inexact, ...]:
        """What does not carry over exactly, with the settings of now."""
        found = inexact_formulas(self.optimizer, self._state.kind, self._layout.flavor)
        found += inexact_parameters(self.optimizer, self.model.bound())
        return (*found, *(self._saved.inexact if self._saved is not None else ()))

    @property
    def iterations(self) -> int:
        """How many steps there were, as Keras counts them. Where torch does not count, as SGD, it can be set.

        Raises:
            UnsupportedValueError: the parameters do not agree; or nobody has counted.
        """
        return int(self._state.scalar("iterations").value())

    @iterations.setter
    def iterations(self, number: int) -> None:
        self._state.kept.iterations = number

    @property
    def settings_not_stored(self) -> Mapping[str, Any]:
        """Hyper-parameters that the optimizers of this layout do not store, so that nobody can tell whether they are
        those of Keras: those of the first group."""
        layout, kind = self._layout, self._state.kind
        is_legacy = layout.flavor is Flavor.TF_KERAS_LEGACY_OPTIMIZER
        stored = {hyper_parameter(kind, name)[0] for name in kind.settings} if is_legacy else set()
        if layout.has_rate:
            stored.add("lr")
        group = self.optimizer.param_groups[0]
        return {name: group[name] for name in _SETTINGS if name in group and name not in stored}

    def _identity(self) -> Hashable:
        return id(self.optimizer), "keras"

    def _owner(self) -> tuple[Any, Hashable]:
        return self.optimizer, "keras"

    # Restoring.

    def _paired_with(self, graph: ObjectGraph, node_id: int, stored: Callable[[str], Any]) -> None:
        self._state.forget_leaves()
        model = self.model
        self._saved = SavedOptimizer(self._state, lambda: model.bound(), graph, node_id, stored)
        self._state.has_rate_inside = self._has_rate_inside

    def _lookup_dependency(self, name: str) -> object | None:
        return None if self._saved is None else self._saved.child(name)

    # Saving.

    def _trackable_children(self) -> Mapping[str, object]:
        layout, variables, state = self._layout, self._variables(), self._state
        state.has_rate_inside = self._has_rate_inside
        iterations, kind = state.scalar("iterations"), state.kind
        rate = {"_learning_rate": state.scalar("learning_rate")} if layout.has_rate else {}
        if layout.flavor is Flavor.TF_KERAS_LEGACY_OPTIMIZER:
            names = [name for name in kind.hyper_parameters if name != "learning_rate" or layout.has_rate]
            return {"iter": iterations} | {name: state.scalar(name) for name in names}
        lists: dict[str, object] = {
            (name := list_name(layout.flavor, moment)): self._list(
                name, [state.moment(moment, variable) for variable in variables]
            )
            for moment in layout.moments
        }
        if layout.flavor is Flavor.SONNET:
            return {"step": iterations} | lists
        places = places_in_variables(kind, layout.moments, len(variables))
        values: list[Trackable] = [state.moment(moment, variables[index]) for moment, index in places]
        product = {"_u_product": state.scalar("u_product")} if kind.has_product else {}
        if layout.flavor is not Flavor.KERAS3:
            return (
                {"_variables": self._list("_variables", [iterations, *values]), "_iterations": iterations}
                | rate
                | product
                | lists
            )
        return (
            {
                "_variables": self._list("_variables", [iterations, *rate.values(), *values, *product.values()]),
                "_trainable_variables": self._list("_trainable_variables", variables),
                # Keras 3.3 has the second name.
                "_iterations": iterations,
                "iterations": iterations,
            }
            | rate
            | product
            | lists
        )

    def _list(self, name: str, values: Sequence[Trackable]) -> _List:
        """A list of these, the same object for as long as they are the same."""
        known = self._lists.get(name)
        if known is None or [*map(id, known.values)] != [*map(id, values)]:
            known = self._lists[name] = _List(values)
        return known

    def _attribute_names(self) -> tuple[str, ...]:
        return ()

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        """Has no values; but it is here that a save asks."""
        source = self._source
        if source is not None and (surplus := source.without_counterpart):
            raise UnsupportedValueError(
                f"the optimizer of Keras keeps {', '.join(surplus)} besides, for which {self._state.name} has nothing, "
                "and all that follows would be taken for it. Save the model alone, or make the Keras program's "
                "optimizer one without it."
            )
        if source is not None and source.variables:
            left = [v for v in source.variables if v is None or not self._state.has_all(v)]
            names = ["one that the module has not" if v is None else v.readable for v in left]
            told = "the optimizer of Keras keeps state for"
        else:
            left = [v for v in self.model.bound().trainable() if not self._state.has_all(v)]
            names = [v.readable for v in left if v is not None]
            told = "Keras would take as trained"
        if left:
            raise UnsupportedValueError(
                f"{told} {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}, which {self._state.name} does "
                "not optimise, so that the state of all would be taken for that of others. Give the optimizer all "
                "that Keras trains, freeze what it does not train (requires_grad_(False)), or save the model alone."
            )
        return {}

    @property
    def _source(self) -> SavedOptimizer | None:
        """The optimizer of the checkpoint that it was restored from, or else of that which the model is saved like."""
        return self._saved if self._saved is not None else self._of_template()

    @property
    def _layout(self) -> OptimizerLayout:
        if self._saved is not None:
            return self._saved.layout
        bound, state = self.model.bound(), self._state
        if bound.graph is not None and (node_id := find_optimizer(bound.graph)) is not None:
            return layout_of(bound.graph, node_id, state.kind, state.moments)
        # tf_keras's new SGD keeps momenta even where there is no momentum.
        has_all = bound.flavor is Flavor.TF_KERAS and isinstance(self.optimizer, torch.optim.SGD)
        return OptimizerLayout(bound.flavor, state.kind.moments if has_all else state.moments)

    @property
    def _has_rate_inside(self) -> bool:
        return self._layout.flavor is not Flavor.SONNET or self._state.kind.sonnet_rate

    def _variables(self) -> Sequence[BoundVariable]:
        """The model's variables that it optimises, in Keras's order."""
        if self._saved is not None and (saved := self._saved.variables):
            return [variable for variable in saved if variable is not None and self._state.has_all(variable)]
        if (template := self._of_template()) is not None and template.variables:
            return [
                variable for variable in template.variables if variable is not None and self._state.has_all(variable)
            ]
        return [variable for variable in self.model.bound().trainable() if self._state.has_all(variable)]

    def _of_template(self) -> SavedOptimizer | None:
        """That of the checkpoint that the model is saved like, if it is of this kind."""
        bound = self.model.bound()
        if self._template is None or self._template[0] is not bound:
            self._template = bound, self._read_template(bound)
        return self._template[1]

    def _read_template(self, bound: BoundModel) -> SavedOptimizer | None:
        node_id = None if bound.graph is None else find_optimizer(bound.graph)
        if bound.saved is None or node_id is None:
            return None
        try:
            template = SavedOptimizer(self._state, lambda: bound, bound.saved.graph, node_id, bound.saved.stored)
            template.variables  # noqa: B018  it may be that they cannot be told
        except MismatchError:
            # It is of another kind, or trains other variables.
            return None
        return template

    # Slot variables, of legacy optimizers.

    def _slot_variables(self) -> Mapping[str, list[tuple[Any, torch.Tensor]]]:
        if self._layout.flavor is not Flavor.TF_KERAS_LEGACY_OPTIMIZER:
            return {}
        return {
            moment.legacy: [(variable, self._state.moment(moment, variable).value()) for variable in self._variables()]
            for moment in self._layout.moments
        }

    def _variables_with_state(self) -> list[Any]:
        is_legacy = self._layout.flavor is Flavor.TF_KERAS_LEGACY_OPTIMIZER
        return [*self._variables()] if is_legacy and self.optimizer.state else []

    def _readable_variable(self, variable: Any) -> str:
        return str(variable.readable)

    def _keeps_slots_of(self, variable: Any) -> bool:
        return isinstance(variable, BoundVariable) and self._state.has_all(variable)

    def _slot_destinations(
        self, variable: Any, stored: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    ) -> Mapping[str, torch.Tensor] | None:
        kept = {moment.legacy: moment for moment in self._state.moments if moment.legacy in stored}
        if kept.keys() != stored.keys():
            return None
        leaves = {name: self._state.moment(moment, variable) for name, moment in kept.items()}
        return {
            name: torch.empty(leaf.kind()[1], dtype=leaf.kind()[0], device=variable.value().device)
            for name, leaf in leaves.items()
        }

    def _assign_slots(self, variable: Any, slots: Mapping[str, torch.Tensor]) -> None:
        for moment in self._state.moments:
            if moment.legacy in slots:
                self._state.moment(moment, variable).assign(slots[moment.legacy])


class _List(Trackable):
    """A list of an optimizer."""

    def __init__(self, values: Sequence[Trackable]) -> None:
        self.values = values

    def _trackable_children(self) -> Mapping[str, object]:
        return {str(index): value for index, value in enumerate(self.values)}
