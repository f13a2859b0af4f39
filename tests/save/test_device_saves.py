"""Saving what lies on devices, with devices that are slow, out of step with the program, or broken."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_device import DeviceFailedError, SimulatedDevices, SimulatedLink, sleeping

from torch_trackckpt import Checkpoint, CheckpointOptions, load_checkpoint
from torch_trackckpt.devices.link import HostMemory
from torch_trackckpt.devices.pieces import Window
from torch_trackckpt.save import drain
from torch_trackckpt.save.staging import StagingBuffer

SYNC = CheckpointOptions(durable=False, num_threads=1)
FIRST = CheckpointOptions(durable=False, enable_async=True)
OVERLAPPED = CheckpointOptions(durable=False, enable_async=True, async_copy="overlapped")
ON_DEVICE = CheckpointOptions(durable=False, enable_async=True, device_snapshot_bytes=1 << 30)
MODES = {"synchronous": SYNC, "first": FIRST, "overlapped": OVERLAPPED, "on the device": ON_DEVICE}


@pytest.fixture
def link() -> Iterator[SimulatedLink]:
    link = SimulatedLink()
    yield link
    link.close()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "BLOCK_BYTES", 1024)


def on_simulated(checkpoint: Checkpoint, devices: SimulatedDevices) -> Checkpoint:
    checkpoint._own.devices = devices
    checkpoint._own.staging = StagingBuffer(devices)
    return checkpoint


def numbers(*sizes: int) -> list[torch.Tensor]:
    return [torch.arange(size, dtype=torch.float32) + 1000 * place for place, size in enumerate(sizes)]


def key(name: str) -> str:
    return f"{name}/.ATTRIBUTES/VARIABLE_VALUE"


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("mode", MODES)
def test_the_files_are_those_of_the_same_values_on_the_processor(
    mode: str, tmp_path: Path, link: SimulatedLink
) -> None:
    sizes = (3, 700, 0, 1, 2000, 256, 5, 5, 5, 900)
    tensors = numbers(*sizes)
    values = {f"t{number}": tensor for number, tensor in enumerate(tensors)}
    devices = SimulatedDevices([link], [[tensor for number, tensor in enumerate(tensors) if number % 3]])
    checkpoint = on_simulated(Checkpoint(values=values), devices)

    checkpoint.write(tmp_path / "device/ckpt", MODES[mode])
    checkpoint.sync()
    Checkpoint(values=values).write(tmp_path / "processor/ckpt", SYNC)

    assert files(tmp_path / "device") == files(tmp_path / "processor")
    assert "to host" in link.log


@pytest.mark.usefixtures("small_blocks")
def test_a_synchronous_save_needs_two_blocks_however_large_it_is(tmp_path: Path, link: SimulatedLink) -> None:
    large = torch.arange(100_000)
    devices = SimulatedDevices([link], [[large]])
    on_simulated(Checkpoint(values={"large": large}), devices).write(tmp_path / "ckpt", SYNC)
    assert devices.pool.num_bytes == 2 * 1024
    assert link.log.count("to host") == -(-large.nbytes // 1024)
    assert torch.equal(load_checkpoint(tmp_path / "ckpt").get_tensor(key("values/large")), large)


@pytest.mark.usefixtures("small_blocks")
def test_a_budget_of_one_block_is_enough(tmp_path: Path, link: SimulatedLink) -> None:
    large = torch.arange(1000)
    checkpoint = on_simulated(Checkpoint(values={"large": large}), SimulatedDevices([link], [[large]]))
    checkpoint.write(tmp_path / "ckpt", dataclasses.replace(SYNC, page_locked_bytes=1))
    assert checkpoint._own.devices.pool.num_bytes == 1024
    assert torch.equal(load_checkpoint(tmp_path / "ckpt").get_tensor(key("values/large")), large)


@pytest.mark.usefixtures("small_blocks")
def test_small_numbers_on_the_processor_do_not_come_between_those_on_the_device(
    tmp_path: Path, link: SimulatedLink
) -> None:
    """Optimizers keep a step beside the state of each parameter."""
    states = numbers(*[10] * 40)
    values = {f"{number:02}": state for number, state in enumerate(states)}
    devices = SimulatedDevices([link], [states[::2]])
    on_simulated(Checkpoint(values=values), devices).write(tmp_path / "ckpt", SYNC)
    assert link.log.count("to host") <= 2


@pytest.mark.parametrize("mode", MODES)
def test_values_are_those_that_the_device_will_have_computed_when_the_call_is_made(
    mode: str, tmp_path: Path, link: SimulatedLink
) -> None:
    """C314: the program is ahead of its device."""
    weight = torch.zeros(1000)
    devices = SimulatedDevices([link], [[weight]])
    checkpoint = on_simulated(Checkpoint(values={"weight": weight}), devices)
    go = threading.Event()

    def compute() -> None:
        go.wait(60)
        np.copyto(weight.numpy(), 1.0)

    link.compute(compute)
    threading.Timer(0.1, go.set).start()
    checkpoint.write(tmp_path / "ckpt", MODES[mode])
    checkpoint.sync()
    assert load_checkpoint(tmp_path / "ckpt").get_tensor(key("values/weight")).tolist() == [1.0] * 1000


@pytest.mark.parametrize("mode", [FIRST, ON_DEVICE], ids=["first", "on the device"])
def test_what_the_program_asks_of_the_device_after_the_call_is_not_saved(
    mode: CheckpointOptions, tmp_path: Path, link: SimulatedLink
) -> None:
    """C314"""
    link._delay = sleeping(0.05)
    weight = torch.zeros(1000)
    devices = SimulatedDevices([link], [[weight]])
    checkpoint = on_simulated(Checkpoint(values={"weight": weight}), devices)
    checkpoint.write(tmp_path / "ckpt", mode)
    link.compute(lambda: np.copyto(weight.numpy(), 1.0))
    checkpoint.sync()
    link.synchronize()
    assert weight.tolist() == [1.0] * 1000
    assert load_checkpoint(tmp_path / "ckpt").get_tensor(key("values/weight")).tolist() == [0.0] * 1000


class Training:
    """A model and its optimizer on a device whose work lags behind the program. There are no gradients, so that the
    optimizer itself, on the processor, changes nothing."""

    def __init__(self, link: SimulatedLink, path: Path) -> None:
        self.link = link
        self.model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.BatchNorm1d(512))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)
        self.path = path
        placed = [tensor for tensor in self.model.state_dict(keep_vars=True).values() if tensor.ndim]
        self.checkpoint = on_simulated(
            Checkpoint(model=self.model, optimizer=self.optimizer), SimulatedDevices([link], [placed])
        )
        with torch.no_grad():
            self.model[0].weight.fill_(0.5)

    def forward(self) -> None:
        """Changes the statistics of the normalisation, some time."""
        mean: Any = self.model[1].running_mean
        self.link.compute(lambda: np.copyto(mean.numpy(), mean.numpy() + 1))

    def step(self) -> None:
        """Changes the parameters, some time."""
        weight: Any = self.model[0].weight
        values = weight.detach().numpy()
        self.optimizer.step()
        self.link.compute(lambda: np.copyto(values, values + 1))

    def values(self) -> list[float]:
        self.link.synchronize()
        weight: Any = self.model[0].weight
        mean: Any = self.model[1].running_mean
        return [float(weight[0, 0].detach()), float(mean[0])]

    def saved(self) -> list[float]:
        reader = load_checkpoint(self.path / "ckpt")
        weight = reader.get_tensor(key("model/0/weight"))
        # Not torn.
        assert weight.unique().numel() == 1
        return [float(weight[0, 0]), float(reader.get_tensor(key("model/1/running_mean"))[0])]


@pytest.mark.parametrize("mode", ["first", "overlapped", "on the device"])
@given(
    delays=st.lists(st.sampled_from([0, 0.001, 0.004]), min_size=6, max_size=6),
    before=st.integers(0, 2),
    rounds=st.lists(st.sampled_from(["forward", "step"]), max_size=6),
)
@settings(max_examples=25, deadline=None)
def test_a_checkpoint_is_of_the_moment_of_its_call_whatever_the_device_does_when(
    mode: str, delays: list[float], before: int, rounds: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """C314: hypothesis chooses the order of events."""
    link = SimulatedLink(lambda number: sleeping(delays[number % len(delays)])(number))
    try:
        training = Training(link, tmp_path_factory.mktemp("save"))
        for _ in range(before):
            training.forward()
            training.step()
        expected = [0.5 + before, float(before)]
        training.checkpoint.write(training.path / "ckpt", MODES[mode])
        for action in rounds:
            getattr(training, action)()
        training.checkpoint.sync()
        assert training.saved() == expected
        assert training.values() == [
            expected[0] + rounds.count("step"),
            expected[1] + rounds.count("forward"),
        ]
    finally:
        link.close()


def test_an_overlapped_save_returns_before_its_copies_are_made_and_only_the_step_waits(
    tmp_path: Path, link: SimulatedLink
) -> None:
    may_copy = threading.Event()
    link._delay = lambda number: number > 0 and may_copy.wait(60)
    training = Training(link, tmp_path)
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    # The statistics are copied, and held back, before the parameters are.
    assert link.log == ["follow", "to host", "hold back", "to host"]
    training.forward()
    training.step()
    assert link.log[4:] == ["hold back", "hold back"]
    may_copy.set()
    training.checkpoint.sync()


def test_a_copy_on_the_device_needs_room_and_leave(tmp_path: Path, link: SimulatedLink) -> None:
    weight = torch.zeros(1000)
    devices = SimulatedDevices([link], [[weight]])
    checkpoint = on_simulated(Checkpoint(values={"weight": weight}), devices)
    for free, allowed, wanted in [(1 << 30, 1 << 30, True), (1000, 1 << 30, False), (1 << 30, 1000, False)]:
        link.free_bytes = free
        link.log.clear()
        options = CheckpointOptions(durable=False, enable_async=True, device_snapshot_bytes=allowed)
        checkpoint.write(tmp_path / "ckpt", options)
        checkpoint.sync()
        assert ("snapshot" in link.log) is wanted
        assert load_checkpoint(tmp_path / "ckpt").get_tensor(key("values/weight")).tolist() == [0.0] * 1000


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("mode", "failing"),
    [*((mode, 0) for mode in MODES), *((mode, copy) for mode in ("synchronous", "on the device") for copy in (1, 7))],
)
def test_a_device_that_fails_leaves_no_checkpoint_and_what_was_there(
    mode: str, failing: int, tmp_path: Path, link: SimulatedLink
) -> None:
    weight = torch.arange(2000.0)
    devices = SimulatedDevices([link], [[weight]])
    checkpoint = on_simulated(Checkpoint(values={"weight": weight}), devices)
    checkpoint.write(tmp_path / "ckpt", SYNC)
    before = files(tmp_path)
    begun = link._number

    def fail(number: int) -> None:
        if number >= begun + failing:
            raise ValueError("broken")

    link._delay = fail
    weight += 1

    def save() -> None:
        checkpoint.write(tmp_path / "ckpt", MODES[mode])
        checkpoint.sync()

    with pytest.raises(DeviceFailedError):
        save()
    assert files(tmp_path) == before


def test_a_device_that_fails_at_a_late_copy_leaves_no_checkpoint_and_lets_the_step_go_on(
    tmp_path: Path, link: SimulatedLink
) -> None:
    training = Training(link, tmp_path)

    def fail(number: int) -> None:
        if number > 0:
            raise ValueError("broken")

    link._delay = fail
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    training.forward()
    training.step()
    with pytest.raises(DeviceFailedError):
        training.checkpoint.sync()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_blocks")
def test_an_interrupt_before_there_is_a_ticket_frees_no_memory_that_is_still_written_to(
    tmp_path: Path, link: SimulatedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.arange(2000.0)
    checkpoint = on_simulated(Checkpoint(values={"weight": weight}), SimulatedDevices([link], [[weight]]))
    begin = link.to_host
    link._delay = sleeping(0.1)

    def interrupted(window: Window, memory: HostMemory) -> NoReturn:
        begin(window, memory)
        raise KeyboardInterrupt

    monkeypatch.setattr(link, "to_host", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path / "ckpt", SYNC)
    assert not link.is_copying


@pytest.mark.usefixtures("small_blocks")
def test_a_writer_that_fails_waits_for_what_still_arrives_in_its_memory(
    tmp_path: Path, link: SimulatedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.arange(2000.0)
    checkpoint = on_simulated(Checkpoint(values={"weight": weight}), SimulatedDevices([link], [[weight]]))

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("torch_trackckpt.bundle.writer.BundleWriter.add_parts", fail)
    link._delay = lambda number: sleeping(0.2 * number)(number)
    with pytest.raises(OSError, match="full"):
        checkpoint.write(tmp_path / "ckpt", SYNC)
    assert not link.is_copying
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", MODES)
def test_a_refusal_of_the_device_reaches_the_caller_and_nothing_is_written(
    mode: str, tmp_path: Path, link: SimulatedLink
) -> None:
    """As while a CUDA graph is captured, or after a fork."""
    weight = torch.zeros(10)
    checkpoint = on_simulated(Checkpoint(values={"weight": weight}), SimulatedDevices([link], [[weight]]))
    link.has_to_refuse = "a graph is being captured"
    with pytest.raises(RuntimeError, match="captured"):
        checkpoint.write(tmp_path / "ckpt", MODES[mode])
    assert not list(tmp_path.iterdir())
    link.has_to_refuse = ""
    checkpoint.write(tmp_path / "ckpt", MODES[mode])
    checkpoint.sync()


def test_memory_for_copies_is_kept_from_save_to_save(tmp_path: Path, link: SimulatedLink) -> None:
    weight = torch.zeros(100_000)
    checkpoint = on_simulated(Checkpoint(values={"weight": weight}), SimulatedDevices([link], [[weight]]))
    checkpoint.prewarm(FIRST)
    num_bytes = checkpoint._own.devices.pool.num_bytes
    assert weight.nbytes <= num_bytes <= weight.nbytes + (2 << 20)
    for _ in range(3):
        checkpoint.write(tmp_path / "ckpt", FIRST)
        checkpoint.sync()
    assert checkpoint._own.devices.pool.num_bytes == num_bytes


def test_memory_for_copies_on_devices_and_their_way_to_the_host_is_taken_before_the_first_save(
    tmp_path: Path, link: SimulatedLink
) -> None:
    weight = torch.zeros(100_000)
    checkpoint = on_simulated(Checkpoint(values={"weight": weight}), SimulatedDevices([link], [[weight]]))
    checkpoint.prewarm(MODES["on the device"])
    num_bytes = checkpoint._own.devices.pool.num_bytes
    assert num_bytes == 2 * drain.BLOCK_BYTES
    checkpoint.write(tmp_path / "ckpt", MODES["on the device"])
    checkpoint.sync()
    assert checkpoint._own.devices.pool.num_bytes == num_bytes


def test_page_locked_memory_can_be_bounded_and_given_back(tmp_path: Path, link: SimulatedLink) -> None:
    weight = torch.arange(100_000)
    checkpoint = on_simulated(Checkpoint(values={"weight": weight}), SimulatedDevices([link], [[weight]]))
    locked: list[int] = []
    allocate = link.host_memory
    link.host_memory = lambda num_bytes: locked.append(num_bytes) or allocate(num_bytes)  # type: ignore[method-assign,func-returns-value]
    checkpoint.write(tmp_path / "first", CheckpointOptions(durable=False, enable_async=True, page_locked_bytes=1000))
    checkpoint.sync()
    assert locked == []
    checkpoint.write(tmp_path / "second", CheckpointOptions(durable=False, page_locked_bytes=1000))
    assert locked == [drain.BLOCK_BYTES]
    checkpoint.write(tmp_path / "third", FIRST)
    checkpoint.sync()
    assert locked[1:] == [weight.nbytes + (1 << 20)]
    for name in ("first", "second", "third"):
        assert torch.equal(load_checkpoint(tmp_path / name).get_tensor(key("values/weight")), weight)
    checkpoint.release_memory()
    assert checkpoint._own.staging.num_bytes + checkpoint._own.devices.pool.num_bytes == 0


def test_several_devices_are_saved_together(tmp_path: Path) -> None:
    links = [SimulatedLink(sleeping(0.001)), SimulatedLink()]
    try:
        tensors = numbers(10, 20, 30, 40, 50)
        values = {str(number): tensor for number, tensor in enumerate(tensors)}
        devices = SimulatedDevices(links, [tensors[:2], tensors[2:4]])
        checkpoint = on_simulated(Checkpoint(values=values), devices)
        for number, options in enumerate(MODES.values()):
            checkpoint.write(tmp_path / str(number), options)
            checkpoint.sync()
            reader = load_checkpoint(tmp_path / str(number))
            assert all(torch.equal(reader.get_tensor(key(f"values/{name}")), values[name]) for name in values)
    finally:
        for link in links:
            link.close()


def test_what_is_copied_first_and_what_is_copied_later_do_not_lie_between_each_other(
    tmp_path: Path, link: SimulatedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy may take along what is between its pieces."""
    training = Training(link, tmp_path)
    windows: list[tuple[int, int]] = []
    to_host = link.to_host

    def noted(window: Any, memory: Any) -> Any:
        if len(window.offsets):
            windows.append((int(window.offsets[0]), int((window.offsets + window.sizes)[-1])))
        return to_host(window, memory)

    monkeypatch.setattr(link, "to_host", noted)
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    training.checkpoint.sync()
    (_, first_end), (second_begin, _) = sorted(windows)
    assert first_end <= second_begin


@pytest.mark.parametrize("mode", ["first", "overlapped"])
def test_copies_on_the_device_are_not_watched_until_the_step(mode: str, tmp_path: Path, link: SimulatedLink) -> None:
    training = Training(link, tmp_path)
    options = dataclasses.replace(MODES[mode], device_snapshot_bytes=1 << 30)
    training.checkpoint.write(tmp_path / "ckpt", options)
    link.synchronize()
    with torch.no_grad():
        training.model[0].weight.add_(1)
    training.checkpoint.sync()
    assert training.saved() == [0.5, 0.0]


def test_what_has_no_room_on_its_device_is_there_although_everything_that_may_be_late_had(tmp_path: Path) -> None:
    links = [SimulatedLink(), SimulatedLink(sleeping(0.3))]
    try:
        training = Training(links[0], tmp_path)
        mean: Any = training.model[1].running_mean
        parameters = list(training.model.parameters())
        devices = SimulatedDevices(links, [parameters, [mean]])
        links[1].free_bytes = 0
        on_simulated(training.checkpoint, devices)
        options = dataclasses.replace(OVERLAPPED, device_snapshot_bytes=1 << 30)
        training.checkpoint.write(tmp_path / "ckpt", options)
        training.checkpoint.sync()
        assert training.saved() == [0.5, 0.0]
    finally:
        for link in links:
            link.close()
