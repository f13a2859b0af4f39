"""A conversion from Keras to PyTorch that shares nothing with the package's: plain numpy, written down layer by layer.

What the package loads is compared with it bit for bit. It converts whatever has the shape of the variables: the
values, an optimizer's state for them, or the values after a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from interop.golden_models import Array, GoldenCase
from torch import nn

from torch_trackckpt import load_checkpoint

Arrays = Mapping[str, Array]
"""Variables of a layer by name, or some of them."""


def load_by_hand(net: nn.Module, case: GoldenCase) -> None:
    """Gives a module the values of a case's checkpoint, and those that Keras lost."""
    wanted = in_torch(case, stored_variables(case) | case.not_in_checkpoint())
    state = net.state_dict()
    without = [name for name in state if name not in wanted]
    assert all(name.endswith(("num_batches_tracked", "bias_hh_l0")) for name in without), without
    for name, array in wanted.items():
        assert state[name].shape == array.shape, name
        state[name].copy_(torch.from_numpy(array))
    for name in without:
        if name.endswith("bias_hh_l0"):
            state[name].zero_()


def load_optimizer_by_hand(optimizer: torch.optim.Optimizer, net: nn.Module, case: GoldenCase) -> None:
    """Gives an optimizer the state of a case's checkpoint."""
    described = case.manifest["optimizer"]
    lr = np.float32(described["config"]["learning_rate"])
    reader = load_checkpoint(case.prefix)
    step = int(np.asarray(reader.get_tensor(described["iterations_key"])))
    assert step == described["iterations"]
    # By role in Keras: torch's name for it, and its value there.
    roles: dict[str, tuple[str, Callable[[Array], Array]]] = {
        "m": ("exp_avg", lambda array: array),
        "v": ("exp_avg_sq", lambda array: array),
        "vhat": ("max_exp_avg_sq", lambda array: array),
        "rms": ("square_avg", lambda array: array),
        "mg": ("grad_avg", lambda array: array),
        "momentum": ("momentum_buffer", lambda array: (-array if described["class"] == "SGD" else array) / lr),
    }
    slots: dict[str, dict[str, Array]] = {}
    for slot in described["slots"]:
        slots.setdefault(slot["role"], {})[slot["of"]] = np.asarray(reader.get_tensor(slot["key"]))
    parameters = dict(net.named_parameters())
    for role, arrays in slots.items():
        name_in_torch, converted = roles[role]
        for name, array in in_torch(case, arrays).items():
            state = optimizer.state[parameters[name]]
            state[name_in_torch] = torch.from_numpy(converted(array).copy())
            if described["class"] != "SGD":
                state["step"] = torch.tensor(float(step))


def assert_loaded(net: nn.Module, case: GoldenCase, *, but: Collection[str] = ()) -> None:
    """A module has, bit for bit, what the conversion by hand gives it; except the tensors named in ``but``."""
    expected = case.net()
    load_by_hand(expected, case)
    found = net.state_dict()
    for name, tensor in expected.state_dict().items():
        if name not in but and not name.endswith("num_batches_tracked"):
            assert torch.equal(found[name], tensor), name


def assert_optimizer_loaded(optimizer: torch.optim.Optimizer, case: GoldenCase) -> None:
    """An optimizer of a case has, bit for bit, the state that the conversion by hand gives it, and no other."""
    net = case.net()
    expected = case.optimizer(net)
    load_optimizer_by_hand(expected, net, case)
    mine, theirs = optimizer.state_dict()["state"], expected.state_dict()["state"]
    assert mine.keys() == theirs.keys()
    for number, state in theirs.items():
        assert mine[number].keys() == state.keys(), number
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(mine[number][name]), value), (number, name)


def step_by_hand(
    net: nn.Module, optimizer: torch.optim.Optimizer, case: GoldenCase, *, exact_rmsprop: bool = True
) -> None:
    """The step that comes after the checkpoint, as Keras takes it.

    Adam gets the epsilon that makes it add the same as Keras. Where ``exact_rmsprop``, RMSprop's step is not torch's.
    """
    inputs, labels = case.next_batch()
    net.train()
    optimizer.zero_grad()
    case.loss(net(*inputs), labels).backward()
    (group,) = optimizer.param_groups
    if case.epsilon is not None:
        group["eps"] = case.epsilon / math.sqrt(1 - group["betas"][1] ** (case.manifest["optimizer"]["iterations"] + 1))
    if isinstance(optimizer, torch.optim.RMSprop) and exact_rmsprop:
        _rmsprop_step(optimizer)
    else:
        optimizer.step()


@torch.no_grad()
def _rmsprop_step(optimizer: torch.optim.RMSprop) -> None:
    (group,) = optimizer.param_groups
    for parameter in group["params"]:
        state, gradient = optimizer.state[parameter], parameter.grad
        state["square_avg"].lerp_(gradient * gradient, 1 - group["alpha"])
        state["grad_avg"].lerp_(gradient, 1 - group["alpha"])
        spread = state["square_avg"] - state["grad_avg"] ** 2 + group["eps"]
        state["momentum_buffer"].mul_(group["momentum"]).add_(gradient / spread.sqrt())
        parameter.sub_(group["lr"] * state["momentum_buffer"])


def stored_variables(case: GoldenCase) -> dict[str, Array]:
    """By ``layer/variable``, what the checkpoint has."""
    reader = load_checkpoint(case.prefix)
    found = {}
    for variable in case.manifest["variables"]:
        key = variable["stored"][0]["key"] if "stored" in variable else variable["key"]
        if key is not None:
            found[f"{variable['layer']}/{variable['name']}"] = np.asarray(reader.get_tensor(key))
    return found


def in_torch(case: GoldenCase, variables: Mapping[str, Array]) -> dict[str, Array]:
    """By name in the module, arrays that are given by ``layer/variable``; of some variables or of all."""
    classes = {layer["name"]: layer["class"] for layer in case.manifest["model"]["layers"]}
    by_layer: dict[str, dict[str, Array]] = {}
    for name, array in variables.items():
        layer, _, variable = name.partition("/")
        by_layer.setdefault(layer, {})[variable] = array
    found = {}
    for layer, arrays in by_layer.items():
        module = case.layers[layer]
        if case.after_flatten and module in case.after_flatten:
            arrays = {**arrays, "kernel": _rows_by_channel(arrays["kernel"], case.after_flatten[module])}
        for name, array in CONVERSIONS[classes[layer]](arrays).items():
            found[f"{module}.{name}"] = np.ascontiguousarray(array)
    return found


def _rows_by_channel(kernel: Array, shape: tuple[int, int, int]) -> Array:
    """Rows for height, width, channel, in the order channel, height, width."""
    return kernel.reshape(*shape, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)


def _renamed(**names: str) -> Callable[[Arrays], dict[str, Array]]:
    return lambda arrays: {names[name]: array for name, array in arrays.items()}


def _with_kernel(kernel: Callable[[Array], Array]) -> Callable[[Arrays], dict[str, Array]]:
    return lambda arrays: {"weight": kernel(arrays["kernel"]), "bias": arrays["bias"]}


def _depthwise(kernel: Array) -> Array:
    height, width, channels, multiplier = kernel.shape
    return kernel.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)


def _separable(arrays: Arrays) -> dict[str, Array]:
    return {
        "0.weight": _depthwise(arrays["depthwise_kernel"]),
        "1.weight": arrays["pointwise_kernel"].transpose(3, 2, 0, 1),
        "1.bias": arrays["bias"],
    }


def _einsum(arrays: Arrays) -> dict[str, Array]:
    return {"weight": arrays["kernel"].reshape(len(arrays["kernel"]), -1).T, "bias": arrays["bias"].ravel()}


def _lstm(arrays: Arrays) -> dict[str, Array]:
    return {
        "weight_ih_l0": arrays["kernel"].T,
        "weight_hh_l0": arrays["recurrent_kernel"].T,
        "bias_ih_l0": arrays["bias"],
    }


def _gru(arrays: Arrays) -> dict[str, Array]:
    def gates(array: Array) -> Array:
        update, reset, new = np.split(array, 3, axis=-1)
        return np.concatenate([reset, update, new], axis=-1)

    return {
        "weight_ih_l0": gates(arrays["kernel"]).T,
        "weight_hh_l0": gates(arrays["recurrent_kernel"]).T,
        "bias_ih_l0": gates(arrays["bias"][0]),
        "bias_hh_l0": gates(arrays["bias"][1]),
    }


def _attention(arrays: Arrays) -> dict[str, Array]:
    into = ("query", "key", "value")
    return {
        "in_proj_weight": np.concatenate(
            [arrays[f"{n}.kernel"].reshape(len(arrays[f"{n}.kernel"]), -1).T for n in into]
        ),
        "in_proj_bias": np.concatenate([arrays[f"{n}.bias"].ravel() for n in into]),
        "out_proj.weight": arrays["output.kernel"].reshape(-1, arrays["output.kernel"].shape[-1]).T,
        "out_proj.bias": arrays["output.bias"],
    }


_norm = _renamed(gamma="weight", beta="bias", moving_mean="running_mean", moving_variance="running_var")

CONVERSIONS: dict[str, Callable[[Arrays], dict[str, Any]]] = {
    "Dense": _with_kernel(lambda kernel: kernel.T),
    "Conv1D": _with_kernel(lambda kernel: kernel.transpose(2, 1, 0)),
    "Conv2D": _with_kernel(lambda kernel: kernel.transpose(3, 2, 0, 1)),
    "Conv2DTranspose": _with_kernel(lambda kernel: kernel.transpose(3, 2, 0, 1)),
    "DepthwiseConv2D": _with_kernel(_depthwise),
    "SeparableConv2D": _separable,
    "EinsumDense": _einsum,
    "Embedding": _renamed(embeddings="weight"),
    "BatchNormalization": _norm,
    "LayerNormalization": _norm,
    "GroupNormalization": _norm,
    "RMSNormalization": _renamed(scale="weight"),
    "PReLU": lambda arrays: {"weight": arrays["alpha"].ravel()},
    "LSTM": _lstm,
    "GRU": _gru,
    "MultiHeadAttention": _attention,
}
