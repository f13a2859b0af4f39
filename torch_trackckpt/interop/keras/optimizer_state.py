"""What Keras's view of an optimizer asks of torch's, and the leaves of the view.

A leaf is one variable of the Keras optimizer. It reads and writes ``optimizer.state`` and ``optimizer.param_groups`` as
they are whenever it is asked.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import SGD, Optimizer

from torch_trackckpt.errors import MismatchError, UnsupportedValueError
from torch_trackckpt.interop.keras.bound import BoundVariable
from torch_trackckpt.interop.keras.kept import Kept, to_keras, to_torch
from torch_trackckpt.interop.keras.optimizers import Moment, Scale, hyper_parameter, initial_moment, kind_of
from torch_trackckpt.trackable import VARIABLE_VALUE, Prepared, Resolve, Trackable, Value

__all__ = ["MomentLeaf", "OptimizerState", "Scalar"]


class OptimizerState:
    """A torch optimizer, in terms of Keras's.

    Args:
        optimizer: the optimizer.
        variables: the variables of the model that it optimises, whenever they are asked for. The object of a method is
            not kept alive: it has this.
    """

    def __init__(self, optimizer: Optimizer, variables: Callable[[], Sequence[BoundVariable]]) -> None:
        self.optimizer = optimizer
        self.kind = kind_of(optimizer)
        self.kept = Kept.of(optimizer)
        self.decay = 0.0
        """That of legacy optimizers, which torch has not."""
        self.has_rate_inside = True
        """Whether momenta are stored with the learning rate in them."""
        self._variables: Callable[[], Callable[[], Sequence[BoundVariable]] | None] = (
            weakref.WeakMethod(variables) if inspect.ismethod(variables) else lambda: variables
        )
        self._leaves: dict[Hashable, Leaf] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> OptimizerState:
        # Weak references are not copied; the copy of the view has one of its own.
        other = OptimizerState(copy.deepcopy(self.optimizer, memo), copy.deepcopy(self._find_variables(), memo))
        other.decay, other.has_rate_inside = self.decay, self.has_rate_inside
        return other

    # Leaves: one for each variable, whatever number of times it is asked for.

    def moment(self, moment: Moment, variable: BoundVariable) -> MomentLeaf:
        """What is kept of a kind for a variable of the model."""
        key = (moment, variable)
        leaf = self._leaves.get(key)
        if not isinstance(leaf, MomentLeaf):
            leaf = self._leaves[key] = MomentLeaf(self, moment, variable)
        return leaf

    def scalar(self, name: str) -> Scalar:
        """A scalar: ``iterations``, ``u_product``, or a hyper-parameter by Keras's name."""
        leaf = self._leaves.get(name)
        if not isinstance(leaf, Scalar):
            is_setting = name == "decay" and self.kind.has_product
            leaf = self._leaves[name] = (_Setting if is_setting else _SCALARS.get(name, _Setting))(self, name)
        return leaf

    def forget_leaves(self) -> None:
        """Drops them, where the variables of the model are others from now on."""
        self._leaves.clear()

    def momenta_as_read(self) -> list[MomentLeaf]:
        """Those of which torch's are still what was made of what was read."""
        return [leaf for leaf in self._leaves.values() if isinstance(leaf, MomentLeaf) and leaf.is_as_read()]

    # Of torch.

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self.optimizer).__name__

    @property
    def moments(self) -> tuple[Moment, ...]:
        """Those that torch keeps with its settings."""
        groups = self.optimizer.param_groups
        return tuple(moment for moment in self.kind.moments if any(moment.is_kept_by(group) for group in groups))

    def setting(self, name: str, element: int | None) -> Any:
        """A hyper-parameter that all groups have in common.

        Raises:
            UnsupportedValueError: they have several values of it.
        """
        values = self.settings(name, element)
        if any(value != values[0] for value in values):
            raise UnsupportedValueError(
                f"the parameter groups of {self.name} have several values of {name!r}, {values}; an optimizer of Keras "
                "has one for all variables. Use one optimizer for each of them."
            )
        return values[0]

    def settings(self, name: str, element: int | None) -> list[Any]:
        """A hyper-parameter of each group."""
        values = [group[name] if element is None else group[name][element] for group in self.optimizer.param_groups]
        return [value.item() if isinstance(value, torch.Tensor) else value for value in values]

    def set_setting(self, name: str, element: int | None, value: float) -> None:
        """Gives all groups a hyper-parameter."""
        for group in self.optimizer.param_groups:
            if element is not None:
                values = list(group[name])
                values[element] = value
                group[name] = tuple(values)
            elif isinstance(group[name], torch.Tensor):
                group[name].fill_(value)
            else:
                group[name] = value

    def group_of(self, parameter: torch.Tensor) -> dict[str, Any] | None:
        """The parameter group that a parameter is in."""
        groups = (group for group in self.optimizer.param_groups if any(p is parameter for p in group["params"]))
        return next(groups, None)

    def has_all(self, variable: BoundVariable) -> bool:
        """Whether it optimises all that a variable of the model is made of."""
        members = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        parameters = variable.parameters()
        return bool(parameters) and all(id(parameter) in members for _, parameter in parameters)

    def optimised(self) -> list[torch.Tensor]:
        """The parameters that the Keras optimizer knows of."""
        found = {
            id(p): p
            for variable in self._find_variables()()
            if self.has_all(variable)
            for _, p in variable.parameters()
        }
        return list(found.values())

    def _find_variables(self) -> Callable[[], Sequence[BoundVariable]]:
        variables = self._variables()
        if variables is None:
            raise UnsupportedValueError(
                f"the Keras view of {self.name} is gone; keep it for as long as what it has given is used."
            )
        return variables

    def of(self, parameter: torch.Tensor, name: str) -> torch.Tensor | None:
        """What there is of a name in the state of a parameter."""
        value = self.optimizer.state[parameter].get(name) if parameter in self.optimizer.state else None
        return value if isinstance(value, torch.Tensor) else None

    def complete(self, parameter: torch.Tensor) -> dict[str, Any]:
        """The state of a parameter, with all that torch makes at its first step."""
        group = self.group_of(parameter)
        assert group is not None
        state: dict[str, Any] = self.optimizer.state[parameter]
        on_device = bool(group.get("capturable") or group.get("fused"))
        is_double = torch.get_default_dtype() == torch.float64 and not group.get("fused")
        dtype = torch.float64 if is_double else torch.float32
        device = parameter.device if on_device else torch.device("cpu")
        for moment in self.kind.moments:
            if moment.is_kept_by(group) and not isinstance(state.get(moment.state), torch.Tensor):
                state[moment.state] = initial_moment(moment, group, parameter)
        if not isinstance(self.optimizer, SGD) and "step" not in state:
            state["step"] = torch.zeros((), dtype=dtype, device=device)
        if self.kind.has_product and "mu_product" not in state:
            state["mu_product"] = torch.ones((), dtype=dtype, device=device)
        return state

    def one_of(self, name: str, default: float) -> float:
        """What all parameters have in common, which torch keeps for each, and Keras once.

        Raises:
            UnsupportedValueError: they do not agree.
        """
        found = {float(value) for parameter in self.optimised() if (value := self.of(parameter, name)) is not None}
        if len(found) > 1:
            raise UnsupportedValueError(
                f"the parameters of {self.name} have several values of {name!r}, {sorted(found)}, because some did not "
                "take part in all steps; an optimizer of Keras has one for all. Freeze those that get no gradients "
                "(requires_grad_(False)), or leave the optimizer out."
            )
        return found.pop() if found else default


class Leaf(Trackable):
    """A variable of the Keras optimizer.

    Args:
        of: the optimizer.
        readable: what messages call it.
    """

    def __init__(self, of: OptimizerState, readable: str) -> None:
        self.of = of
        self._readable = readable

    def value(self) -> torch.Tensor:
        """As Keras would store it now."""
        raise NotImplementedError

    def assign(self, value: torch.Tensor) -> None:
        """Gives torch's optimizer what is stored."""
        raise NotImplementedError

    def kind(self) -> tuple[torch.dtype, tuple[int, ...]]:
        """The dtype and shape that a stored value has to have."""
        raise NotImplementedError

    def _attribute_names(self) -> tuple[str, ...]:
        return (VARIABLE_VALUE,)

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        return {VARIABLE_VALUE: self.value()}

    def _prepare_restore(self, values: Mapping[str, Value], resolve: Resolve) -> Prepared:
        stored = values[VARIABLE_VALUE]
        dtype, shape = self.kind()
        if not isinstance(stored, torch.Tensor) or (stored.dtype, tuple(stored.shape)) != (dtype, shape):
            found = f"{stored.dtype} of shape {list(stored.shape)}" if isinstance(stored, torch.Tensor) else "text"
            raise MismatchError(f"{self._readable} is {dtype} of shape {list(shape)}, but {found} is stored.")
        return Prepared(lambda: self.assign(stored))


class MomentLeaf(Leaf):
    """What is kept for one variable of the model.

    Args:
        of: the optimizer.
        moment: which of what it keeps.
        variable: the variable.
    """

    def __init__(self, of: OptimizerState, moment: Moment, variable: BoundVariable) -> None:
        super().__init__(of, f"{moment.state} of {variable.readable}")
        self.moment = moment
        self.variable = variable

    def kind(self) -> tuple[torch.dtype, tuple[int, ...]]:
        return self._like(self._parameters()[0]).dtype, self.variable.array.shape

    def value(self) -> torch.Tensor:
        return self.variable.state_value([self._value_of(parameter) for parameter in self._parameters()])

    @torch.no_grad()
    def assign(self, value: torch.Tensor) -> None:
        parameters = self._parameters()
        states = [self.of.complete(parameter) for parameter in parameters]
        if self._scale() is Scale.AS_IS and all(self.moment.state in state for state in states):
            self.variable.assign_state([state[self.moment.state] for state in states], value)
        else:
            raws = [self.of.kept.keep(parameter, self.moment, self._like(parameter)) for parameter in parameters]
            self.variable.assign_state(raws, value)
            self.recompute()
        self.of.kept.accept()

    @torch.no_grad()
    def recompute(self) -> None:
        """Makes torch's momentum of what was read, with the learning rate of now."""
        for parameter in self._parameters():
            raw, buffer = self.of.kept.raw(parameter, self.moment), self.of.of(parameter, self.moment.state)
            if raw is not None and buffer is not None:
                buffer.copy_(to_torch(raw, self._scale(), self._rate(parameter)))
                self.of.kept.accept()

    def is_as_read(self) -> bool:
        """Whether torch's momentum is still that which was made of what was read."""
        pairs = [
            (self.of.kept.raw(parameter, self.moment), self.of.of(parameter, self.moment.state), self._rate(parameter))
            for parameter in self._parameters()
        ]
        return all(
            raw is not None and buffer is not None and torch.equal(to_torch(raw, self._scale(), rate), buffer)
            for raw, buffer, rate in pairs
        )

    def _parameters(self) -> list[torch.Tensor]:
        return [self.variable.tensor(piece.name) for piece in self.variable.array.pieces]

    def _like(self, parameter: torch.Tensor) -> torch.Tensor:
        """What there is of the dtype and the device that the moment of a parameter has, or will have."""
        buffer = self.of.of(parameter, self.moment.state)
        return parameter if buffer is None else buffer

    def _scale(self) -> Scale:
        return self.moment.scale if self.of.has_rate_inside else Scale.AS_IS

    def _rate(self, parameter: torch.Tensor) -> float:
        group = self.of.group_of(parameter)
        return 0.0 if group is None else float(group["lr"])

    def _value_of(self, parameter: torch.Tensor) -> torch.Tensor:
        """A parameter's moment as Keras has it, in torch's layout."""
        scale, group = self._scale(), self.of.group_of(parameter)
        buffer = self.of.of(parameter, self.moment.state)
        raw = self.of.kept.raw(parameter, self.moment)
        if buffer is None:
            # Where torch keeps it with these settings, it was dropped since.
            if raw is not None and (group is None or not self.moment.is_kept_by(group)):
                return raw
            first = torch.zeros_like(parameter.detach())
            return first if group is None else initial_moment(self.moment, group, parameter)
        if scale is Scale.AS_IS:
            return buffer.detach()
        rate = self._rate(parameter)
        if rate == 0 and bool(buffer.any()):
            raise UnsupportedValueError(
                f"{self._readable} has the learning rate in it in Keras, and that of {self.of.name} is 0 now, so that "
                "the momentum would be lost. Save at a step with another rate, or clear the momentum."
            )
        computed = to_keras(buffer.detach(), scale, rate)
        if raw is None or raw.shape != buffer.shape or raw.device != buffer.device:
            return computed
        is_same = to_torch(raw, scale, rate) == buffer
        if not bool(is_same.any()):
            self.of.kept.forget(parameter, self.moment)
            return computed
        return torch.where(is_same, raw, computed)


class Scalar(Leaf):
    """A scalar of the optimizer as a whole.

    Args:
        of: the optimizer.
        name: what Keras calls it.
    """

    dtype = torch.float32

    def __init__(self, of: OptimizerState, name: str) -> None:
        super().__init__(of, name)
        self.name = name

    def kind(self) -> tuple[torch.dtype, tuple[int, ...]]:
        return self.dtype, ()

    def _tensor(self, value: float) -> torch.Tensor:
        # Whatever dtype and device programs have made the default.
        return torch.tensor(value, dtype=self.dtype, device="cpu")


class _Iterations(Scalar):
    """How many steps there were; torch counts them for each parameter, and SGD not at all."""

    dtype = torch.int64

    def value(self) -> torch.Tensor:
        if isinstance(self.of.optimizer, SGD):
            iterations = self.of.kept.iterations
            if iterations is None:
                raise UnsupportedValueError(
                    f"how many steps {self.of.name} has taken is not known: torch does not count them, and its state "
                    "was given back, by load_state_dict or by a checkpoint of torch's own names, after its Keras view "
                    "was made. Restore it by its Keras view, or say the number, keras_view(optimizer).iterations = 7."
                )
            return self._tensor(iterations)
        return self._tensor(int(self.of.one_of("step", 0.0)))

    def assign(self, value: torch.Tensor) -> None:
        self.of.kept.iterations = int(value)
        if not isinstance(self.of.optimizer, SGD):
            for parameter in self.of.optimised():
                self.of.complete(parameter)["step"].fill_(float(value))


class _Product(Scalar):
    """The product of Nadam's momenta, which torch has for each parameter."""

    def value(self) -> torch.Tensor:
        return self._tensor(self.of.one_of("mu_product", 1.0))

    def assign(self, value: torch.Tensor) -> None:
        for parameter in self.of.optimised():
            self.of.complete(parameter)["mu_product"].fill_(float(value))


class _Setting(Scalar):
    """A hyper-parameter that Keras has as a variable. Where the groups of torch have several, they keep them."""

    def value(self) -> torch.Tensor:
        return self._tensor(float(self.of.setting(*self._place())))

    def assign(self, value: torch.Tensor) -> None:
        if len(set(self.of.settings(*self._place()))) > 1:
            return
        as_read = self.of.momenta_as_read()
        self.of.set_setting(*self._place(), float(value))
        for leaf in as_read:
            leaf.recompute()

    def _place(self) -> tuple[str, int | None]:
        return hyper_parameter(self.of.kind, self.name)


class _Decay(Scalar):
    """The decay of the learning rate in legacy optimizers, for which torch has schedulers."""

    def value(self) -> torch.Tensor:
        return self._tensor(self.of.decay)

    def assign(self, value: torch.Tensor) -> None:
        self.of.decay = float(value)


_SCALARS: Mapping[str, type[Scalar]] = {
    "iterations": _Iterations,
    "decay": _Decay,
    "u_product": _Product,
    "momentum_cache": _Product,
}
