"""Several checkpoints become one; whatever happens on the way, every value can still be read."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import planned
import pytest
import torch
from checkpoints import names_in

from torch_trackckpt import Checkpoint, CheckpointReader, merge_checkpoints
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError, DuplicateKeyError, UnsupportedFormatError
from torch_trackckpt.save import merge
from torch_trackckpt.sharding import MaxShardSizePolicy
from torch_trackckpt.storage.local import LocalStorage

GOLDEN = Path(__file__).parents[1] / "golden"
SOUND = LocalStorage(durable=False)
W = np.arange(40.0).reshape(8, 5)


def write(prefix: Path | str, *, limit: int = 1 << 40, **values: torch.Tensor | bytes) -> str:
    """A bundle without an object graph, in several data files where the limit asks for them."""
    planned.publish(str(prefix), values, MaxShardSizePolicy(limit))
    return str(prefix)


def write_slice(prefix: Path | str, spec: str) -> str:
    """A bundle that holds a part of ``W`` as ``w``."""
    os.makedirs(os.path.dirname(prefix), exist_ok=True)
    part = TensorSlice.parse(spec)
    place = tuple(slice(a, a + n) for a, n in zip(part.offset, part.shape, strict=True))
    with BundleWriter(f"{prefix}.data-00000-of-00001", f"{prefix}.index", durable=False) as writer:
        writer.add_slice("w", torch.from_numpy(W[place].copy()), part)
    return str(prefix)


def fast(prefixes: list[str], destination: Path | str, **options: bool) -> str:
    return merge_checkpoints(prefixes, destination, durable=False, **options)


def contents(prefix: Path | str) -> dict[str, object] | None:
    """Every value that a reader finds at the prefix, or None where it finds no checkpoint."""
    try:
        reader = CheckpointReader(prefix)
    except CheckpointNotFoundError:
        return None
    values = {stored.key: reader.get_tensor(stored.key) for stored in reader.all_stored()}
    return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in values.items()}


def files(name: str, count: int) -> list[str]:
    return [f"{name}.data-{number:05d}-of-{count:05d}" for number in range(count)] + [f"{name}.index"]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------- what is there


def test_one_checkpoint_is_renamed(tmp_path: Path) -> None:
    """C366"""
    source = write(tmp_path / "a", x=torch.ones(3), s=b"text")
    before = files_below(tmp_path)
    assert fast([source], tmp_path / "b") == str(tmp_path / "b")
    assert files_below(tmp_path) == {name.replace("a.", "b."): data for name, data in before.items()}


def test_two_checkpoints_become_one_of_two_data_files(tmp_path: Path) -> None:
    """C366"""
    sources = [write(tmp_path / "b", x=torch.ones(3)), write(tmp_path / "a", y=torch.zeros(2), s=b"text")]
    data = [Path(f"{source}.data-00000-of-00001").read_bytes() for source in sources]
    fast(sources, tmp_path / "ckpt")
    assert names_in(tmp_path) == files("ckpt", 2)
    assert [(tmp_path / name).read_bytes() for name in files("ckpt", 2)[:2]] == data
    assert contents(tmp_path / "ckpt") == {"s": b"text", "x": [1.0] * 3, "y": [0.0] * 2}


def test_checkpoints_of_several_data_files_are_merged(tmp_path: Path) -> None:
    """C366"""
    x, y = torch.arange(10), torch.randn(6, 7)
    sources = [write(tmp_path / "a", limit=32, x=x), write(tmp_path / "b", z=torch.tensor(1.0))]
    sources.append(write(tmp_path / "c", limit=40, y=y, e=torch.zeros(0, 3)))
    count = sum(name.count(".data") for name in names_in(tmp_path))
    fast(sources, tmp_path / "ckpt")
    assert names_in(tmp_path) == files("ckpt", count)
    assert contents(tmp_path / "ckpt") == {"e": [], "x": x.tolist(), "y": y.tolist(), "z": 1.0}
    CheckpointReader(tmp_path / "ckpt").verify()


def test_what_each_process_saved_of_one_tensor_becomes_the_tensor(tmp_path: Path) -> None:
    """C300"""
    specs = ["8 5 0,3:-", "8 5 3,5:0,2", "8 5 3,5:2,3"]
    sources = [write_slice(tmp_path / f"rank{rank}" / "part", spec) for rank, spec in enumerate(specs)]
    fast(sources, tmp_path / "ckpt")
    reader = CheckpointReader(tmp_path / "ckpt")
    assert [str(part) for part in reader.stored_slices("w")] == specs
    assert torch.equal(reader.get_tensor("w"), torch.from_numpy(W))  # type: ignore[arg-type]
    assert torch.equal(reader.get_tensor("w", np.s_[2:5, 1:4]), torch.from_numpy(W[2:5, 1:4]))  # type: ignore[arg-type]
    assert names_in(tmp_path) == files("ckpt", 3)


def test_a_merged_object_checkpoint_is_restored(tmp_path: Path) -> None:
    """C366"""
    x = torch.arange(5.0)
    saved = Checkpoint(x=x).write(tmp_path / "objects")
    fast([write(tmp_path / "more", extra=torch.ones(1)), saved], tmp_path / "ckpt")
    other = torch.zeros(5)
    Checkpoint(x=other).read(tmp_path / "ckpt").assert_consumed()
    assert torch.equal(other, x)


def test_paths_may_come_from_a_generator_and_with_the_name_of_the_index(tmp_path: Path) -> None:
    sources = [write(tmp_path / "a", x=torch.ones(1)), write(tmp_path / "b", y=torch.ones(1)) + ".index"]
    merge_checkpoints((Path(source) for source in sources), tmp_path / "ckpt", durable=False)
    assert names_in(tmp_path) == files("ckpt", 2)


@pytest.mark.parametrize("durable", [False, True])
def test_relative_paths_are_merged_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    write("a", x=torch.ones(1))
    write("part/b", y=torch.ones(1))
    merge_checkpoints(["a", "part/b"], "ckpt", durable=durable)
    assert names_in(tmp_path) == files("ckpt", 2)


# ------------------------------------------------------------------------------------------------ directories


@pytest.mark.parametrize(("delete", "left"), [(True, ["full"]), (False, ["empty", "full", "outer"])])
def test_directories_of_sources_are_removed_where_they_are_empty_then(
    tmp_path: Path, delete: bool, left: list[str]
) -> None:
    """C366"""
    sources = [write(tmp_path / "empty" / "a", x=torch.ones(1)), write(tmp_path / "outer" / "b", y=torch.ones(1))]
    sources.append(write(tmp_path / "full" / "c", z=torch.ones(1)))
    (tmp_path / "full" / "notes").write_text("mine")
    fast(sources, tmp_path / "ckpt", delete_old_dirs=delete)
    assert names_in(tmp_path) == sorted([*files("ckpt", 3), *left])
    assert names_in(tmp_path / "full") == ["notes"]


def test_the_directory_of_the_destination_stays(tmp_path: Path) -> None:
    """C366"""
    fast([write(tmp_path / "run" / "a", x=torch.ones(1))], tmp_path / "run" / "deep" / "ckpt")
    assert names_in(tmp_path / "run") == ["deep"]
    fast([str(tmp_path / "run" / "deep" / "ckpt")], tmp_path / "run" / "ckpt")
    assert names_in(tmp_path / "run") == files("ckpt", 1)


# ------------------------------------------------------------------------------------- sources and destination


def test_what_is_at_the_destination_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "ckpt", limit=8, old=torch.arange(5))
    fast([write(tmp_path / "a", x=torch.ones(1)), write(tmp_path / "b", y=torch.ones(1))], tmp_path / "ckpt")
    assert names_in(tmp_path) == files("ckpt", 2)
    assert contents(tmp_path / "ckpt") == {"x": [1.0], "y": [1.0]}


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("limit", [8, 1 << 40])
def test_the_destination_may_be_one_of_the_sources(tmp_path: Path, position: int, limit: int) -> None:
    other = write(tmp_path / "part" / "a", limit=limit, x=torch.arange(3))
    sources = [other]
    sources.insert(position, write(tmp_path / "ckpt", limit=limit, y=torch.arange(4)))
    fast(sources, tmp_path / "ckpt")
    assert names_in(tmp_path) == files("ckpt", 2 if limit > 8 else 7)
    assert contents(tmp_path / "ckpt") == {"x": [0, 1, 2], "y": [0, 1, 2, 3]}


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param(lambda run: run / "ckpt", id="as it is"),
        pytest.param(lambda run: f"{run}/../run/ckpt", id="detour"),
        pytest.param(lambda run: f"{run}/./ckpt.index", id="index"),
        pytest.param(lambda run: run.parent / "link" / "ckpt", id="link to the directory"),
    ],
)
def test_the_destination_may_be_a_source_in_other_words(tmp_path: Path, spelling: Callable[[Path], Any]) -> None:
    source = write(tmp_path / "run" / "ckpt", x=torch.ones(2))
    (tmp_path / "link").symlink_to(tmp_path / "run")
    fast([str(spelling(tmp_path / "run")), write(tmp_path / "run" / "b", y=torch.ones(1))], source)
    assert contents(source) == {"x": [1.0, 1.0], "y": [1.0]}
    assert names_in(tmp_path / "run") == files("ckpt", 2)


@pytest.mark.parametrize("limit", [8, 1 << 40])
def test_a_checkpoint_that_is_merged_onto_itself_stays_with_its_files_alone(tmp_path: Path, limit: int) -> None:
    source = write(tmp_path / "ckpt", limit=limit, y=torch.arange(4))
    before = files_below(tmp_path)
    fast([source, str(tmp_path / "gone")], source, allow_missing_files=True)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("spelling", ["{0}/ckpt", "{0}/../run/ckpt", "{0}/ckpt.index", "{0}/../link/ckpt"])
def test_a_source_that_is_given_twice_is_refused_and_stays(tmp_path: Path, spelling: str) -> None:
    """C367"""
    source = write(tmp_path / "run" / "ckpt", x=torch.ones(2))
    (tmp_path / "link").symlink_to(tmp_path / "run")
    before = files_below(tmp_path)
    with pytest.raises(ValueError, match=r"merged with itself|Duplicate"):
        fast([source, spelling.format(tmp_path / "run")], tmp_path / "merged")
    assert files_below(tmp_path) == before


def test_data_files_that_are_links_are_merged_into_another_directory(tmp_path: Path) -> None:
    source = Path(write(tmp_path / "blobs" / "ckpt", x=torch.ones(2)))
    (tmp_path / "links").mkdir()
    for name in names_in(source.parent):
        (tmp_path / "links" / name).symlink_to(Path("..") / "blobs" / name)
    fast([str(tmp_path / "links" / "ckpt")], tmp_path / "deep" / "run" / "merged")
    assert contents(tmp_path / "deep" / "run" / "merged") == {"x": [1.0, 1.0]}
    assert contents(source) == {"x": [1.0, 1.0]}


def test_a_source_whose_replacement_was_interrupted_is_completed_first(tmp_path: Path) -> None:
    new, old = write(tmp_path / "new", x=torch.ones(2)), write(tmp_path / "a", x=torch.zeros(2))
    for name in files("new", 1):
        os.rename(tmp_path / name, f"{tmp_path / name.replace('new', 'a')}.next")
    assert contents(old) == {"x": [1.0, 1.0]}
    assert contents(new) is None
    fast([old], tmp_path / "ckpt")
    assert contents(tmp_path / "ckpt") == {"x": [1.0, 1.0]}
    assert names_in(tmp_path) == files("ckpt", 1)


def refuse_links(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def link(source: str, destination: str, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
@pytest.mark.parametrize("durable", [False, True])
def test_where_files_cannot_be_linked_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, durable: bool
) -> None:
    """C366"""
    refuse_links(monkeypatch, number)
    sources = [write(tmp_path / "a", x=torch.ones(2)), write(tmp_path / "b", y=torch.ones(1))]
    merge_checkpoints(sources, tmp_path / "ckpt", durable=durable)
    assert names_in(tmp_path) == files("ckpt", 2)
    assert contents(tmp_path / "ckpt") == {"x": [1.0, 1.0], "y": [1.0]}


def test_a_copy_for_which_there_is_no_room_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copyfile(source: str, destination: str) -> None:
        Path(destination).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    refuse_links(monkeypatch, errno.EXDEV)
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    sources = [write(tmp_path / "a", x=torch.ones(2)), write(tmp_path / "b", y=torch.ones(1))]
    before = files_below(tmp_path)
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.ENOSPC))):
        fast(sources, tmp_path / "ckpt")
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("durable", [False, True])
def test_the_bytes_of_sources_are_on_the_disk_before_the_merged_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """Whoever wrote a source may not have waited for the disk, and the source is about to be removed."""
    source = write(tmp_path / "a", x=torch.ones(2))
    inode = os.stat(f"{source}.data-00000-of-00001").st_ino
    synced: list[tuple[int, bool]] = []
    fsync = os.fsync

    def noting_fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, os.path.exists(tmp_path / "ckpt.index")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    merge_checkpoints([source], tmp_path / "ckpt", durable=durable)
    assert ((inode, False) in synced) is durable


# ------------------------------------------------------------------------------------------------- refusals


def test_missing_sources_are_refused_or_passed_over(tmp_path: Path) -> None:
    """C366"""
    sources = [str(tmp_path / "gone"), write(tmp_path / "a", x=torch.ones(2)), str(tmp_path / "no" / "directory")]
    before = files_below(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="gone"):
        fast(sources, tmp_path / "new" / "ckpt")
    assert files_below(tmp_path) == before
    assert names_in(tmp_path) == files("a", 1)
    fast(sources, tmp_path / "ckpt", allow_missing_files=True)
    assert names_in(tmp_path) == files("ckpt", 1)


@pytest.mark.parametrize("prefixes", [[], ["gone"], ["gone", "away"]], ids=str)
def test_nothing_to_merge_is_refused_and_the_destination_stays(tmp_path: Path, prefixes: list[str]) -> None:
    destination = write(tmp_path / "ckpt", x=torch.ones(2))
    with pytest.raises(ValueError, match="nothing to merge"):
        fast([str(tmp_path / name) for name in prefixes], destination, allow_missing_files=True)
    assert contents(destination) == {"x": [1.0, 1.0]}


def lose_data(tmp_path: Path) -> list[str]:
    os.unlink(write(tmp_path / "b", limit=8, y=torch.arange(3)) + ".data-00001-of-00003")
    return [str(tmp_path / "b")]


def damage_index(tmp_path: Path) -> list[str]:
    index = Path(write(tmp_path / "b", y=torch.arange(3)) + ".index")
    index.write_bytes(index.read_bytes()[:-60] + b"\xff" * 12 + index.read_bytes()[-48:])
    return [str(tmp_path / "b")]


REFUSED: dict[str, tuple[Callable[[Path], list[str]], type[Exception], str]] = {
    "the same tensor": (lambda p: [write(p / "b", x=torch.zeros(2))], DuplicateKeyError, "Duplicate tensor keyed by"),
    "tensor and slice": (
        lambda p: [write(p / "b", w=torch.zeros(8, 5)), write_slice(p / "c", "8 5 0,3:-")],
        DuplicateKeyError,
        "Duplicate",
    ),
    "the same slice": (
        lambda p: [write_slice(p / "b", "8 5 0,3:-"), write_slice(p / "c", "8 5 0,3:-")],
        DuplicateKeyError,
        "Duplicate",
    ),
    "object graphs": (
        lambda p: [Checkpoint(y=torch.ones(1)).write(p / name) for name in "bc"],
        DuplicateKeyError,
        "Duplicate",
    ),
    "shapes of a sliced tensor": (
        lambda p: [write(p / "b", limit=8, w=torch.zeros(4)), write_slice(p / "c", "8 5 0,3:-")],
        ValueError,
        "dtype or shape",
    ),
    "byte order": (
        lambda p: [shutil.copytree(GOLDEN / "crafted_big_endian", p / "big") and str(p / "big" / "ckpt")],
        ValueError,
        "endian|byte order",
    ),
    "older format": (
        lambda p: [shutil.copytree(GOLDEN / "v1_basic", p / "old") and str(next((p / "old").glob("*.ckpt*")))],
        UnsupportedFormatError,
        "older format",
    ),
    "missing data": (lose_data, CheckpointNotFoundError, "data-00001-of-00003"),
    "damaged index": (damage_index, DataLossError, "b.index"),
    "an index alone": (lambda p: [((p / "b.index").write_bytes(b"") and "") or str(p / "b")], DataLossError, "b.index"),
}


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_one_checkpoint_is_refused_and_everything_stays(
    tmp_path: Path, case: str, existing: bool
) -> None:
    """C367"""
    make, error, complaint = REFUSED[case]
    sources = [write(tmp_path / "a", x=torch.ones(2)), *make(tmp_path)]
    if existing:
        write(tmp_path / "ckpt", limit=8, old=torch.arange(4))
    before = files_below(tmp_path)
    with pytest.raises(error, match=complaint):
        fast(sources, tmp_path / "ckpt")
    assert files_below(tmp_path) == before


# ---------------------------------------------------------------------------------------------- interruption


class Died(BaseException):
    """The process is gone: nothing that it would have done any more happens."""


class FailingStorage(LocalStorage):
    """Raises at one of its operations; after a death, at every later one as well."""

    def __init__(self, failing: int, error: type[BaseException]) -> None:
        super().__init__(durable=False)
        self.failing, self.error, self.num_operations = failing, error, 0

    def __getattribute__(self, name: str) -> Any:
        if name in ("exists", "list", "make_directory", "rename", "link", "remove", "sync_directory"):
            self.num_operations += 1
            if self.num_operations == self.failing or (self.error is Died and self.num_operations > self.failing):
                raise self.error(f"operation {self.num_operations}, {name}")
        return super().__getattribute__(name)


SOURCES = {"a": {"x": [0, 1, 2]}, "b": {"y": [5]}}


def interruptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destination: str, error: type[BaseException]
) -> Iterator[Path]:
    """A folder for each operation of a merge, which failed there."""
    for failing in itertools.count(1):
        folder = tmp_path / str(failing)
        sources = [
            write(folder / "parts" / "a", limit=8, x=torch.arange(3)),
            write(folder / "parts" / "b", y=torch.tensor([5])),
        ]
        if destination == "existing":
            write(folder / destination, limit=8, old=torch.arange(4))
        storage = FailingStorage(failing, error)
        with monkeypatch.context() as patch:
            patch.setattr(merge, "LocalStorage", lambda durable, storage=storage: storage)
            try:
                fast(sources, folder / destination)
                break
            except error:
                pass
        yield folder
    assert failing > 20


@pytest.mark.parametrize("error", [OSError, Died])
@pytest.mark.parametrize("destination", ["free", "existing", "parts/a"])
def test_interrupted_anywhere_the_sources_are_as_before_or_the_merged_checkpoint_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destination: str, error: type[BaseException]
) -> None:
    """C366, C393"""
    merged = {"x": [0, 1, 2], "y": [5]}
    before = {"free": None, "existing": {"old": [0, 1, 2, 3]}, "parts/a": SOURCES["a"]}[destination]
    outcomes = []
    for folder in interruptions(tmp_path, monkeypatch, destination, error):
        found = contents(folder / destination)
        outcomes.append(found == merged)
        if found != merged:
            assert found == before
            assert {name: contents(folder / "parts" / name) for name in "ab"} == SOURCES
        if error is OSError and found != merged:
            assert [name for name in files_below(folder) if ".tempstate" in name or ".next" in name] == []
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


@pytest.mark.parametrize("destination", ["free", "existing", "parts/a"])
def test_after_a_death_before_the_merged_checkpoint_is_there_merging_again_succeeds_and_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destination: str
) -> None:
    """C393"""
    merged = {"x": [0, 1, 2], "y": [5]}
    num_again = 0
    for folder in interruptions(tmp_path, monkeypatch, destination, Died):
        if contents(folder / destination) != merged:
            num_again += 1
            fast([str(folder / "parts" / name) for name in "ab"], folder / destination)
            assert sorted(files_below(folder)) == files(destination, 4)
            assert contents(folder / destination) == merged
    assert num_again > 5


def test_a_single_prefix_is_not_taken_for_a_list_of_letters(tmp_path: Path) -> None:
    source = write(tmp_path / "ckpt", x=torch.ones(2))
    with pytest.raises(TypeError, match="must be several prefixes"):
        merge_checkpoints(source, tmp_path / "merged")
