"""What TensorFlow 1 has trained goes on in torch, from a file that has nothing but names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from interop import slim_names
from interop.image_modules import MobileNetV1, PreActivation
from torch import nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, Optimizer, RMSprop

from torch_trackckpt.interop import (
    MOBILENET_V1,
    RESNET_V2,
    TRANSPOSED,
    Rule,
    RuleSet,
    load_name_based,
)

from .conftest import Value, Worker, _decoded, _encoded, tensorflow_worker

VERSIONS = pytest.mark.parametrize("version", [1, 2], ids=["V1", "V2"])

DENSE = RuleSet("a dense layer", (Rule("dense/kernel", "weight", TRANSPOSED), Rule("dense/bias", "bias")))
SHAPES = {"dense/kernel": (4, 3), "dense/bias": (3,)}
STEPS = 5


@pytest.fixture(scope="module")
def tensorflow1() -> Iterator[Worker]:
    with tensorflow_worker("interop_functions.py") as worker:
        yield worker


def encoded(values: Mapping[str, torch.Tensor]) -> dict[str, object]:
    return {name: _encoded(Value.of(value)) for name, value in values.items()}


def random_values(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@dataclasses.dataclass(frozen=True)
class Case:
    """An optimizer on both sides."""

    kind: str
    options: dict[str, Any]
    make: Callable[[Any], Optimizer]
    states: set[str]
    inexact: str = ""
    """What the status says."""
    tolerance: float = 2e-6


def _epsilon_of_adam(optimizer: Optimizer, epsilon: float) -> None:
    """The rule that the status tells."""
    for group in optimizer.param_groups:
        step = float(next(optimizer.state[p]["step"] for p in group["params"])) + 1
        group["eps"] = epsilon / (1 - group["betas"][1] ** step) ** 0.5


MOMENTUM = {"learning_rate": 0.1, "momentum": 0.9}
CASES = {
    "momentum": Case("MomentumOptimizer", MOMENTUM, lambda p: SGD(p, 0.1, 0.9), {"momentum_buffer"}),
    "nesterov": Case(
        "MomentumOptimizer",
        MOMENTUM | {"use_nesterov": True},
        lambda p: SGD(p, 0.1, 0.9, nesterov=True),
        {"momentum_buffer"},
    ),
    "adam": Case(
        "AdamOptimizer",
        {"learning_rate": 0.1, "epsilon": 1e-3},
        lambda p: Adam(p, 0.1),
        {"step", "exp_avg", "exp_avg_sq"},
        "epsilon / sqrt(1 - beta2 ** t) before step t",
    ),
    "adamw": Case(
        "AdamOptimizer",
        {"learning_rate": 0.1, "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-3},
        lambda p: AdamW(p, 0.1, betas=(0.8, 0.99), weight_decay=0),
        {"step", "exp_avg", "exp_avg_sq"},
        "epsilon / sqrt(1 - beta2 ** t) before step t",
    ),
    "rmsprop": Case(
        "RMSPropOptimizer",
        {"learning_rate": 0.01, "epsilon": 1e-12},
        lambda p: RMSprop(p, 0.01, alpha=0.9, eps=1e-12),
        {"step", "square_avg"},
        "sqrt(v + eps)",
    ),
    "rmsprop with momentum": Case(
        "RMSPropOptimizer",
        {"learning_rate": 0.01, "momentum": 0.9, "epsilon": 1e-12},
        lambda p: RMSprop(p, 0.01, alpha=0.9, eps=0, momentum=0.9),
        {"step", "square_avg", "momentum_buffer"},
        "divided by lr=0.01",
    ),
    "centered rmsprop": Case(
        "RMSPropOptimizer",
        {"learning_rate": 0.01, "momentum": 0.5, "epsilon": 1e-12, "centered": True},
        lambda p: RMSprop(p, 0.01, alpha=0.9, eps=0, momentum=0.5, centered=True),
        {"step", "square_avg", "grad_avg", "momentum_buffer"},
        "divided by lr=0.01",
    ),
    "adagrad": Case("AdagradOptimizer", {"learning_rate": 0.1}, lambda p: Adagrad(p, 0.1, eps=0), {"step", "sum"}),
    "adadelta": Case(
        "AdadeltaOptimizer",
        {"learning_rate": 0.1, "epsilon": 1e-6},
        lambda p: Adadelta(p, 0.1, rho=0.95),
        {"step", "square_avg", "acc_delta"},
    ),
}


@VERSIONS
@pytest.mark.parametrize("name", CASES)
def test_a_training_goes_on_as_it_would_have_in_tensorflow(
    tensorflow1: Worker, prefix: Path, name: str, version: int
) -> None:
    case = CASES[name]
    gradients = [random_values(seed) for seed in range(STEPS + 3)]
    answers = {
        number: tensorflow1.call(
            "train",
            prefix=str(prefix),
            kind=case.kind,
            options=case.options,
            weights=encoded(random_values(99)),
            gradients=[encoded(values) for values in gradients[:number]],
            steps=STEPS,
            version=version,
        )
        for number in (STEPS + 1, STEPS + 3)
    }
    layer = nn.Linear(4, 3)
    optimizer = case.make(layer.parameters())
    status = load_name_based(layer, answers[STEPS + 1]["path"], DENSE, optimizer=optimizer).assert_consumed()
    assert {each for state in optimizer.state.values() for each in state} == case.states
    assert set(status.slots) == {"weight", "bias"}
    assert status.global_step == STEPS
    told = " ".join(reason for about, reason in status.inexact if about == type(optimizer).__name__)
    assert case.inexact in told
    assert bool(told) == bool(case.inexact)
    for number, values in enumerate(gradients[STEPS:], STEPS + 1):
        layer.weight.grad, layer.bias.grad = values["dense/kernel"].t().contiguous(), values["dense/bias"]
        if isinstance(optimizer, (Adam, AdamW)):
            _epsilon_of_adam(optimizer, case.options["epsilon"])
        optimizer.step()
        if number in answers:
            theirs = {key: _decoded(value).tensor() for key, value in answers[number]["weights"].items()}
            assert float((layer.weight.detach().t() - theirs["dense/kernel"]).abs().max()) < case.tolerance
            assert float((layer.bias.detach() - theirs["dense/bias"]).abs().max()) < case.tolerance
    if "step" in case.states:
        assert [float(state["step"]) for state in optimizer.state.values()] == [STEPS + 3.0] * 2


def test_slots_under_a_name_of_their_own_are_found_by_it(tensorflow1: Worker, prefix: Path) -> None:
    answer = tensorflow1.call(
        "train",
        prefix=str(prefix),
        kind="AdamOptimizer",
        options={"name": "my_adam"},
        weights=encoded(random_values(99)),
        gradients=[encoded(random_values(seed)) for seed in range(3)],
        steps=2,
        version=2,
    )
    layer = nn.Linear(4, 3)
    optimizer = Adam(layer.parameters())
    status = load_name_based(layer, answer["path"], DENSE, optimizer=optimizer, optimizer_name="my_adam")
    assert status.assert_consumed().slots["bias"] == {
        "exp_avg": "dense/bias/my_adam",
        "exp_avg_sq": "dense/bias/my_adam_1",
    }
    assert float(optimizer.state[layer.bias]["step"]) == 2


def batch_of(answer: Any) -> torch.Tensor:
    return _decoded(answer["output"]).tensor()


def positive(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Variances are positive, and scales near 1."""
    return {
        name: value.abs() + 0.5 if name.endswith(("moving_variance", "gamma")) else 0.3 * value
        for name, value in values.items()
        if not name.endswith(("RMSProp", "global_step"))
    }


@VERSIONS
@torch.no_grad()
def test_a_small_mobilenet_computes_what_tensorflow_computes(tensorflow1: Worker, prefix: Path, version: int) -> None:
    variables: dict[str, tuple[int, ...]] = dict(slim_names.conv("MobilenetV1/Conv2d_0", 3, 3, 3, 32))
    for number, (channels, out) in enumerate([(32, 64), (64, 128)], 1):
        variables |= slim_names.depthwise(f"MobilenetV1/Conv2d_{number}_depthwise", channels)
        variables |= slim_names.conv(f"MobilenetV1/Conv2d_{number}_pointwise", 1, 1, channels, out)
    variables |= slim_names.logits("MobilenetV1/Logits/Conv2d_1c_1x1", 128, 11)
    values = positive(slim_names.values_of(iter(variables.items())))
    images = torch.randn(2, 9, 7, 3)
    answer = tensorflow1.call(
        "save_mobilenet",
        prefix=str(prefix),
        values=encoded(values),
        images=_encoded(Value.of(images)),
        blocks=2,
        version=version,
    )
    net = MobileNetV1((64, 128), 11).eval()
    load_name_based(net, answer["path"], MOBILENET_V1).assert_consumed()
    logits = net(images.permute(0, 3, 1, 2))
    assert float((logits - batch_of(answer)).abs().max()) < 1e-5
    without = MobileNetV1((64, 128), 10).eval()
    load_name_based(without, answer["path"], MOBILENET_V1, drop_background_class=True).assert_consumed()
    assert torch.allclose(without(images.permute(0, 3, 1, 2)), logits[:, 1:], atol=1e-6)


@torch.no_grad()
def test_a_unit_of_a_resnet_v2_computes_what_tensorflow_computes(tensorflow1: Worker, prefix: Path) -> None:
    scope = "resnet_v2_50/block1/unit_1/"
    variables = ((name, shape) for name, shape in slim_names.resnet_v2(50, 10) if name.startswith(scope))
    values = positive(slim_names.values_of(variables))
    images = torch.randn(2, 5, 6, 8)
    answer = tensorflow1.call(
        "save_unit_of_resnet_v2",
        prefix=str(prefix),
        values=encoded(values),
        images=_encoded(Value.of(images)),
        version=2,
    )
    net = nn.ModuleDict({"layer1": nn.Sequential(PreActivation(8, 8, is_first=True))}).eval()
    load_name_based(net, answer["path"], RESNET_V2).assert_consumed()
    output = net["layer1"](images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert float((output - batch_of(answer)).abs().max()) < 1e-5


def test_moving_averages_are_those_of_tensorflow(tensorflow1: Worker, prefix: Path) -> None:
    values = [torch.full((2,), float(number)) for number in (0, 4, 8)]
    answer = tensorflow1.call(
        "moving_averages", prefix=str(prefix), values=[_encoded(Value.of(value)) for value in values]
    )
    assert answer["restored"] == {"w/ExponentialMovingAverage": "w:0"}
    net = nn.ParameterDict({"w": torch.zeros(2)})
    rules = RuleSet("mine", (Rule("w", "w"),))
    load_name_based(net, answer["path"], rules, use_ema=True).assert_consumed()
    assert torch.equal(net["w"], _decoded(answer["average"]).tensor())
    load_name_based(net, answer["path"], rules).assert_consumed()
    assert torch.equal(net["w"], values[-1])
