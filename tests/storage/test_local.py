"""Names and small files of this machine."""

import os
from pathlib import Path

import pytest

from torch_trackckpt.storage.local import LocalStorage

STORAGE = LocalStorage()


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    STORAGE.put(str(path), b"first")
    STORAGE.put(str(path), b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_only_temporary_files_of_its_own_are_cleaned(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.tmp0123456789abcdef").write_bytes(b"of a process that died")
    (tmp_path / "checkpoint.tmp_backup_of_mine").write_bytes(b"somebody else's")
    (tmp_path / "checkpoint.tmpdir").mkdir()

    STORAGE.put(str(tmp_path / "checkpoint"), b"new")

    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "checkpoint.tmp_backup_of_mine", "checkpoint.tmpdir"]


def test_a_temporary_file_that_another_thread_takes_for_a_left_over_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when two checkpoints save into one directory asynchronously."""
    path = tmp_path / "checkpoint"

    def replace_after_another(source: str, destination: str) -> None:
        monkeypatch.undo()
        STORAGE.put(destination, b"the other's")
        os.replace(source, destination)

    monkeypatch.setattr(os, "replace", replace_after_another)
    STORAGE.put(str(path), b"mine")
    assert path.read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_missing_directories_are_made_with_their_parents(tmp_path: Path) -> None:
    STORAGE.make_directory(str(tmp_path / "a" / "b" / "c"))
    STORAGE.make_directory(str(tmp_path / "a" / "b" / "c"))
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_what_is_gone_already_is_removed_without_a_word(tmp_path: Path) -> None:
    STORAGE.remove(str(tmp_path / "nothing"))


def test_names_that_look_like_patterns_are_listed_as_they_are(tmp_path: Path) -> None:
    for name in ("ck[1].index", "ck1.index"):
        (tmp_path / name).touch()
    assert STORAGE.list(str(tmp_path / "ck[1].")) == [str(tmp_path / "ck[1].index")]
