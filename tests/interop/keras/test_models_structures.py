"""Models of many structures, whose checkpoints torch loads, and gives back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from keras_models import Case, channels_first, dense, there_and_back
from keras_oracle import Keras, functional, inputs, layer, sequential, subclassed
from torch import nn


class Branches(nn.Module):
    """Two inputs, a shared layer, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 4)
        self.right = nn.Linear(5, 4)
        self.shared = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self.shared(self.left(a)), self.shared(self.right(b))
        z = x * y + x
        return self.head(z), z


class Nested(nn.Module):
    """Models inside of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6))
        self.neck = nn.Sequential(nn.LayerNorm(6, eps=1e-3), nn.Linear(6, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.neck(self.backbone(x)))


class Blocks(nn.Module):
    """Lists, dicts and parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.blocks = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])
        self.heads = nn.ModuleDict({"a": nn.Linear(5, 5), "b": nn.Linear(5, 5)})
        self.offset = nn.Parameter(torch.zeros(5))
        self.factor = nn.Parameter(torch.ones(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) * self.factor + self.offset
        for each in (*self.blocks, self.heads["b"], self.heads["a"]):
            x = each(x)
        return x


class Pair(nn.Module):
    """What Keras has in a tuple."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for each in self.blocks:
            x = each(x)
        return x


class Inner(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 6)
        self.down = nn.Linear(6, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x)) * self.scale


class Outer(nn.Module):
    """Blocks that are classes of their own, equal to one another."""

    def __init__(self) -> None:
        super().__init__()
        self.one = Inner(4)
        self.two = Inner(4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.two(self.one(x)))


class Image(nn.Module):
    """A residual net, as one writes it in torch: layers of one block side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding="same", bias=False)
        self.bn1 = nn.BatchNorm2d(4, eps=1e-3)
        self.conv2 = nn.Conv2d(4, 4, 3, padding="same", bias=False)
        self.bn2 = nn.BatchNorm2d(4, eps=1e-3)
        self.conv3 = nn.Conv2d(4, 4, 3, padding="same", bias=False)
        self.bn3 = nn.BatchNorm2d(4, eps=1e-3)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        y = self.bn3(self.conv3(self.bn2(self.conv2(x)).relu()))
        return self.fc((x + y).mean((2, 3)))


class Siamese(nn.Module):
    """One model for two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
        self.out = nn.Linear(3, 2)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.out(self.encoder(a) * self.encoder(b))


class Sentences(nn.Module):
    """Layers of all kinds, some of which are several layers of Keras, or one of several matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.conv = nn.Conv1d(4, 5, 3)
        self.norm = nn.BatchNorm1d(5, eps=1e-3)
        self.rnn = nn.LSTM(5, 3, 2, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.fc = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(self.embedding(x).movedim(-1, 1)).relu()).movedim(1, -1)
        x, _ = self.rnn(x)
        return self.fc(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Tied(nn.Module):
    """A layer that is called at three places, and an alias of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.again = self.first
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.again(self.first(x)))


def inner(width: int) -> Any:
    attributes = {"up": dense(6), "down": dense(width), "scale": {"weight": [width]}}
    return subclassed(attributes, ["up", "down", ("multiply", "scale")], base="Layer")


BRANCHES = functional(
    [inputs(3, name="a"), inputs(5, name="b")],
    {"left": dense(4), "right": dense(4), "shared": dense(4), "out": dense(2)},
    [
        ("x0", "left", ["a"]),
        ("y0", "right", ["b"]),
        ("x", "shared", ["x0"]),
        ("y", "shared", ["y0"]),
        ("xy", "multiply", ["x", "y"]),
        ("z", "add", ["xy", "x"]),
        ("w", "out", ["z"]),
    ],
    ["w", "z"],
)
IN_FUNCTIONAL = functional(
    [inputs(5, name="x")],
    {
        "backbone": sequential(dense(6, activation="relu"), dense(6), inputs=inputs(5)),
        "neck": functional(
            [inputs(6, name="inside")],
            {"norm": layer("LayerNormalization"), "narrow": dense(4)},
            [("a", "norm", ["inside"]), ("b", "narrow", ["a"])],
            ["b"],
        ),
        "head": dense(2),
    },
    [("a", "backbone", ["x"]), ("b", "neck", ["a"]), ("c", "head", ["b"])],
    ["c"],
)
IN_SEQUENTIAL = sequential(
    sequential(dense(6, activation="relu"), dense(6)),
    sequential(layer("LayerNormalization"), dense(4)),
    dense(2),
    inputs=inputs(5),
)
BLOCKS = {
    "first": dense(5),
    "blocks": [dense(5), dense(5)],
    "heads": {"a": dense(5), "b": dense(5)},
    "offset": {"weight": [5]},
    "factor": {"weight": [5]},
}
RESIDUAL = functional(
    [inputs(6, 5, 3, name="image")],
    {f"conv{i}": layer("Conv2D", filters=4, kernel_size=3, padding="same", use_bias=False) for i in (1, 2, 3)}
    | {f"bn{i}": layer("BatchNormalization") for i in (1, 2, 3)}
    | {f"relu{i}": layer("ReLU") for i in (1, 2)}
    | {"pool": layer("GlobalAveragePooling2D"), "fc": dense(2)},
    [
        ("a", "conv1", ["image"]),
        ("b", "bn1", ["a"]),
        ("x", "relu1", ["b"]),
        ("c", "conv2", ["x"]),
        ("d", "bn2", ["c"]),
        ("e", "relu2", ["d"]),
        ("f", "conv3", ["e"]),
        ("y", "bn3", ["f"]),
        ("z", "add", ["x", "y"]),
        ("pooled", "pool", ["z"]),
        ("out", "fc", ["pooled"]),
    ],
    ["out"],
)

SIAMESE = functional(
    [inputs(4, name="a"), inputs(4, name="b")],
    {"twin": sequential(dense(4, activation="tanh"), dense(3), inputs=inputs(4)), "last": dense(2)},
    [("p", "twin", ["a"]), ("q", "twin", ["b"]), ("r", "multiply", ["p", "q"]), ("s", "last", ["r"])],
    ["s"],
)
SENTENCES = functional(
    [inputs(8, name="tokens", high=9)],
    {
        "words": layer("Embedding", input_dim=9, output_dim=4),
        "grams": layer("Conv1D", filters=5, kernel_size=3, activation="relu"),
        "scaled": layer("BatchNormalization"),
        "below": layer("Bidirectional", layer=layer("LSTM", units=3, return_sequences=True)),
        "above": layer("Bidirectional", layer=layer("LSTM", units=3, return_sequences=True)),
        "heads": layer("MultiHeadAttention", num_heads=2, key_dim=3),
        "mean": layer("GlobalAveragePooling1D"),
        "last": dense(2),
    },
    [
        ("a", "words", ["tokens"]),
        ("b", "grams", ["a"]),
        ("c", "scaled", ["b"]),
        ("d", "below", ["c"]),
        ("e", "above", ["d"]),
        ("f", "heads", ["e", "e"]),
        ("g", "mean", ["f"]),
        ("h", "last", ["g"]),
    ],
    ["h"],
)
TWELVE = [f"blocks/{index}" for index in range(12)]

CASES: Mapping[str, Case] = {
    "two inputs, two outputs, shared": Case(BRANCHES, [inputs(3), inputs(5)], Branches),
    "models in a functional one": Case(IN_FUNCTIONAL, [inputs(5)], Nested),
    "models in a Sequential": Case(IN_SEQUENTIAL, [inputs(5)], Nested),
    "an attribute for each": Case(
        subclassed(
            {
                "backbone": sequential(dense(6, activation="relu"), dense(6)),
                "neck": sequential(layer("LayerNormalization"), layer("Dropout", rate=0.5), dense(4)),
                "head": dense(2),
            },
            ["backbone", "neck", "head"],
        ),
        [inputs(5)],
        Nested,
    ),
    "lists, dicts, own weights": Case(
        subclassed(
            BLOCKS,
            ["first", ("multiply", "factor"), ("add", "offset"), "blocks/0", "blocks/1", "heads/b", "heads/a"],
        ),
        [inputs(5)],
        Blocks,
        generations=["k2"],
    ),
    "tuples": Case(
        subclassed({"stem": dense(4), "blocks": {"tuple": [dense(4), dense(4)]}}, ["stem", "blocks/0", "blocks/1"]),
        [inputs(5)],
        Pair,
    ),
    "more than ten in a tuple": Case(
        subclassed({"stem": dense(4), "blocks": {"tuple": [dense(4)] * 12}}, ["stem", *TWELVE]),
        [inputs(5)],
        lambda: Pair(12),
        generations=["k3"],
    ),
    "more than ten in a list": Case(
        subclassed({"stem": dense(4), "blocks": [dense(4)] * 12}, ["stem", *TWELVE]),
        [inputs(5)],
        lambda: Pair(12),
        generations=["k2"],
    ),
    "more than ten in a row": Case(sequential(*[dense(4)] * 13, inputs=inputs(5)), [inputs(5)], lambda: Pair(12)),
    "one model for two inputs": Case(SIAMESE, [inputs(4), inputs(4)], Siamese),
    "layers of all kinds": Case(SENTENCES, [inputs(8, high=9)], Sentences, inexact=["norm.running_var"]),
    "classes of layers": Case(
        subclassed(
            {"one": inner(4), "two": inner(4), "body": sequential(dense(4, activation="tanh"), dense(4))},
            ["one", "two", "body"],
        ),
        [inputs(4)],
        Outer,
    ),
    "residual": Case(
        RESIDUAL,
        [inputs(6, 5, 3)],
        Image,
        lambda net, given: net(channels_first(given[0])),
        inexact=["bn1.running_var", "bn2.running_var", "bn3.running_var"],
    ),
    "a layer twice": Case(
        subclassed({"first": dense(5), "again": {"same": "first"}, "head": dense(2)}, ["first", "again", "head"]),
        [inputs(5)],
        Tied,
    ),
    "equal layers in a row": Case(
        sequential(*[dense(4, activation="tanh")] * 5, inputs=inputs(4)),
        [inputs(4)],
        lambda: nn.Sequential(*[each for _ in range(5) for each in (nn.Linear(4, 4), nn.Tanh())]),
    ),
    "frozen layers": Case(
        sequential(dense(4, trainable=False), layer("BatchNormalization", trainable=False), dense(2), inputs=inputs(5)),
        [inputs(5)],
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, eps=1e-3), nn.Linear(4, 2)),
        inexact=["1.running_var"],
    ),
    "a name for each, in another order": Case(
        functional(
            [inputs(4, name="x")],
            {name: dense(4) for name in ("query", "key", "value")},
            [("a", "value", ["x"]), ("b", "key", ["a"]), ("c", "query", ["b"])],
            ["c"],
        ),
        [inputs(4)],
        lambda: nn.ModuleDict({name: nn.Linear(4, 4) for name in ("query", "key", "value")}),
        lambda net, given: net["query"](net["key"](net["value"](given[0]))),
    ),
    "names counted from one": Case(
        sequential(dense(4, name="dense"), dense(4, name="dense_1"), dense(4, name="dense_2"), inputs=inputs(4)),
        [inputs(4)],
        lambda: nn.ModuleDict({name: nn.Linear(4, 4) for name in ("dense_1", "dense_2", "dense_3")}),
        lambda net, given: net["dense_3"](net["dense_2"](net["dense_1"](given[0]))),
    ),
    "one module of two layers, with the name of the first": Case(
        sequential(
            layer("LSTM", units=4, return_sequences=True, name="lstm"),
            layer("LSTM", units=4, return_sequences=True, name="lstm_1"),
            dense(4, name="dense"),
            dense(4, name="dense_1"),
            inputs=inputs(6, 4),
        ),
        [inputs(6, 4)],
        lambda: nn.ModuleDict(
            {"lstm": nn.LSTM(4, 4, 2, batch_first=True), "hidden": nn.Linear(4, 4), "dense": nn.Linear(4, 4)}
        ),
        lambda net, given: net["dense"](net["hidden"](net["lstm"](given[0])[0])),
    ),
    "attributes in another order": Case(
        subclassed({"a": dense(4), "b": dense(4), "c": dense(4)}, ["c", "a", "b"]),
        [inputs(4)],
        lambda: nn.ModuleDict({name: nn.Linear(4, 4) for name in ("c", "a", "b")}),
        lambda net, given: net["b"](net["a"](net["c"](given[0]))),
    ),
}


@pytest.mark.parametrize(
    ("name", "generation"), [(name, generation) for name, case in CASES.items() for generation in case.generations]
)
def test_a_model_goes_there_and_back(keras: Keras, name: str, generation: str, tmp_path: Path) -> None:
    there_and_back(CASES[name], generation, keras, tmp_path)
