"""What the optimizers of TensorFlow 1 store beside each variable, and what torch's keep in its place.

    <scope>/<variable>/<name of the optimizer>, .../<name>_1, ...      one value for each of what it keeps

The values have the variable's layout. Which number stands for what depends on the class; the name is that of the class
unless the program has given another.

What torch counts for each parameter, ``step``, TensorFlow does not store: it follows from ``beta1_power``, which is the
(t+1)-th power of beta1 after t steps, or from ``global_step``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, Optimizer, RMSprop

__all__ = ["FAMILIES", "Counters", "Family", "Slot", "family_of", "new_step", "number_of_steps"]

SETTLED = 1_000_000
"""A number of steps after which neither of Adam's bias corrections changes anything."""

_LEAST_POWER = 1e-30
"""Powers below have lost digits, or have become 0."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor of the state of a parameter."""

    suffix: str
    """What its key ends in, after the variable's name and a slash."""
    state: str
    """What torch calls it."""
    is_per_lr: bool = False
    """Whether TensorFlow's has the learning rate in it, and torch's has not."""


@dataclasses.dataclass(frozen=True)
class Family:
    """One optimizer of TensorFlow, and those of torch that do the same."""

    name: str
    """What slots are called if the program gives no name."""
    classes: tuple[type[Optimizer], ...]
    suffixes: tuple[str, ...] = ("", "_1")
    """What follows the name for each slot, in the order of TensorFlow."""
    states: tuple[str, ...] = ()
    """What torch calls them; for RMSprop it depends on the hyper-parameters."""
    has_step: bool = True
    """Whether torch counts the steps of each parameter."""
    corrects_bias: bool = False
    """Whether the number of steps matters."""

    def slots(self, name: str, group: Mapping[str, Any]) -> tuple[Slot, ...]:
        """What torch wants of what is stored, for parameters of a group."""
        if RMSprop in self.classes:
            states = ["square_avg", *(["grad_avg"] if group["centered"] else []), "momentum_buffer"]
            wanted = states if group["momentum"] else states[:-1]
            slots = zip(("", "_1", "_2"), states, strict=False)
            return tuple(
                Slot(name + tail, state, state == "momentum_buffer") for tail, state in slots if state in wanted
            )
        return tuple(Slot(name + tail, state) for tail, state in zip(self.suffixes, self.states, strict=True))

    def conflict(self, group: Mapping[str, Any]) -> str | None:
        """Why the state cannot be that of parameters of a group."""
        if group.get("amsgrad"):
            return "amsgrad=True needs maxima that TensorFlow 1 does not keep; make it with amsgrad=False"
        if SGD in self.classes and not group["momentum"]:
            return "momentum is 0 here, and the file has momentum; make it with the momentum of the training"
        if RMSprop in self.classes and group["momentum"] and not float(group["lr"]):
            return "TensorFlow's momentum has the learning rate in it, and lr is 0 here; give it that of the training"
        return None

    def inexact(self, optimizer: Optimizer, group: Mapping[str, Any]) -> Iterator[str]:
        """What goes on otherwise than in TensorFlow although all state is there."""
        if self.corrects_bias:
            yield (
                "TensorFlow adds epsilon before the bias correction and torch after it: for equal steps set eps to "
                "epsilon / sqrt(1 - beta2 ** t) before step t."
            )
        elif Adam in self.classes:
            yield (
                f"TensorFlow's optimizer corrects no bias: step is {SETTLED}, from where torch's correction is 1 as "
                "well."
            )
            is_decoupled = isinstance(optimizer, AdamW) or group.get("decoupled_weight_decay")
            if group["weight_decay"] and not is_decoupled:
                yield "weight_decay of torch's Adam is a part of the gradient; BERT's optimizer does what AdamW does."
        if RMSprop in self.classes and group["eps"]:
            yield "TensorFlow takes sqrt(v + eps) where torch takes sqrt(v) + eps; with eps=0 they are the same."
        if RMSprop in self.classes and group["momentum"]:
            yield (
                f"momentum_buffer is TensorFlow's divided by lr={float(group['lr'])}; it is right if that is the "
                "learning rate of the next step."
            )
        if Adagrad in self.classes and group["eps"]:
            yield f"TensorFlow adds no epsilon, torch adds {group['eps']}; make it with eps=0."
        if SGD in self.classes and group["dampening"]:
            yield f"TensorFlow has no dampening, torch has {group['dampening']}."


FAMILIES = (
    Family("Adam", (Adam, AdamW), states=("exp_avg", "exp_avg_sq"), corrects_bias=True),
    Family("adam", (Adam, AdamW), ("_m", "_v"), ("exp_avg", "exp_avg_sq")),
    Family("AdamWeightDecayOptimizer", (Adam, AdamW), states=("exp_avg", "exp_avg_sq")),
    Family("Momentum", (SGD,), ("",), ("momentum_buffer",), has_step=False),
    Family("RMSProp", (RMSprop,)),
    Family("Adagrad", (Adagrad,), ("",), ("sum",)),
    Family("Adadelta", (Adadelta,), states=("square_avg", "acc_delta")),
)
"""The second and the third are BERT's, under the two names that it has had."""


def family_of(name: str, optimizer: Optimizer) -> Family | None:
    """The optimizer of TensorFlow that has slots of a name, if it does the same as one of torch."""
    fitting = [family for family in FAMILIES if isinstance(optimizer, family.classes)]
    return next((family for family in fitting if family.name == name), fitting[0] if fitting else None)


@dataclasses.dataclass(frozen=True)
class Counters:
    """What a file tells of the number of steps, as far as it has it."""

    beta1_power: float | None = None
    beta2_power: float | None = None
    global_step: int | None = None


def number_of_steps(
    family: Family, group: Mapping[str, Any], counters: Counters, step: int | None
) -> tuple[int, str | None]:
    """How many steps the optimizer has done, and what is not exact about it.

    Args:
        family: the optimizer.
        group: the group of the parameter.
        counters: what the file tells.
        step: what the caller tells.

    Raises:
        ValueError: the power is none of the group's beta.
    """
    if step is not None:
        return step, None
    if not family.corrects_bias:
        return (SETTLED if Adam in family.classes else counters.global_step or 0), None
    power, beta1, beta2 = counters.beta1_power, *map(float, group["betas"])
    if power is not None and power >= _LEAST_POWER and 0 < beta1 < 1:
        steps = math.log(power) / math.log(beta1) - 1
        if steps < -0.5 or abs(steps - round(steps)) > 0.1:
            raise ValueError(
                f"beta1_power is {power:.6g}, which is no power of beta1={beta1}; make the optimizer with the betas of "
                "the training, or tell the number of steps (step=)"
            )
        return round(steps), None
    if counters.global_step is not None:
        return counters.global_step, None
    power = counters.beta2_power
    if power is not None and power >= _LEAST_POWER and 0 < beta2 < 1:
        steps = max(round(math.log(power) / math.log(beta2) - 1), 0)
        return steps, f"The number of steps is about {steps}: the file tells it by beta2_power alone."
    return SETTLED, f"The file does not tell the number of steps; {SETTLED} leaves torch's bias correction at 1."


def new_step(parameter: torch.Tensor, group: Mapping[str, Any], steps: int) -> torch.Tensor:
    """The tensor in which torch counts."""
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    is_there = group.get("capturable") or group.get("fused")
    return torch.tensor(float(steps), dtype=dtype, device=parameter.device if is_there else "cpu")
