"""What the package asks of a place where checkpoints are kept."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Ranges", "Storage", "Upload"]


class Upload(Protocol):
    """A file on its way to a place that is no disk of this machine, part by part."""

    path: str
    """What the file is going to be called."""
    num_bytes: int
    """How many bytes have been handed over."""

    def next_part(self, num_filled: int, is_last: bool) -> tuple[int, int] | None:
        """Takes the part that was given before, of which so many bytes are filled.

        Returns:
            Address and size of memory for the next part, behind the last None.
        """
        ...

    def finish(self) -> None:
        """Waits for the rest, and sees to it that the file is there, and as long as what was handed over."""
        ...

    def abort(self) -> None:
        """Leaves nothing of a file that was not finished; harmless otherwise."""
        ...


class Ranges(Protocol):
    """Files of a checkpoint that the native reader asks for range by range, from several threads."""

    request_bytes: int
    """The largest range that is asked for at once."""
    gap_bytes: int
    """What lies between two values costs less than a second request, up to here."""
    num_requests: int
    """How many are asked for at once, at least."""

    def size(self, path: str) -> int:
        """How many bytes a file has. Raises ``FileNotFoundError`` where there is none."""
        ...

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Exactly these bytes. Raises an ``OSError`` where they cannot be had."""
        ...


class Storage(Protocol):
    """Names and small files, and data files where these are not written by the native core to local paths."""

    is_remote: bool
    """Whether files cannot be renamed: they are uploaded under their final names, and are there as a whole, or not."""

    def exists(self, path: str) -> bool:
        """Whether there is a file at the path."""
        ...

    def is_directory(self, path: str) -> bool:
        """Whether there are files below the path."""
        ...

    def size(self, path: str) -> int:
        """How many bytes a file has. Raises ``FileNotFoundError`` where there is none."""
        ...

    def identity(self, path: str) -> tuple[object, ...] | None:
        """What is different when another file has taken the place of one, whatever its name was; None for none."""
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

    def ranges(self, prefix: str) -> Ranges | None:
        """The files of the checkpoint at a path, for one reader of them; None for the native core to open them."""
        ...

    def get(self, path: str) -> bytes:
        """A whole file. Raises ``FileNotFoundError`` where there is none."""
        ...

    def put(self, path: str, data: bytes) -> None:
        """Writes a whole file, which readers see either as it was or complete."""
        ...

    def upload(self, path: str, num_bytes: int, files_at_once: int) -> Upload:
        """Begins a data file, where `is_remote`.

        Args:
            path: what it is called when it is complete.
            num_bytes: about how large it is going to be.
            files_at_once: how many share the memory that there is for parts.
        """
        ...

    def sync_directory(self, path: str) -> None:
        """Waits until the names in the directory of ``path`` are durable."""
        ...
