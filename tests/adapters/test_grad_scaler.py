"""Gradient scalers go on with their scale, and with the count of steps that lead to the next one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.optimizers import py_state
from runs import FAST, Net, Run, is_same
from torch import optim
from torch.amp import GradScaler

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import DataLossError, MismatchError
from torch_trackckpt.trackable import PYTHON_STATE, Trackable, Value

OVERFLOW_AT = 6


class MixedPrecision:
    """A program that computes in half precision, whose gradients are not finite in one of its steps."""

    def __init__(self, dtype: torch.dtype, **options: Any) -> None:
        torch.manual_seed(0)
        model = Net(("first", "second"))
        self.dtype = dtype
        self.run = Run(model, optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
        self.scaler = GradScaler("cpu", **{"init_scale": 8.0, "growth_interval": 3, **options})

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(model=self.run.model, optimizer=self.run.optimizer, scaler=self.scaler)

    def train(self, num_steps: int) -> list[float]:
        scales = []
        for _ in range(num_steps):
            self.run.optimizer.zero_grad()
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(self.run.num_steps))
            with torch.autocast("cpu", self.dtype):
                loss = self.run.model(x).square().mean()
            self.scaler.scale(loss).backward()
            if self.run.num_steps == OVERFLOW_AT:
                next(self.run.model.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]
            self.scaler.step(self.run.optimizer)
            self.scaler.update()
            scales.append(self.scaler.get_scale())
            self.run.num_steps += 1
        return scales


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num_before", [1, 4, 5, 7])
@pytest.mark.parametrize(
    "options",
    [{}, {"init_scale": 1.0, "growth_factor": 3.0, "backoff_factor": 0.125, "growth_interval": 50}],
    ids=["same settings", "other settings"],
)
def test_a_resumed_scaler_goes_on_bit_for_bit(
    dtype: torch.dtype, num_before: int, options: dict[str, float], tmp_path: Path
) -> None:
    """C111, C166: also in the middle of an interval. The stored settings count, as with load_state_dict."""
    uninterrupted = MixedPrecision(dtype)
    expected = uninterrupted.train(12)
    first = MixedPrecision(dtype)
    first.train(num_before)
    path = first.checkpoint.save(tmp_path / "ckpt", FAST)

    second = MixedPrecision(dtype, **options)
    second.checkpoint.restore(path).assert_consumed()
    assert second.scaler.state_dict() == first.scaler.state_dict()
    second.run.num_steps = num_before

    assert second.train(12 - num_before) == expected[num_before:]
    assert sorted(set(expected)) == [8.0, 16.0, 32.0]
    assert second.scaler.state_dict() == uninterrupted.scaler.state_dict()
    assert is_same(second.run.result(), uninterrupted.run.result())


def test_a_scaler_that_was_in_use_takes_the_stored_state_in_place(prefix: str) -> None:
    """C104, C166"""
    program = MixedPrecision(torch.bfloat16)
    program.train(4)
    path, saved = program.checkpoint.save(prefix), program.scaler.state_dict()
    program.train(5)
    scale = program.scaler._scale

    program.checkpoint.restore(path).assert_consumed()

    assert program.scaler.state_dict() == saved
    assert program.scaler._scale is scale


def test_a_disabled_scaler_with_an_empty_state_round_trips(prefix: str) -> None:
    """C166"""
    path = Checkpoint(scaler=GradScaler("cpu", enabled=False)).save(prefix)

    Checkpoint(scaler=GradScaler("cpu", enabled=False)).restore(path).assert_consumed()

    assert py_state(prefix + "-1", "scaler") == {}


def test_the_state_of_a_disabled_scaler_is_a_mismatch_for_an_enabled_one_and_nothing_changes(prefix: str) -> None:
    """C166"""
    path = Checkpoint(scaler=GradScaler("cpu", enabled=False), weight=torch.ones(1)).save(prefix)
    scaler, weight = GradScaler("cpu", init_scale=4.0), torch.zeros(1)

    with pytest.raises(MismatchError, match=r"\(root\)\.scaler .* saved with a disabled gradient scaler"):
        Checkpoint(scaler=scaler, weight=weight).restore(path)

    assert scaler.get_scale() == 4.0
    assert float(weight) == 0


def test_the_status_tells_that_a_disabled_scaler_did_not_use_what_is_stored(prefix: str) -> None:
    """C166"""
    path = Checkpoint(scaler=GradScaler("cpu")).save(prefix)

    status = Checkpoint(scaler=GradScaler("cpu", enabled=False)).restore(path)

    with pytest.raises(AssertionError, match=r"\(root\)\.scaler.*this one is disabled"):
        status.assert_consumed()


STATE = b'{"scale":8.0,"growth_factor":2.0,"backoff_factor":0.5,"growth_interval":3,"_growth_tracker":1}'


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"[]",
        lambda text: b"5",
        lambda text: text.replace(b"8.0", b'"8.0"'),
        lambda text: text.replace(b"8.0", b"true"),
        lambda text: text.replace(b"_growth_tracker", b"other"),
    ],
    ids=["a list", "a number", "a scale that is text", "a scale that is a bool", "a missing count"],
)
def test_a_state_that_no_scaler_wrote_is_damage_and_nothing_changes(
    change: Callable[[bytes], bytes], prefix: str
) -> None:
    """C169"""

    class Stored(Trackable):
        def _serialize_to_tensors(self) -> dict[str, Value]:
            return {PYTHON_STATE: change(STATE)}

    path = Checkpoint(scaler=Stored()).save(prefix)
    scaler = GradScaler("cpu", init_scale=4.0)
    before = scaler.state_dict()

    with pytest.raises(DataLossError, match=r"\(root\)\.scaler cannot be restored .* gradient scaler"):
        Checkpoint(scaler=scaler).restore(path)

    assert scaler.state_dict() == before
