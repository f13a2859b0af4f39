"""Whole models in Keras and in torch: Keras writes, torch loads and writes back, Keras restores.

A `Case` has the same model twice: described for `keras_oracle.py`, and as the module that one would write in torch.
`there_and_back` asks whether both compute the same, in both directions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from keras_oracle import Keras, Program, Run, functional, inputs, layer
from torch import nn
from torch.nn import functional as F

from torch_trackckpt import Checkpoint, load_checkpoint
from torch_trackckpt.graph.messages import read_object_graph
from torch_trackckpt.interop import KerasLoadStatus, keras_view, load_keras

__all__ = [
    "Attention",
    "Case",
    "Text",
    "back",
    "block_of_a_transformer",
    "channels_first",
    "close",
    "dense",
    "images",
    "loaded",
    "outputs_of",
    "scramble",
    "there_and_back",
]

WITHIN = 1e-5

Description = dict[str, Any]
Tensors = Sequence[torch.Tensor]
Call = Callable[[nn.Module, Tensors], Any]


def plainly(net: nn.Module, inputs: Tensors) -> Any:
    return net(*inputs)


def channels_first(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.movedim(-1, 1)


def images(net: nn.Module, inputs: Tensors) -> Any:
    """The outputs of a net whose channels come first, with channels last."""
    return net(*map(channels_first, inputs)).movedim(1, -1)


@dataclass(frozen=True)
class Case:
    """A model of Keras, and the module of torch."""

    model: Description
    inputs: Sequence[Description]
    module: Callable[[], nn.Module]
    call: Call = plainly
    generations: Sequence[str] = ("k3", "k2")
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of `load_keras` and `keras_view`."""
    inexact: Sequence[str] = ()
    """Names that the status has to have there."""
    program: Mapping[str, Any] = field(default_factory=dict)
    """More of the program."""

    def of(self, generation: str) -> Program:
        return Program(generation, self.model, self.inputs, **self.program)

    def net(self) -> nn.Module:
        torch.manual_seed(5)
        return self.module().eval()


@torch.no_grad()
def outputs_of(case: Case, net: nn.Module, inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    found = case.call(net.eval(), [torch.from_numpy(array) for array in inputs])
    return [tensor.numpy() for tensor in (found if isinstance(found, tuple | list) else [found])]


def close(found: Sequence[np.ndarray[Any, Any]], expected: Sequence[np.ndarray[Any, Any]]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=WITHIN, atol=WITHIN, strict=True)
        assert np.abs(other).max() > 1e-3


def loaded(case: Case, written: Run, path: str | Path | None = None) -> tuple[nn.Module, KerasLoadStatus]:
    """The module, with everything that Keras has written."""
    net = case.net()
    status = load_keras(net, path or written.prefix, **case.settings)
    status.assert_consumed().assert_existing_objects_matched()
    assert {each.name for each in status.inexact} == set(case.inexact), status.inexact
    close(outputs_of(case, net, written.inputs), written.outputs)
    return net, status


@torch.no_grad()
def scramble(net: nn.Module) -> None:
    """Gives a module other values, as training would: what is frozen keeps its own."""
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for name, buffer in net.named_buffers():
        if buffer.is_floating_point():
            buffer.add_(0.1 if "var" in name else torch.randn_like(buffer) * 0.1)


def back(case: Case, net: nn.Module, prefix: Path, **named: str) -> str:
    """Saves a module as Keras names it."""
    settings = {key: value for key, value in case.settings.items() if key != "optimizer_path"}
    return Checkpoint(model=keras_view(net, **settings, **named)).save(str(prefix))


def assert_same_values(written: Run, path: str) -> None:
    """Every variable of Keras is there again, bit for bit, at the end of the same edges."""
    reader = load_checkpoint(path)
    graph = read_object_graph(reader)
    assert graph is not None
    for variable in written.variables:
        nodes = {graph.find(each) for each in variable.paths} - {None}
        if not nodes and variable.key is None:
            continue
        (node_id,) = nodes
        assert node_id is not None
        key = graph.attributes(node_id)[0].checkpoint_key
        np.testing.assert_array_equal(reader.get_tensor(key), variable.value, err_msg=variable.path, strict=True)


def there_and_back(
    case: Case, generation: str, keras: Keras, directory: Path, write: Callable[..., Run] | None = None
) -> KerasLoadStatus:
    """Keras to torch to Keras: the same values bit for bit; and other values, with which both compute the same."""
    program = case.of(generation)
    written = (write or functools.partial(keras.write))(program, directory / "theirs")
    net, status = loaded(case, written)
    assert_same_values(written, back(case, net, directory / "same", like=written.prefix))
    scramble(net)
    path = back(case, net, directory / "ours", like=written.prefix)
    restored = keras.restore(program, path, written)
    restored.assert_used()
    close(restored.outputs, outputs_of(case, net, written.inputs))
    return status


# Models that several tests have.


def dense(units: int, **config: Any) -> Any:
    return layer("Dense", units=units, **config)


class Text(nn.Module):
    """Tokens, padded with zeros at the end."""

    def __init__(self, recurrent: nn.RNNBase, features: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.recurrent = recurrent
        self.head = nn.Linear(features, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        lengths = (tokens != 0).sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        _, state = self.recurrent(packed)
        state = state[0] if isinstance(state, tuple) else state
        return self.head(torch.cat(tuple(state), -1))


class Attention(nn.Module):
    """A block of a transformer."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, bias=bias, batch_first=True)
        self.norm1 = nn.LayerNorm(4, eps=1e-3)
        self.linear1 = nn.Linear(4, 8)
        self.linear2 = nn.Linear(8, 4)
        self.norm2 = nn.LayerNorm(4, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.attention(x, x, x, need_weights=False)[0])
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


def block_of_a_transformer(**config: Any) -> Any:
    return functional(
        [inputs(6, 4, name="x")],
        {
            "mha": layer("MultiHeadAttention", num_heads=2, key_dim=2, **config),
            "first": layer("LayerNormalization"),
            "wide": dense(8, activation="relu"),
            "narrow": dense(4),
            "second": layer("LayerNormalization"),
        },
        [
            ("a", "mha", ["x", "x"]),
            ("b", "add", ["x", "a"]),
            ("c", "first", ["b"]),
            ("d", "wide", ["c"]),
            ("e", "narrow", ["d"]),
            ("f", "add", ["c", "e"]),
            ("out", "second", ["f"]),
        ],
        ["out"],
    )
