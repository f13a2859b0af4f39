"""A data file on its way to remote storage, in parts: while some are being sent, the next is being filled.

The native writer fills one buffer. When it is full its bytes are copied, and the copy is sent by a thread, of which
there are as many as parts may be on their way at once. The writer waits where all are busy, so that a file has never
more than these parts and the buffer in memory, whatever its size.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from torch_trackckpt.errors import WriterClosedError

__all__ = ["PART_BYTES", "PartUpload", "Parts", "S3Parts", "StreamParts", "part_bytes_of"]

PART_BYTES = 8 << 20
"""The size of a part. Object stores want 5 MiB at least; twice as much halves the requests and doubles the memory."""

_MOST_PARTS = 9_000
"""Of which a file is made, so that it surely stays below the 10,000 that S3 takes. A larger file has larger parts."""

_logger = logging.getLogger("torch_trackckpt")


def part_bytes_of(num_bytes: int) -> int:
    """The size of the parts of a file of about so many bytes."""
    return max(PART_BYTES, math.ceil(num_bytes / _MOST_PARTS))


class Parts(Protocol):
    """How a file system takes a file in parts."""

    def send(self, number: int, data: bytes) -> None:
        """Sends one part; the first has number 1. Parts may come in any order, and several at once, if the file system
        has several on their way."""
        ...

    def complete(self) -> None:
        """Makes a file of the parts."""
        ...

    def abort(self) -> None:
        """Gives up what was sent."""
        ...


class PartUpload:
    """One file. What is handed over comes from one thread at a time; `abort` may come from another.

    Args:
        path: the URL.
        parts: where parts go.
        put: writes a file that is a single part.
        size: tells how large the file is when it is there.
        remove: removes it.
        part_bytes: the size of a part, of which only the last may be smaller.
        num_threads: how many parts are on their way at once.
    """

    def __init__(
        self,
        path: str,
        parts: Parts,
        *,
        put: Callable[[bytes], object],
        size: Callable[[], int],
        remove: Callable[[], object],
        part_bytes: int,
        num_threads: int,
    ) -> None:
        self.path = path
        self.num_bytes = 0
        self._parts = parts
        self._put = put
        self._size = size
        self._remove = remove
        self._part_bytes = part_bytes
        self._memory: np.ndarray[Any, np.dtype[np.uint8]] | None = None
        self._num_threads = num_threads
        self._threads: list[threading.Thread] = []
        self._permits = threading.Semaphore(num_threads)
        self._waiting: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        self._num_parts = 0
        self._only = b""
        self._failure: BaseException | None = None
        self._ending = threading.Lock()
        self._may_be_there = False

    def next_part(self, num_filled: int, is_last: bool) -> tuple[int, int] | None:
        if num_filled:
            assert self._memory is not None
            self._take(self._memory.data[:num_filled], is_last)
        if is_last:
            self._memory = None
            return None
        if self._memory is None:
            # What a small file does not touch is no memory.
            self._memory = np.empty(self._part_bytes, dtype=np.uint8)
        return self._memory.ctypes.data, self._part_bytes

    def _take(self, filled: memoryview, is_last: bool) -> None:
        self.num_bytes += len(filled)
        if is_last and self._num_parts == 0:
            self._only = bytes(filled)
            return
        self._permits.acquire()
        self._raise_failure()
        self._num_parts += 1
        self._start_thread()
        if self._threads:
            self._waiting.put((self._num_parts, bytes(filled)))
        else:
            self._send(self._num_parts, bytes(filled))
            self._raise_failure()

    def _start_thread(self) -> None:
        if len(self._threads) == self._num_threads:
            return
        thread = threading.Thread(target=self._send_all, name=f"upload {self.path}", daemon=False)
        # The interpreter gives none at its exit: then the caller's thread does it all.
        with contextlib.suppress(RuntimeError):
            thread.start()
            self._threads.append(thread)

    def _send_all(self) -> None:
        while (part := self._waiting.get()) is not None:
            self._send(*part)
            del part

    def _send(self, number: int, data: bytes) -> None:
        try:
            if self._failure is None:
                self._parts.send(number, data)
        except BaseException as error:
            self._failure = self._failure or self._described(error)
        finally:
            self._permits.release()

    def _described(self, error: BaseException) -> BaseException:
        """Whatever a file system raises, as the error of a file."""
        if not isinstance(error, Exception) or (isinstance(error, OSError) and error.filename is not None):
            return error
        code = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        described = OSError(code, f"The upload failed with {type(error).__name__}: {error}", self.path)
        described.__cause__ = error
        return described

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        with self._ending:
            self._raise_failure()
            self._end_threads()
            self._raise_failure()
            self._may_be_there = True
            if self._num_parts:
                try:
                    self._parts.complete()
                except Exception as error:
                    raise self._described(error) from error
            else:
                self._put(self._only)
            self._only = b""
            found = self._size()
        if found != self.num_bytes:
            raise OSError(
                errno.EIO,
                f"{self.num_bytes} bytes were uploaded, but the file that came of them has {found}",
                self.path,
            )

    def _end_threads(self) -> None:
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def abort(self) -> None:
        # Whoever still hands over ends, and finds out.
        self._failure = self._failure or WriterClosedError(f"The upload of {self.path!r} was given up.")
        with self._ending:
            self._end_threads()
            may_be_there, self._may_be_there = self._may_be_there or self._num_parts > 0, False
            self._num_parts = 0
            if not may_be_there:
                return
            try:
                # Where the one cannot be done, the other may be all that is needed.
                try:
                    self._parts.abort()
                finally:
                    self._remove()
            except Exception as error:
                _logger.warning(
                    "What was uploaded to %r before a save failed could not be removed (%s: %s). It is no checkpoint; "
                    "the next save under this name removes it.",
                    self.path,
                    type(error).__name__,
                    error,
                )


class S3Parts:
    """A multipart upload of s3fs, whose parts go up side by side.

    Args:
        file_system: an ``s3fs.S3FileSystem``.
        path: the path in it.
    """

    def __init__(self, file_system: Any, path: str) -> None:
        self._call = file_system.call_s3
        bucket, key, _ = file_system.split_path(path)
        self._place = {"Bucket": bucket, "Key": key}
        self._upload: dict[str, str] = {}
        self._beginning = threading.Lock()
        self._sent: dict[int, dict[str, object]] = {}

    def send(self, number: int, data: bytes) -> None:
        with self._beginning:
            if not self._upload:
                self._upload = {"UploadId": self._call("create_multipart_upload", **self._place)["UploadId"]}
        answer = self._call("upload_part", **self._place, **self._upload, PartNumber=number, Body=data)
        checksums = {name: text for name, text in answer.items() if name.startswith("Checksum") and "Type" not in name}
        self._sent[number] = {"PartNumber": number, "ETag": answer["ETag"], **checksums}

    def complete(self) -> None:
        listed = {"Parts": [self._sent[number] for number in sorted(self._sent)]}
        # Where an answer is lost, the request is made again, of an upload that is complete and gone. Whether it is, the
        # size of the file will tell.
        with contextlib.suppress(FileNotFoundError):
            self._call("complete_multipart_upload", **self._place, **self._upload, MultipartUpload=listed)
        self._upload = {}

    def abort(self) -> None:
        if self._upload:
            with contextlib.suppress(FileNotFoundError):
                self._call("abort_multipart_upload", **self._place, **self._upload)
        self._upload = {}


class StreamParts:
    """A file of any file system, written from front to back.

    Args:
        open_file: opens it.
    """

    def __init__(self, open_file: Callable[[], Any]) -> None:
        self._open = open_file
        self._file: Any = None

    def send(self, number: int, data: bytes) -> None:
        if self._file is None:
            self._file = self._open()
        self._file.write(data)

    def complete(self) -> None:
        self._file.close()
        self._file = None

    def abort(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        try:
            with contextlib.suppress(AttributeError, FileNotFoundError, RuntimeError):
                file.discard()
        finally:
            # Files of fsspec send what they still have when they are closed, also by the garbage collector.
            try:
                file.closed = True
            except AttributeError:
                file.close()
