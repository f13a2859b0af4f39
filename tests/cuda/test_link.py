"""Copies between CUDA devices and the host, beside those of torch."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from torch_trackckpt import Checkpoint, CheckpointOptions, _native, load_checkpoint
from torch_trackckpt.bundle.memory import PLAIN_TYPES
from torch_trackckpt.devices.access import Devices
from torch_trackckpt.devices.cuda import CudaLink
from torch_trackckpt.devices.link import HostMemory
from torch_trackckpt.devices.pieces import ALIGNMENT, DeviceRows, Window, windows
from torch_trackckpt.devices.pinned import PageableMemory

LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "small": lambda: torch.arange(100, dtype=torch.uint8),
    "from an odd byte on": lambda: torch.arange(100, dtype=torch.uint8)[3:],
    "from an odd element on": lambda: torch.arange(5000, dtype=torch.float16)[1:],
    "large": lambda: torch.arange(3_000_000, dtype=torch.int64),
    "no elements": lambda: torch.empty(0, 3),
    "a scalar": lambda: torch.tensor(7.0),
    "bfloat16": lambda: torch.arange(1000).to(torch.bfloat16),
    "float8": lambda: torch.arange(100).to(torch.float8_e4m3fn),
    "bool": lambda: torch.arange(1000) % 3 == 0,
    "complex, transposed": lambda: torch.rand(50, 60, dtype=torch.complex128).t(),
    "transposed, large": lambda: torch.arange(6_000_000.0).reshape(2000, 3000).t(),
    "channels last": lambda: torch.rand(2, 30, 40, 50).to(memory_format=torch.channels_last),
    "every third": lambda: torch.arange(1000, dtype=torch.int16)[1::3],
    "eight dimensions": lambda: torch.arange(2**8).reshape([2] * 8).permute(7, 0, 6, 1, 5, 2, 4, 3),
}


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    """On the device with the same strides, from the same element of its storage on."""
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return whole.to("cuda").as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def rows_of(tensors: list[torch.Tensor]) -> DeviceRows:
    table = _native.TensorTable(list(tensors), PLAIN_TYPES, with_devices=True)
    assert table.others() == []
    (rows,) = Devices().rows(table)
    return rows


def bytes_at(address: int, num_bytes: int) -> np.ndarray:
    return np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * num_bytes).from_address(address))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def fetched(link: CudaLink, rows: DeviceRows, window_bytes: int) -> list[bytes]:
    """What arrives of each tensor, by windows."""
    parts = [bytearray() for _ in rows.rows]
    memory: HostMemory = link.host_memory(window_bytes)
    for window in windows(rows, window_bytes):
        link.to_host(window, memory).wait()
        for place, (size, offset) in enumerate(zip(window.sizes.tolist(), window.offsets.tolist(), strict=True)):
            parts[window.first + place] += bytes_at(memory.address + offset, size).tobytes()
    return [bytes(part) for part in parts]


@pytest.mark.parametrize("window_bytes", [4096, 1 << 20, 1 << 27])
def test_tensors_of_every_kind_arrive_bit_for_bit(window_bytes: int, link: CudaLink) -> None:
    """C314"""
    tensors = [on_device(make()) for make in LAYOUTS.values()]
    link.follow()
    for name, tensor, arrived in zip(LAYOUTS, tensors, fetched(link, rows_of(tensors), window_bytes), strict=True):
        assert arrived == bits(tensor), name


@pytest.mark.parametrize("window_bytes", [4096, 1 << 20, 1 << 27])
def test_tensors_of_every_kind_are_filled_bit_for_bit(window_bytes: int, link: CudaLink) -> None:
    sources = [make() for make in LAYOUTS.values()]
    targets = [on_device(source).zero_() for source in sources]
    memory = link.host_memory(window_bytes)
    link.follow()
    for window in windows(rows_of(targets), window_bytes):
        for place, row in enumerate(window.rows.rows.tolist()):
            begin, size, offset = (int(column[place]) for column in (window.begins, window.sizes, window.offsets))
            content = np.frombuffer(bits(sources[row])[begin : begin + size], dtype=np.uint8)
            bytes_at(memory.address + offset, size)[:] = content
        link.from_host(window, memory).wait()
    for name, source, target in zip(LAYOUTS, sources, targets, strict=True):
        assert bits(target) == bits(source), name


def test_very_many_small_tensors(link: CudaLink) -> None:
    tensors = [torch.rand(1 + number % 700, device="cuda") for number in range(20_000)]
    link.follow()
    assert fetched(link, rows_of(tensors), 1 << 26) == [bits(tensor) for tensor in tensors]


def test_a_copy_on_the_device_has_no_gaps_and_does_not_follow(link: CudaLink) -> None:
    tensors = [on_device(make()) for make in LAYOUTS.values()]
    before = [bits(tensor) for tensor in tensors]
    copy = link.snapshot(rows_of(tensors), 1 << 30)
    assert copy is not None
    for tensor in tensors:
        tensor.zero_()
    link.follow()
    assert not copy.strides
    assert fetched(link, copy, 1 << 20) == before
    assert link.snapshot(rows_of(tensors), 1000) is None


def test_a_copy_comes_after_what_the_program_has_asked_and_holds_back_what_it_asks_then(link: CudaLink) -> None:
    large = torch.zeros(64 << 20, device="cuda")
    operand = torch.rand(4096, 4096, device="cuda")
    rows = rows_of([large])
    (window,) = windows(rows, large.nbytes)
    memory = link.host_memory(large.nbytes)
    for value in (1.0, 2.0, 3.0):
        for _ in range(20):
            torch.mm(operand, operand)
        large.fill_(value)
        link.follow()
        ticket = link.to_host(window, memory)
        ticket.hold_back()
        large.fill_(-1.0)
        ticket.wait()
        arrived = bytes_at(memory.address, large.nbytes).view(np.float32)
        assert (arrived == value).all()


def test_memory_that_was_freed_by_the_program_is_not_read_too_late(link: CudaLink) -> None:
    """The copy keeps what it needs."""
    operand = torch.rand(4096, 4096, device="cuda")
    memory = link.host_memory(32 << 20)
    tensor = torch.full((8 << 20,), 5.0, device="cuda")
    for _ in range(50):
        torch.mm(operand, operand)
    link.follow()
    (window,) = windows(rows_of([tensor]), tensor.nbytes)
    ticket = link.to_host(window, memory)
    # The tensor gets other memory, and nobody else has that of the copy.
    tensor.set_()
    del tensor, window
    others = [torch.full((8 << 20,), 6.0, device="cuda") for _ in range(4)]
    ticket.wait()
    assert (bytes_at(memory.address, 32 << 20).view(np.float32) == 5.0).all()
    assert len(others) == 4


def test_ordinary_memory_serves_as_well(link: CudaLink) -> None:
    tensor = torch.arange(100_000, device="cuda")
    (window,) = windows(rows_of([tensor]), 1 << 20)
    memory = PageableMemory(1 << 20)
    link.follow()
    link.to_host(window, memory).wait()
    assert bytes_at(memory.address, tensor.nbytes).tobytes() == bits(tensor)


def test_page_locked_memory_that_cannot_be_had_is_an_error(link: CudaLink) -> None:
    with pytest.raises(RuntimeError, match="memory"):
        link.host_memory(1 << 50)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"enable_async": True},
        {"enable_async": True, "async_copy": "overlapped"},
        {"enable_async": True, "device_snapshot_bytes": 1 << 30},
        {"num_threads": 4},
    ],
    ids=["synchronous", "first", "overlapped", "on the device", "threads"],
)
def test_a_training_on_the_device_is_saved_and_restored(
    options: dict[str, object], tmp_path: Path, link: CudaLink
) -> None:
    """C314"""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.BatchNorm1d(2048)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def train() -> None:
        model(torch.rand(64, 512, device="cuda")).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def state() -> list[bytes]:
        values = [*model.state_dict().values()]
        values += [value for slots in optimizer.state.values() for value in slots.values()]
        return [bits(value) for value in values]

    group = Checkpoint(model=model, optimizer=optimizer)
    for _ in range(3):
        train()
        expected = state()
        group.write(tmp_path / "ckpt", CheckpointOptions(durable=False, **options))  # type: ignore[arg-type]
        train()
        group.sync()
        assert state() != expected
        group.read(tmp_path / "ckpt").assert_consumed()
        assert state() == expected


def test_the_file_is_that_of_the_same_values_on_the_processor(tmp_path: Path, link: CudaLink) -> None:
    values = {name.replace(" ", "_"): make() for name, make in LAYOUTS.items()}
    options = CheckpointOptions(durable=False, num_threads=1)
    Checkpoint(values=values).write(tmp_path / "processor/ckpt", options)
    moved = {name: on_device(value) for name, value in values.items()}
    Checkpoint(values=moved).write(tmp_path / "device/ckpt", options)
    for file in (tmp_path / "processor").iterdir():
        assert file.read_bytes() == (tmp_path / "device" / file.name).read_bytes()


def test_a_graph_capture_refuses_saves_and_restores(tmp_path: Path, link: CudaLink) -> None:
    live = torch.ones(1000, device="cuda")
    group = Checkpoint(values={"live": live})
    options = CheckpointOptions(durable=False)
    group.write(tmp_path / "ckpt", options)
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    with torch.cuda.graph(graph):
        live.add_(1)
        with pytest.raises(RuntimeError, match="captured"):
            group.write(tmp_path / "other", options)
        with pytest.raises(RuntimeError, match="captured"):
            group.read(tmp_path / "ckpt")
    assert (
        load_checkpoint(tmp_path / "ckpt").get_tensor("values/live/.ATTRIBUTES/VARIABLE_VALUE").tolist() == [1.0] * 1000
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_refuses_and_says_what_to_do(tmp_path: Path, link: CudaLink) -> None:
    group = Checkpoint(values={"live": torch.ones(1000, device="cuda")})
    group.write(tmp_path / "ckpt", CheckpointOptions(durable=False))
    child = os.fork()
    if child == 0:
        try:
            group.write(tmp_path / "child", CheckpointOptions(durable=False))
        except RuntimeError as error:
            os._exit(0 if "forked" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_alignment_is_enough_for_every_access() -> None:
    assert ALIGNMENT % 16 == 0


def test_a_window_is_refused_when_its_pieces_are_out_of_order(link: CudaLink) -> None:
    tensor = torch.zeros(100, device="cuda")
    rows = rows_of([tensor, tensor])
    window = Window(rows, 0, np.zeros(2, dtype=np.int64), rows.sizes, np.array([512, 0]))
    with pytest.raises(ValueError, match="overlap, or are not in their order"):
        link.to_host(window, link.host_memory(4096))
