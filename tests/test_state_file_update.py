"""State files that are written by hand, and reading by the rules of TensorFlow."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_trackckpt import (
    Checkpoint,
    CheckpointManager,
    CheckpointOptions,
    get_checkpoint_state,
    latest_checkpoint,
    update_checkpoint_state,
)
from torch_trackckpt.bundle.file_names import checkpoint_exists
from torch_trackckpt.save.commit import remove_checkpoint
from torch_trackckpt.sharding import MaxShardSizePolicy
from torch_trackckpt.state_file import CheckpointState, write_checkpoint_state
from torch_trackckpt.storage.local import LocalStorage


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def stored(*paths: str) -> list[str]:
    return [f'model_checkpoint_path: "{paths[-1]}"', *(f'all_model_checkpoint_paths: "{path}"' for path in paths)]


# ----------------------------------------------------------------------------------------------- writing


def test_absolute_paths_are_stored_as_given(tmp_path: Path) -> None:
    """C242."""
    update_checkpoint_state(tmp_path, tmp_path / "model-0")
    assert lines(tmp_path / "checkpoint") == stored(f"{tmp_path}/model-0")
    assert get_checkpoint_state(tmp_path) == CheckpointState(f"{tmp_path}/model-0", (f"{tmp_path}/model-0",))


def test_relative_paths_become_relative_to_a_relative_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C243."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("train")
    update_checkpoint_state("train", "train/model-2", ["train/model-1", "train/model-2"])
    assert lines(tmp_path / "train" / "checkpoint") == stored("model-1", "model-2")
    assert get_checkpoint_state("train") == CheckpointState("train/model-2", ("train/model-1", "train/model-2"))


def test_relative_paths_stay_in_an_absolute_directory(tmp_path: Path) -> None:
    """C247."""
    update_checkpoint_state(tmp_path, "./model-1")
    assert lines(tmp_path / "checkpoint") == stored("./model-1")
    assert get_checkpoint_state(tmp_path) == CheckpointState(f"{tmp_path}/./model-1", (f"{tmp_path}/./model-1",))


@pytest.mark.parametrize("given", [None, [], ["a"], ("a", "b"), ["c", "a"]])
def test_the_newest_is_added_where_it_is_not_the_last(tmp_path: Path, given: Any) -> None:
    """C244."""
    before = list(given or ())
    update_checkpoint_state(tmp_path, "c", given)
    assert lines(tmp_path / "checkpoint") == stored(*before, "c")
    assert list(given or ()) == before
    update_checkpoint_state(tmp_path, "c", [*before, "c"])
    assert lines(tmp_path / "checkpoint") == stored(*before, "c")


def test_absolute_and_relative_paths_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C245."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("train")
    update_checkpoint_state("train", "train/model-3", [f"{tmp_path}/model-1", "train/model-2"])
    assert lines(Path("train/checkpoint")) == stored(f"{tmp_path}/model-1", "model-2", "model-3")
    state = get_checkpoint_state("train")
    assert state is not None
    assert state.all_model_checkpoint_paths == (f"{tmp_path}/model-1", "train/model-2", "train/model-3")


def test_a_save_and_a_manager_store_relative_paths_and_reading_joins_them(tmp_path: Path) -> None:
    """C240, C246."""
    options = CheckpointOptions(durable=False)
    path = Checkpoint().save(tmp_path / "save" / "ckpt", options)
    assert lines(tmp_path / "save" / "checkpoint") == stored("ckpt-1")
    assert latest_checkpoint(tmp_path / "save") == path
    times = iter([5.0, 10.5, 20.25, 30.125])
    manager = CheckpointManager(
        Checkpoint(), tmp_path / "run", 2, checkpoint_name="sub/ckpt", clock=lambda: next(times)
    )
    for _ in range(3):
        manager.save(options=options)
    assert lines(tmp_path / "run" / "checkpoint") == [
        *stored("sub/ckpt-2", "sub/ckpt-3"),
        "all_model_checkpoint_timestamps: 20.25",
        "all_model_checkpoint_timestamps: 30.125",
        "last_preserved_timestamp: 4.0",
    ]
    state = get_checkpoint_state(tmp_path / "run")
    paths = tuple(f"{tmp_path}/run/sub/ckpt-{n}" for n in (2, 3))
    assert state == CheckpointState(paths[1], paths, (20.25, 30.125), 4.0)


def test_a_save_lists_the_newest_alone(tmp_path: Path) -> None:
    """C241."""
    checkpoint = Checkpoint()
    for _ in range(3):
        checkpoint.save(tmp_path / "ckpt")
    assert lines(tmp_path / "checkpoint") == stored("ckpt-3")


@pytest.mark.parametrize(("paths", "times"), [(["a", "b"], [1.0]), (["a"], [1.0]), (None, [1.0, 2.0])])
def test_there_is_one_time_for_each_path(tmp_path: Path, paths: list[str] | None, times: list[float]) -> None:
    """C248."""
    with pytest.raises(ValueError, match=r"There are \d all_model_checkpoint_timestamps for \d checkpoints"):
        update_checkpoint_state(tmp_path, "b", paths, all_model_checkpoint_timestamps=times)
    assert list(tmp_path.iterdir()) == []


def test_times_are_written_and_read(tmp_path: Path) -> None:
    """C240."""
    update_checkpoint_state(
        tmp_path, "b", ["a", "b"], all_model_checkpoint_timestamps=[1.5, 2.5], last_preserved_timestamp=0.5
    )
    state = get_checkpoint_state(tmp_path)
    assert state == CheckpointState(f"{tmp_path}/b", (f"{tmp_path}/a", f"{tmp_path}/b"), (1.5, 2.5), 0.5)


@pytest.mark.parametrize("path", ["checkpoint", "./checkpoint", "{directory}/checkpoint"])
def test_a_checkpoint_cannot_have_the_path_of_the_state_file(tmp_path: Path, path: str) -> None:
    """C249."""
    path = path.format(directory=tmp_path)
    for paths in ([path], [path, "other"]):
        with pytest.raises(RuntimeError, match="path of the state file"):
            update_checkpoint_state(tmp_path, paths[-1], paths)
    with pytest.raises(RuntimeError, match="path of the state file"):
        update_checkpoint_state(tmp_path, "best", latest_filename="best")
    assert list(tmp_path.iterdir()) == []


def test_the_state_file_may_have_another_name(tmp_path: Path) -> None:
    """C250."""
    paths = [Checkpoint().write(tmp_path / name) for name in ("a", "b")]
    update_checkpoint_state(tmp_path, paths[0])
    update_checkpoint_state(tmp_path, paths[1], latest_filename="best")
    assert latest_checkpoint(tmp_path) == paths[0]
    assert latest_checkpoint(tmp_path, "best") == latest_checkpoint(tmp_path, "best", verify=True) == paths[1]
    state = get_checkpoint_state(tmp_path, latest_filename="best")
    assert state is not None
    assert state.model_checkpoint_path == paths[1]


def test_a_reader_never_sees_a_file_that_is_half_written(tmp_path: Path) -> None:
    """C256."""
    storage = LocalStorage(durable=False)
    states = [
        CheckpointState(f"{tmp_path}/{letter}", (f"{tmp_path}/{letter}",) * 2000, (1.0,) * 2000) for letter in "ab"
    ]
    write_checkpoint_state(str(tmp_path), states[0], storage)
    done = threading.Event()

    def write() -> None:
        for number in range(60):
            write_checkpoint_state(str(tmp_path), states[number % 2], storage)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        assert get_checkpoint_state(tmp_path) in states
    thread.join()
    assert os.listdir(tmp_path) == ["checkpoint"]


# ----------------------------------------------------------------------------------------------- reading


def test_without_a_file_there_is_no_state(tmp_path: Path) -> None:
    """C251."""
    for directory in (tmp_path, tmp_path / "missing"):
        assert get_checkpoint_state(directory) is None
        assert latest_checkpoint(directory) is None


@pytest.mark.parametrize("text", ["", 'all_model_checkpoint_paths: "a"', 'model_checkpoint_path: ""'])
def test_a_state_without_a_newest_checkpoint_is_an_error(tmp_path: Path, text: str) -> None:
    """C253."""
    (tmp_path / "checkpoint").write_text(text)
    for function in (get_checkpoint_state, latest_checkpoint):
        with pytest.raises(ValueError, match="names no checkpoint"):
            function(tmp_path)


def test_the_whole_text_form_is_understood(tmp_path: Path) -> None:
    """C255."""
    (tmp_path / "checkpoint").write_text(
        "# by hand\n"
        'model_checkpoint_path: \'/a/\\303\\251\' all_model_checkpoint_paths: "/a/\\x41\\n\\"" # one line\n'
        "all_model_checkpoint_paths: '/a/' 'é' ; all_model_checkpoint_timestamps: [1, 2e0]\n",
        encoding="utf-8",
    )
    assert get_checkpoint_state(tmp_path) == CheckpointState("/a/é", ('/a/A\n"', "/a/é"), (1.0, 2.0))


@pytest.mark.parametrize(("name", "text"), [('a"b', r"a\"b"), ("a\tb\n", r"a\tb\n"), ("é\x01", r"é\001")])
def test_quotes_and_control_characters_are_escaped(tmp_path: Path, name: str, text: str) -> None:
    """C255."""
    update_checkpoint_state(tmp_path, name)
    assert lines(tmp_path / "checkpoint") == stored(text)
    state = get_checkpoint_state(tmp_path)
    assert state is not None
    assert state.model_checkpoint_path == f"{tmp_path}/{name}"


def test_directories_may_be_path_objects(tmp_path: Path) -> None:
    """C257."""
    path = Checkpoint().write(tmp_path / "ckpt")
    update_checkpoint_state(tmp_path, tmp_path / "ckpt", [tmp_path / "ckpt"])
    state = get_checkpoint_state(tmp_path)
    assert state is not None
    assert latest_checkpoint(tmp_path) == state.model_checkpoint_path == path
    assert type(latest_checkpoint(tmp_path)) is str


@pytest.mark.parametrize("options", [None, CheckpointOptions(experimental_sharding_callback=MaxShardSizePolicy(8))])
def test_whether_a_checkpoint_exists(tmp_path: Path, options: CheckpointOptions | None) -> None:
    """C259."""
    prefix = str(tmp_path / "ckpt")
    assert not checkpoint_exists(prefix)
    Checkpoint(x=torch.ones(4)).write(prefix, options)
    assert checkpoint_exists(prefix)
    assert len(list(tmp_path.iterdir())) == (2 if options is None else 3)
    remove_checkpoint(prefix, LocalStorage())
    assert not checkpoint_exists(prefix)
    assert list(tmp_path.iterdir()) == []
    remove_checkpoint(prefix, LocalStorage())
