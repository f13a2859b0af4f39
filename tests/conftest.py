"""Fixtures of all tests."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from held import PATIENCE_SECONDS, HeldStorage
from keras_oracle import Keras, keras_oracle

from torch_trackckpt import _native
from torch_trackckpt.save import late, turns
from torch_trackckpt.save.late import LateCopy

Damage = Callable[[str, str], None]


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """Where a test writes its checkpoint, in a folder of its own."""
    return str(tmp_path / "ckpt")


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that a test should run on."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def damage() -> Damage:
    """Flips one bit in the middle of the value that a checkpoint holds under a key."""

    def flip(prefix: str, key: str) -> None:
        reader = _native.BundleReader(f"{prefix}.index", prefix)
        entry = reader.find(key.encode())
        assert entry is not None
        with open(reader.data_path(entry.shard_id), "r+b") as file:
            file.seek(entry.offset + entry.size // 2)
            (byte,) = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))

    return flip


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldStorage]:
    """Through which every save of the test writes; nothing is written before its release."""
    storage = HeldStorage()
    monkeypatch.setattr(turns, "storage_for", lambda path, *, durable: storage)
    yield storage
    storage.release()


@pytest.fixture(scope="session")
def keras() -> Iterator[Keras]:
    """Real Keras of both generations, in a worker that all tests share."""
    with keras_oracle() as oracle:
        yield oracle


@pytest.fixture
def late_whatever_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each tensor were worth being copied late."""
    monkeypatch.setattr(late, "_LEAST_BYTES", 1)


@pytest.fixture
def not_copied(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The background thread copies nothing before this is set; whoever steps copies by himself."""
    gate = threading.Event()
    run = LateCopy.run

    def run_later(copies: LateCopy) -> None:
        assert gate.wait(PATIENCE_SECONDS), "nobody let the thread copy"
        run(copies)

    monkeypatch.setattr(LateCopy, "run", run_later)
    yield gate
    gate.set()
