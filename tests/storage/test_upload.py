"""Data files on their way, part by part."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import pytest
from remote_memory import PATIENCE_SECONDS, CountedFileSystem, Place

from torch_trackckpt.errors import WriterClosedError
from torch_trackckpt.storage.remote import RemoteStorage
from torch_trackckpt.storage.upload import PART_BYTES, PartUpload, StreamParts, part_bytes_of

PART = 1000


class FakeParts:
    """Keeps parts; sending waits until it may."""

    def __init__(self, *, may_send: bool = True) -> None:
        self.sent: dict[int, bytes] = {}
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.num_begun = 0
        self.is_complete = self.is_aborted = False
        self.failure: Exception | None = None
        if may_send:
            self.gate.set()

    def send(self, number: int, data: bytes) -> None:
        self.num_begun += 1
        self.begun.release()
        assert self.gate.wait(PATIENCE_SECONDS)
        if self.failure is not None:
            raise self.failure
        self.sent[number] = data

    def complete(self) -> None:
        self.is_complete = True

    def abort(self) -> None:
        self.is_aborted = True


class File:
    """An upload, and what came of it."""

    def __init__(self, num_threads: int = 2, *, may_send: bool = True) -> None:
        self.parts = FakeParts(may_send=may_send)
        self.whole: bytes | None = None
        self.is_removed = False
        self.upload = PartUpload(
            "place://file",
            self.parts,
            put=self._put,
            size=lambda: len(self.content()),
            remove=self._remove,
            part_bytes=PART,
            num_threads=num_threads,
        )

    def _put(self, data: bytes) -> None:
        self.whole = data

    def _remove(self) -> None:
        self.is_removed = True

    def content(self) -> bytes:
        return self.whole if self.whole is not None else b"".join(self.parts.sent[n] for n in sorted(self.parts.sent))

    def write(self, data: bytes) -> None:
        """As the native writer does."""
        filled, room = 0, 0
        while data:
            if filled == room:
                given = self.upload.next_part(filled, False)
                assert given is not None
                (address, room), filled = given, 0
            piece, data = data[: room - filled], data[room - filled :]
            ctypes.memmove(address + filled, piece, len(piece))
            filled += len(piece)
        assert self.upload.next_part(filled, True) is None
        self.upload.finish()


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 5 * PART, 5 * PART + 1])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_file_is_what_was_written_whatever_its_size(size: int, num_threads: int) -> None:
    data = bytes(i * 7 % 251 for i in range(size))
    file = File(num_threads)
    file.write(data)
    assert file.content() == data
    assert file.upload.num_bytes == size
    assert (file.whole is not None) == (size <= PART) or size == PART
    assert {len(part) for part in list(file.parts.sent.values())[:-1]} <= {PART}


def test_parts_go_up_side_by_side_and_no_more_than_that_are_in_memory() -> None:
    file = File(num_threads=3, may_send=False)
    writer = threading.Thread(target=file.write, args=(bytes(20 * PART),))
    writer.start()
    for _ in range(3):
        assert file.parts.begun.acquire(timeout=PATIENCE_SECONDS)
    # The writer waits now, with one part that is full.
    assert file.parts.num_begun == 3
    assert file.upload.num_bytes <= 4 * PART
    file.parts.gate.set()
    writer.join(PATIENCE_SECONDS)
    assert len(file.content()) == 20 * PART


def test_a_part_that_cannot_be_sent_ends_the_file() -> None:
    file = File()
    file.parts.failure = OSError(5, "no answer")
    with pytest.raises(OSError, match="no answer"):
        file.write(bytes(10 * PART))
    file.upload.abort()
    assert file.parts.is_aborted
    assert file.is_removed
    assert not file.parts.is_complete
    assert not any(thread.name.startswith("upload") for thread in threading.enumerate())


def test_a_file_that_is_given_up_takes_nothing_more() -> None:
    file = File()
    file.upload.abort()
    with pytest.raises(WriterClosedError, match="'place://file' was given up"):
        file.write(bytes(10 * PART))
    with pytest.raises(WriterClosedError):
        file.upload.finish()


def test_without_threads_the_caller_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the exit of the interpreter."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    file = File()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        file.write(bytes(range(250)) * 20)
    assert file.content() == bytes(range(250)) * 20


class Stream:
    """A file of fsspec, of an upload which the store may have ended already."""

    def __init__(self, failure: Exception | None) -> None:
        self.failure = failure
        self.closed = False
        self.written = threading.Event()

    def write(self, data: bytes) -> None:
        self.written.set()

    def discard(self) -> None:
        if self.failure is not None:
            raise self.failure


@pytest.mark.parametrize("failure", [None, FileNotFoundError(2, "no such upload"), OSError(5, "no answer")])
def test_what_was_uploaded_is_removed_although_the_store_does_not_give_up_the_upload(
    failure: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is closed, so that the garbage collector does not send what is left of it."""
    file = File()
    stream = Stream(failure)
    file.upload._parts = StreamParts(lambda: stream)
    file.upload.next_part(0, False)
    file.upload.next_part(PART, False)
    assert stream.written.wait(PATIENCE_SECONDS)

    file.upload.abort()

    assert stream.closed
    assert file.is_removed
    warning = "What was uploaded to 'place://file' before a save failed could not be removed (OSError: "
    assert (warning in caplog.text) == (type(failure) is OSError)


def test_a_very_large_file_has_larger_parts_not_more_than_a_store_takes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert part_bytes_of(0) == part_bytes_of(9_000 * PART_BYTES) == PART_BYTES
    assert (1 << 40) / part_bytes_of(1 << 40) < 10_000
    # File systems which cut what is written into blocks, as adlfs does, cut none of them.
    opened: list[tuple[Any, ...]] = []
    monkeypatch.setattr(CountedFileSystem, "open", lambda self, *how, **settings: opened.append((*how, settings)))
    upload = RemoteStorage("counted://run").upload("counted://run/file", 1 << 40, 1)
    given = upload.next_part(0, False)
    assert given is not None
    assert given[1] == part_bytes_of(1 << 40)
    upload._parts._open()  # type: ignore[attr-defined]
    assert opened == [("/run/file", "wb", {"block_size": part_bytes_of(1 << 40)})]
