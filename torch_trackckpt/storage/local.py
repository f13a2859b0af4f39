"""Files of this machine."""

from __future__ import annotations

import builtins
import contextlib
import errno
import glob
import os
import re
import secrets
import shutil
from pathlib import Path

from torch_trackckpt.storage.base import Upload

__all__ = ["LocalStorage"]


class LocalStorage:
    """The local file system; with ``durable``, what it reports as done survives the loss of power."""

    is_remote = False

    def __init__(self, *, durable: bool = True) -> None:
        self.durable = durable

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def is_directory(self, path: str) -> bool:
        return os.path.isdir(path)

    def size(self, path: str) -> int:
        return os.path.getsize(path)

    def identity(self, path: str) -> tuple[object, ...] | None:
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def list(self, prefix: str) -> builtins.list[str]:
        return sorted(glob.glob(glob.escape(prefix) + "*"))

    def make_directory(self, path: str) -> None:
        path = path or "."
        if os.path.isdir(path):
            return
        parent = os.path.dirname(path)
        self.make_directory(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
        self.sync_directory(path)

    def rename(self, source: str, destination: str) -> None:
        os.replace(source, destination)
        # Where both are names of one file, the system leaves both.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(source)

    def link(self, source: str, destination: str) -> None:
        try:
            # On Linux, os.link links a symbolic link itself, whose target may be relative to its directory.
            os.link(os.path.realpath(source), destination)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
                raise
            self._copy(source, destination)
        # Whoever wrote the file need not have waited for the disk.
        self._sync_file(destination)

    def _sync_file(self, path: str) -> None:
        if self.durable:
            with open(path, "rb") as file:
                os.fsync(file.fileno())

    def _copy(self, source: str, destination: str) -> None:
        try:
            shutil.copyfile(source, destination)
        except BaseException:
            self.remove(destination)
            raise

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def ranges(self, prefix: str) -> None:
        return None

    def get(self, path: str) -> bytes:
        # What is no file could keep us waiting, or go on for ever.
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError(f"{path!r} is no file")
        return Path(path).read_bytes()

    def put(self, path: str, data: bytes) -> None:
        for left_over in self.list(path + ".tmp"):
            if re.fullmatch(r"\.tmp[0-9a-f]{16}", left_over.removeprefix(path)):
                self.remove(left_over)
        while not self._replace(path, data):
            pass
        self.sync_directory(path)

    def _replace(self, path: str, data: bytes) -> bool:
        """Whether it succeeded; not where another thread's `put` took the temporary file for one that is left over."""
        temporary = f"{path}.tmp{secrets.token_hex(8)}"
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                if self.durable:
                    os.fsync(file.fileno())
            try:
                os.replace(temporary, path)
            except FileNotFoundError:
                return False
        except BaseException:
            self.remove(temporary)
            raise
        return True

    def upload(self, path: str, num_bytes: int, files_at_once: int) -> Upload:
        raise NotImplementedError("Data files of this machine are written by the native core.")

    def sync_directory(self, path: str) -> None:
        if not self.durable:
            return
        descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
