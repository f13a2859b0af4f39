"""A file system of fsspec in memory, ``counted://``, that notes what is asked of it and fails when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

PATIENCE_SECONDS = 60
"""After which a test that would hang fails."""


class CountedFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Any number of objects are one place."""

    protocol = "counted"
    store: dict[str, Any] = {}  # noqa: RUF012  as in the base class
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    place: Place

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.removeprefix("counted://"))
        return stripped

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        with self.place.asked("info", path):
            found: dict[str, Any] = super().info(path, **kwargs)
            return found

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        with self.place.asked("ls", path):
            return super().ls(path, detail=detail, **kwargs)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        with self.place.asked("cat_file", path, start, end):
            found: bytes = super().cat_file(path, start=start, end=end, **kwargs)
            return self.place.tampered("cat_file", path, found)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        with self.place.asked("pipe_file", path):
            super().pipe_file(path, self.place.tampered("pipe_file", path, value), mode, **kwargs)

    def rm_file(self, path: str) -> None:
        with self.place.asked("rm_file", path):
            super().rm_file(path)


class Place:
    """What is there, what was asked, and what is to go wrong."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.before: Callable[..., object] = lambda *call: None
        """Called with each request, before it is done; what it raises is the answer."""
        self.after: Callable[..., object] = lambda *call: None
        """As `before`, when it has been done."""
        self.tampering: Callable[[str, str, bytes], bytes] = lambda what, path, data: data
        """What becomes of bytes on their way."""
        self._lock = threading.Lock()
        self.num_at_once = self.most_at_once = 0

    def asked(self, *call: Any) -> _Asked:
        return _Asked(self, call)

    def begin(self, call: tuple[Any, ...]) -> None:
        with self._lock:
            self.calls.append(call)
            self.num_at_once += 1
            self.most_at_once = max(self.most_at_once, self.num_at_once)

    def end(self) -> None:
        with self._lock:
            self.num_at_once -= 1

    def tampered(self, what: str, path: str, data: bytes) -> bytes:
        return self.tampering(what, path, data)

    def files(self) -> dict[str, bytes]:
        return {path.lstrip("/"): file.getvalue() for path, file in CountedFileSystem.store.items()}

    def ranges(self, ending: str) -> list[tuple[int, int]]:
        """What was read of files with such names."""
        return [(call[2], call[3]) for call in self.calls if call[0] == "cat_file" and ending in call[1]]

    def calm(self) -> None:
        """Nothing goes wrong any more."""
        self.before = self.after = lambda *call: None
        self.tampering = lambda what, path, data: data
        self.calls.clear()


class _Asked:
    def __init__(self, place: Place, call: tuple[Any, ...]) -> None:
        self._place = place
        self._call = call

    def __enter__(self) -> None:
        self._place.begin(self._call)
        try:
            self._place.before(*self._call)
        except BaseException:
            self._place.end()
            raise

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._place.end()
        if error is None:
            self._place.after(*self._call)


def counted_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """An empty place."""
    fsspec.register_implementation("counted", CountedFileSystem, clobber=True)
    place = Place()
    monkeypatch.setattr(CountedFileSystem, "place", place, raising=False)
    monkeypatch.setattr(CountedFileSystem, "store", {})
    monkeypatch.setattr(CountedFileSystem, "pseudo_dirs", [""])
    # Nobody waits before trying again.
    monkeypatch.setattr("torch_trackckpt.storage.remote._PAUSES_SECONDS", (0.0, 0.0))
    yield place
    place.calm()
