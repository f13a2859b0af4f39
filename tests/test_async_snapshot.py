"""An asynchronous save holds the values of the moment of its call, whatever happens to them right afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import walk
from held import ASYNC, HeldStorage
from stored_dtypes import DTYPES
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointOptions, NoDependency, load_checkpoint
from torch_trackckpt.sharding import MaxShardSizePolicy
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY

SYNC = CheckpointOptions(durable=False)


class Notes:
    """A python state."""

    def __init__(self) -> None:
        self.text = "old"

    def serialize(self) -> str:
        return self.text

    def deserialize(self, string_value: bytes) -> None:
        self.text = string_value.decode()


class Sampler:
    """Has a state_dict with values of several kinds, which are its own and not copies."""

    def __init__(self, rng: random.Random) -> None:
        self.state = {
            "epoch": rng.randrange(9),
            "order": [rng.random() for _ in range(3)],
            "weights": torch.rand(rng.randrange(1, 4)),
            "by_rank": {0: ("a", torch.rand(2, 2).t())},
        }

    def state_dict(self) -> dict[str, object]:
        return self.state

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.state = state


class Model(nn.Module):
    """Tied weights, views of each other's memory, and a buffer of another dtype."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        width = rng.randrange(1, 6)
        self.first = nn.Linear(width, width, dtype=rng.choice([torch.float32, torch.float64, torch.bfloat16]))
        self.tied = nn.Linear(width, width)
        self.tied.weight = self.first.weight
        flat = torch.rand(2 * width)
        self.halves = nn.ParameterList([flat[:width], flat[width:]])
        self.register_buffer("seen", torch.tensor(rng.randrange(100)))


def some_tensors(rng: random.Random) -> dict[str, torch.Tensor]:
    """Tensors of any dtype, in any layout."""
    made = {}
    for number in range(rng.randrange(1, 6)):
        dtype = rng.choice(DTYPES)
        rows, columns = rng.randrange(4), rng.randrange(1, 5)
        raw = torch.randint(0, 2 if dtype is torch.bool else 256, (rows * columns * dtype.itemsize,)).to(torch.uint8)
        tensor = raw.view(dtype).reshape(rows, columns)
        layouts: list[Callable[[torch.Tensor], torch.Tensor]] = [
            lambda t: t,
            lambda t: t.t(),
            lambda t: t[:, ::2],
            lambda t: t[:, :1].expand(t.shape[0], 3),
            lambda t: t.conj() if t.is_complex() else t,
            lambda t: t.conj().imag if t.is_complex() else t,
        ]
        made[f"t{number}"] = rng.choice(layouts)(tensor)
        made[f"same{number}"] = tensor[:1]
    return made


def some_optimizer(rng: random.Random, model: Model) -> torch.optim.Optimizer:
    """One that has taken steps, so that it has states."""
    kinds: list[Callable[[], torch.optim.Optimizer]] = [
        lambda: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        lambda: torch.optim.AdamW(model.parameters(), amsgrad=True, foreach=False),
        lambda: torch.optim.Adagrad(model.parameters(), foreach=False),
        lambda: torch.optim.LBFGS(model.tied.parameters()),
    ]
    optimizer = rng.choice(kinds)()
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step(lambda: torch.tensor(rng.random()))
    return optimizer


class Training:
    """Everything that one seed makes."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.rng = random.Random(seed)
        self.model = Model(self.rng)
        self.optimizer = some_optimizer(self.rng, self.model)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)
        self.notes, self.sampler, self.generator = Notes(), Sampler(self.rng), torch.Generator().manual_seed(seed)
        self.checkpoint = Checkpoint(
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            notes=self.notes,
            sampler=self.sampler,
            generator=self.generator,
            tensors=some_tensors(self.rng),
        )

    def change(self) -> None:
        """Changes every byte of every tensor in place, and every python state."""
        tensors = [value.value for value in walk(self.checkpoint).values if isinstance(value.value, torch.Tensor)]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
        for storage in storages.values():
            # The lowest bit alone, so that a bool stays one.
            torch.empty(0, dtype=torch.uint8).set_(storage).bitwise_xor_(1)
        self.notes.text = "new"
        self.sampler.state["epoch"] = -1
        self.sampler.state["order"].clear()  # type: ignore[attr-defined]
        torch.rand(1, generator=self.generator)
        self.optimizer.param_groups[0]["lr"] *= 3
        for state in self.optimizer.state.values():
            state.update({name: value + 1 for name, value in state.items() if type(value) is int})
        self.scheduler.last_epoch += 7

    def tear_down(self) -> None:
        """Takes the memory and the objects themselves away."""
        for value in walk(self.checkpoint).values:
            if isinstance(value.value, torch.Tensor) and self.rng.random() < 0.5:
                value.value.untyped_storage().resize_(0)
        self.optimizer.state.clear()
        self.checkpoint.model = NoDependency(None)
        self.checkpoint.extra = torch.ones(3)


@pytest.mark.parametrize("seed", range(200))
def test_values_changed_right_after_a_save_returns_are_in_the_file_as_they_were(
    tmp_path: Path, held: HeldStorage, seed: int
) -> None:
    """C314, C315, C332"""
    training = Training(seed)
    sharding = MaxShardSizePolicy(200) if seed % 4 == 0 else None
    sync = CheckpointOptions(durable=False, experimental_sharding_callback=sharding)
    held.release()
    training.checkpoint.write(tmp_path / "expected", sync)

    held.hold()
    training.checkpoint.write(
        tmp_path / "ckpt",
        CheckpointOptions(durable=False, enable_async=True, experimental_sharding_callback=sharding),
    )
    training.change()
    if seed % 2:
        training.tear_down()
    held.release()
    training.checkpoint.sync()

    expected = sorted(tmp_path.glob("expected.*"))
    written = sorted(tmp_path.glob("ckpt.*"))
    assert [path.suffix for path in written] == [path.suffix for path in expected]
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in expected]
    if not seed % 2:
        assert unchanged_keys(training.checkpoint, tmp_path) == []


def unchanged_keys(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """What the test failed to change, so that it would prove nothing."""
    after = load_checkpoint(checkpoint.write(folder / "after", SYNC))
    before = load_checkpoint(folder / "expected")
    return [
        key
        for key in before
        if key != OBJECT_GRAPH_KEY and before[key].nbytes and same(before.get_tensor(key), after.get_tensor(key))
    ]


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    return one == other


def test_the_second_save_takes_the_values_of_its_own_moment(tmp_path: Path, held: HeldStorage) -> None:
    """C314, C316: the buffer that both use is free when the second begins."""
    x = torch.full((10_000,), 1)
    checkpoint = Checkpoint(x=x)
    held.release()
    for value in (1, 2, 3):
        x.fill_(value)
        checkpoint.write(tmp_path / f"ckpt{value}", ASYNC)
        x.fill_(0)
    checkpoint.sync()
    for value in (1, 2, 3):
        stored = load_checkpoint(tmp_path / f"ckpt{value}").get_tensor("x/.ATTRIBUTES/VARIABLE_VALUE")
        assert torch.equal(torch.as_tensor(stored), torch.full((10_000,), value))


def test_a_value_that_is_made_up_at_the_call_is_that_of_the_call(tmp_path: Path, held: HeldStorage) -> None:
    """C315: an object that serializes itself is asked before the call returns, and not again."""
    asked: list[str] = []

    class Asked(Notes):
        def serialize(self) -> str:
            asked.append(self.text)
            return self.text

    notes = Asked()
    root = AutoTrackable()
    root.notes = notes
    checkpoint = Checkpoint(root)
    checkpoint.write(tmp_path / "ckpt", ASYNC)
    assert asked == ["old"]
    notes.text = "new"
    held.release()
    checkpoint.sync()
    assert asked == ["old"]
    assert load_checkpoint(tmp_path / "ckpt").get_tensor("notes/.ATTRIBUTES/py_state") == b"old"
