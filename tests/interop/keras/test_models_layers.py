"""Every layer of Keras inside of a small model, whose checkpoint torch loads, and gives back.

Where one generation of Keras is asked for, `test_layers_against_keras.py` asks both for the layer alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from keras_models import Attention, Case, Text, block_of_a_transformer, channels_first, dense, images, there_and_back
from keras_oracle import Keras, functional, inputs, layer, sequential
from torch import nn
from torch.nn import functional as F

from torch_trackckpt.interop.keras import KerasNormalization

SEQUENCE = inputs(6, 4)


def alone(inputs_: Any, *layers: Any) -> Any:
    return sequential(*layers, inputs=inputs_)


class Heads(nn.Module):
    """EinsumDense in its three forms."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 5)
        self.split = nn.Linear(5, 2 * 3)
        self.merge = nn.Linear(2 * 3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.merge(self.split(self.inner(x)))


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 6, 3)
        self.second = nn.Conv1d(6, 5, 2, dilation=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(F.pad(x, (2, 0))))
        return self.second(F.pad(x, (2, 0)))


class Recurrent(nn.Module):
    """A recurrent layer, of which all outputs or the last one go on."""

    def __init__(self, layer: nn.RNNBase, units: int = 3, *, sequences: bool = True) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(units, 2)
        self.sequences = sequences

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, state = self.layer(x)
        if not self.sequences:
            state = state[0] if isinstance(state, tuple) else state
            outputs = torch.cat(tuple(state[-2:] if self.layer.bidirectional else state[-1:]), -1)
        return self.head(outputs)


class Stacked(nn.Module):
    def __init__(self, *layers: nn.RNNBase) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for each in self.layers:
            x, _ = each(x)
        return self.head(x)


class Steps(nn.Module):
    """A cell that is called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(len(x), 3)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


class Cross(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, kdim=5, vdim=5, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(query, value, value, need_weights=False)[0])


class FourLinears(nn.Module):
    """Attention whose heads are wider than its inputs, which nn.MultiheadAttention has not."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 6)
        self.key = nn.Linear(4, 6)
        self.value = nn.Linear(4, 10)
        self.output = nn.Linear(10, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (each(x).unflatten(-1, (2, -1)).transpose(1, 2) for each in (self.query, self.key, self.value))
        return self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


IMAGE = inputs(8, 7, 4)
LONG = inputs(9, 4)

CASES: Mapping[str, Case] = {
    "dense of higher rank": Case(
        alone(SEQUENCE, dense(5, activation="tanh"), dense(3, use_bias=False)),
        [SEQUENCE],
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)),
    ),
    "einsum": Case(
        alone(
            SEQUENCE,
            layer("EinsumDense", equation="abc,cd->abd", output_shape=[None, 5], bias_axes="d"),
            layer("EinsumDense", equation="abc,cde->abde", output_shape=[None, 2, 3], bias_axes="de"),
            layer("EinsumDense", equation="abde,dec->abc", output_shape=[None, 4], bias_axes="c"),
        ),
        [SEQUENCE],
        Heads,
    ),
    "at each time": Case(
        alone(SEQUENCE, layer("TimeDistributed", layer=dense(5)), dense(2)),
        [SEQUENCE],
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)),
    ),
    "causal": Case(
        alone(
            LONG,
            layer("Conv1D", filters=6, kernel_size=3, padding="causal", activation="relu"),
            layer("Conv1D", filters=5, kernel_size=2, padding="causal", dilation_rate=2),
        ),
        [LONG],
        Causal,
        images,
        generations=["k2"],
    ),
    "convolutions of images": Case(
        alone(
            IMAGE,
            layer("Conv2D", filters=6, kernel_size=3, activation="relu"),
            layer("Conv2D", filters=4, kernel_size=[5, 3], groups=2, padding="same"),
            layer("DepthwiseConv2D", kernel_size=3, depth_multiplier=2),
            layer("SeparableConv2D", filters=5, kernel_size=2, activation="relu"),
            layer("Conv2DTranspose", filters=3, kernel_size=3, strides=2),
        ),
        [IMAGE],
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3),
            nn.ReLU(),
            nn.Conv2d(6, 4, (5, 3), groups=2, padding="same"),
            nn.Conv2d(4, 8, 3, groups=4),
            nn.Sequential(nn.Conv2d(8, 8, 2, groups=8, bias=False), nn.Conv2d(8, 5, 1), nn.ReLU()),
            nn.ConvTranspose2d(5, 3, 3, stride=2),
        ),
        images,
    ),
    "convolutions of sequences": Case(
        alone(
            LONG,
            layer("SeparableConv1D", filters=6, kernel_size=3, depth_multiplier=2),
            layer("DepthwiseConv1D", kernel_size=2),
            layer("Conv1D", filters=5, kernel_size=3, strides=2),
            layer("Conv1DTranspose", filters=4, kernel_size=3, strides=2),
        ),
        [LONG],
        lambda: nn.Sequential(
            nn.Conv1d(4, 8, 3, groups=4, bias=False),
            nn.Conv1d(8, 6, 1),
            nn.Conv1d(6, 6, 2, groups=6),
            nn.Conv1d(6, 5, 3, stride=2),
            nn.ConvTranspose1d(5, 4, 3, stride=2),
        ),
        images,
    ),
    "convolutions of volumes": Case(
        alone(
            inputs(4, 5, 4, 2),
            layer("Conv3D", filters=3, kernel_size=2),
            layer("PReLU", shared_axes=[1, 2, 3]),
            layer("Conv3DTranspose", filters=2, kernel_size=2, strides=2),
        ),
        [inputs(4, 5, 4, 2)],
        lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.PReLU(3), nn.ConvTranspose3d(3, 2, 2, stride=2)),
        images,
        generations=["k2"],
    ),
    "flattened": Case(
        alone(
            inputs(6, 5, 2),
            layer("Conv2D", filters=3, kernel_size=3),
            layer("PReLU", shared_axes=[1, 2]),
            layer("Flatten"),
            dense(4, activation="relu"),
            dense(2),
        ),
        [inputs(6, 5, 2)],
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.PReLU(3), nn.Flatten(), nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 2)
        ),
        lambda net, given: net(channels_first(given[0])),
        settings={"after_flatten": {"3": (4, 3, 3)}},
    ),
    "flattened, normalised, and dense": Case(
        alone(
            inputs(6, 5, 2),
            layer("Conv2D", filters=3, kernel_size=3, activation="relu"),
            layer("Flatten"),
            layer("BatchNormalization"),
            dense(4),
        ),
        [inputs(6, 5, 2)],
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(36, eps=1e-3), nn.Linear(36, 4)
        ),
        lambda net, given: net(channels_first(given[0])),
        settings={"after_flatten": {"3": (4, 3, 3), "4": (4, 3, 3)}},
        inexact=["3.running_var"],
        generations=["k2"],
    ),
    "pooled": Case(
        alone(
            inputs(6, 5, 2),
            layer("Conv2D", filters=3, kernel_size=3),
            layer("GlobalAveragePooling2D"),
            dense(6),
        ),
        [inputs(6, 5, 2)],
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 6)),
        lambda net, given: net(channels_first(given[0])),
        generations=["k3"],
    ),
    "normalised over several axes": Case(
        alone(
            inputs(3, 5, 4),
            layer("LayerNormalization", axis=[-2, -1]),
            dense(4),
            layer("LayerNormalization", center=False),
            dense(4),
            layer("LayerNormalization", scale=False),
        ),
        [inputs(3, 5, 4)],
        lambda: nn.Sequential(
            nn.LayerNorm([5, 4], eps=1e-3),
            nn.Linear(4, 4),
            nn.LayerNorm(4, eps=1e-3, bias=False),
            nn.Linear(4, 4),
            nn.LayerNorm(4, eps=1e-3),
        ),
        inexact=["2.weight"],
    ),
    "batch norms without scale or center": Case(
        alone(
            inputs(6, 5, 3),
            layer("BatchNormalization", scale=False),
            layer("Conv2D", filters=3, kernel_size=1),
            layer("BatchNormalization", center=False),
            layer("Conv2D", filters=3, kernel_size=1, use_bias=False),
            layer("BatchNormalization", scale=False, center=False),
            layer("Conv2D", filters=4, kernel_size=1),
            layer("GroupNormalization", groups=2),
        ),
        [inputs(6, 5, 3)],
        lambda: nn.Sequential(
            nn.BatchNorm2d(3, eps=1e-3),
            nn.Conv2d(3, 3, 1),
            nn.BatchNorm2d(3, eps=1e-3),
            nn.Conv2d(3, 3, 1, bias=False),
            nn.BatchNorm2d(3, eps=1e-3, affine=False),
            nn.Conv2d(3, 4, 1),
            nn.GroupNorm(2, 4, eps=1e-3),
        ),
        images,
        inexact=["0.running_var", "2.running_var", "4.running_var"],
    ),
    "RMS norm": Case(
        alone(SEQUENCE, layer("RMSNormalization"), dense(4), layer("RMSNormalization")),
        [SEQUENCE],
        lambda: nn.Sequential(nn.RMSNorm(4, eps=1e-6), nn.Linear(4, 4), nn.RMSNorm(4, eps=1e-6)),
        generations=["k3"],
    ),
    "adapted to data": Case(
        alone(inputs(5), layer("Normalization"), dense(3), layer("PReLU"), dense(2)),
        [inputs(5)],
        lambda: nn.Sequential(KerasNormalization([5]), nn.Linear(5, 3), nn.PReLU(3), nn.Linear(3, 2)),
    ),
    "spectral norm": Case(
        alone(SEQUENCE, layer("SpectralNormalization", layer=dense(5)), dense(2)),
        [SEQUENCE],
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)),
        # That of tf_keras does not work where Keras 3 is installed.
        generations=["k3"],
        inexact=["0.weight"],
    ),
    "masked LSTM": Case(
        alone(
            inputs(7, high=9, padded=True),
            layer("Embedding", input_dim=9, output_dim=4, mask_zero=True),
            layer("LSTM", units=3),
            dense(3),
        ),
        [inputs(7, high=9, padded=True)],
        lambda: Text(nn.LSTM(4, 3, batch_first=True), 3),
    ),
    "masked GRU, both ways": Case(
        alone(
            inputs(7, high=9, padded=True),
            layer("Embedding", input_dim=9, output_dim=4, mask_zero=True),
            layer("Bidirectional", layer=layer("GRU", units=3)),
            layer("Dropout", rate=0.3),
            dense(3),
        ),
        [inputs(7, high=9, padded=True)],
        lambda: Text(nn.GRU(4, 3, batch_first=True, bidirectional=True), 6),
        generations=["k3"],
    ),
    "LSTM": Case(
        alone(SEQUENCE, layer("LSTM", units=3, return_sequences=True), dense(2)),
        [SEQUENCE],
        lambda: Recurrent(nn.LSTM(4, 3, batch_first=True)),
        generations=["k3"],
    ),
    "LSTM without bias": Case(
        alone(SEQUENCE, layer("LSTM", units=3, use_bias=False), dense(2)),
        [SEQUENCE],
        lambda: Recurrent(nn.LSTM(4, 3, batch_first=True, bias=False), sequences=False),
        generations=["k3"],
    ),
    "simple RNN": Case(
        alone(SEQUENCE, layer("SimpleRNN", units=3), dense(2)),
        [SEQUENCE],
        lambda: Recurrent(nn.RNN(4, 3, batch_first=True), sequences=False),
        generations=["k2"],
    ),
    "LSTM both ways": Case(
        alone(SEQUENCE, layer("Bidirectional", layer=layer("LSTM", units=3, return_sequences=True)), dense(2)),
        [SEQUENCE],
        lambda: Recurrent(nn.LSTM(4, 3, batch_first=True, bidirectional=True), 6),
        generations=["k2"],
    ),
    "stacked LSTMs": Case(
        alone(SEQUENCE, *[layer("LSTM", units=3, return_sequences=True)] * 3, dense(2)),
        [SEQUENCE],
        lambda: Recurrent(nn.LSTM(4, 3, 3, batch_first=True)),
    ),
    "stacked GRUs both ways": Case(
        alone(
            SEQUENCE,
            layer("Bidirectional", layer=layer("GRU", units=3, return_sequences=True)),
            layer("Bidirectional", layer=layer("GRU", units=3)),
            dense(2),
        ),
        [SEQUENCE],
        lambda: Recurrent(nn.GRU(4, 3, 2, batch_first=True, bidirectional=True), 6, sequences=False),
    ),
    "LSTMs one by one": Case(
        alone(SEQUENCE, *[layer("LSTM", units=3, return_sequences=True)] * 3, dense(2)),
        [SEQUENCE],
        lambda: Stacked(
            nn.LSTM(4, 3, batch_first=True), nn.LSTM(3, 3, batch_first=True), nn.LSTM(3, 3, batch_first=True)
        ),
        generations=["k2"],
    ),
    "RNN of a cell": Case(
        alone(SEQUENCE, layer("RNN", cell=layer("LSTMCell", units=3)), dense(2)),
        [SEQUENCE],
        lambda: Recurrent(nn.LSTM(4, 3, batch_first=True), sequences=False),
        generations=["k3"],
    ),
    "RNN of a cell, step by step": Case(
        alone(SEQUENCE, layer("RNN", cell=layer("GRUCell", units=3)), dense(2)),
        [SEQUENCE],
        Steps,
        generations=["k2"],
    ),
    "RNN of cells": Case(
        alone(SEQUENCE, layer("RNN", cell=[layer("LSTMCell", units=3)] * 2, return_sequences=True), dense(2)),
        [SEQUENCE],
        lambda: Recurrent(nn.LSTM(4, 3, 2, batch_first=True)),
        generations=["k2"],
    ),
    "attention": Case(block_of_a_transformer(), [inputs(6, 4)], Attention),
    "attention without bias": Case(
        block_of_a_transformer(use_bias=False),
        [inputs(6, 4)],
        lambda: Attention(bias=False),
        generations=["k3"],
    ),
    "attention to another sequence": Case(
        functional(
            [inputs(6, 4, name="query"), inputs(3, 5, name="value")],
            {"attention": layer("MultiHeadAttention", num_heads=2, key_dim=2), "head": dense(2)},
            [("a", "attention", ["query", "value"]), ("out", "head", ["a"])],
            ["out"],
        ),
        [inputs(6, 4), inputs(3, 5)],
        Cross,
    ),
    "attention of four matrices": Case(
        functional(
            [inputs(6, 4, name="x")],
            {"mha": layer("MultiHeadAttention", num_heads=2, key_dim=3, value_dim=5, output_shape=7)},
            [("out", "mha", ["x", "x"])],
            ["out"],
        ),
        [inputs(6, 4)],
        FourLinears,
    ),
}


@pytest.mark.parametrize(
    ("name", "generation"), [(name, generation) for name, case in CASES.items() for generation in case.generations]
)
def test_a_model_goes_there_and_back(keras: Keras, name: str, generation: str, tmp_path: Path) -> None:
    there_and_back(CASES[name], generation, keras, tmp_path)
