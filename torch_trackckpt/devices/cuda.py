"""CUDA devices: copies by our own module `_cuda`, on a stream of their own, beside what the program does.

torch keeps the device's memory and makes the streams and events; to native code they are numbers. Without `_cuda` there
are no links, and torch copies tensors one by one.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from torch_trackckpt.devices.link import HostMemory, Link, Links, Ticket
from torch_trackckpt.devices.pieces import ALIGNMENT, DeviceRows, Pieces, Window, windows

if TYPE_CHECKING:
    from torch_trackckpt._cuda import PieceCopy

__all__ = ["LEAST_CAPABILITY", "CudaLinks", "cuda_module", "find_links", "misfit"]

_logger = logging.getLogger("torch_trackckpt")

LEAST_CAPABILITY = (8, 0)
"""What csrc/cuda/CMakeLists.txt builds for at least."""

_BUILT_FOR = (8, 9)
"""The generations for which there is machine code there. For newer ones the driver makes some."""

_RELAXED = 2
"""The mode in which a thread is not concerned by the graph that another one captures."""

_SCRATCH_BYTES = 8 << 20
"""Device memory in which small tensors gather."""


def cuda_module() -> Any | None:
    """The native module, where it was built."""
    try:
        from torch_trackckpt import _cuda
    except ImportError:
        return None
    return _cuda


def find_links() -> Links | None:
    """The links of this process: none without a CUDA device that torch can use, or without a `_cuda` that fits."""
    if not torch.cuda.is_available():
        return None
    module = cuda_module()
    if module is None:
        return None
    if obstacle := misfit(module):
        _logger.warning("Tensors on CUDA devices are copied by torch, one by one: %s.", obstacle)
        return None
    return CudaLinks(module)


def misfit(module: Any) -> str | None:
    """Why the native module cannot be used with this driver and these devices, if it cannot."""
    driver, runtime = module.versions()
    if driver // 1000 < runtime // 1000:
        return f"_cuda was built with CUDA {runtime // 1000}, and the driver is for CUDA {driver // 1000}"
    for device in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(device)
        if capability[0] not in _BUILT_FOR and driver < runtime:
            return (
                f"_cuda has no machine code for device {device}, of compute capability {capability[0]}, and the driver "
                f"is older (CUDA {driver // 1000}.{driver % 1000 // 10}) than what it was built with (CUDA "
                f"{runtime // 1000}.{runtime % 1000 // 10})"
            )
        if capability < LEAST_CAPABILITY:
            least = ".".join(map(str, LEAST_CAPABILITY))
            found = ".".join(map(str, capability))
            return f"_cuda has code for compute capability {least} and newer, and device {device} has {found}"
    return None


class CudaLinks:
    """One link for each device that is asked for.

    Args:
        module: the native module.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._links: dict[int, CudaLink] = {}
        self._process = os.getpid()

    def of(self, device: int) -> Link:
        """The link to a device, by the number that it has in this process."""
        if os.getpid() != self._process:
            # What the parent has of the device is not the child's.
            raise RuntimeError(
                "A process that was forked cannot copy from or to CUDA devices of its parent. Use a process that was "
                "spawned, or save in the parent."
            )
        if device not in self._links:
            # Of two threads that come at once, both get the same.
            self._links.setdefault(device, CudaLink(self._module, device))
        return self._links[device]

    def release(self) -> None:
        """Gives back the memory of devices that links keep."""
        for link in list(self._links.values()):
            link.release()


@dataclasses.dataclass
class _InFlight:
    """What a copy needs until it is done."""

    event: torch.cuda.Event
    needed: tuple[object, ...]


class CudaLink:
    """One device.

    Args:
        module: the native module.
        device: the number of the device in this process.
    """

    def __init__(self, module: Any, device: int) -> None:
        self._module = module
        self._device = torch.device("cuda", device)
        # One of torch's own streams would be somebody else's as well: it deals out 32 of them in turn.
        self._own_stream = module.Stream(device)
        self._stream = torch.cuda.ExternalStream(self._own_stream.handle, self._device)  # type: ignore[no-untyped-call]
        self._scratch: torch.Tensor | None = None
        self._in_flight: collections.deque[_InFlight] = collections.deque()

    def check(self) -> None:
        with self._at_device():
            self._check_not_recording()

    def follow(self) -> None:
        with self._at_device():
            self._check_not_recording()
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def to_host(self, window: Window, memory: HostMemory) -> Ticket:
        copy = self._copy(Pieces.of(window))
        with self._at_device():
            return self._begin(copy, copy.to_host, window, memory)

    def from_host(self, window: Window, memory: HostMemory) -> Ticket:
        copy = self._copy(Pieces.of(window))
        with self._at_device():
            return self._begin(copy, copy.from_host, window, memory)

    def release(self) -> None:
        """Gives back the scratch memory; torch keeps it from others until the copies that use it are done."""
        self._scratch = None

    def settle(self) -> None:
        with contextlib.suppress(RuntimeError), self._at_device():
            self._stream.synchronize()

    @contextlib.contextmanager
    def _at_device(self) -> Iterator[None]:
        """For what is asked of the driver: it concerns this device, whatever the current one of the thread is, and no
        graph that another thread captures. A thread that has not asked for a device yet would make itself at home on
        the first one."""
        with torch.cuda.device(self._device):
            mode = self._module.exchange_capture_mode(_RELAXED)
            try:
                yield
            finally:
                # After a failure of the device even this fails, and is not what is to be told.
                with contextlib.suppress(RuntimeError):
                    self._module.exchange_capture_mode(mode)

    def _begin(
        self,
        copy: PieceCopy,
        begin: Callable[[int, int, int, int, int], None],
        window: Window,
        memory: HostMemory,
    ) -> Ticket:
        description, scratch = self._description(copy), self._scratch_of(copy)
        needed = (copy, description, scratch, window, memory)
        try:
            begin(memory.address, scratch.data_ptr(), scratch.nbytes, description.data_ptr(), self._stream.cuda_stream)
            return _CudaTicket(self._remember(self._stream, *needed), self)
        except BaseException:
            # Some of it may have begun, and needs its memory.
            self._stream.synchronize()
            raise

    def snapshot(self, rows: DeviceRows, max_bytes: int) -> DeviceRows | None:
        with self._at_device():
            self._check_not_recording()
            return self._snapshot(rows, max_bytes)

    def _snapshot(self, rows: DeviceRows, max_bytes: int) -> DeviceRows | None:
        spans = -(-rows.sizes // ALIGNMENT) * ALIGNMENT
        num_bytes = int(spans.sum())
        if num_bytes > min(max_bytes, self._free_bytes()):
            return None
        (window,) = windows(rows, max(num_bytes, ALIGNMENT))
        copy = self._copy(Pieces.of(window))
        description = self._description(copy)
        stream = torch.cuda.current_stream(self._device)
        try:
            memory = self._device_memory(num_bytes)
            scratch = self._device_memory(copy.least_scratch_nbytes)
        except torch.cuda.OutOfMemoryError:
            return None
        handle = stream.cuda_stream
        try:
            copy.snapshot(memory.data_ptr(), scratch.data_ptr(), scratch.nbytes, description.data_ptr(), handle)
            # What is done to the tensors comes after it on the device by itself.
            self._remember(stream, copy, description)
        except BaseException:
            stream.synchronize()
            raise
        return dataclasses.replace(rows, addresses=memory.data_ptr() + window.offsets, strides={}, owner=memory)

    def host_memory(self, num_bytes: int) -> HostMemory:
        with self._at_device():
            memory: HostMemory = self._module.PinnedMemory(num_bytes, self._device.index)
        return memory

    def _check_not_recording(self) -> None:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "A CUDA graph is being captured, which would record the copies of a checkpoint and make them at each "
                "replay. Save and restore outside of torch.cuda.graph()."
            )

    def _copy(self, pieces: Pieces) -> PieceCopy:
        copy: PieceCopy = self._module.PieceCopy(
            pieces.device,
            pieces.addresses,
            pieces.begins,
            pieces.sizes,
            pieces.offsets,
            pieces.layout_of,
            pieces.layouts,
        )
        return copy

    def _description(self, copy: PieceCopy) -> torch.Tensor:
        """Memory of the host for what the device has to know; torch keeps such memory for the next time."""
        return torch.empty(max(1, copy.description_nbytes), dtype=torch.uint8, device="cpu", pin_memory=True)

    def _scratch_of(self, copy: PieceCopy) -> torch.Tensor:
        """The scratch memory. Copies use it in turn, because they are in one stream."""
        needed = copy.description_nbytes + _SCRATCH_BYTES
        if self._scratch is None or self._scratch.nbytes < max(needed, copy.least_scratch_nbytes):
            with torch.cuda.stream(self._stream):
                self._scratch = self._device_memory(max(2 * needed, copy.least_scratch_nbytes))
        return self._scratch

    def _device_memory(self, num_bytes: int) -> torch.Tensor:
        with torch.inference_mode(False):
            return torch.empty(max(1, num_bytes), dtype=torch.uint8, device=self._device)

    def _free_bytes(self) -> int:
        """What the device has, and what torch has of it without using it."""
        free, _ = torch.cuda.mem_get_info(self._device)
        try:
            unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        except RuntimeError:
            # Other allocators than torch's own do not tell.
            unused = 0
        return free + unused

    def _remember(self, stream: torch.cuda.Stream, *needed: object) -> _InFlight:
        """Keeps what a copy needs, and lets go of what copies needed that are done."""
        while self._in_flight and self._in_flight[0].event.query():  # type: ignore[no-untyped-call]
            self._in_flight.popleft()
        # Who waits for it sleeps, and leaves the processor to others.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        in_flight = _InFlight(event, needed)
        self._in_flight.append(in_flight)
        return in_flight


class _CudaTicket:
    def __init__(self, in_flight: _InFlight, link: CudaLink) -> None:
        self._in_flight = in_flight
        self._link = link

    def wait(self) -> None:
        with self._link._at_device():
            self._in_flight.event.synchronize()
        self._in_flight.needed = ()

    def hold_back(self) -> None:
        with self._link._at_device():
            if torch.cuda.is_current_stream_capturing():
                # A graph cannot wait for what is no part of it. What is captured runs later, so that the program may.
                self._in_flight.event.synchronize()
            else:
                torch.cuda.current_stream(self._link._device).wait_event(self._in_flight.event)
