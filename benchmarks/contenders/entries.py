"""Who takes part, under which name, and in what. A class is imported only where it is needed."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from benchmarks.contenders.base import Contender
from benchmarks.workloads import Workload

OURS = "torch_trackckpt"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One contender."""

    name: str
    place: str
    """Module and class."""
    does: frozenset[str]
    """Of save, load, read and async."""
    writer: str = ""
    """Whose files it loads, if not its own."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further arguments of the class."""
    only_workload: str = ""
    """The one workload for which it makes a difference, or all."""

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)


def _entry(name: str, place: str, does: str, writer: str = "", only_workload: str = "", **options: Any) -> Entry:
    return Entry(name, place, frozenset(does.split()), writer, options, only_workload)


ENTRIES = (
    _entry(OURS, "trackckpt:TrackCkpt", "save load read"),
    _entry(f"{OURS}, one shard", "trackckpt:TrackCkpt", "save load", num_shards=1),
    _entry(f"{OURS}, frozen_saver", "trackckpt:TrackCkpt", "save", only_workload="W2", frozen=True),
    _entry("safetensors", "safetensors_files:Safetensors", "save load read"),
    _entry("fastsafetensors", "safetensors_files:FastSafetensors", "load read", writer="safetensors"),
    _entry("torch", "torch_files:TorchFile", "save load"),
    _entry("torch, mmap", "torch_files:TorchFile", "load read", writer="torch", mmap=True),
    _entry("DCP", "dcp:DCP", "save load read"),
    _entry("DCP, 2 threads", "dcp:DCP", "save load", threads=2),
    _entry("torch_checkpointing", "torch_checkpointing_files:TorchCheckpointing", "save load"),
    _entry("torch_checkpointing, 2 threads", "torch_checkpointing_files:TorchCheckpointing", "save load", threads=2),
    _entry("torchsnapshot", "torchsnapshot_files:TorchSnapshot", "save load read"),
    # With the others it takes longer than everybody else together.
    _entry("orbax", "orbax_files:Orbax", "save load", only_workload="W1"),
    _entry("TensorFlow", "tensorflow_files:TensorFlow", "save load read"),
    # Asynchronous saves.
    _entry(f"{OURS}, copy", "trackckpt:TrackCkpt", "async", asynchronous="copy"),
    _entry(f"{OURS}, copy, prewarmed", "trackckpt:TrackCkpt", "async", asynchronous="copy", prewarmed=True),
    _entry(f"{OURS}, overlapped", "trackckpt:TrackCkpt", "async", asynchronous="overlapped"),
    _entry(f"{OURS}, overlapped, prewarmed", "trackckpt:TrackCkpt", "async", asynchronous="overlapped", prewarmed=True),
    _entry("clone + thread", "torch_files:TorchFile", "async"),
    _entry("DCP async", "dcp:DCP", "async"),
    _entry("DCP async, kept stager", "dcp:DCP", "async", stager="kept"),
    _entry("torch_checkpointing, overlapped", "torch_checkpointing_files:TorchCheckpointing", "async", overlapped=True),
    _entry("torchsnapshot async", "torchsnapshot_files:TorchSnapshot", "async"),
    _entry("orbax async", "orbax_files:Orbax", "async"),
    _entry("TensorFlow async", "tensorflow_files:TensorFlow", "async"),
)


def entry_named(name: str) -> Entry:
    return next(entry for entry in ENTRIES if entry.name == name)


def make_contender(name: str, workload: Workload, durable: bool, shards: int = 0) -> Contender:
    """The contender, prepared.

    Args:
        name: of its entry.
        workload: what it saves and restores.
        durable: whether ours waits for the disk.
        shards: into how many data files ours writes; 0 for what its entry says.

    Raises:
        NotAvailableError: something that it needs is absent.
    """
    entry = entry_named(name)
    module, _, class_name = entry.place.partition(":")
    options = dict(entry.options)
    if entry.is_ours:
        options |= {"durable": durable} | ({"num_shards": shards} if shards else {})
    made: Contender = getattr(importlib.import_module(f"benchmarks.contenders.{module}"), class_name)(
        workload, **options
    )
    made.prepare()
    return made
