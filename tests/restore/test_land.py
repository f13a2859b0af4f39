"""Restoring tensors on devices, with devices that are slow or broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_device import DeviceFailedError, SimulatedDevices, SimulatedLink, sleeping

from torch_trackckpt import Checkpoint, CheckpointOptions
from torch_trackckpt.errors import DataLossError, RestoreError
from torch_trackckpt.restore import land

PLAIN = CheckpointOptions(durable=False)


@pytest.fixture
def link() -> Iterator[SimulatedLink]:
    link = SimulatedLink()
    yield link
    link.close()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(land, "BLOCK_BYTES", 8 << 20)


def numbers(*sizes: int) -> dict[str, torch.Tensor]:
    return {f"t{place}": torch.arange(size) + 1000 * place for place, size in enumerate(sizes)}


def zeros_like(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(value) for name, value in values.items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in right)


def on_simulated(live: dict[str, torch.Tensor], devices: SimulatedDevices) -> Checkpoint:
    checkpoint = Checkpoint(values=live)
    checkpoint._own.devices = devices
    return checkpoint


def saved(tmp_path: Path, values: dict[str, torch.Tensor]) -> Path:
    Checkpoint(values=values).write(tmp_path / "ckpt", PLAIN)
    return tmp_path / "ckpt"


@given(
    sizes=st.lists(st.sampled_from([0, 1, 7, 100, 5000, 200_000]), min_size=1, max_size=12),
    on_device=st.integers(0, 2**12 - 1),
    delays=st.lists(st.sampled_from([0, 0.002]), min_size=3, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_every_value_arrives_wherever_its_tensor_is(
    sizes: list[int], on_device: int, delays: list[float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = numbers(*sizes)
    path = saved(tmp_path_factory.mktemp("restore"), values)
    live = zeros_like(values)
    placed = [tensor for number, tensor in enumerate(live.values()) if on_device >> number & 1 and tensor.numel()]
    link = SimulatedLink(lambda number: sleeping(delays[number % 3])(number))
    try:
        on_simulated(live, SimulatedDevices([link], [placed])).read(path).assert_consumed()
    finally:
        link.close()
    assert same(live, values)
    assert ("from host" in link.log) == bool(placed)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_restore_needs_two_blocks_however_large_it_is(num_threads: int, tmp_path: Path, link: SimulatedLink) -> None:
    values = numbers(3_000_000, 10, 1_500_000, 20, 5)
    path = saved(tmp_path, values)
    live = zeros_like(values)
    link._delay = sleeping(0.01)
    devices = SimulatedDevices([link], [list(live.values())])
    told: list[tuple[int, int]] = []
    options = CheckpointOptions(num_threads=num_threads, progress=lambda done, total: told.append((done, total)))
    on_simulated(live, devices).read(path, options).assert_consumed()
    assert same(live, values)
    assert devices.pool.num_bytes == 2 * (8 << 20)
    assert link.log.count("from host") >= 4
    total = sum(value.nbytes for value in values.values()) + 8
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][1] >= total - 8


def test_what_the_program_has_asked_of_the_device_before_comes_first(tmp_path: Path, link: SimulatedLink) -> None:
    values = numbers(100)
    path = saved(tmp_path, values)
    live = zeros_like(values)

    def compute() -> None:
        sleeping(0.05)(0)
        np.copyto(live["t0"].numpy(), -1)

    link.compute(compute)
    on_simulated(live, SimulatedDevices([link], [list(live.values())])).read(path)
    assert same(live, values)


def test_torch_learns_of_the_change(tmp_path: Path, link: SimulatedLink) -> None:
    values = numbers(100)
    path = saved(tmp_path, values)
    live = zeros_like(values)
    version = live["t0"]._version
    on_simulated(live, SimulatedDevices([link], [list(live.values())])).read(path)
    assert live["t0"]._version > version


def test_several_devices_get_their_values_together(tmp_path: Path) -> None:
    values = numbers(10, 20, 30, 400_000, 50)
    path = saved(tmp_path, values)
    live = zeros_like(values)
    links = [SimulatedLink(sleeping(0.002)), SimulatedLink()]
    try:
        devices = SimulatedDevices(links, [[live["t0"], live["t3"]], [live["t1"], live["t4"]]])
        on_simulated(live, devices).read(path).assert_consumed()
    finally:
        for link in links:
            link.close()
    assert same(live, values)


def test_damage_in_a_small_checkpoint_changes_nothing_on_the_device(tmp_path: Path, link: SimulatedLink) -> None:
    values = numbers(100, 100)
    path = saved(tmp_path, values)
    flip(tmp_path, -1)
    live = zeros_like(values)
    with pytest.raises(DataLossError):
        on_simulated(live, SimulatedDevices([link], [list(live.values())])).read(path)
    assert same(live, zeros_like(values))
    assert "from host" not in link.log


@pytest.mark.usefixtures("small_blocks")
def test_damage_that_is_found_on_the_way_names_what_was_overwritten(
    tmp_path: Path, link: SimulatedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_trackckpt.restore.assign.VERIFIED_BEFORE_BYTES", 0)
    values = numbers(2_000_000, 2_000_000)
    path = saved(tmp_path, values)
    flip(tmp_path, -1)
    live = zeros_like(values)
    link._delay = sleeping(0.1)
    with pytest.raises(DataLossError, match=r"values\.t1") as caught:
        on_simulated(live, SimulatedDevices([link], [list(live.values())])).read(path)
    assert caught.value.overwritten == ("(root).values.t0", "(root).values.t1")
    # All that had landed has arrived before the error was raised.
    assert not link.is_copying
    assert torch.equal(live["t0"], values["t0"])


def flip(directory: Path, offset: int) -> None:
    (file,) = directory.glob("*.data-*")
    content = bytearray(file.read_bytes())
    content[offset - 200] ^= 1
    file.write_bytes(content)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("failing", [0, 2])
def test_a_device_that_fails_ends_the_restore(failing: int, tmp_path: Path, link: SimulatedLink) -> None:
    values = numbers(3_000_000)
    path = saved(tmp_path, values)
    live = zeros_like(values)

    def fail(number: int) -> None:
        if number >= failing:
            raise ValueError("broken")

    link._delay = fail
    devices = SimulatedDevices([link], [list(live.values())])
    with pytest.raises(DeviceFailedError):
        on_simulated(live, devices).read(path)
    # The blocks are free again.
    with devices.pool.taking(2, 8 << 20, link.host_memory) as blocks:
        assert len(blocks) == 2


def test_a_refusal_of_the_device_changes_nothing(tmp_path: Path, link: SimulatedLink) -> None:
    values = numbers(10)
    path = saved(tmp_path, values)
    live = zeros_like(values)
    link.has_to_refuse = "a graph is being captured"
    with pytest.raises(RuntimeError, match="captured"):
        on_simulated(live, SimulatedDevices([link], [list(live.values())])).read(path)
    assert same(live, zeros_like(values))


class State:
    """Takes its state at once."""

    def __init__(self) -> None:
        self.number = 0

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number = state["number"]


def test_a_refusal_of_the_device_comes_before_any_object_takes_its_state(tmp_path: Path, link: SimulatedLink) -> None:
    values, state = numbers(10), State()
    state.number = 7
    Checkpoint(values=values, state=state).write(tmp_path / "ckpt", PLAIN)
    live, other = zeros_like(values), State()
    checkpoint = Checkpoint(values=live, state=other)
    checkpoint._own.devices = SimulatedDevices([link], [list(live.values())])
    link.has_to_refuse = "a graph is being captured"
    with pytest.raises(RuntimeError, match="captured"):
        checkpoint.read(tmp_path / "ckpt")
    assert other.number == 0
    link.has_to_refuse = ""
    checkpoint.read(tmp_path / "ckpt").assert_consumed()
    assert other.number == 7


@pytest.mark.usefixtures("small_blocks")
def test_a_tensor_that_moves_while_it_is_restored_ends_the_restore_and_torch_knows_of_all_changes(
    tmp_path: Path, link: SimulatedLink
) -> None:
    values = numbers(2_000_000, 2_000_000)
    path = saved(tmp_path, values)
    live = zeros_like(values)
    devices = SimulatedDevices([link], [list(live.values())])

    def move(done: int, total: int) -> None:
        live["t1"].data = torch.zeros_like(live["t1"])

    version = live["t0"]._version
    with pytest.raises(RestoreError, match="was given other memory"):
        on_simulated(live, devices).read(path, CheckpointOptions(progress=move))
    assert live["t0"]._version == version + 2
    assert not link.is_copying
