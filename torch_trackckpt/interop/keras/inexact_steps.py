"""Where the steps of a torch optimizer are not those of Keras, although all of its state carries over."""

from __future__ import annotations

import math

import torch
from torch.optim import Optimizer

from torch_trackckpt.interop.keras.binding import BoundModel
from torch_trackckpt.interop.keras.epsilon import KerasEpsilon, KerasRMSprop
from torch_trackckpt.interop.keras.inexact import Inexact
from torch_trackckpt.interop.keras.layout import Flavor
from torch_trackckpt.interop.keras.optimizers import Kind, Scale

__all__ = ["inexact_formulas", "inexact_parameters"]


def inexact_formulas(optimizer: Optimizer, kind: Kind, flavor: Flavor) -> list[Inexact]:
    """Where the formulas of torch and of Keras differ, with the settings of an optimizer."""
    found = []
    is_legacy = flavor is Flavor.TF_KERAS_LEGACY_OPTIMIZER
    groups = optimizer.param_groups
    has_eps = any(group.get("eps") for group in groups)
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) and has_eps and not KerasEpsilon.is_on(optimizer):
        found.append(
            Inexact(
                "eps",
                "Keras adds epsilon before it corrects the bias, torch after it, so that torch's has to be divided by "
                "sqrt(1 - beta_2 ** step); KerasEpsilon(optimizer) does so",
            )
        )
    if isinstance(optimizer, torch.optim.RMSprop) and not isinstance(optimizer, KerasRMSprop):
        has_momentum = any(group["momentum"] for group in groups)
        if has_eps and (has_momentum or not is_legacy):
            found.append(
                Inexact("eps", "Keras has epsilon inside of the root, torch beside it; KerasRMSprop has it like Keras")
            )
    if isinstance(optimizer, torch.optim.Adagrad) and has_eps and not is_legacy:
        found.append(Inexact("eps", "Keras has epsilon inside of the root, torch beside it"))
    if isinstance(optimizer, torch.optim.Adamax) and has_eps:
        found.append(Inexact("eps", "Keras adds epsilon where the norm is used, torch takes the maximum with it"))
    if isinstance(optimizer, torch.optim.SGD) and any(group["momentum"] and group["dampening"] for group in groups):
        found.append(Inexact("dampening", "Keras's momentum takes the whole gradient; it has no dampening"))
    if isinstance(optimizer, torch.optim.Adagrad) and any(group["lr_decay"] for group in groups):
        found.append(
            Inexact(
                "lr_decay", "torch divides the learning rate by 1 + step x lr_decay, Keras does not; use a scheduler"
            )
        )
    decoupled = isinstance(optimizer, torch.optim.AdamW | KerasRMSprop) or any(
        group.get("decoupled_weight_decay") for group in groups
    )
    if any(group.get("weight_decay") for group in groups) and not decoupled:
        found.append(Inexact("weight_decay", "Keras's is decoupled from the gradients, torch's is added to them"))
    if kind.has_product:
        wanted = 0.004 if is_legacy else 1.0
        if any(not math.isclose(group["momentum_decay"], wanted, rel_tol=1e-6) for group in groups):
            found.append(Inexact("momentum_decay", f"Keras's Nadam is torch's with momentum_decay={wanted}"))
    rates = {float(group["lr"]) for group in groups}
    if len(rates) > 1:
        found.append(Inexact("lr", f"the groups have several, {sorted(rates)}; that of Keras was not taken"))
    if 0.0 in rates and any(moment.scale is not Scale.AS_IS for moment in kind.moments):
        found.append(
            Inexact("momentum_buffer", "Keras's has the learning rate in it, which is 0, so that torch's is 0")
        )
    return found


def inexact_parameters(optimizer: Optimizer, bound: BoundModel) -> list[Inexact]:
    """Parameters that are trained in another way than the variables of Keras that they belong to."""
    members = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [
        Inexact(
            f"{variable.module_name}.{name}".lstrip("."),
            "Keras has one bias where torch has two, both of which would be trained; freeze this one "
            "(requires_grad_(False))",
        )
        for variable in bound.variables
        for name in variable.array.merged
        if (tensor := variable.tensor(name)).requires_grad and id(tensor) in members
    ]
