"""Publishing: whatever happens on the way, a reader finds the old checkpoint or the new one, whole."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import planned
import pytest
import torch

from torch_trackckpt import Checkpoint, CheckpointReader, latest_checkpoint
from torch_trackckpt.errors import CheckpointNotFoundError
from torch_trackckpt.save import turns
from torch_trackckpt.save.commit import commit, recover, remove_checkpoint
from torch_trackckpt.save.write import WrittenFiles
from torch_trackckpt.storage.base import Storage
from torch_trackckpt.storage.local import LocalStorage

THREE_SHARDS = Path(__file__).parent.parent / "golden" / "v2_merge" / "ckpt"


class Died(BaseException):
    """The process is gone: nothing that it would have done any more happens."""


class FailingStorage(LocalStorage):
    """Raises at one of its operations; after a death, at every later one as well."""

    def __init__(self, failing: int, error: type[BaseException]) -> None:
        super().__init__(durable=False)
        self.failing, self.error = failing, error
        self.operations: list[str] = []

    def _step(self, name: str, *paths: str) -> None:
        self.operations.append(" ".join([name, *(os.path.basename(path) for path in paths)]))
        number = len(self.operations)
        if number == self.failing or (self.error is Died and number > self.failing):
            raise self.error(f"operation {number}: {self.operations[-1]}")

    def exists(self, path: str) -> bool:
        self._step("exists", path)
        return super().exists(path)

    def list(self, prefix: str) -> list[str]:
        self._step("list", prefix)
        return super().list(prefix)

    def make_directory(self, path: str) -> None:
        self._step("make_directory")
        super().make_directory(path)

    def rename(self, source: str, destination: str) -> None:
        self._step("rename", source, destination)
        super().rename(source, destination)

    def remove(self, path: str) -> None:
        self._step("remove", path)
        super().remove(path)

    def put(self, path: str, data: bytes) -> None:
        self._step("put", path)
        super().put(path, data)

    def sync_directory(self, path: str) -> None:
        self._step("sync")


Contents = dict[str, object]
Publish = Callable[[str, Storage], None]


def contents(prefix: str) -> Contents | None:
    """Every value that a reader finds at the prefix, or None where it finds no checkpoint."""
    try:
        reader = CheckpointReader(prefix)
    except CheckpointNotFoundError:
        return None
    return {stored.key: comparable(reader.get_tensor(stored.key)) for stored in reader.all_stored()}


def comparable(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return (value.dtype, value.shape, bytes(value.reshape(-1).view(torch.uint8).tolist()))
    return value.tolist() if isinstance(value, np.ndarray) else value


def one_shard(number: float) -> Publish:
    """Publishes a checkpoint of one data file; each number gives a file of the same size."""

    def publish(prefix: str, storage: Storage) -> None:
        recover(prefix, storage)
        planned.publish(prefix, {"x": torch.full((3,), number), "text": b"%d" % number}, storage=storage)

    return publish


def three_shards(prefix: str, storage: Storage) -> None:
    """Publishes a checkpoint of three data files."""
    recover(prefix, storage)
    pairs = []
    for source in sorted(THREE_SHARDS.parent.glob("ckpt.*")):
        final = prefix + source.name.removeprefix("ckpt")
        shutil.copy(source, final + ".tempstate0123456789abcdef")
        pairs.append((final + ".tempstate0123456789abcdef", final))
    index = next(pair for pair in pairs if pair[1].endswith(".index"))
    commit(WrittenFiles(tuple(pair for pair in pairs if pair != index), index), prefix, storage)


ONE = ["ckpt.data-00000-of-00001", "ckpt.index"]
THREE = [f"ckpt.data-{shard:05d}-of-00003" for shard in range(3)] + ["ckpt.index"]

# What was there, what is being published, what is published next, and the files that are then left.
CASES: dict[str, tuple[Publish | None, Publish, Publish, list[str]]] = {
    "free": (None, one_shard(2), one_shard(3), ONE),
    "free, three shards": (None, three_shards, three_shards, THREE),
    "free, three shards, then one": (None, three_shards, one_shard(3), ONE),
    "free, one shard, then three": (None, one_shard(2), three_shards, THREE),
    "same shards": (one_shard(1), one_shard(2), one_shard(3), ONE),
    "fewer shards": (three_shards, one_shard(2), one_shard(3), ONE),
    "more shards": (one_shard(1), three_shards, one_shard(3), ONE),
    "more shards, twice": (one_shard(1), three_shards, three_shards, THREE),
}
each_case = pytest.mark.parametrize("case", list(CASES))
each_error = pytest.mark.parametrize("error", [OSError, Died])
SOUND = LocalStorage(durable=False)


def published(publish: Publish | None, folder: Path) -> tuple[str, Contents | None]:
    folder.mkdir()
    prefix = str(folder / "ckpt")
    if publish is not None:
        publish(prefix, SOUND)
    return prefix, contents(prefix)


def interruptions(
    folder: Path, before: Publish | None, publish: Publish, error: type[BaseException]
) -> Iterator[tuple[str, FailingStorage]]:
    """A prefix for each operation of a publication, which failed there."""
    for failing in itertools.count(1):
        prefix, _ = published(before, folder / str(failing))
        storage = FailingStorage(failing, error)
        try:
            publish(prefix, storage)
        except error:
            yield prefix, storage
        else:
            assert failing > 5
            return


# ------------------------------------------------------------------------------------------ interruption


@each_error
@each_case
def test_interrupted_anywhere_a_reader_finds_the_old_checkpoint_or_the_new_one_whole(
    tmp_path: Path, case: str, error: type[BaseException]
) -> None:
    """C049, C393"""
    before, publish, _, _ = CASES[case]
    _, old = published(before, tmp_path / "old")
    _, new = published(publish, tmp_path / "new")
    assert old != new
    found = [contents(prefix) for prefix, _ in interruptions(tmp_path, before, publish, error)]
    is_new = [content == new for content in found]
    assert [content for content in found if content not in (old, new)] == []
    assert is_new == sorted(is_new)
    assert not is_new[0]


@each_error
@each_case
def test_after_an_interruption_the_next_publication_succeeds_and_cleans_up(
    tmp_path: Path, case: str, error: type[BaseException]
) -> None:
    """C049, C393"""
    before, publish, following, files = CASES[case]
    _, expected = published(following, tmp_path / "expected")
    left = {}
    for prefix, storage in interruptions(tmp_path, before, publish, error):
        following(prefix, SOUND)
        assert contents(prefix) == expected
        if sorted(os.listdir(os.path.dirname(prefix))) != files:
            left[storage.operations[storage.failing - 1]] = sorted(os.listdir(os.path.dirname(prefix)))
    assert left == {}


@pytest.mark.parametrize("case", ["same shards", "fewer shards", "more shards"])
def test_a_second_interruption_during_the_next_publication_is_survived_as_well(tmp_path: Path, case: str) -> None:
    """C393"""
    before, publish, following, _ = CASES[case]
    whole = [
        published(stage, tmp_path / name)[1]
        for name, stage in (("old", before), ("new", publish), ("following", following))
    ]
    for first, (crashed, _) in enumerate(interruptions(tmp_path, before, publish, Died)):
        for second in itertools.count(1):
            folder = tmp_path / f"{first} {second}"
            shutil.copytree(os.path.dirname(crashed), folder)
            try:
                following(str(folder / "ckpt"), FailingStorage(second, Died))
            except Died:
                assert contents(str(folder / "ckpt")) in whole
            else:
                break
            finally:
                shutil.rmtree(folder)


@each_case
def test_an_uninterrupted_publication_leaves_its_own_files_only(tmp_path: Path, case: str) -> None:
    """C048, C049"""
    before, publish, following, files = CASES[case]
    prefix, _ = published(before, tmp_path / "run")
    publish(prefix, SOUND)
    following(prefix, SOUND)
    assert sorted(os.listdir(tmp_path / "run")) == files


def test_a_failure_before_the_commit_leaves_no_file_of_the_failed_checkpoint(tmp_path: Path) -> None:
    """C042: the next numbered save has another prefix and would never look at them."""
    left = {}
    for prefix, storage in interruptions(tmp_path, None, one_shard(1), OSError):
        if contents(prefix) is None and os.listdir(os.path.dirname(prefix)):
            left[storage.operations[storage.failing - 1]] = sorted(os.listdir(os.path.dirname(prefix)))
    assert left == {}


def test_files_of_a_process_that_died_while_writing_them_are_cleaned(tmp_path: Path) -> None:
    """C393"""
    for name in ("ckpt.index", "ckpt.data-00000-of-00001", "ckpt.data-00001-of-00002"):
        (tmp_path / f"{name}.tempstate0011223344556677").write_bytes(b"half")
    (tmp_path / "ckpt.data-00000-of-00001.next").write_bytes(b"not committed")
    one_shard(1)(str(tmp_path / "ckpt"), SOUND)
    assert sorted(os.listdir(tmp_path)) == ONE


def test_recovering_where_nothing_was_interrupted_changes_nothing(tmp_path: Path) -> None:
    prefix, old = published(three_shards, tmp_path / "run")
    storage = FailingStorage(0, OSError)
    recover(prefix, storage)
    assert contents(prefix) == old
    assert [operation for operation in storage.operations if operation.startswith(("rename", "remove"))] == []


# --------------------------------------------------------------------------------------------- the order


def changes(storage: FailingStorage) -> list[str]:
    """What the storage changed, without the random part of temporary names."""
    kept = [operation for operation in storage.operations if operation.startswith(("rename", "remove", "sync"))]
    return [" ".join(word.split(".tempstate")[0] for word in operation.split()) for operation in kept]


def test_on_a_free_prefix_the_index_gets_its_name_last_when_the_data_has_its_own_for_good(tmp_path: Path) -> None:
    storage = FailingStorage(0, OSError)
    one_shard(1)(str(tmp_path / "ckpt"), storage)
    assert changes(storage) == [
        "rename ckpt.data-00000-of-00001 ckpt.data-00000-of-00001",
        "sync",
        "rename ckpt.index ckpt.index",
        "sync",
    ]


def test_a_replacement_is_durable_after_each_of_its_four_steps(tmp_path: Path) -> None:
    prefix, _ = published(one_shard(1), tmp_path / "run")
    storage = FailingStorage(0, OSError)
    one_shard(2)(prefix, storage)
    assert changes(storage) == [
        "rename ckpt.data-00000-of-00001 ckpt.data-00000-of-00001.next",
        "sync",
        "rename ckpt.index ckpt.index.next",
        "sync",
        "rename ckpt.data-00000-of-00001.next ckpt.data-00000-of-00001",
        "sync",
        "rename ckpt.index.next ckpt.index",
        "sync",
    ]


# --------------------------------------------------------------------------------------------- removal


@pytest.mark.parametrize("case", ["free", "same shards", "fewer shards", "more shards"])
def test_wherever_a_removal_stops_a_reader_finds_the_whole_checkpoint_or_none(tmp_path: Path, case: str) -> None:
    """C234: also of a checkpoint whose replacement was interrupted, at any point."""
    before, publish, _, _ = CASES[case]
    whole = [published(stage, tmp_path / name)[1] for name, stage in (("old", before), ("new", publish))]
    for first, (crashed, _) in enumerate(interruptions(tmp_path, before, publish, Died)):
        for second in itertools.count(1):
            folder = tmp_path / f"{first} {second}"
            shutil.copytree(os.path.dirname(crashed), folder)
            try:
                remove_checkpoint(str(folder / "ckpt"), FailingStorage(second, Died))
            except Died:
                assert contents(str(folder / "ckpt")) in [*whole, None]
            else:
                assert os.listdir(folder) == []
                break
            finally:
                shutil.rmtree(folder)


def test_a_removal_of_the_index_is_durable_before_any_data_is_removed(tmp_path: Path) -> None:
    prefix, _ = published(one_shard(1), tmp_path / "run")
    storage = FailingStorage(0, OSError)
    remove_checkpoint(prefix, storage)
    assert changes(storage) == ["remove ckpt.index", "sync", "remove ckpt.data-00000-of-00001"]


# ----------------------------------------------------------------------------------------- whole programs


def program(folder: Path, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> int:
    """Continues from the latest checkpoint and saves once; returns what it found."""
    x = torch.tensor(0)
    group = Checkpoint(x=x)
    status = group.restore(latest_checkpoint(folder))
    found = int(x)
    assert group.save_counter.item() == found
    if found:
        status.assert_consumed()
    x += 1
    with monkeypatch.context() as patch:
        patch.setattr(turns, "storage_for", lambda path, *, durable: storage)
        group.save(folder / "ckpt")
    return found


@each_error
def test_a_training_program_that_is_killed_during_a_save_goes_on_from_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """C042, C317, C393"""
    found = []
    for failing in itertools.count(1):
        folder = tmp_path / str(failing)
        program(folder, SOUND, monkeypatch)
        try:
            program(folder, FailingStorage(failing, error), monkeypatch)
        except error:
            found.append(program(folder, SOUND, monkeypatch))
        else:
            break
        number = found[-1] + 1
        assert sorted(os.listdir(folder)) == [
            "checkpoint",
            *(f"ckpt-{n}.{kind}" for n in range(1, number + 1) for kind in ("data-00000-of-00001", "index")),
        ]
    assert found == sorted(found)
    assert found[0] == 1


def test_half_a_state_file_of_a_process_that_died_is_cleaned_by_the_next_save(tmp_path: Path) -> None:
    """C393"""
    group = Checkpoint(x=torch.tensor(1))
    group.save(tmp_path / "ckpt")
    (tmp_path / "checkpoint.tmp0123456789abcdef").write_bytes(b'model_checkpoint_path: "ck')
    group.save(tmp_path / "ckpt")
    assert [name for name in os.listdir(tmp_path) if ".tmp" in name] == []
