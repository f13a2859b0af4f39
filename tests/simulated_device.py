"""A device that is none: its memory is that of tensors on the CPU, and its copies are made by a thread, late.

It takes a link's promises at their word. What was begun is done in its order, at some time: a copy may be delayed, or
fail; the program's own work on the device can be delayed as well. Memory that a copy still needs must not be used
otherwise meanwhile.
"""

from __future__ import annotations

import ctypes
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from torch_trackckpt import _native
from torch_trackckpt.devices.access import Devices
from torch_trackckpt.devices.link import HostMemory
from torch_trackckpt.devices.pieces import ALIGNMENT, DeviceRows, Pieces, Window, windows


class DeviceFailedError(RuntimeError):
    """What the device raises when it is told to fail."""


class Memory:
    """Memory of the host that the device reaches, with rubbish in it."""

    def __init__(self, num_bytes: int) -> None:
        self._memory = np.full(num_bytes, 0xAB, dtype=np.uint8)
        self.address = self._memory.ctypes.data
        self.nbytes = num_bytes


@dataclasses.dataclass
class Task:
    """A piece of the device's work."""

    run: Callable[[], None]
    done: threading.Event = dataclasses.field(default_factory=threading.Event)
    error: BaseException | None = None
    needed: tuple[object, ...] = ()

    def wait(self) -> None:
        assert self.done.wait(60)
        if self.error is not None:
            raise DeviceFailedError("the device has failed") from self.error


class Ticket:
    def __init__(self, link: SimulatedLink, task: Task) -> None:
        self._link = link
        self._task = task

    def wait(self) -> None:
        self._task.wait()

    def hold_back(self) -> None:
        self._link.program_waits_for(self._task)


class SimulatedLink:
    """One device, with two queues of work: the program's, and that of copies.

    Args:
        delay: called with the number of each copy before it is made; it may sleep, or raise.
    """

    def __init__(self, delay: Callable[[int], object] = lambda number: None) -> None:
        self.log: list[str] = []
        self.free_bytes = 1 << 40
        self.host_bytes = 1 << 40
        self.has_to_refuse = ""
        self._delay = delay
        self._number = 0
        self._begun: list[Task] = []
        self._program = Queue()
        self._copies = Queue()

    # What the program does.

    def compute(self, work: Callable[[], None]) -> None:
        """Has the device do some work of the program, some time."""
        self._program.add(Task(work))

    def program_waits_for(self, task: Task) -> None:
        self.log.append("hold back")
        self._program.add(Task(lambda: task.done.wait(60) and None))

    def synchronize(self) -> None:
        for tasks in (self._program, self._copies):
            task = Task(lambda: None)
            tasks.add(task)
            task.wait()

    @property
    def is_copying(self) -> bool:
        """Whether a copy has been begun that is not over."""
        return any(not task.done.is_set() for task in self._begun)

    def close(self) -> None:
        self._program.close()
        self._copies.close()

    # The link.

    def check(self) -> None:
        if self.has_to_refuse:
            raise RuntimeError(self.has_to_refuse)

    def follow(self) -> None:
        self.check()
        self.log.append("follow")
        marker = Task(lambda: None)
        self._program.add(marker)
        self._copies.add(Task(lambda: marker.done.wait(60) and None))

    def to_host(self, window: Window, memory: HostMemory) -> Ticket:
        return self._begin("to host", window, memory, to_host=True)

    def from_host(self, window: Window, memory: HostMemory) -> Ticket:
        return self._begin("from host", window, memory, to_host=False)

    def snapshot(self, rows: DeviceRows, max_bytes: int) -> DeviceRows | None:
        num_bytes = int((-(-rows.sizes // ALIGNMENT) * ALIGNMENT).sum())
        if num_bytes > min(max_bytes, self.free_bytes):
            return None
        self.log.append("snapshot")
        memory = Memory(num_bytes + ALIGNMENT)
        (window,) = windows(rows, max(num_bytes, ALIGNMENT))
        pieces = Pieces.of(window)
        self._program.add(Task(lambda: copy_pieces(pieces, memory.address, to_packed=True), needed=(memory, rows)))
        return dataclasses.replace(rows, addresses=memory.address + window.offsets, strides={}, owner=memory)

    def settle(self) -> None:
        for task in list(self._begun):
            assert task.done.wait(60)

    def host_memory(self, num_bytes: int) -> HostMemory:
        if num_bytes > self.host_bytes:
            raise RuntimeError("the simulated driver refuses")
        return Memory(num_bytes)

    def _begin(self, what: str, window: Window, memory: HostMemory, *, to_host: bool) -> Ticket:
        number, self._number = self._number, self._number + 1
        self.log.append(what)
        pieces = Pieces.of(window)
        assert not len(pieces.offsets) or pieces.offsets[-1] + pieces.sizes[-1] <= memory.nbytes

        def run() -> None:
            self._delay(number)
            copy_pieces(pieces, memory.address, to_packed=to_host)

        task = Task(run, needed=(window, memory))
        self._begun.append(task)
        self._copies.add(task)
        return Ticket(self, task)


class Queue:
    """Work that is done in its order by a thread. After a failure everything fails, as on a device."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def add(self, task: Task) -> None:
        self._tasks.put(task)

    def close(self) -> None:
        self._tasks.put(None)
        self._thread.join()

    def _run(self) -> None:
        error: BaseException | None = None
        while (task := self._tasks.get()) is not None:
            try:
                if error is None:
                    task.run()
            except BaseException as failure:
                error = failure
            task.error = error
            task.needed = ()
            task.done.set()


def copy_pieces(pieces: Pieces, packed: int, *, to_packed: bool) -> None:
    """What native code does on a device. The bytes up to where the next piece may begin are anything afterwards."""
    for address, begin, size, offset in zip(
        pieces.addresses.tolist(), pieces.begins.tolist(), pieces.sizes.tolist(), pieces.offsets.tolist(), strict=True
    ):
        tensor, place = address + begin, packed + offset
        ctypes.memmove(place if to_packed else tensor, tensor if to_packed else place, size)
        if to_packed:
            ctypes.memset(place + size, 0xEE, -size % ALIGNMENT)


class SimulatedDevices(Devices):
    """Devices on which chosen tensors are, by their identity.

    Args:
        links: the devices, by their numbers.
        placed: for each device the tensors on it.
    """

    def __init__(self, links: Sequence[SimulatedLink], placed: Sequence[Sequence[torch.Tensor]]) -> None:
        super().__init__(lambda: None)
        self._simulated = links
        self._placed = [{tensor.data_ptr(): tensor for tensor in tensors} for tensors in placed]

    def link(self, device: int) -> SimulatedLink:
        return self._simulated[device]

    def rows(self, table: _native.TensorTable, leave_out: Sequence[int] = ()) -> tuple[DeviceRows, ...]:
        addresses, sizes = np.array(table.addresses()), np.array(table.sizes())
        found = []
        for device, placed in enumerate(self._placed):
            rows = np.array(
                [
                    row
                    for row, address in enumerate(addresses.tolist())
                    if address in placed and row not in leave_out and row not in table.others()
                ],
                dtype=np.int64,
            )
            if len(rows):
                found.append(DeviceRows(device, rows, sizes[rows], addresses[rows], owner=table))
        return tuple(found)


def sleeping(seconds: float) -> Callable[[int], None]:
    """Every copy takes so long."""
    return lambda number: time.sleep(seconds)
