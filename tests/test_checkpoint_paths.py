"""Where checkpoints lie, and what a save that fails leaves there."""

import os
from pathlib import Path

import pytest
import torch
from checkpoints import names_in, paths

from torch_trackckpt import (
    Checkpoint,
    CheckpointOptions,
    PythonState,
    latest_checkpoint,
)
from torch_trackckpt.errors import (
    CheckpointNotFoundError,
)

# --------------------------------------------------------------------------------------------------- paths


def test_missing_directories_are_made(tmp_path: Path) -> None:
    """C050"""
    Checkpoint().write(tmp_path / "a" / "b" / "ckpt")
    Checkpoint().save(tmp_path / "c" / "d" / "ckpt")
    assert latest_checkpoint(tmp_path / "c" / "d") == str(tmp_path / "c" / "d" / "ckpt-1")
    assert (tmp_path / "a" / "b" / "ckpt.index").exists()


def test_a_prefix_that_ends_with_a_slash_gives_a_file_that_is_only_a_number(tmp_path: Path) -> None:
    """C051"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    path = checkpoint.save(f"{tmp_path}/run/")
    assert path == f"{tmp_path}/run/-1"
    assert names_in(tmp_path / "run") == ["-1.data-00000-of-00001", "-1.index", "checkpoint"]
    assert latest_checkpoint(tmp_path / "run") == path
    checkpoint.restore(path).assert_consumed()


def test_a_written_prefix_that_ends_with_a_slash_is_read_back(tmp_path: Path) -> None:
    """C051"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.write(f"{tmp_path}/run/")
    checkpoint.write(f"{tmp_path}/run/")
    assert names_in(tmp_path / "run") == [".data-00000-of-00001", ".index"]
    checkpoint.read(f"{tmp_path}/run/").assert_existing_objects_matched()


def test_paths_may_be_path_objects_and_come_back_as_text(tmp_path: Path) -> None:
    """C052"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    saved, written = checkpoint.save(tmp_path / "ckpt"), checkpoint.write(tmp_path / "other")
    assert (type(saved), type(written)) == (str, str)
    checkpoint.restore(Path(saved)).assert_consumed()
    checkpoint.read(Path(written)).assert_consumed()


def test_relative_prefixes_stay_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C053"""
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint(x=torch.tensor(1))
    assert checkpoint.save("run/ckpt") == "run/ckpt-1"
    assert checkpoint.save("ckpt") == "ckpt-2"
    assert latest_checkpoint("run") == "run/ckpt-1"
    assert latest_checkpoint("") == latest_checkpoint(".").removeprefix("./") == "ckpt-2"  # type: ignore[union-attr]
    assert (tmp_path / "run" / "checkpoint").read_text().splitlines()[0] == 'model_checkpoint_path: "ckpt-1"'


@pytest.mark.parametrize("name", ["ck[0-9]*pt?", "ck pt", "ckpt.index", "é", "%s", "a.data-00000-of-00001"])
def test_any_file_name_serves_as_a_prefix(tmp_path: Path, name: str) -> None:
    checkpoint = Checkpoint(x=torch.tensor(1))
    for _ in range(2):
        path = checkpoint.write(tmp_path / name)
    assert names_in(tmp_path) == sorted([f"{name}.data-00000-of-00001", f"{name}.index"])
    checkpoint.read(path).assert_consumed()


def test_a_neighbour_whose_name_begins_alike_is_left_alone(tmp_path: Path) -> None:
    """C049"""
    neighbours = [tmp_path / name for name in ("ckpt-1.data-00000-of-00001.bak", "ckpt-10.index.next", "ckpt-1.old")]
    for neighbour in neighbours:
        neighbour.write_bytes(b"mine")
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.write(tmp_path / "ckpt-1")
    checkpoint.write(tmp_path / "ckpt-1")
    assert [neighbour.read_bytes() for neighbour in neighbours] == [b"mine"] * 3


def test_a_missing_path_is_not_found_with_a_hint_at_the_number(tmp_path: Path) -> None:
    """C062"""
    missing = tmp_path / "ckpt"
    with pytest.raises(FileNotFoundError, match=rf"checkpoint or SavedModel at {missing}: .*such as 'ckpt-1'"):
        Checkpoint().restore(missing)
    with pytest.raises(CheckpointNotFoundError, match=rf"There is no checkpoint at '{missing}'"):
        Checkpoint().read(missing)


def test_a_prefix_without_its_number_is_not_found(prefix: str) -> None:
    """C063"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.save(prefix)
    with pytest.raises(CheckpointNotFoundError, match="latest_checkpoint"):
        checkpoint.restore(prefix)


def test_a_directory_is_no_checkpoint(prefix: str) -> None:
    """C064"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.save(prefix)
    directory = os.path.dirname(prefix)
    for load in (checkpoint.restore, checkpoint.read):
        with pytest.raises(CheckpointNotFoundError, match=rf"'{directory}' is a directory, not a checkpoint"):
            load(directory)


def test_a_failed_lookup_leaves_no_counter_behind(prefix: str) -> None:
    checkpoint = Checkpoint(x=torch.tensor(1))
    with pytest.raises(CheckpointNotFoundError):
        checkpoint.restore(prefix)
    checkpoint.write(prefix)
    assert paths(prefix) == ["x"]


# -------------------------------------------------------------------------------------------- failing saves


class Unwilling(PythonState):
    """A state that refuses to be saved."""

    def serialize(self) -> str:
        raise LookupError("not now")

    def deserialize(self, string_value: bytes) -> None: ...


def test_a_value_that_cannot_be_saved_spends_the_number_and_leaves_no_file(tmp_path: Path) -> None:
    """C042, C160"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    first = checkpoint.save(tmp_path / "ckpt")
    before = names_in(tmp_path)
    checkpoint.state = Unwilling()
    with pytest.raises(LookupError, match="not now"):
        checkpoint.save(tmp_path / "ckpt")
    assert names_in(tmp_path) == before
    assert latest_checkpoint(tmp_path) == first
    del checkpoint.state
    assert checkpoint.save(tmp_path / "ckpt") == f"{tmp_path}/ckpt-3"


def test_a_directory_that_cannot_be_made_is_the_systems_error_and_spends_the_number(tmp_path: Path) -> None:
    """C042, C394"""
    (tmp_path / "file").write_text("")
    checkpoint = Checkpoint(x=torch.tensor(1))
    with pytest.raises(NotADirectoryError):
        checkpoint.save(tmp_path / "file" / "ckpt")
    assert checkpoint.save(tmp_path / "ckpt") == f"{tmp_path}/ckpt-2"


def test_a_raising_callback_reaches_the_caller_and_leaves_the_files_but_no_state(tmp_path: Path) -> None:
    """C042, C307, C309"""

    def refuse() -> None:
        raise LookupError("no more quota")

    checkpoint = Checkpoint(x=torch.tensor(1))
    first = checkpoint.save(tmp_path / "ckpt")
    with pytest.raises(LookupError, match="no more quota"):
        checkpoint.save(tmp_path / "ckpt", CheckpointOptions(experimental_write_callbacks=[refuse]))
    assert latest_checkpoint(tmp_path) == first
    assert paths(str(tmp_path / "ckpt-2")) == ["save_counter", "x"]
    assert checkpoint.save_counter.item() == 2


def test_callbacks_run_when_the_files_are_complete_and_before_the_state_file_names_them(tmp_path: Path) -> None:
    """C306, C307, C308"""
    seen: list[object] = []

    def look(path: str) -> None:
        seen.append((path, paths(path), latest_checkpoint(tmp_path)))

    options = CheckpointOptions(experimental_write_callbacks=[look, lambda: seen.append("second")])
    checkpoint = Checkpoint(x=torch.tensor(1))
    written = checkpoint.write(tmp_path / "other", options)
    saved = checkpoint.save(tmp_path / "ckpt", options)
    assert seen == [(written, ["x"], None), "second", (saved, ["save_counter", "x"], None), "second"]
    assert latest_checkpoint(tmp_path) == saved


def test_a_state_file_that_cannot_be_replaced_leaves_the_whole_checkpoint(tmp_path: Path) -> None:
    """C394"""
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(IsADirectoryError):
        Checkpoint(x=torch.tensor(1)).save(tmp_path / "ckpt")
    assert names_in(tmp_path) == ["checkpoint", "ckpt-1.data-00000-of-00001", "ckpt-1.index"]
    assert paths(str(tmp_path / "ckpt-1")) == ["save_counter", "x"]
