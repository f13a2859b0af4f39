"""What the package asks of a place where checkpoints are kept."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Storage"]


class Storage(Protocol):
    """Names and small files. Tensor data is written by the native core, to local paths."""

    def exists(self, path: str) -> bool:
        """Whether there is a file at the path."""
        ...

    def list(self, prefix: str) -> list[str]:
        """The paths of all files that begin with ``prefix``, sorted; an absent directory has none."""
        ...

    def make_directory(self, path: str) -> None:
        """Makes the directory and its parents, where they are missing."""
        ...

    def rename(self, source: str, destination: str) -> None:
        """Gives a file another name in its directory, replacing what has that name."""
        ...

    def link(self, source: str, destination: str) -> None:
        """Gives a file a second name, which may be in another directory; copies it where that is impossible."""
        ...

    def remove(self, path: str) -> None:
        """Removes a file; one that is gone already is no error."""
        ...

    def put(self, path: str, data: bytes) -> None:
        """Writes a whole file, which readers see either as it was or complete."""
        ...

    def sync_directory(self, path: str) -> None:
        """Waits until the names in the directory of ``path`` are durable."""
        ...
