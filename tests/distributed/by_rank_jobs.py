"""What ranks do that have states of their own."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from torch_trackckpt import Checkpoint, CheckpointOptions

FAST = CheckpointOptions(durable=False)


class Loader:
    """With a buffer that is not equally long in all processes, and something that only the last has."""

    def __init__(self, rank: int, size: int) -> None:
        self.state: dict[str, Any] = {
            "seen": torch.arange(3 + 2 * rank),
            "mask": torch.ones(rank, 2, dtype=torch.bool),
            "none": torch.zeros(0, rank, dtype=torch.float16),
            "number": torch.tensor(float(rank)) if rank else torch.full((2, 1), 7.0),
            "even": torch.full((2, 2), rank, dtype=torch.bfloat16),
            "strided": torch.arange(6.0).reshape(2, 3).t()[rank:] + rank,
        }
        if rank:
            self.state["pair"] = torch.tensor([rank])
        if rank == size - 1:
            self.state["last"] = torch.arange(4.0)

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


class Text:
    """A state that may be really empty."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    def serialize(self) -> bytes:
        return self.text

    def deserialize(self, text: bytes) -> None:
        self.text = text


def listed(loader: Loader) -> dict[str, Any]:
    return {name: [str(value.dtype), list(value.shape), value.tolist()] for name, value in loader.state.items()}


def objects_of(rank: int, size: int) -> dict[str, Any]:
    """Of the texts, each is empty in another process, and some processes do not have all of them."""
    found: dict[str, Any] = {
        "loader": Loader(rank, size),
        "first": Text(b"" if rank == 0 else b"1"),
        "last": Text(b"" if rank == size - 1 else b"0"),
    }
    if rank == size - 1:
        found["only"] = Text(b"")
    if rank:
        found["pair"] = Text(b"" if rank == 1 else b"2")
    return found


def keep_states(rank: int, size: int, path: str) -> Any:
    """Saves twice, where the second is of other shapes, and restores both."""
    objects = objects_of(rank, size)
    loader = objects["loader"]
    checkpoint = Checkpoint(**objects)
    found = []
    for number in range(2):
        loader.state["seen"] = torch.arange(3 + 2 * rank + number * (rank + 1))
        expected = listed(loader)
        saved = checkpoint.write(f"{path}/ckpt-{number}", FAST)
        dist.barrier()
        others: dict[str, Any] = {name: Text(b"before") for name in objects if name != "loader"}
        others["loader"] = Loader(0, 1)
        Checkpoint(**others).read(saved).assert_existing_objects_matched()
        texts = {name: value.text.decode() for name, value in others.items() if isinstance(value, Text)}
        found.append({"expected": expected, "found": listed(others["loader"]), "texts": texts})
    return found
