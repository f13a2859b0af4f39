"""What the link to a CUDA device asks of torch and of the driver, in which order: both are stand-ins here."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from simulated_device import Memory

from torch_trackckpt.devices.cuda import CudaLink, CudaLinks
from torch_trackckpt.devices.pieces import DeviceRows, windows

DEVICE = 3


class Driver:
    """Tells what was asked; copies at once."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.device = 0
        self.mode = 1
        self.is_capturing = False
        self.fails = False
        self.numbers = itertools.count(1)

    def say(self, what: str) -> None:
        assert (self.device, self.mode) == (DEVICE, 2), f"{what}: device {self.device}, mode {self.mode}"
        self.log.append(what)

    # The native module.

    def exchange_capture_mode(self, mode: int) -> int:
        # To ask for it begins with the current device, whatever that is.
        assert self.device == DEVICE
        before, self.mode = self.mode, mode
        return before

    def Stream(self, device: int) -> Any:
        assert device == DEVICE
        return SimpleNamespace(handle=7)

    def PinnedMemory(self, size: int, device: int) -> Memory:
        self.say(f"lock {size} near {device}")
        return Memory(size)

    def PieceCopy(self, device: int, *columns: Any) -> PieceCopy:
        return PieceCopy(self, *columns)

    # torch.

    @contextlib.contextmanager
    def visit(self, device: torch.device) -> Iterator[None]:
        before, self.device = self.device, device.index
        try:
            yield
        finally:
            self.device = before

    def stream(self, name: str) -> Any:
        return SimpleNamespace(
            cuda_stream=7 if name == "copies" else 0,
            wait_stream=lambda other: self.say(f"{name} wait for {other.name}"),
            wait_event=lambda event: self.say(f"{name} wait for event {event.number}"),
            synchronize=lambda: self.say(f"{name} are waited for"),
            name=name,
        )

    def event(self, *, blocking: bool) -> Any:
        assert blocking
        number = next(self.numbers)
        return SimpleNamespace(
            number=number,
            record=lambda stream: self.say(f"event {number} in {stream.name}"),
            query=lambda: False,
            synchronize=lambda: self.say(f"event {number} is waited for"),
        )


class PieceCopy:
    description_nbytes = 100
    least_scratch_nbytes = 200

    def __init__(self, driver: Driver, addresses: Any, begins: Any, sizes: Any, offsets: Any, *_: Any) -> None:
        self._driver = driver
        self._pieces = list(zip((addresses + begins).tolist(), sizes.tolist(), offsets.tolist(), strict=True))

    def to_host(self, address: int, scratch: int, scratch_nbytes: int, description: int, stream: int) -> None:
        self._copy("to the host", address, scratch_nbytes, stream)

    def from_host(self, address: int, scratch: int, scratch_nbytes: int, description: int, stream: int) -> None:
        self._copy("from the host", address, scratch_nbytes, stream)

    def snapshot(self, address: int, scratch: int, scratch_nbytes: int, description: int, stream: int) -> None:
        self._copy("a snapshot", address, scratch_nbytes, stream)

    def _copy(self, what: str, address: int, scratch_nbytes: int, stream: int) -> None:
        assert scratch_nbytes >= self.least_scratch_nbytes
        self._driver.say(f"{what} in {'copies' if stream else 'the program'}")
        if self._driver.fails:
            raise RuntimeError("CUDA cannot copy")
        for tensor, size, offset in self._pieces:
            pair = (address + offset, tensor) if what != "from the host" else (tensor, address + offset)
            ctypes.memmove(*pair, size)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device, pin_memory=False: empty(size, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: driver.stream("copies"))
    monkeypatch.setattr(torch.cuda, "Event", driver.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: driver.stream("the program"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device", driver.visit)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: driver.is_capturing)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    return driver


@pytest.fixture
def link(driver: Driver) -> CudaLink:
    link = CudaLinks(driver).of(DEVICE)
    assert isinstance(link, CudaLink)
    return link


def rows_of(*tensors: torch.Tensor) -> DeviceRows:
    addresses = np.array([tensor.data_ptr() for tensor in tensors])
    return DeviceRows(DEVICE, np.arange(len(tensors)), np.array([tensor.nbytes for tensor in tensors]), addresses)


def test_copies_go_their_own_way_when_the_program_has_come_so_far(driver: Driver, link: CudaLink) -> None:
    tensors = [torch.arange(4.0), torch.arange(9.0)]
    (window,) = windows(rows_of(*tensors), 1024)
    link.check()
    link.follow()
    memory = link.host_memory(1024)
    ticket = link.to_host(window, memory)
    ticket.hold_back()
    ticket.wait()
    assert driver.log == [
        "copies wait for the program",
        "lock 1024 near 3",
        "to the host in copies",
        "event 1 in copies",
        "the program wait for event 1",
        "event 1 is waited for",
    ]
    for tensor in tensors:
        tensor.zero_()
    link.from_host(window, memory).wait()
    assert driver.log[-3:] == ["from the host in copies", "event 2 in copies", "event 2 is waited for"]
    assert [tensor.tolist() for tensor in tensors] == [list(range(4)), list(range(9))]
    # The thread is where it was.
    assert (driver.device, driver.mode) == (0, 1)


def test_a_snapshot_is_made_in_the_order_of_the_program_if_there_is_room(driver: Driver, link: CudaLink) -> None:
    tensors = [torch.arange(4.0), torch.arange(9.0)]
    copy = link.snapshot(rows_of(*tensors), 500)
    assert driver.log == ["a snapshot in the program", "event 1 in the program"]
    assert copy is not None
    for address, tensor in zip(copy.addresses.tolist(), tensors, strict=True):
        assert ctypes.string_at(address, tensor.nbytes) == tensor.numpy().tobytes()
    assert link.snapshot(rows_of(*tensors), 100) is None
    # What torch has and does not use is free as well.
    assert link.snapshot(rows_of(torch.zeros(280)), 1 << 20) is not None
    assert link.snapshot(rows_of(torch.zeros(310)), 1 << 20) is None


def test_what_was_begun_before_a_failure_is_waited_for(driver: Driver, link: CudaLink) -> None:
    (window,) = windows(rows_of(torch.zeros(4)), 1024)
    driver.fails = True
    with pytest.raises(RuntimeError, match="cannot copy"):
        link.to_host(window, Memory(1024))
    assert driver.log == ["to the host in copies", "copies are waited for"]
    link.settle()
    assert driver.log[2:] == ["copies are waited for"]
    assert (driver.device, driver.mode) == (0, 1)


def test_a_graph_that_is_captured_does_not_wait_for_a_copy_but_the_program_does(driver: Driver, link: CudaLink) -> None:
    (window,) = windows(rows_of(torch.zeros(4)), 1024)
    ticket = link.to_host(window, Memory(1024))
    driver.is_capturing = True
    ticket.hold_back()
    assert driver.log[2:] == ["event 1 is waited for"]


def test_nothing_is_begun_while_a_graph_is_captured(driver: Driver, link: CudaLink) -> None:
    driver.is_capturing = True
    for refused in (link.check, link.follow, lambda: link.snapshot(rows_of(torch.zeros(4)), 500)):
        with pytest.raises(RuntimeError, match="graph is being captured"):
            refused()
    assert driver.log == []


def test_a_copy_keeps_what_it_needs_until_it_is_waited_for(driver: Driver, link: CudaLink) -> None:
    owner = SimpleNamespace()
    tensor = torch.zeros(4)
    rows = DeviceRows(DEVICE, np.arange(1), np.array([16]), np.array([tensor.data_ptr()]), owner=owner)
    (window,) = windows(rows, 1024)
    ticket = link.to_host(window, Memory(1024))
    in_flight = link._in_flight[0]
    assert window in in_flight.needed
    ticket.wait()
    assert in_flight.needed == ()
