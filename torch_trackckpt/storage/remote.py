"""Files behind URLs: whatever fsspec knows. This is the one module that knows fsspec.

Nothing is believed of caches: every look goes to where the files are. A request that fails is made again, a few times,
unless the answer is final (there is no such file, it is not permitted); the file systems themselves do so as well, for
longer, where they know which failures pass. Credentials are fsspec's business: they come from its configuration, the
environment or the machine, and no URL that holds a password is taken.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import re
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from torch_trackckpt.storage.paths import directory
from torch_trackckpt.storage.upload import PartUpload, S3Parts, StreamParts, part_bytes_of

__all__ = ["RemoteRanges", "RemoteStorage"]

REQUEST_BYTES = 8 << 20
"""The largest range that is asked for at once. A request takes some tens of milliseconds, in which a connection moves a
few mebibytes."""

GAP_BYTES = 256 << 10
"""What lies between two values costs less than another request, up to here."""

NUM_REQUESTS = 8
"""How many ranges are asked for, or parts sent, at once. s3fs has ten connections, unless it is told otherwise."""

KEPT_BYTES = 66 << 20
"""As much as a restore reads that checks everything first, and the index."""

_PAUSES_SECONDS = (0.5, 2.0)
"""Before a request is made again."""

_PASSWORD = re.compile(r"://[^/@]*:[^/]*@")

_FINAL = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    AttributeError,
    ImportError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""Errors that would be the same the next time."""

_WITHOUT_DIRECTORIES = frozenset(
    {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "obs", "cos", "tos", "memory"}
)
"""Where a directory is but a part of names, and making one might make a bucket."""

_ETAGS = ("ETag", "etag")
_TIMES = ("generation", "LastModified", "last_modified", "updated", "mtime", "modified", "created", "ino")

T = TypeVar("T")


class RemoteStorage:
    """The files of one file system, by their URLs. Any number of threads may use one object at once.

    Args:
        url: any of them.
        sleep: waits so many seconds.

    Raises:
        ImportError: a package is not installed; the text names it.
        ValueError: the URL is of no kind that fsspec knows, or holds a password.
    """

    is_remote = True

    def __init__(self, url: str, *, sleep: Callable[[float], object] = time.sleep) -> None:
        self._fs = _file_system(url)
        names = self._fs.protocol
        self._protocols = frozenset({names} if isinstance(names, str) else names)
        self._sleep = sleep

    def _path(self, url: str) -> str:
        path: str = self._fs._strip_protocol(url)
        return path

    def _persistently(self, what: str, url: str, call: Callable[[], T]) -> T:
        """The result of a request, which is made again where it fails."""
        for pause in (*_PAUSES_SECONDS, None):
            try:
                return call()
            except FileNotFoundError as error:
                if error.filename is not None:
                    raise
                # Some say no more than which request it was.
                raise FileNotFoundError(errno.ENOENT, f"{what} failed, there is nothing at {error}", url) from error
            except _FINAL:
                raise
            except Exception as error:
                if pause is None:
                    code = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
                    text = (
                        f"{what} failed {len(_PAUSES_SECONDS) + 1} times, at last with {type(error).__name__}: {error}"
                    )
                    raise OSError(code, text, url) from error
                self._sleep(pause)
        raise AssertionError("the last pause is none")

    # What is there.

    def _info(self, url: str) -> dict[str, Any] | None:
        path = self._path(url)

        def look() -> dict[str, Any] | None:
            self._fs.invalidate_cache(path)
            # Some would find the file, or miss it, in a listing of its directory that they remember.
            self._fs.invalidate_cache(self._fs._parent(path))
            try:
                found: dict[str, Any] = self._fs.info(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            return found

        return self._persistently("Looking for the file", url, look)

    def exists(self, path: str) -> bool:
        info = self._info(path)
        return info is not None and info["type"] != "directory"

    def is_directory(self, path: str) -> bool:
        info = self._info(path)
        return info is not None and info["type"] == "directory"

    def size(self, path: str) -> int:
        info = self._info(path)
        if info is None or info["type"] == "directory":
            raise FileNotFoundError(errno.ENOENT, "There is no such file", path)
        return int(info["size"])

    def identity(self, path: str) -> tuple[object, ...] | None:
        info = self._info(path)
        if info is None or info["type"] == "directory":
            return None
        # Which of them there are depends on the file system. One that tells of the content tells more than any time.
        known = [name for name in _ETAGS if info.get(name)] or [name for name in _TIMES if info.get(name)]
        return (info["size"], *(str(info[name]) for name in known))

    def list(self, prefix: str) -> builtins.list[str]:
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """The files that begin with ``prefix``, and how many bytes each has."""
        folder = directory(prefix)
        path = self._path(folder)

        def look() -> builtins.list[dict[str, Any]]:
            self._fs.invalidate_cache(path)
            try:
                found: builtins.list[dict[str, Any]] = self._fs.ls(path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
            return found

        beginning = folder if folder.endswith("/") else folder + "/"
        found = {
            beginning + info["name"].rstrip("/").rpartition("/")[2]: int(info["size"] or 0)
            for info in self._persistently("Listing the directory", folder, look)
            if info["type"] != "directory"
        }
        return {url: size for url, size in found.items() if url.startswith(prefix)}

    def ranges(self, prefix: str) -> RemoteRanges:
        return RemoteRanges(self, prefix)

    # Small files.

    def get(self, path: str) -> bytes:
        def read() -> bytes:
            found: bytes = self._fs.cat_file(self._path(path))
            return found

        return self._persistently("Reading the file", path, read)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Some bytes of a file.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: they did not come, or not all of them; the text says which.
        """

        def read() -> bytes:
            found: bytes = self._fs.cat_file(self._path(path), start=offset, end=offset + size)
            if len(found) != size:
                raise EOFError(f"{len(found)} bytes have come instead of {size}")
            return found

        return self._persistently(f"Reading {size} bytes at offset {offset}", path, read)

    def put(self, path: str, data: bytes) -> None:
        self._persistently("Writing the file", path, lambda: self._put(self._path(path), data))

    def _put(self, path: str, data: bytes) -> None:
        if self._protocols.isdisjoint({"file", "local"}):
            self._fs.pipe_file(path, data)
            return
        # Others could see a file of this machine while it grows.
        temporary = f"{path}.tmp{secrets.token_hex(8)}"
        try:
            self._fs.pipe_file(temporary, data)
            self._fs.mv(temporary, path)
        except BaseException:
            self._remove(temporary)
            raise

    def remove(self, path: str) -> None:
        self._persistently("Removing the file", path, lambda: self._remove(self._path(path)))

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def make_directory(self, path: str) -> None:
        if self._protocols.isdisjoint(_WITHOUT_DIRECTORIES):
            make = self._fs.makedirs
            self._persistently("Making the directory", path, lambda: make(self._path(path), exist_ok=True))

    def sync_directory(self, path: str) -> None:
        """What is there is there."""

    def rename(self, source: str, destination: str) -> None:
        raise NotImplementedError(f"Files of remote storage keep their names: {source!r}.")

    def link(self, source: str, destination: str) -> None:
        raise NotImplementedError(f"Files of remote storage have one name: {source!r}.")

    # Data files.

    def upload(self, path: str, num_bytes: int, files_at_once: int) -> PartUpload:
        inner = self._path(path)
        is_s3 = not self._protocols.isdisjoint({"s3", "s3a"}) and hasattr(self._fs, "call_s3")

        part_bytes = part_bytes_of(num_bytes)

        def open_file() -> Any:
            return self._fs.open(inner, "wb", block_size=part_bytes)

        return PartUpload(
            path,
            S3Parts(self._fs, inner) if is_s3 else StreamParts(open_file),
            put=lambda data: self.put(path, data),
            size=lambda: self.size(path),
            remove=lambda: self.remove(path),
            part_bytes=part_bytes,
            num_threads=max(1, NUM_REQUESTS // max(files_at_once, 1)) if is_s3 else 1,
        )


class RemoteRanges:
    """The files of one checkpoint, as the native reader asks for them. It asks from several threads.

    What a small restore checks before it changes anything is read once more then: as long as no more than `KEPT_BYTES`
    have been read, they are kept until they are asked for a second time.

    Args:
        storage: where they are.
        prefix: the path of the checkpoint.
    """

    request_bytes = REQUEST_BYTES
    gap_bytes = GAP_BYTES
    num_requests = NUM_REQUESTS

    def __init__(self, storage: RemoteStorage, prefix: str) -> None:
        self._storage = storage
        self._prefix = prefix
        self._lock = threading.Lock()
        self._sizes: dict[str, int] | None = None
        self._kept: dict[tuple[str, int, int], bytes] = {}
        self._may_be_kept = KEPT_BYTES

    def size(self, path: str) -> int:
        """How many bytes a file has. One listing tells it of all data files."""
        if path.startswith(data := f"{self._prefix}.data-"):
            with self._lock:
                if self._sizes is None:
                    self._sizes = self._storage.sizes(data)
                if path in self._sizes:
                    return self._sizes[path]
        return self._storage.size(path)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Exactly these bytes."""
        with self._lock:
            if (kept := self._kept.pop((path, offset, size), None)) is not None:
                return kept
        found = self._storage.read(path, offset, size)
        with self._lock:
            self._may_be_kept -= size
            if self._may_be_kept >= 0:
                self._kept[path, offset, size] = found
            else:
                self._kept.clear()
        return found


def _file_system(url: str) -> Any:
    if _PASSWORD.search(url):
        raise ValueError(
            f"The URL, which begins with {url.partition('://')[0]}://, holds a password, and paths of checkpoints are "
            "written to logs and state files. Give credentials to fsspec by its configuration or the environment."
        )
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ImportError(
            f"Paths such as {url!r} need the package fsspec: pip install 'torch_trackckpt[remote]', and what fsspec "
            "needs for such URLs (s3fs for s3://, gcsfs for gs://, adlfs for az://)."
        ) from error
    try:
        file_system, _ = url_to_fs(url)
    except ImportError as error:
        raise ImportError(f"fsspec cannot open {url!r}, because a package is not installed. {error}") from error
    except ValueError as error:
        raise ValueError(f"fsspec cannot open {url!r}: {error}") from error
    return file_system
