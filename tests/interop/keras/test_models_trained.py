"""Keras trains, torch goes on with the next batches, and Keras again: all three at the weights that Keras alone has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from keras_models import Attention, Case, Text, block_of_a_transformer, channels_first, dense
from keras_oracle import Keras, Program, Run, inputs, layer, optimizer, sequential, subclassed
from torch import nn
from torch.nn import functional as F

from torch_trackckpt import Checkpoint
from torch_trackckpt.interop import keras_view, load_keras
from torch_trackckpt.interop.keras import KerasBatchNorm2d, KerasRMSprop


class Image(nn.Module):
    def __init__(self, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same", bias=False)
        self.norm = norm(4, eps=1e-3, momentum=0.01)
        self.separable = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Conv2d(4, 5, 1))
        self.head = nn.Linear(5 * 4 * 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)).relu()
        return self.head(self.separable(x).flatten(1))


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4, eps=1e-3).requires_grad_(False)
        self.second = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.norm(self.first(x)).tanh()))

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.norm.eval()
        return self


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.offset = nn.Parameter(torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) + self.offset
        for each in self.blocks:
            x = each(x).tanh()
        return x


@dataclass(frozen=True)
class Trained:
    """A case, and how both train it."""

    case: Case
    generations: tuple[str, ...]
    theirs: Mapping[str, Any]
    ours: Callable[[Any], torch.optim.Optimizer]
    loss: str = "mse"
    within: float = 2e-6
    is_compiled: bool = False
    keras_epsilon: bool = False
    inexact: tuple[str, ...] = ()


def image(norm: Callable[..., nn.Module]) -> Case:
    return Case(
        sequential(
            # With a bias, whose gradient is rounding noise in front of a batch norm, Adam would scale that up.
            layer("Conv2D", filters=4, kernel_size=3, padding="same", use_bias=False),
            layer("BatchNormalization"),
            layer("ReLU"),
            layer("SeparableConv2D", filters=5, kernel_size=3),
            layer("Flatten"),
            dense(3),
            inputs=inputs(6, 5, 3),
        ),
        [inputs(6, 5, 3)],
        lambda: Image(norm),
        lambda net, given: net(channels_first(given[0])),
        settings={"after_flatten": {"head": (4, 3, 5)}},
    )


TEXT = inputs(7, high=9, padded=True)


def text(*recurrent: Any) -> Any:
    embedding = layer("Embedding", input_dim=9, output_dim=4, mask_zero=True)
    return sequential(embedding, *recurrent, dense(3), inputs=TEXT)


ADAM = optimizer("Adam", learning_rate=0.01)

CASES: Mapping[str, Trained] = {
    "images with Adam": Trained(
        image(KerasBatchNorm2d),
        ("k3",),
        ADAM,
        lambda parameters: torch.optim.Adam(parameters, eps=1e-7),
        loss="ce",
        keras_epsilon=True,
        is_compiled=True,
    ),
    "images with Adam, as Keras 2 normalises them": Trained(
        image(nn.BatchNorm2d),
        ("k2",),
        ADAM,
        lambda parameters: torch.optim.Adam(parameters, eps=1e-7),
        loss="ce",
        keras_epsilon=True,
        is_compiled=True,
        inexact=("norm.running_var",),
    ),
    "images with legacy SGD": Trained(
        image(nn.BatchNorm2d),
        ("k2",),
        optimizer("SGD", learning_rate=0.05, momentum=0.9, nesterov=True, legacy=True),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
        loss="ce",
        inexact=("norm.running_var",),
    ),
    "texts with an LSTM and Adam": Trained(
        Case(text(layer("LSTM", units=3)), [TEXT], lambda: Text(nn.LSTM(4, 3, batch_first=True), 3)),
        ("k3",),
        ADAM,
        lambda parameters: torch.optim.Adam(parameters, eps=1e-7),
        loss="ce",
        keras_epsilon=True,
    ),
    "texts with a GRU both ways and centered RMSprop": Trained(
        Case(
            text(layer("Bidirectional", layer=layer("GRU", units=3))),
            [TEXT],
            lambda: Text(nn.GRU(4, 3, batch_first=True, bidirectional=True), 6),
        ),
        ("k3",),
        optimizer("RMSprop", learning_rate=0.01, centered=True, momentum=0.5),
        lambda parameters: KerasRMSprop(parameters, momentum=0.5, centered=True),
        loss="ce",
        within=1e-5,
    ),
    "attention with AdamW": Trained(
        Case(block_of_a_transformer(), [inputs(6, 4)], Attention),
        ("k3", "k2"),
        optimizer("AdamW", learning_rate=0.01, weight_decay=0.01),
        lambda parameters: torch.optim.AdamW(parameters, eps=1e-7, weight_decay=0.01),
        # The gradient of the bias of keys is rounding noise, which Adam scales up.
        within=1e-4,
        keras_epsilon=True,
        is_compiled=True,
    ),
    "frozen layers with amsgrad": Trained(
        Case(
            sequential(
                dense(4, trainable=False),
                layer("BatchNormalization", trainable=False),
                layer("Activation", activation="tanh"),
                dense(4),
                dense(2),
                inputs=inputs(5),
            ),
            [inputs(5)],
            Frozen,
        ),
        ("k3", "k2"),
        optimizer("Adam", learning_rate=0.01, amsgrad=True),
        lambda parameters: torch.optim.Adam(
            [each for each in parameters if each.requires_grad], eps=1e-7, amsgrad=True
        ),
        keras_epsilon=True,
        inexact=("norm.running_var",),
    ),
    "own weights and a list with legacy Adam": Trained(
        Case(
            subclassed(
                {
                    "first": dense(4),
                    "blocks": [dense(4, activation="tanh"), dense(4, activation="tanh")],
                    "offset": {"weight": [4]},
                },
                ["first", ("add", "offset"), "blocks/0", "blocks/1"],
            ),
            [inputs(5)],
            Listed,
        ),
        ("k2",),
        optimizer("Adam", learning_rate=0.01, legacy=True),
        lambda parameters: torch.optim.Adam(parameters, eps=1e-7),
        keras_epsilon=True,
        is_compiled=True,
    ),
    "own weights and a tuple with Adagrad": Trained(
        Case(
            subclassed(
                {
                    "first": dense(4),
                    "blocks": {"tuple": [dense(4, activation="tanh"), dense(4, activation="tanh")]},
                    "offset": {"weight": [4]},
                },
                ["first", ("add", "offset"), "blocks/0", "blocks/1"],
            ),
            [inputs(5)],
            Listed,
        ),
        ("k3", "k2"),
        optimizer("Adagrad", learning_rate=0.05),
        lambda parameters: torch.optim.Adagrad(parameters, eps=1e-7, initial_accumulator_value=0.1),
        inexact=("eps",),
    ),
}
BEFORE, BETWEEN, AFTER = 3, 3, 2


def train(trained: Trained, net: nn.Module, optimizer_: torch.optim.Optimizer, data: Run, steps: range) -> None:
    assert data.labels is not None
    net.train()
    for step in steps:
        outputs = trained.case.call(net, [torch.from_numpy(each[step]) for each in data.batches])
        labels = torch.from_numpy(data.labels[step])
        loss = F.mse_loss(outputs, labels) if trained.loss == "mse" else F.cross_entropy(outputs, labels.long())
        optimizer_.zero_grad()
        loss.backward()
        optimizer_.step()


@pytest.mark.parametrize(
    ("name", "generation"), [(name, each) for name, trained in CASES.items() for each in trained.generations]
)
def test_training_goes_on_on_the_other_side_and_comes_back(
    keras: Keras, name: str, generation: str, tmp_path: Path
) -> None:
    trained = CASES[name]
    case = trained.case
    program = Program(
        generation,
        case.model,
        case.inputs,
        optimizer=dict(trained.theirs),
        is_compiled=trained.is_compiled,
        loss=trained.loss,
    )
    alone = keras.write(program, tmp_path / "alone", num_steps=BEFORE, num_further=BETWEEN + AFTER)
    net = case.net()
    ours = trained.ours(list(net.parameters()))
    status = load_keras(net, alone.prefix, ours, keras_epsilon=trained.keras_epsilon, **case.settings)
    status.assert_consumed().assert_existing_objects_matched()
    assert {each.name for each in status.inexact} == set(trained.inexact), status.inexact
    train(trained, net, ours, alone, range(BEFORE, BEFORE + BETWEEN))
    like = {"like": alone.prefix, **case.settings}
    if trained.is_compiled:
        checkpoint = Checkpoint(model=keras_view(net, optimizer=keras_view(ours), **like))
    else:
        checkpoint = Checkpoint(model=keras_view(net, **like), optimizer=keras_view(ours))
    path = checkpoint.save(str(tmp_path / "ours"))
    then = dataclasses.replace(alone, num_steps=BEFORE + BETWEEN)
    last = keras.continue_training(program, path, then, tmp_path / "continued", num_steps=AFTER)
    for mine, theirs in zip(last.variables, alone.variables, strict=True):
        assert theirs.after is not None
        np.testing.assert_allclose(mine.value, theirs.after, rtol=0, atol=trained.within, err_msg=theirs.path)
    counts = [each.value for each in last.optimizer_variables if each.name in ("iteration", "iter")]
    assert counts == [BEFORE + BETWEEN + AFTER]
