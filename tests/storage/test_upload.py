"""Data files on their way, part by part."""

from __future__ import annotations

import ctypes
import threading

import pytest
from remote_memory import PATIENCE_SECONDS

from torch_trackckpt.errors import WriterClosedError
from torch_trackckpt.storage import upload
from torch_trackckpt.storage.upload import PartUpload

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

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_threads: int = 2, *, may_send: bool = True) -> None:
        monkeypatch.setattr(upload, "PART_BYTES", PART)
        self.parts = FakeParts(may_send=may_send)
        self.whole: bytes | None = None
        self.is_removed = False
        self.upload = PartUpload(
            "place://file",
            self.parts,
            put=self._put,
            size=lambda: len(self.content()),
            remove=self._remove,
            num_bytes=10,
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
def test_a_file_is_what_was_written_whatever_its_size(
    monkeypatch: pytest.MonkeyPatch, size: int, num_threads: int
) -> None:
    data = bytes(i * 7 % 251 for i in range(size))
    file = File(monkeypatch, num_threads)
    file.write(data)
    assert file.content() == data
    assert file.upload.num_bytes == size
    assert (file.whole is not None) == (size <= PART) or size == PART
    assert {len(part) for part in list(file.parts.sent.values())[:-1]} <= {PART}


def test_parts_go_up_side_by_side_and_no_more_than_that_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    file = File(monkeypatch, num_threads=3, may_send=False)
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


def test_a_part_that_cannot_be_sent_ends_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    file = File(monkeypatch)
    file.parts.failure = OSError(5, "no answer")
    with pytest.raises(OSError, match="no answer"):
        file.write(bytes(10 * PART))
    file.upload.abort()
    assert file.parts.is_aborted
    assert file.is_removed
    assert not file.parts.is_complete
    assert not any(thread.name.startswith("upload") for thread in threading.enumerate())


def test_a_file_that_is_given_up_takes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    file = File(monkeypatch)
    file.upload.abort()
    with pytest.raises(WriterClosedError, match="'place://file' was given up"):
        file.write(bytes(10 * PART))
    with pytest.raises(WriterClosedError):
        file.upload.finish()


def test_without_threads_the_caller_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the exit of the interpreter."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    file = File(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        file.write(bytes(range(250)) * 20)
    assert file.content() == bytes(range(250)) * 20


def test_a_very_large_file_has_larger_parts_not_more_than_a_store_takes() -> None:
    def nothing(*arguments: object) -> int:
        return 0

    large = PartUpload("", FakeParts(), put=nothing, size=nothing, remove=nothing, num_bytes=1 << 40, num_threads=1)
    given = large.next_part(0, False)
    assert given is not None
    assert (1 << 40) / given[1] < 10_000
