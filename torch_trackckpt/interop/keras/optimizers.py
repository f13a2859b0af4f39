"""What Keras's optimizers keep for each variable, and what torch's call it.

    Keras 3, tf_keras     lists of the optimizer: _momentums/0, _momentums/1, ...; all of them once more, in the order
                          in which they were made, as _variables/N
    tf_keras, legacy      slot variables of each model variable: m, v
    Sonnet                lists: m/0, v/0

Formulas differ in where epsilon stands and in what a momentum is multiplied by; `Moment.scale` and `inexact` say so.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import optim

from torch_trackckpt.errors import UnsupportedValueError

__all__ = [
    "Kind",
    "Moment",
    "Scale",
    "hyper_parameter",
    "initial_moment",
    "kind_of",
    "places_in_variables",
]


class Scale(enum.Enum):
    """What a torch momentum is of one of Keras's, which has the learning rate in it."""

    AS_IS = 0
    OVER_RATE = 1
    """Keras's divided by the learning rate."""
    MINUS_OVER_RATE = -1
    """The same with the other sign: Keras adds its velocity, torch subtracts."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """One tensor for each parameter."""

    state: str
    """Its name in ``optimizer.state[parameter]``."""
    keras: str
    """The list that Keras 3 and tf_keras have it in."""
    legacy: str
    """The name of the slot in tf_keras's legacy optimizers."""
    word: str
    """How tf_keras calls it in full names: ``m`` in ``Adam/m/dense/kernel``."""
    sonnet: str | None = None
    """Sonnet's list."""
    scale: Scale = Scale.AS_IS
    option: str | None = None
    """The setting of a parameter group without which torch does not have it."""
    initial: str | None = None
    """The setting that says what it is before the first step; zero where there is none."""

    def is_kept_by(self, group: Mapping[str, Any]) -> bool:
        """Whether torch has it with these settings."""
        return self.option is None or bool(group[self.option])


@dataclasses.dataclass(frozen=True)
class Kind:
    """An algorithm that both have."""

    torch: type[optim.Optimizer]
    keras: str
    """What messages call Keras's class or classes."""
    moments: tuple[Moment, ...]
    hyper_parameters: tuple[str, ...]
    """The scalars that legacy optimizers store beside ``iter``."""
    together: int = 1
    """How many of the moments come by turns in ``_variables``, variable by variable; the others follow list by list."""
    has_product: bool = False
    """Whether the product of Nadam's momenta is kept."""
    sonnet_rate: bool = True
    """Whether Sonnet's momentum has the learning rate in it as well."""

    @property
    def settings(self) -> tuple[str, ...]:
        """Those of the scalars that torch has as hyper-parameters."""
        has_none = {"momentum_cache"} if self.has_product else {"decay"}
        return tuple(name for name in self.hyper_parameters if name not in has_none)


_ADAM = (
    Moment("exp_avg", "_momentums", "m", "m", "m"),
    Moment("exp_avg_sq", "_velocities", "v", "v", "v"),
)

_KINDS = (
    Kind(
        optim.SGD,
        "SGD",
        (
            Moment(
                "momentum_buffer",
                "momentums",
                "momentum",
                "m",
                "accumulated_momentum",
                Scale.MINUS_OVER_RATE,
                option="momentum",
            ),
        ),
        ("decay", "learning_rate", "momentum"),
        sonnet_rate=False,
    ),
    Kind(
        optim.NAdam,
        "Nadam",
        _ADAM,
        ("beta_1", "beta_2", "decay", "learning_rate", "momentum_cache"),
        together=2,
        has_product=True,
    ),
    *(
        Kind(
            kind,
            "Adam or AdamW",
            (*_ADAM, Moment("max_exp_avg_sq", "_velocity_hats", "vhat", "vhat", option="amsgrad")),
            ("beta_1", "beta_2", "decay", "learning_rate"),
            together=2,
        )
        # AdamW is not an Adam in all versions of torch.
        for kind in (optim.Adam, optim.AdamW)
    ),
    Kind(
        optim.RMSprop,
        "RMSprop",
        (
            Moment("square_avg", "_velocities", "rms", "velocity", "ms"),
            Moment("momentum_buffer", "_momentums", "momentum", "momentum", "mom", Scale.OVER_RATE, option="momentum"),
            Moment("grad_avg", "_average_gradients", "mg", "average_gradient", "mg", option="centered"),
        ),
        ("decay", "learning_rate", "momentum", "rho"),
    ),
    Kind(
        optim.Adagrad,
        "Adagrad",
        (Moment("sum", "_accumulators", "accumulator", "accumulator", initial="initial_accumulator_value"),),
        ("decay", "learning_rate"),
    ),
    Kind(
        optim.Adadelta,
        "Adadelta",
        (
            Moment("square_avg", "_accumulated_grads", "accum_grad", "accumulated_grad"),
            Moment("acc_delta", "_accumulated_delta_vars", "accum_var", "accumulated_delta_var"),
        ),
        ("decay", "learning_rate", "rho"),
        together=2,
    ),
    Kind(
        optim.Adamax,
        "Adamax",
        (Moment("exp_avg", "_m", "m", "m"), Moment("exp_inf", "_u", "v", "u")),
        ("beta_1", "beta_2", "decay", "learning_rate"),
        together=2,
    ),
)


def kind_of(optimizer: optim.Optimizer) -> Kind:
    """The algorithm of a live optimizer.

    Raises:
        UnsupportedValueError: Keras has no counterpart whose state means the same.
    """
    for kind in _KINDS:
        if isinstance(optimizer, kind.torch):
            return kind
    known = ", ".join(kind.torch.__name__ for kind in _KINDS)
    raise UnsupportedValueError(
        f"{type(optimizer).__name__} keeps nothing that an optimizer of Keras keeps in a like form; those that do are "
        f"{known}. Leave the optimizer out, and load the weights only."
    )


def places_in_variables(kind: Kind, moments: Sequence[Moment], num_variables: int) -> Iterator[tuple[Moment, int]]:
    """In the order of Keras's ``_variables``, behind its head: which moment of which variable."""
    together = [moment for moment in kind.moments[: kind.together] if moment in moments]
    for index in range(num_variables):
        for moment in together:
            yield moment, index
    for moment in kind.moments[kind.together :]:
        if moment in moments:
            for index in range(num_variables):
                yield moment, index


def initial_moment(moment: Moment, group: Mapping[str, Any], parameter: torch.Tensor) -> torch.Tensor:
    """What torch makes for a parameter before its first step."""
    value = 0.0 if moment.initial is None else float(group[moment.initial])
    return torch.full_like(parameter.detach(), value, memory_format=torch.preserve_format)


def hyper_parameter(kind: Kind, name: str) -> tuple[str, int | None]:
    """Where torch has a scalar of Keras: the setting of a parameter group, and which element of it."""
    if name == "rho":
        return ("alpha" if kind.torch is optim.RMSprop else "rho"), None
    if name == "decay":
        # Nadam's is that of its momenta.
        return "momentum_decay", None
    return _SETTINGS[name]


_SETTINGS: Mapping[str, tuple[str, int | None]] = {
    "learning_rate": ("lr", None),
    "beta_1": ("betas", 0),
    "beta_2": ("betas", 1),
    "momentum": ("momentum", None),
}
