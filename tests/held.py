"""Asynchronous saves that go on only when a test lets them."""

from __future__ import annotations

import threading

from torch_trackckpt import CheckpointOptions
from torch_trackckpt.storage.local import LocalStorage

PATIENCE_SECONDS = 60
"""After which a test that would hang fails."""

ASYNC = CheckpointOptions(durable=False, enable_async=True)


class HeldStorage(LocalStorage):
    """Stands still before the first look at the disk, and so before any file, until it is released."""

    def __init__(self) -> None:
        super().__init__(durable=False)
        self._gate = threading.Event()

    def exists(self, path: str) -> bool:
        assert self._gate.wait(PATIENCE_SECONDS), "nobody released the save"
        return super().exists(path)

    def release(self) -> None:
        self._gate.set()

    def hold(self) -> None:
        self._gate.clear()
