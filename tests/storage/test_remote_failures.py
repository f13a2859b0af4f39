"""What goes wrong on the way to remote storage: whatever it is, a reader finds a checkpoint that is whole."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from remote_memory import CountedFileSystem, Place

from torch_trackckpt import (
    Checkpoint,
    CheckpointManager,
    CheckpointOptions,
    CheckpointReader,
    get_checkpoint_state,
    latest_checkpoint,
)
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError, ValueChangedError
from torch_trackckpt.restore import assign
from torch_trackckpt.save.commit import remove_checkpoint
from torch_trackckpt.storage.remote import RemoteStorage
from torch_trackckpt.storage.upload import PartUpload, StreamParts

URL = "counted://run/ckpt"
X = "x/.ATTRIBUTES/VARIABLE_VALUE"


def stored(path: str) -> torch.Tensor:
    """The value of a checkpoint, all of whose checksums are right."""
    reader = CheckpointReader(path)
    reader.verify()
    return torch.as_tensor(reader.get_tensor(X))


def names(place: Place) -> list[str]:
    return sorted(path.removeprefix("run/") for path in place.files())


def refusing(*kinds: str, ending: str = "", times: int = 1000) -> Callable[..., None]:
    """Fails requests of some kinds for files with such names, so many times."""
    left = iter(range(times))

    def refuse(kind: str, path: str, *rest: Any) -> None:
        if kind in kinds and ending in path and next(left, None) is not None:
            raise ConnectionResetError(errno.ECONNRESET, "the connection is gone")

    return refuse


# The order of a save.


def test_the_index_is_put_last_in_one_request_after_the_sizes_of_the_data_files(place: Place) -> None:
    Checkpoint(x=torch.ones(10)).save(URL)

    changes = [(kind, path.removeprefix("/run/")) for kind, path, *_ in place.calls if kind in ("pipe_file", "info")]
    data, index = "ckpt-1.data-00000-of-00001", "ckpt-1.index"
    assert changes[-4:] == [("pipe_file", data), ("info", data), ("pipe_file", index), ("pipe_file", "checkpoint")]


def test_a_checkpoint_that_is_replaced_is_whole_until_the_new_index_is_there(place: Place) -> None:
    """Data files of the new one never have names of the old one's."""
    x = torch.zeros(10)
    checkpoint = Checkpoint(x=x)
    checkpoint.write(URL)
    seen = []

    def look(kind: str, path: str, *rest: Any) -> None:
        if kind in ("pipe_file", "rm_file"):
            place.before = lambda *call: None
            seen.append(float(stored(URL)[0]))
            place.before = look

    for number in (1, 2, 3):
        x.fill_(number)
        place.before = look
        checkpoint.write(URL)
        place.calm()
        assert float(stored(URL)[0]) == number
        assert len(names(place)) == (3 if number % 2 else 2)
    assert seen == sorted(seen)
    assert {0, 1, 2, 3} == set(seen)


def test_a_reader_of_a_checkpoint_that_was_replaced_gets_an_error_never_other_values(place: Place) -> None:
    x = torch.zeros(1000)
    checkpoint = Checkpoint(x=x)
    reader = CheckpointReader(checkpoint.write(URL))
    for value in (1, 2, 3):
        x.fill_(value)
        checkpoint.write(URL)
        for read in (lambda: reader.get_tensor(X), lambda: reader.get_tensor(X, slice(0, 3))):
            with pytest.raises(DataLossError, match=r"'counted://run/ckpt' was replaced or removed"):
                read()


def test_a_reader_of_a_checkpoint_that_was_removed_says_so(place: Place) -> None:
    path = Checkpoint(x=torch.zeros(1000)).write(URL)
    reader = CheckpointReader(path)
    remove_checkpoint(path, RemoteStorage(URL))

    assert names(place) == []
    with pytest.raises(DataLossError, match="was replaced or removed"):
        reader.get_tensor(X)
    with pytest.raises(CheckpointNotFoundError):
        CheckpointReader(path)


# Saves that fail.


@pytest.mark.parametrize("replaces", [False, True])
def test_whichever_request_of_a_save_fails_for_good_there_is_a_whole_checkpoint_and_the_next_save_works(
    place: Place, replaces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All requests after that one fail as well, as where the network is gone."""
    monkeypatch.setattr("torch_trackckpt.storage.upload.PART_BYTES", 300)
    x = torch.zeros(200)
    checkpoint = Checkpoint(x=x)
    failures = 0
    for number in itertools.count():
        CountedFileSystem.store.clear()
        place.calm()
        x.zero_()
        checkpoint.write(URL) if replaces else checkpoint.write("counted://run/other")
        x.fill_(1)
        calls = itertools.count()

        def fail(*call: Any, number: int = number, calls: Any = calls) -> None:
            if next(calls) >= number:
                raise ConnectionResetError(errno.ECONNRESET, "the connection is gone")

        place.before = fail
        try:
            checkpoint.write(URL)
        except OSError:
            failures += 1
            is_complete = False
        else:
            is_complete = next(calls) <= number
        place.calm()
        if replaces:
            assert float(stored(URL)[0]) in (0, 1)
        elif "ckpt.index" in names(place):
            assert float(stored(URL)[0]) == 1
        else:
            with pytest.raises(CheckpointNotFoundError):
                stored(URL)
        x.fill_(2)
        checkpoint.write(URL)
        assert float(stored(URL)[0]) == 2
        data = [name for name in names(place) if name.startswith("ckpt.data")]
        assert {name.rpartition("-")[2] for name in data} == {f"{len(data):05d}"}
        if is_complete:
            break
    assert failures >= 3


@pytest.mark.parametrize("part_bytes", [100, 1 << 20])
def test_a_truncated_upload_is_never_published(place: Place, monkeypatch: pytest.MonkeyPatch, part_bytes: int) -> None:
    """Neither one of several parts nor one that is a single request."""
    checkpoint = Checkpoint(x=torch.ones(100))
    first = checkpoint.save(URL)
    before = names(place)

    def cut(parts: StreamParts) -> None:
        parts._file.truncate(parts._file.size - 1)

    with monkeypatch.context() as patch:
        patch.setattr("torch_trackckpt.storage.upload.PART_BYTES", part_bytes)
        patch.setattr(StreamParts, "complete", cut)
        place.tampering = lambda what, path, data: data[:-1] if ".data-" in path else data
        with pytest.raises(OSError, match=r"\d+ bytes were uploaded, but the file .* has \d+: .*ckpt-2\.data"):
            checkpoint.save(URL)
    place.calm()

    assert names(place) == before
    assert latest_checkpoint("counted://run") == first
    assert torch.equal(stored(first), torch.ones(100))


def test_a_save_whose_values_change_leaves_nothing(place: Place) -> None:
    x = torch.ones(10)

    def train(done: int, total: int) -> None:
        x.add_(1)

    with pytest.raises(ValueChangedError):
        Checkpoint(x=x).write(URL, CheckpointOptions(progress=train))
    assert names(place) == []


def test_an_index_that_arrived_counts_even_if_its_answer_was_lost(place: Place) -> None:
    place.after = refusing("pipe_file", ending=".index")

    path = Checkpoint(x=torch.ones(10)).save(URL)

    place.calm()
    assert torch.equal(stored(path), torch.ones(10))
    assert latest_checkpoint("counted://run") == path


def test_requests_that_fail_a_few_times_are_made_again(place: Place) -> None:
    slept: list[float] = []
    storage = RemoteStorage(URL, sleep=slept.append)
    place.before = refusing("pipe_file", times=2)
    storage.put("counted://run/a", b"1")
    place.before = refusing("info", "ls", "cat_file", "rm_file", times=2)
    assert storage.size("counted://run/a") == 1
    place.before = refusing("cat_file", times=2)
    assert storage.get("counted://run/a") == b"1"
    place.before = refusing("cat_file", times=3)
    with pytest.raises(
        OSError, match=r"Reading the file failed 3 times, at last with ConnectionResetError.*run/a"
    ) as e:
        storage.get("counted://run/a")
    assert e.value.errno == errno.ECONNRESET
    assert len(slept) == 8


def test_final_answers_are_believed_at_once(place: Place) -> None:
    slept: list[float] = []
    storage = RemoteStorage(URL, sleep=slept.append)

    def forbid(*call: Any) -> None:
        raise PermissionError(errno.EACCES, "not permitted")

    place.before = forbid
    with pytest.raises(PermissionError):
        storage.exists(URL)
    place.calm()
    with pytest.raises(FileNotFoundError):
        storage.get(URL)
    assert not slept


# What is left of saves that died.


def leave_data_files(*prefixes: str) -> None:
    storage = RemoteStorage(URL)
    for prefix in prefixes:
        storage.put(f"{prefix}.data-00000-of-00003", b"of a save that died")


def test_the_next_save_to_a_prefix_removes_what_is_left_there(place: Place) -> None:
    leave_data_files("counted://run/ckpt-1", "counted://run/ckpt-10", "counted://run/ckpt")

    Checkpoint(x=torch.ones(1)).save(URL)

    assert names(place) == [
        "checkpoint",
        "ckpt-1.data-00000-of-00001",
        "ckpt-1.index",
        "ckpt-10.data-00000-of-00003",
        "ckpt.data-00000-of-00003",
    ]


def test_a_manager_removes_what_is_left_of_any_of_its_saves(place: Place) -> None:
    leave_data_files("counted://run/ckpt-7", "counted://run/ckpt-x", "counted://run/other-7")

    CheckpointManager(Checkpoint(x=torch.ones(1)), "counted://run").save()

    assert names(place) == [
        "checkpoint",
        "ckpt-1.data-00000-of-00001",
        "ckpt-1.index",
        "ckpt-x.data-00000-of-00003",
        "other-7.data-00000-of-00003",
    ]


# Reading.


def test_a_state_file_that_cannot_be_read_is_not_taken_for_none(place: Place) -> None:
    """A training that believed it would begin anew."""
    checkpoint = Checkpoint(x=torch.ones(1))
    checkpoint.save(URL)
    place.before = refusing("cat_file")
    for look in (
        lambda: get_checkpoint_state("counted://run"),
        lambda: latest_checkpoint("counted://run"),
        lambda: CheckpointManager(checkpoint, "counted://run"),
    ):
        with pytest.raises(OSError, match="counted://run/checkpoint"):
            look()


def test_a_range_that_comes_short_is_asked_for_again(place: Place) -> None:
    path = Checkpoint(x=torch.arange(1000)).write(URL)
    short = iter([True, True])
    place.tampering = lambda what, path, data: data[:-1] if ".data-" in path and next(short, False) else data

    assert torch.equal(stored(path), torch.arange(1000))
    assert next(short, None) is None


def test_a_range_that_stays_short_is_an_error_that_says_where(place: Place) -> None:
    path = Checkpoint(x=torch.arange(1000)).write(URL)
    place.tampering = lambda what, path, data: data[:-1] if ".data-" in path else data

    with pytest.raises(OSError, match=r"Reading 8000 bytes at offset 0 failed 3 times.*7999 bytes have come") as raised:
        CheckpointReader(path).get_tensor(X)
    assert raised.value.filename == "counted://run/ckpt.data-00000-of-00001"
    assert not isinstance(raised.value, DataLossError)


def test_a_data_file_that_is_gone_is_named(place: Place) -> None:
    path = Checkpoint(x=torch.arange(1000)).write(URL)
    RemoteStorage(URL).remove(path + ".data-00000-of-00001")
    with pytest.raises(CheckpointNotFoundError, match=r"ckpt\.data-00000-of-00001"):
        CheckpointReader(path).get_tensor(X)


def test_a_restore_that_is_cut_off_says_what_it_has_overwritten(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assign, "VERIFIED_BEFORE_BYTES", 0)
    path = Checkpoint(x=torch.ones(1 << 19), y=torch.ones(1 << 19)).write(URL)
    live = Checkpoint(x=torch.zeros(1 << 19), y=torch.zeros(1 << 19))

    def fail(kind: str, path: str, start: int | None = None, *rest: Any) -> None:
        if kind == "cat_file" and ".data-" in path and start in (2 << 20, 3 << 20):
            raise ConnectionResetError(errno.ECONNRESET, "the connection is gone")

    place.before = fail
    with pytest.raises(DataLossError, match="the connection is gone") as raised:
        live.read(path)
    assert "(root).y" in raised.value.overwritten


def test_no_log_has_what_fsspec_was_configured_with(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fsspec

    monkeypatch.setitem(fsspec.config.conf, "counted", {"password": "hush-hush"})
    caplog.set_level(logging.DEBUG)
    checkpoint = Checkpoint(x=torch.ones(3))
    place.before = refusing("pipe_file", ending=".index")
    with pytest.raises(OSError, match="ckpt-1") as raised:
        checkpoint.save(URL)
    place.calm()
    checkpoint.restore(checkpoint.save(URL))
    assert "hush-hush" not in caplog.text + str(raised.value)


def test_all_asynchronous_saves_go_by_one_file_system(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec makes one for each thread that asks, and keeps them all, with their connections."""
    made = []
    monkeypatch.setattr(CountedFileSystem, "cachable", True)
    monkeypatch.setattr(CountedFileSystem, "_cache", {})
    checkpoint = Checkpoint(x=torch.ones(10))
    for _ in range(3):
        checkpoint.save(URL, CheckpointOptions(enable_async=True))
        checkpoint.sync()
        made.append(len(CountedFileSystem._cache))
    assert made == [1, 1, 1]


@pytest.mark.parametrize("part_bytes", [100, 1 << 20])
@pytest.mark.parametrize("fails", [False, True])
def test_a_save_keeps_nothing_in_memory_when_it_is_over(
    place: Place, monkeypatch: pytest.MonkeyPatch, fails: bool, part_bytes: int
) -> None:
    """Nor does its error, which an upload kept beside the frames that it came from."""
    made: list[weakref.ref[Any]] = []
    make = PartUpload.__init__

    def noted(upload: PartUpload, *arguments: Any, **named: Any) -> None:
        make(upload, *arguments, **named)
        made.append(weakref.ref(upload))

    def fail(*arguments: Any, **named: Any) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "the connection is gone")

    monkeypatch.setattr("torch_trackckpt.storage.upload.PART_BYTES", part_bytes)
    monkeypatch.setattr(PartUpload, "__init__", noted)
    if fails:
        monkeypatch.setattr(StreamParts, "send", fail)
        place.before = lambda *call: fail() if call[0] == "pipe_file" else None
    x = torch.ones(200)
    value = weakref.ref(x)
    with pytest.raises(OSError, match="the connection is gone") if fails else contextlib.nullcontext():
        Checkpoint(x=x).write(URL)
    del x
    gc.collect()
    assert made
    assert [upload() for upload in made if upload() is not None] == []
    assert value() is None
