"""Tensors on a CUDA device: what saving and restoring them costs, beside what the bus allows, and beside others.

    python -m benchmarks.cuda [--gib 10] [--results build/benchmarks/cuda.json]

Needs a device, the package with its CUDA module, and room in memory for the files: `--gib` of them in --tmpfs, and as
much for copies. Takes less than eight minutes with 10 GiB. Each figure is the median of several runs in one process, in
which the contenders take turns; what is not installed is left out by name.

- *bus*: one copy between page-locked memory and the device, by torch: what the machine allows.
- *stall*: with half a second of forward and backward on the device before the step: what the call and the round take
  longer than a round without a save, until the device is done with it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import torch_trackckpt as tt
from torch_trackckpt import _native, doctor
from torch_trackckpt.bundle.memory import PLAIN_TYPES
from torch_trackckpt.devices.access import Devices
from torch_trackckpt.devices.cuda import find_links
from torch_trackckpt.devices.pieces import ALIGNMENT, windows

_SIDE = 4096
_ROUNDS = 3


@dataclasses.dataclass
class Figures:
    """What was measured, printed as it comes, and kept in a file after each figure: a session may end at any time."""

    results: Path
    found: dict[str, float] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)

    def note(self, name: str, value: float, unit: str, beside: str = "") -> None:
        self.found[name] = value
        self._keep()
        print(f"{name:60}{value:12.2f} {unit}{beside}", flush=True)

    def leave_out(self, name: str, why: BaseException) -> None:
        self.left_out[name] = f"{type(why).__name__}: {why}".splitlines()[0][:120]
        self._keep()
        print(f"{name:60}  left out: {self.left_out[name]}", flush=True)

    def _keep(self) -> None:
        self.results.parent.mkdir(parents=True, exist_ok=True)
        self.results.write_text(json.dumps({"found": self.found, "left_out": self.left_out}, indent=1) + "\n")


def seconds(action: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def median_seconds(action: Callable[[], object], rounds: int = _ROUNDS) -> float:
    return statistics.median(seconds(action) for _ in range(rounds))


def bus(figures: Figures, num_bytes: int = 4 << 30) -> None:
    """The bus, and how much of it large tensors get."""
    on_device = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
    pinned = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    to_host = median_seconds(lambda: pinned.copy_(on_device, non_blocking=True))
    figures.note("bus, device to host", num_bytes / to_host / 1e9, "GB/s")
    to_device = median_seconds(lambda: on_device.copy_(pinned, non_blocking=True))
    figures.note("bus, host to device", num_bytes / to_device / 1e9, "GB/s")
    parts = list(on_device.view(16, -1))
    ours = _to_host(parts)
    rate = num_bytes / median_seconds(ours) / 1e9
    figures.note("large tensors to host, ours", rate, "GB/s", f"  {rate * to_host * 1e9 / num_bytes:.1%} of the bus")


def _to_host(tensors: list[torch.Tensor]) -> Callable[[], None]:
    """Our copy of tensors to page-locked memory, without a file."""
    devices = Devices()
    table = _native.TensorTable(list(tensors), PLAIN_TYPES, with_devices=True)
    (rows,) = devices.rows(table)
    num_bytes = int((-(-rows.sizes // ALIGNMENT) * ALIGNMENT).sum())
    (window,) = windows(rows, num_bytes)
    link = devices.link(rows.device)
    memory = link.host_memory(num_bytes)

    def copy() -> None:
        devices.follow([rows])
        link.to_host(window, memory).wait()

    copy()
    return copy


def many_small(figures: Figures, count: int = 20_000) -> None:
    """Tensors of 1 to 4 KiB."""
    tensors = [torch.rand(256 * (1 + number % 4), device="cuda") for number in range(count)]
    num_bytes = sum(tensor.nbytes for tensor in tensors)
    block = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    parts = torch.split(block, [tensor.nbytes for tensor in tensors])
    hosts = [part.view(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]
    each = median_seconds(
        lambda: [host.copy_(tensor, non_blocking=True) for host, tensor in zip(hosts, tensors, strict=True)]
    )
    one = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
    whole = median_seconds(lambda: block.copy_(one, non_blocking=True), 20)
    ours = median_seconds(_to_host(tensors), 20)
    figures.note("20,000 small tensors to host, one copy_ each", each * 1e3, "ms")
    figures.note("20,000 small tensors to host, one copy of the bytes", whole * 1e3, "ms")
    figures.note(
        "20,000 small tensors to host, ours",
        ours * 1e3,
        "ms",
        f"  {ours / each:.3f} of each, {ours / whole:.2f} of one",
    )


class Training:
    """A model and Adam that hold so many bytes together, and half a second of work for forward and backward."""

    def __init__(self, num_bytes: int) -> None:
        count = max(1, round(num_bytes / 3 / (4 * _SIDE * (_SIDE + 1))))
        self.model = nn.Sequential(*(nn.Linear(_SIDE, _SIDE, device="cuda") for _ in range(count)))
        self.optimizer = torch.optim.Adam(self.model.parameters(), fused=True)
        for parameter in self.model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        self.optimizer.step()
        self.num_bytes = 3 * sum(parameter.nbytes for parameter in self.model.parameters())
        self._operand = torch.rand(_SIDE * 2, _SIDE * 2, device="cuda")
        once = median_seconds(self._work, 5)
        self._repeats = max(1, round(0.5 / once))

    def _work(self) -> None:
        torch.mm(self._operand, self._operand)

    def forward_backward(self) -> None:
        for _ in range(self._repeats):
            self._work()

    def round(self) -> None:
        self.forward_backward()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


def stalls(figures: Figures, training: Training, directory: Path) -> None:
    """What an asynchronous save costs the training."""
    usual = median_seconds(training.round, 5)
    figures.note("a round without a save", usual * 1e3, "ms")
    group = tt.Checkpoint(model=training.model, optimizer=training.optimizer)
    plain = {"durable": False, "enable_async": True, "num_threads": 4}
    modes: dict[str, Any] = {
        "ours, on the device": plain | {"device_snapshot_bytes": 2 * training.num_bytes},
        "ours, overlapped": plain | {"async_copy": "overlapped"},
        "ours, copy first": plain,
    }
    for name, chosen in modes.items():
        options = tt.CheckpointOptions(**chosen)
        group.prewarm(options)

        def begin(options: tt.CheckpointOptions = options) -> _Begun:
            group.write(directory / "ckpt", options)
            return _Begun(wait=group.sync)

        try:
            _stall(figures, name, training, begin, usual, directory)
        except Exception as error:
            figures.leave_out(f"stall, {name}", error)

    group.release_memory()

    def snapshot() -> _Begun:
        kept = [tensor.cpu() for tensor in _tensors(training.state())]
        return _Begun(wait=lambda: kept)

    _others_stall(figures, ".cpu() of every tensor", training, lambda: snapshot, usual, directory)
    makes_dcp = functools.partial(_dcp_async, training, directory)
    _others_stall(figures, "DCP async_save, pinned stager", training, makes_dcp, usual, directory)


def _others_stall(
    figures: Figures,
    name: str,
    training: Training,
    make: Callable[[], Callable[[], _Begun]],
    usual: float,
    directory: Path,
) -> None:
    try:
        _stall(figures, name, training, make(), usual, directory)
    except Exception as error:
        figures.leave_out(f"stall, {name}", error)


@dataclasses.dataclass
class _Begun:
    """A save that goes on."""

    wait: Callable[[], object]
    """Returns when it is complete."""
    before_step: Callable[[], object] = lambda: None
    """To be called before the values change."""


def _stall(
    figures: Figures,
    name: str,
    training: Training,
    begin: Callable[[], _Begun],
    usual: float,
    directory: Path,
) -> None:
    calls, lost = [], []
    for _ in range(_ROUNDS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        begun = begin()
        called = time.perf_counter()
        try:
            training.forward_backward()
            begun.before_step()
            training.optimizer.step()
            torch.cuda.synchronize()
            done = time.perf_counter()
        finally:
            begun.wait()
        calls.append(called - start)
        lost.append(done - start - usual)
        _empty(directory)
    figures.note(f"stall, {name}: the call", statistics.median(calls[1:]) * 1e3, "ms")
    figures.note(f"stall, {name}: lost in the round", statistics.median(lost[1:]) * 1e3, "ms")


def _dcp_async(training: Training, directory: Path) -> Callable[[], _Begun]:
    dcp: Any = importlib.import_module("torch.distributed.checkpoint")
    staging: Any = importlib.import_module("torch.distributed.checkpoint.staging")
    # Page-locked memory, in a thread of its own, without waiting for each copy; not shared between processes, which is
    # for those that write in another process.
    stager = staging.DefaultStager(
        staging.StagingOptions(
            use_pinned_memory=True, use_shared_memory=False, use_async_staging=True, use_non_blocking_copy=True
        )
    )

    def begin() -> _Begun:
        answer = dcp.async_save(training.state(), checkpoint_id=directory / "dcp", async_stager=stager, no_dist=True)
        staged = getattr(answer, "staging_completion", None)
        return _Begun(
            wait=getattr(answer, "upload_completion", answer).result,
            before_step=(lambda: None) if staged is None else staged.result,
        )

    return begin


def _tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return [tensor for value in values for tensor in _tensors(value)]


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def saves(figures: Figures, training: Training, directory: Path) -> None:
    """Synchronous saves to memory."""
    dcp: Any = importlib.import_module("torch.distributed.checkpoint")
    group = tt.Checkpoint(model=training.model, optimizer=training.optimizer)
    options = tt.CheckpointOptions(durable=False)
    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: group.write(directory / "ckpt", options),
        "torch.save": lambda: torch.save(training.state(), directory / "state.pt"),
        "DCP": lambda: dcp.save(training.state(), checkpoint_id=directory / "dcp", no_dist=True),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(_ROUNDS):
        for name, save in contenders.items():
            if name in figures.left_out:
                continue
            try:
                times[name].append(seconds(save))
            except Exception as error:
                figures.leave_out(name, error)
            _empty(directory)
    ours = statistics.median(times["ours"]) if times["ours"] else float("nan")
    for name, measured in times.items():
        if not measured:
            continue
        found = statistics.median(measured)
        figures.note(
            f"save to memory, {name}",
            found * 1e3,
            "ms",
            f"  {training.num_bytes / found / 1e9:.1f} GB/s, x{found / ours:.1f}",
        )


def restores(figures: Figures, training: Training, directory: Path) -> None:
    """Restores from the page cache into what is on the device."""
    group = tt.Checkpoint(model=training.model, optimizer=training.optimizer)
    group.write(directory / "ckpt", tt.CheckpointOptions(durable=False))
    expected = [tensor.clone() for tensor in training.model.parameters()]
    _scribble(training)
    ours = median_seconds(lambda: group.read(directory / "ckpt").assert_consumed())
    assert all(torch.equal(*pair) for pair in zip(expected, training.model.parameters(), strict=True))
    limit = figures.found.get("bus, host to device", float("nan"))
    rate = training.num_bytes / ours / 1e9
    figures.note("restore, ours", ours * 1e3, "ms", f"  {rate:.1f} GB/s, {rate / limit:.1%} of the bus")
    _empty(directory)

    tensors = {str(number): tensor for number, tensor in enumerate(_tensors(training.state()))}
    file = directory / "state.pt"
    torch.save(training.state(), file)

    def load() -> None:
        state = torch.load(file, mmap=True, map_location="cuda", weights_only=True)
        training.model.load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])

    figures.note("restore, torch.load(mmap=True)", median_seconds(load) * 1e3, "ms")
    _empty(directory)
    try:
        _safetensors(figures, tensors, directory)
    except Exception as error:
        figures.leave_out("restore, safetensors", error)


def _safetensors(figures: Figures, tensors: dict[str, torch.Tensor], directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = directory / "state.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)

    def load() -> None:
        for name, value in load_file(file, device="cuda").items():
            tensors[name].detach().copy_(value)

    figures.note('restore, safetensors(device="cuda")', median_seconds(load) * 1e3, "ms")
    try:
        fast: Any = importlib.import_module("fastsafetensors")

        def fast_load() -> None:
            with fast.fastsafe_open(filenames=[str(file)], nogds=True, device="cuda:0") as opened:
                for name in opened.keys():  # noqa: SIM118
                    tensors[name].detach().copy_(opened.get_tensor(name))

        figures.note("restore, fastsafetensors", median_seconds(fast_load) * 1e3, "ms")
    except Exception as error:
        figures.leave_out("restore, fastsafetensors", error)
    finally:
        _empty(directory)


def _scribble(training: Training) -> None:
    with torch.no_grad():
        for parameter in training.model.parameters():
            parameter.fill_(np.nan)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda")
    parser.add_argument("--gib", type=float, default=10.0, help="model and Adam state together")
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"), help="a directory in memory")
    parser.add_argument("--results", type=Path, default=Path("build/benchmarks/cuda.json"))
    chosen = parser.parse_args()
    began = time.perf_counter()
    if find_links() is None:
        raise SystemExit(f"There is nothing to measure here. \n{doctor.diagnosis()}")
    figures = Figures(chosen.results)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}\n", flush=True)
    gib = min(chosen.gib, shutil.disk_usage(chosen.tmpfs).free / 2**30 / 1.5)
    if gib < chosen.gib:
        print(f"{chosen.tmpfs} has room for no more than {gib:.1f} GiB; that is measured.", flush=True)
    for part in (bus, many_small):
        try:
            part(figures)
        except Exception as error:
            figures.leave_out(part.__name__, error)
        torch.cuda.empty_cache()
    training = Training(int(gib * 2**30))
    print(f"\nA model with Adam's state: {training.num_bytes / 2**30:.2f} GiB", flush=True)
    with tempfile.TemporaryDirectory(dir=chosen.tmpfs) as place:
        for measure in (stalls, saves, restores):
            try:
                measure(figures, training, Path(place))
            except Exception as error:
                figures.leave_out(measure.__name__, error)
            _empty(Path(place))
    print(f"\n{time.perf_counter() - began:.0f} s; results in {chosen.results}")


if __name__ == "__main__":
    main()
