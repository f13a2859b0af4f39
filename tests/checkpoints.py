"""Small objects to save, and looks at what was saved of them."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import torch
import witness

from torch_trackckpt import (
    AutoTrackable,
)
from torch_trackckpt.graph.messages import decode_object_graph
from torch_trackckpt.graph.object_graph import ObjectGraph
from torch_trackckpt.graph.walk import capture, collect
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY, Value

X = "x/.ATTRIBUTES/VARIABLE_VALUE"


def paths(prefix: str) -> list[str]:
    """The object paths of all values in a file, in the order of their keys."""
    return [key.split("/.ATTRIBUTES")[0] for key in witness.read_bundle(prefix) if key != OBJECT_GRAPH_KEY]


@dataclasses.dataclass(frozen=True)
class NamedValue:
    """A value and the key it is stored under."""

    key: str
    value: Value


@dataclasses.dataclass(frozen=True)
class Walked:
    """What would be saved of a root."""

    graph: ObjectGraph
    values: list[NamedValue]
    unreachable: tuple[str, ...]


def walk(root: object, attached: Mapping[str, object] | None = None) -> Walked:
    """What would be saved of a root: its object graph, and every value in it."""
    snapshot = collect(capture(root, attached))
    values = [NamedValue(key, value) for key, value in zip(snapshot.keys, snapshot.values, strict=True)]
    return Walked(decode_object_graph(snapshot.graph.record, "the walk"), values, snapshot.unreachable)


def thing(**children: object) -> AutoTrackable:
    made = AutoTrackable()
    for name, child in children.items():
        setattr(made, name, child)
    return made


class Text:
    """An object that encodes itself."""

    def __init__(self, text: str = "") -> None:
        self.text = text

    def serialize(self) -> str:
        return self.text

    def deserialize(self, string_value: bytes) -> None:
        self.text = string_value.decode()


def names_in(directory: Path | str) -> list[str]:
    return sorted(os.listdir(directory))


def zero() -> torch.Tensor:
    return torch.tensor(0)
