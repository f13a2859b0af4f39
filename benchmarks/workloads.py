"""What is saved: live tensors whose values follow from a seed, so that another process can tell whether they came back.

W1 is the state of a training: a transformer of GPT-2's form and its AdamW state, float32, 1,168 tensors, 1.27 GB.
W2 is a dict of 20,000 tensors of 1 to 4 KiB, W3 a dict of 4 tensors of 512 MiB. A scale makes them smaller: of W1 and
W3 the tensors, of W2 their number. `tiny` and `equal` are for looking at how cost grows: their scale is the number of
tensors (of 64 bytes), and the size of 64 tensors together in MB.

Values come from one block of random numbers that is repeated, for each tensor from another place on. Filling and
checking are thus as fast as memory, and what is written cannot be compressed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

NUM_LAYERS = 24
WIDTH = 576
VOCABULARY = 16384
POSITIONS = 1024

SMALLEST = {"W1": 1e-4, "W2": 1e-3, "W3": 1e-6, "tiny": 4, "equal": 1e-3}
"""The scale of each workload at which it is a few kilobytes."""

_BLOCK = (1 << 20) + 7


class Block(nn.Module):
    """The parameters of one transformer layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


class Transformer(nn.Module):
    """The parameters of GPT-2: 292 tensors, whatever the width."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        side = math.sqrt(scale)
        width = max(8, round(WIDTH * side / 8) * 8)
        self.tokens = nn.Embedding(max(8, round(VOCABULARY * side)), width)
        self.positions = nn.Embedding(max(8, round(POSITIONS * side)), width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(NUM_LAYERS))
        self.norm = nn.LayerNorm(width)


@dataclasses.dataclass(frozen=True)
class Training:
    """A model and an optimizer that has state for each of its parameters."""

    model: nn.Module
    optimizer: torch.optim.Optimizer


@dataclasses.dataclass(frozen=True)
class Workload:
    """Live tensors: those of a training, or a plain dict of them."""

    name: str
    training: Training | None = None
    plain: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    one: str = ""
    """The tensor that is read alone."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by a flat name. Of a training, those that its optimizer holds at the moment."""
        if self.training is None:
            return dict(self.plain)
        named = {name: parameter.detach() for name, parameter in self.training.model.named_parameters()}
        for name, parameter in self.training.model.named_parameters():
            for slot, value in self.training.optimizer.state[parameter].items():
                named[f"{name}/{slot}"] = value
        return named

    def state(self) -> dict[str, Any]:
        """The nested dict that one gives to `torch.save`."""
        if self.training is None:
            return {"tensors": self.plain}
        return {"model": self.training.model.state_dict(), "optimizer": self.training.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes what `state` gave, as one does after `torch.load`."""
        if self.training is None:
            with torch.no_grad():
                for name, tensor in self.plain.items():
                    tensor.copy_(state["tensors"][name])
        else:
            self.training.model.load_state_dict(state["model"])
            self.training.optimizer.load_state_dict(state["optimizer"])

    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def fill(self, seed: int) -> None:
        with torch.no_grad():
            for live, value in pieces(self.tensors(), seed):
                live.copy_(value)


def pieces(tensors: dict[str, torch.Tensor], seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pieces of each tensor, flat, beside the values that the seed gives them."""
    block = torch.rand(_BLOCK, generator=torch.Generator().manual_seed(seed)) + 0.5
    for number, tensor in enumerate(tensors.values()):
        flat = tensor.detach().view(-1)
        start, place = 0, number * 9973 % _BLOCK
        while start < flat.numel():
            size = min(flat.numel() - start, _BLOCK - place)
            yield flat[start : start + size], block[place : place + size]
            start, place = start + size, 0


def differing(tensors: dict[str, torch.Tensor], seed: int) -> int:
    """How many pieces differ, in any bit, from what the seed gives."""
    return sum(
        not torch.equal(live.view(torch.int32), value.view(torch.int32)) for live, value in pieces(tensors, seed)
    )


def digest(tensors: dict[str, torch.Tensor]) -> list[int]:
    """A sum over the bits of each tensor: tells one step of a training from another."""
    return [int(tensor.detach().view(-1).view(torch.int32).sum()) for tensor in tensors.values()]


def make_workload(name: str, scale: float, seed: int) -> Workload:
    """Tensors in memory that was touched, filled by the seed."""
    workload = _MAKERS[name](scale)
    workload.fill(seed)
    return workload


def _training(scale: float) -> Workload:
    with torch.device("meta"):
        model = Transformer(scale)
    model = model.to_empty(device="cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(1.0),
            "exp_avg": torch.empty_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.empty_like(parameter, requires_grad=False),
        }
    return Workload("W1", Training(model, optimizer), one=f"blocks.{NUM_LAYERS // 2}.up.weight")


def _dict(name: str, sizes: list[int]) -> Workload:
    plain = {f"layer{number // 8}_part{number % 8}": torch.empty(size) for number, size in enumerate(sizes)}
    return Workload(name, plain=plain, one=list(plain)[len(plain) // 2])


def _small(scale: float) -> Workload:
    return _dict("W2", [256 + number * 331 % 769 for number in range(max(4, round(20_000 * scale)))])


def _large(scale: float) -> Workload:
    return _dict("W3", [max(16, round(2**27 * scale))] * 4)


def _tiny(number: float) -> Workload:
    return _dict("tiny", [16] * round(number))


def _equal(megabytes: float) -> Workload:
    return _dict("equal", [max(16, round(megabytes * 1e6 / 4 / 64))] * 64)


_MAKERS = {"W1": _training, "W2": _small, "W3": _large, "tiny": _tiny, "equal": _equal}


def num_bytes(name: str, scale: float) -> int:
    """About the size of a workload, without making it."""
    if name == "tiny":
        return round(scale) * 64
    return round({"W1": 1.27e9 * scale, "W2": 20_000 * 2560 * scale, "W3": 2**31 * scale, "equal": scale * 1e6}[name])
