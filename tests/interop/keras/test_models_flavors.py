"""Checkpoints for Keras programs that have saved none: torch tells what they call their variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from keras_models import Attention, Case, Text, block_of_a_transformer, channels_first, close, dense, images, outputs_of
from keras_oracle import Keras, Program, inputs, layer, optimizer, sequential, subclassed
from torch import nn
from torch.nn import functional as F

from torch_trackckpt import Checkpoint
from torch_trackckpt.interop import keras_view

FLAVORS = {"k3": "keras3", "k2": "tf_keras"}


class Blocks(nn.Module):
    def __init__(self, *, others: bool) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.norm = nn.LayerNorm(4, eps=1e-3)
        self.offset = nn.Parameter(torch.zeros(4))
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)} if others else {})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x) + self.offset)
        for each in (*self.blocks, *self.heads.values()):
            x = each(x)
        return x


@dataclass(frozen=True)
class Made:
    """A case that no checkpoint of Keras tells of, and what `keras_view` is told."""

    case: Case
    view: Mapping[str, Any]


BLOCKS: dict[str, Any] = {
    "first": dense(4),
    "offset": {"weight": [4]},
    "norm": layer("LayerNormalization"),
}
TOKENS = inputs(7, high=9)

CASES: Mapping[str, Made] = {
    "dense layers": Made(
        Case(
            sequential(dense(4, activation="relu"), dense(3), layer("BatchNormalization"), inputs=inputs(5)),
            [inputs(5)],
            lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.BatchNorm1d(3, eps=1e-3)),
        ),
        {"layers": ["0", "2", "3"]},
    ),
    "images": Made(
        Case(
            sequential(
                layer("Conv2D", filters=4, kernel_size=3),
                layer("ReLU"),
                layer("DepthwiseConv2D", kernel_size=2),
                layer("SeparableConv2D", filters=5, kernel_size=2),
                layer("Conv2DTranspose", filters=3, kernel_size=2),
                inputs=inputs(8, 7, 3),
            ),
            [inputs(8, 7, 3)],
            lambda: nn.Sequential(
                nn.Conv2d(3, 4, 3),
                nn.ReLU(),
                nn.Conv2d(4, 4, 2, groups=4),
                nn.Conv2d(4, 4, 2, groups=4, bias=False),
                nn.Conv2d(4, 5, 1),
                nn.ConvTranspose2d(5, 3, 2),
            ),
            images,
        ),
        {"layers": ["0", "relu", "2", ("3", "4"), "5"]},
    ),
    "flattened": Made(
        Case(
            sequential(
                layer("Conv2D", filters=4, kernel_size=3, activation="relu"),
                layer("Flatten"),
                layer("Dropout", rate=0.5),
                dense(2),
                inputs=inputs(5, 4, 3),
            ),
            [inputs(5, 4, 3)],
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)),
            lambda net, given: net(channels_first(given[0])),
        ),
        {"layers": ["0", "flatten", "dropout", "3"], "after_flatten": {"3": (3, 2, 4)}},
    ),
    "a functional model": Made(
        Case(block_of_a_transformer(), [inputs(6, 4)], Attention),
        {"layers": ["input", "attention", "add", "norm1", "linear1", "linear2", "add", "norm2"]},
    ),
    "a text": Made(
        Case(
            sequential(
                layer("Embedding", input_dim=9, output_dim=4, mask_zero=True),
                layer("GRU", units=3),
                dense(3),
                inputs=inputs(7, high=9, padded=True),
            ),
            [inputs(7, high=9, padded=True)],
            lambda: Text(nn.GRU(4, 3, batch_first=True), 3),
        ),
        {"layers": ["embedding", "not_equal", "recurrent", "head"], "sequential": True},
    ),
    "attributes": Made(
        Case(
            subclassed(
                {
                    "embedding": layer("Embedding", input_dim=9, output_dim=4),
                    "lstm": layer("Bidirectional", layer=layer("LSTM", units=3, return_sequences=True)),
                    "gru": layer("GRU", units=3, return_sequences=True),
                    "head": dense(2),
                },
                ["embedding", "lstm", "gru", "head"],
            ),
            [TOKENS],
            lambda: nn.ModuleDict(
                {
                    "embedding": nn.Embedding(9, 4),
                    "lstm": nn.LSTM(4, 3, batch_first=True, bidirectional=True),
                    "gru": nn.GRU(6, 3, batch_first=True),
                    "head": nn.Linear(3, 2),
                }
            ),
            lambda net, given: net["head"](net["gru"](net["lstm"](net["embedding"](given[0]))[0])[0]),
        ),
        {},
    ),
    "tuples and own weights": Made(
        Case(
            subclassed(
                BLOCKS | {"blocks": {"tuple": [dense(4), dense(4)]}},
                ["first", ("add", "offset"), "norm", "blocks/0", "blocks/1"],
            ),
            [inputs(5)],
            lambda: Blocks(others=False),
        ),
        {},
    ),
    "lists and dicts": Made(
        Case(
            subclassed(
                BLOCKS | {"blocks": [dense(4), dense(4)], "heads": {"a": dense(4), "b": dense(4)}},
                ["first", ("add", "offset"), "norm", "blocks/0", "blocks/1", "heads/a", "heads/b"],
            ),
            [inputs(5)],
            lambda: Blocks(others=True),
            generations=["k2"],
        ),
        {},
    ),
}


@pytest.mark.parametrize(
    ("name", "generation"), [(name, each) for name, made in CASES.items() for each in made.case.generations]
)
def test_keras_restores_what_it_has_never_saved(keras: Keras, name: str, generation: str, tmp_path: Path) -> None:
    made = CASES[name]
    case, net = made.case, made.case.net()
    settings = dict(made.view)
    if generation == "k2" and "layers" in settings:
        # It has no layers for masks.
        settings["layers"] = [each for each in settings["layers"] if each != "not_equal"]
    data = keras.write(case.of(generation), tmp_path / "data")
    path = Checkpoint(model=keras_view(net, flavor=FLAVORS[generation], **settings)).save(str(tmp_path / "ours"))
    restored = keras.restore(case.of(generation), path, data)
    restored.assert_used()
    close(restored.outputs, outputs_of(case, net, data.inputs))


OPTIMIZERS: Mapping[str, tuple[Any, Callable[[Any], torch.optim.Optimizer]]] = {
    "Adam": (
        optimizer("Adam", learning_rate=0.01),
        lambda parameters: torch.optim.Adam(parameters, lr=0.01, eps=1e-7),
    ),
    "SGD": (
        optimizer("SGD", learning_rate=0.01, momentum=0.9),
        lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    ),
    "RMSprop": (
        optimizer("RMSprop", learning_rate=0.01, momentum=0.9),
        lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, alpha=0.9, momentum=0.9),
    ),
    "Nadam": (
        optimizer("Nadam", learning_rate=0.01),
        lambda parameters: torch.optim.NAdam(parameters, lr=0.01, eps=1e-7, momentum_decay=1.0),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("generation", ["k3", "k2", "legacy"])
def test_keras_restores_an_optimizer_that_it_has_never_saved(
    keras: Keras, name: str, generation: str, tmp_path: Path
) -> None:
    case = CASES["dense layers"].case
    theirs, ours = OPTIMIZERS[name]
    settings: dict[str, Any] = {"model": case.model, "inputs": case.inputs}
    if generation == "legacy":
        theirs = theirs | {"of": "optimizers.legacy"}
    program = Program("k3" if generation == "k3" else "k2", optimizer=theirs, **settings)
    data = keras.write(program, tmp_path / "data", num_steps=2, num_further=1)
    net = case.net().train()
    trained = ours(net.parameters())
    for step in range(2):
        trained.zero_grad()
        F.mse_loss(net(torch.from_numpy(data.batches[0][step])), torch.from_numpy(data.labels[step])).backward()
        trained.step()
    flavor = {"k3": "keras3", "k2": "tf_keras", "legacy": "tf_keras_legacy_optimizer"}[generation]
    view = keras_view(net, flavor=flavor, layers=["0", "2", "3"])
    path = Checkpoint(model=view, optimizer=keras_view(trained)).save(str(tmp_path / "ours"))
    restored = keras.restore(program, path, data)
    restored.assert_used()
    close(restored.outputs, outputs_of(case, net, data.inputs))
    first = {"Adam": "exp_avg", "SGD": "momentum_buffer", "RMSprop": "square_avg", "Nadam": "exp_avg"}[name]
    slot = {"Adam": ("momentums", "m"), "SGD": ("momentums", "momentum")}.get(name, ("velocities", "rms"))
    slot = ("momentums", "m") if name == "Nadam" else slot
    kept = restored.slots[slot[generation == "legacy"]][0]
    expected = trained.state[net[0].weight][first].T.numpy()
    np.testing.assert_allclose(kept, -0.01 * expected if name == "SGD" else expected, rtol=1e-6)
