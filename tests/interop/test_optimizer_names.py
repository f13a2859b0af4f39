"""The state of TensorFlow 1's optimizers becomes that of torch's, by the names of the variables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adadelta, Adagrad, Adam, AdamW, Optimizer, RMSprop
from transformers import BertConfig, BertForPreTraining

from torch_trackckpt import load_checkpoint
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import MismatchError
from torch_trackckpt.interop import (
    AS_IS,
    BERT_FOR_PRE_TRAINING,
    CONV_2D,
    DEPTHWISE_2D,
    TRANSPOSED,
    Rule,
    RuleSet,
    load_name_based,
)

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden" / "keras" / "tf1_bert_names"
CORPUS = TESTS / "corpus"

DENSE = RuleSet("a dense layer", (Rule("dense/kernel", "weight", TRANSPOSED), Rule("dense/bias", "bias")))
VALUES = {"dense/kernel": torch.arange(6.0).reshape(3, 2), "dense/bias": torch.tensor([7.0, 8.0])}

Make = Callable[[Any], Optimizer]


def slots(*suffixes: str) -> dict[str, torch.Tensor]:
    """Slots of both variables, each with a value of its own."""
    return {
        f"{name}/{suffix}": value + 100 * (number + 1)
        for number, suffix in enumerate(suffixes)
        for name, value in VALUES.items()
    }


def write(folder: Path, values: dict[str, torch.Tensor]) -> str:
    prefix = str(folder / "model.ckpt")
    with BundleWriter(prefix + ".data-00000-of-00001", prefix + ".index", durable=False) as writer:
        for name in sorted(values):
            writer.add(name, values[name])
    return prefix


def steps_of(optimizer: Optimizer) -> set[float]:
    return {float(state["step"]) for state in optimizer.state.values()}


# --------------------------------------------------------------------------------------------------- which goes where


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda p: SGD(p, 0.1, 0.9), {"Momentum": "momentum_buffer"}),
        (Adam, {"Adam": "exp_avg", "Adam_1": "exp_avg_sq"}),
        (AdamW, {"adam_m": "exp_avg", "adam_v": "exp_avg_sq"}),
        (AdamW, {"AdamWeightDecayOptimizer": "exp_avg", "AdamWeightDecayOptimizer_1": "exp_avg_sq"}),
        (RMSprop, {"RMSProp": "square_avg"}),
        (lambda p: RMSprop(p, 1.0, momentum=0.5), {"RMSProp": "square_avg", "RMSProp_1": "momentum_buffer"}),
        (lambda p: RMSprop(p, centered=True), {"RMSProp": "square_avg", "RMSProp_1": "grad_avg"}),
        (
            lambda p: RMSprop(p, 1.0, momentum=0.5, centered=True),
            {"RMSProp": "square_avg", "RMSProp_1": "grad_avg", "RMSProp_2": "momentum_buffer"},
        ),
        (Adagrad, {"Adagrad": "sum"}),
        (Adadelta, {"Adadelta": "square_avg", "Adadelta_1": "acc_delta"}),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_each_slot_goes_where_torch_keeps_the_same(make: Make, names: dict[str, str], tmp_path: Path) -> None:
    stored = slots(*names)
    path = write(tmp_path, VALUES | stored | {"global_step": torch.tensor(12)})
    layer = nn.Linear(3, 2)
    optimizer = make(layer.parameters())
    status = load_name_based(layer, path, DENSE, optimizer=optimizer).assert_consumed()
    assert status.slots["weight"] == {state: f"dense/kernel/{suffix}" for suffix, state in names.items()}
    assert status.ignored == ("global_step",)
    for suffix, state in names.items():
        weight = optimizer.state[layer.weight][state]
        assert torch.equal(weight, stored[f"dense/kernel/{suffix}"].t())
        assert torch.equal(optimizer.state[layer.bias][state], stored[f"dense/bias/{suffix}"])
        assert weight.stride() == layer.weight.stride()
        assert not weight.requires_grad
    layer(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    fresh = make(layer.parameters())
    fresh.step()
    for parameter in layer.parameters():
        ours, theirs = optimizer.state[parameter], fresh.state[parameter]
        assert ours.keys() == theirs.keys()
        assert all((ours[name].dtype, ours[name].shape) == (theirs[name].dtype, theirs[name].shape) for name in ours)
        assert all(ours[name].device == theirs[name].device for name in ours)


def test_slots_have_the_layout_of_their_weights(tmp_path: Path) -> None:
    values = {"a": torch.randn(3, 3, 4, 6), "b": torch.randn(3, 3, 4, 2)}
    stored = {f"{name}/Momentum": torch.randn(value.shape) for name, value in values.items()}
    net = nn.ModuleDict({"a": nn.Conv2d(4, 6, 3, bias=False), "b": nn.Conv2d(4, 8, 3, groups=4, bias=False)})
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rules = RuleSet("mine", (Rule("a", "a.weight", CONV_2D), Rule("b", "b.weight", DEPTHWISE_2D)))
    optimizer = SGD(net.parameters(), 0.1, 0.9)
    load_name_based(net, write(tmp_path, values | stored), rules, optimizer=optimizer).assert_consumed()
    for name, transform in (("a", CONV_2D), ("b", DEPTHWISE_2D)):
        weight = net[name].weight
        assert torch.equal(weight, transform.to_torch(values[name]))
        buffer = optimizer.state[weight]["momentum_buffer"]
        assert torch.equal(buffer, transform.to_torch(stored[f"{name}/Momentum"]))
        assert buffer.stride() == weight.stride()


def test_momentum_of_rmsprop_is_divided_by_the_learning_rate_of_its_group(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    groups = [{"params": [layer.weight], "lr": 0.5}, {"params": [layer.bias], "lr": 0.25}]
    optimizer = RMSprop(groups, momentum=0.9)
    path = write(tmp_path, VALUES | slots("RMSProp", "RMSProp_1"))
    status = load_name_based(layer, path, DENSE, optimizer=optimizer)
    assert torch.equal(optimizer.state[layer.weight]["momentum_buffer"], (VALUES["dense/kernel"].t() + 200) * 2)
    assert torch.equal(optimizer.state[layer.bias]["momentum_buffer"], (VALUES["dense/bias"] + 200) * 4)
    assert [reason for _, reason in status.inexact if "divided by lr=0.5" in reason or "lr=0.25" in reason] != []


def test_a_parameter_that_was_frozen_has_no_state(tmp_path: Path) -> None:
    path = write(tmp_path, VALUES | {"dense/kernel/Momentum": torch.ones(3, 2)})
    layer = nn.Linear(3, 2)
    optimizer = SGD(layer.parameters(), 0.1, 0.9)
    status = load_name_based(layer, path, DENSE, optimizer=optimizer)
    assert status.unmatched_torch == ("bias: momentum_buffer",)
    assert layer.bias not in optimizer.state
    trained = SGD([layer.weight], 0.1, 0.9)
    load_name_based(layer, path, DENSE, optimizer=trained).assert_consumed()


# --------------------------------------------------------------------------------------------------------------- BERT


def test_the_optimizer_of_bert_goes_on_as_adamw() -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 20}
    model = BertForPreTraining(BertConfig(**sizes, max_position_embeddings=10, num_hidden_layers=2))
    optimizer = AdamW(model.parameters(), lr=1e-2, eps=1e-6, weight_decay=0.01)
    status = load_name_based(model, GOLDEN, BERT_FOR_PRE_TRAINING, optimizer=optimizer).assert_consumed()
    assert len(status.slots) == 46
    assert [reason for about, reason in status.inexact if about == "AdamW"] == [
        "TensorFlow's optimizer corrects no bias: step is 1000000, from where torch's correction is 1 as well."
    ]
    assert steps_of(optimizer) == {1_000_000.0}
    weight = model.bert.pooler.dense.weight
    # Moments of a training that has gone on for a while, as the golden file has none.
    m, v = torch.randn(8, 8), torch.rand(8, 8)
    optimizer.state[weight]["exp_avg"].copy_(m)
    optimizer.state[weight]["exp_avg_sq"].copy_(v)
    gradient, before = torch.randn(8, 8), weight.detach().clone()
    weight.grad = gradient
    optimizer.step()
    m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    expected = before - 1e-2 * (m / (v.sqrt() + 1e-6) + 0.01 * before)
    assert float((weight.detach() - expected).abs().max()) < 1e-6


def test_a_weight_decay_that_is_a_part_of_the_gradient_is_told() -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 20}
    model = BertForPreTraining(BertConfig(**sizes, max_position_embeddings=10, num_hidden_layers=2))
    optimizer = Adam(model.parameters(), weight_decay=0.01)
    status = load_name_based(model, GOLDEN, BERT_FOR_PRE_TRAINING, optimizer=optimizer)
    assert any("weight_decay of torch's Adam is a part of the gradient" in reason for _, reason in status.inexact)


# ---------------------------------------------------------------------------------------------------- how many steps


def power(beta: float, steps: int) -> torch.Tensor:
    """What TensorFlow has after so many multiplications in float32."""
    value = np.float32(beta)
    for _ in range(steps):
        value = np.float32(value * np.float32(beta))
    return torch.tensor(value)


def loaded_adam(folder: Path, counters: dict[str, torch.Tensor], **arguments: Any) -> tuple[set[float], list[str]]:
    """The steps, and what is not exact."""
    path = write(folder, VALUES | slots("Adam", "Adam_1") | counters)
    layer = nn.Linear(3, 2)
    optimizer = Adam(layer.parameters())
    status = load_name_based(layer, path, DENSE, optimizer=optimizer, **arguments)
    told = [reason for about, reason in status.inexact if about == "Adam" and "epsilon" not in reason]
    return steps_of(optimizer), told


@pytest.mark.parametrize("steps", [0, 1, 7, 100, 650])
def test_the_number_of_steps_is_that_of_the_power(steps: int, tmp_path: Path) -> None:
    counters = {"beta1_power": power(0.9, steps), "beta2_power": power(0.999, steps), "global_step": torch.tensor(5000)}
    assert loaded_adam(tmp_path, counters) == ({float(steps)}, [])


def test_a_power_that_has_vanished_leaves_the_global_step(tmp_path: Path) -> None:
    counters = {"beta1_power": torch.tensor(0.0), "global_step": torch.tensor(5000)}
    assert loaded_adam(tmp_path, counters) == ({5000.0}, [])


def test_without_a_global_step_the_second_power_tells_it_nearly(tmp_path: Path) -> None:
    counters = {"beta1_power": torch.tensor(0.0), "beta2_power": power(0.999, 5000)}
    found, told = loaded_adam(tmp_path, counters)
    assert abs(found.pop() - 5000) < 10
    assert "by beta2_power alone" in told[0]


def test_without_anything_the_correction_is_over(tmp_path: Path) -> None:
    found, told = loaded_adam(tmp_path, {})
    assert found == {1_000_000.0}
    assert told == ["The file does not tell the number of steps; 1000000 leaves torch's bias correction at 1."]


def test_the_caller_may_know_better(tmp_path: Path) -> None:
    assert loaded_adam(tmp_path, {"beta1_power": torch.tensor(0.3)}, step=17) == ({17.0}, [])


def test_a_power_of_another_beta_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"Adam: beta1_power is 0\.3, which is no power of beta1=0\.9"):
        loaded_adam(tmp_path, {"beta1_power": torch.tensor(0.3)})


def test_an_optimizer_that_counts_on_the_device_gets_its_step_there(tmp_path: Path) -> None:
    path = write(tmp_path, VALUES | slots("Adam", "Adam_1"))
    layer = nn.Linear(3, 2)
    optimizer = Adam(layer.parameters(), fused=True)
    load_name_based(layer, path, DENSE, optimizer=optimizer)
    assert optimizer.state[layer.weight]["step"].device == layer.weight.device


# ------------------------------------------------------------------------------------------------ names and scopes


def q_network(scope: str) -> RuleSet:
    """Of one player of a checkpoint with four optimizers: the network that learns values."""
    variables = tuple(
        Rule(
            f"{scope}/{scope}_dqn_q/fully_connected{'_' + str(number) if number else ''}/{tf_name}",
            f"{number}.{name}",
            how,
        )
        for number in range(3)
        for tf_name, name, how in (("weights", "weight", TRANSPOSED), ("biases", "bias", AS_IS))
    )
    return RuleSet("the value network", variables)


def test_slots_may_have_a_name_and_a_scope_of_their_own() -> None:
    path = CORPUS / "v2-nfsp-two-optimizers" / "model"
    reader = load_checkpoint(path)
    net = nn.Sequential(nn.Linear(36, 128), nn.Linear(128, 128), nn.Linear(128, 4))
    optimizer = Adam(net.parameters())
    names = {"optimizer_name": "dqn_adam", "optimizer_scope": "nfsp0"}
    with pytest.raises(MismatchError, match=r"counts the steps of several optimizers \(nfsp0/beta1_power = .*step="):
        load_name_based(net, path, q_network("nfsp0"), optimizer=optimizer, **names)  # type: ignore[arg-type]
    status = load_name_based(net, path, q_network("nfsp0"), optimizer=optimizer, step=40, **names)  # type: ignore[arg-type]
    assert steps_of(optimizer) == {40.0}
    key = status.slots["1.weight"]["exp_avg_sq"]
    assert key == "nfsp0/nfsp0/nfsp0_dqn_q/fully_connected_1/weights/dqn_adam_1"
    stored = reader.get_tensor(key)
    assert isinstance(stored, torch.Tensor)
    assert torch.equal(optimizer.state[net[1].weight]["exp_avg_sq"], stored.t())
    status.assert_existing_objects_matched()


def test_a_checkpoint_of_the_older_format_has_slots_too() -> None:
    path = CORPUS / "v1-deepq-rmsprop" / "saved_models" / "karpathy_game.ckpt"
    layer = nn.Linear(162, 100)
    rules = RuleSet(
        "the first layer", (Rule("MLP/input_layer/W_0", "weight", TRANSPOSED), Rule("MLP/input_layer/b", "bias"))
    )
    optimizer = RMSprop(layer.parameters(), 0.001, momentum=0.5)
    status = load_name_based(layer, path, rules, optimizer=optimizer, optimizer_scope="q_value_precition")
    assert status.slots["bias"] == {
        "square_avg": "q_value_precition/MLP/input_layer/b/RMSProp",
        "momentum_buffer": "q_value_precition/MLP/input_layer/b/RMSProp_1",
    }


# ------------------------------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("make", "stored", "text"),
    [
        (
            Adam,
            ["Momentum"],
            r"Adam: the file has no state that it could take, such as 'dense/bias/Adam' or .*leave the",
        ),
        (SGD, ["Momentum"], "SGD: momentum is 0 here, and the file has momentum"),
        (
            lambda p: Adam(p, amsgrad=True),
            ["Adam", "Adam_1"],
            "amsgrad=True needs maxima that TensorFlow 1 does not keep",
        ),
        (lambda p: RMSprop(p, 0.0, momentum=0.5), ["RMSProp", "RMSProp_1"], "lr is 0 here"),
        (LBFGS, ["Adam"], "no optimizer of TensorFlow 1 keeps what LBFGS needs; these can be loaded: Adam, AdamW, SGD"),
    ],
    ids=["another", "no momentum", "amsgrad", "lr 0", "LBFGS"],
)
def test_an_optimizer_that_cannot_take_it_is_an_error(make: Make, stored: list[str], text: str, tmp_path: Path) -> None:
    path = write(tmp_path, VALUES | slots(*stored))
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    optimizer = make(layer.parameters())
    with pytest.raises(MismatchError, match=text):
        load_name_based(layer, path, DENSE, optimizer=optimizer)
    assert torch.equal(layer.weight, before)
    assert not any(tensor.any() for state in optimizer.state.values() for tensor in state.values())


def test_slots_and_values_that_do_not_fit_are_in_one_error(tmp_path: Path) -> None:
    path = write(tmp_path, VALUES | slots("Momentum") | {"dense/kernel/Momentum": torch.ones(2, 2)})
    layer = nn.Linear(3, 5)
    optimizer = SGD(layer.parameters(), 0.1, 0.9)
    with pytest.raises(MismatchError, match="for 4 reasons") as caught:
        load_name_based(layer, path, DENSE, optimizer=optimizer)
    assert "weight: momentum_buffer: dense/kernel/Momentum has shape [2, 2] (transposed: [2, 2])" in str(caught.value)
    assert not optimizer.state


def test_an_optimizer_of_another_module_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, VALUES | slots("Momentum"))
    optimizer = SGD(nn.Linear(3, 2).parameters(), 0.1, 0.9)
    with pytest.raises(MismatchError, match="SGD: none of its parameters is among the tensors of the module"):
        load_name_based(nn.Linear(3, 2), path, DENSE, optimizer=optimizer)


def test_averages_have_no_optimizer(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="use_ema=True loads averages for evaluation"):
        load_name_based(layer, write(tmp_path, VALUES), DENSE, optimizer=Adam(layer.parameters()), use_ema=True)


@pytest.mark.parametrize("step", [-1, 1.5, True])
def test_a_number_of_steps_is_one(step: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step must be None or a number of steps"):
        load_name_based(nn.Linear(3, 2), write(tmp_path, VALUES), DENSE, step=step)
