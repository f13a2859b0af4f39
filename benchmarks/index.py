"""Looking into a checkpoint of very many tensors: opening and listing it, opening it and reading one tensor.

Beside this package stands TensorFlow, which reads the same files. Each opens a small checkpoint first, so that no first
use is counted.
"""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import torch_trackckpt as tt
from benchmarks.contenders.base import NotAvailableError
from benchmarks.contenders.entries import OURS
from benchmarks.memory import PeakMemory
from benchmarks.process import run_alone

_NUM_ELEMENTS = 16


def perform(request: dict[str, Any]) -> dict[str, Any]:
    """Writes the files, or opens them.

    Args:
        request: `path`, a directory; `num_keys`; and `contender`, or ``""`` to write.
    """
    path, num_keys = Path(request["path"]), request["num_keys"]
    if not request["contender"]:
        path.mkdir()
        _write(path / "few", 10)
        _write(path / "many", num_keys)
        return {}
    load = _loader(request["contender"])
    _listed(load, path / "few")
    _one(load, path / "few", 5)
    gc.collect()
    peak = PeakMemory()
    start = time.perf_counter()
    num_listed = _listed(load, path / "many")
    listed = time.perf_counter()
    value = _one(load, path / "many", num_keys // 2)
    done = time.perf_counter()
    return {
        "open_list": listed - start,
        "open_one": done - listed,
        "peak": peak.above(),
        "wrong_pieces": int(value != num_keys // 2 * _NUM_ELEMENTS or num_listed < num_keys),
    }


def _write(prefix: Path, num_keys: int) -> None:
    values = torch.arange(num_keys, dtype=torch.float32)[:, None].repeat(1, _NUM_ELEMENTS)
    tensors = {f"layer{number // 8}_part{number % 8}": values[number] for number in range(num_keys)}
    tt.Checkpoint(tensors=tensors).write(prefix, tt.CheckpointOptions(durable=False))


def _loader(contender: str) -> Callable[[str], Any]:
    if contender == OURS:
        return tt.load_checkpoint
    try:
        load: Callable[[str], Any] = importlib.import_module("tensorflow").train.load_checkpoint
    except ImportError as error:
        raise NotAvailableError(f"pip install tensorflow-cpu ({error})") from error
    return load


def _listed(load: Callable[[str], Any], prefix: Path) -> int:
    return len(load(str(prefix)).get_variable_to_shape_map())


def _one(load: Callable[[str], Any], prefix: Path, number: int) -> float:
    key = f"tensors/layer{number // 8}_part{number % 8}/.ATTRIBUTES/VARIABLE_VALUE"
    return float(load(str(prefix)).get_tensor(key).sum())


if __name__ == "__main__":
    run_alone(perform)
