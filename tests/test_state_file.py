"""The text file `checkpoint`."""

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from torch_trackckpt import Checkpoint, latest_checkpoint, list_variables, load_checkpoint
from torch_trackckpt.state_file import CheckpointState, get_checkpoint_state, write_checkpoint_state
from torch_trackckpt.storage.local import LocalStorage

GOLDEN = Path(__file__).parent / "golden"
STORAGE = LocalStorage(durable=False)


def write(directory: Path | str, *paths: str) -> None:
    write_checkpoint_state(str(directory), CheckpointState(paths[-1], paths), STORAGE)


def text(directory: Path) -> str:
    return (directory / "checkpoint").read_text()


# ----------------------------------------------------------------------------------------------- writing


def test_a_save_writes_the_text_that_tensorflow_writes(tmp_path: Path) -> None:
    """C040"""
    Checkpoint().save(tmp_path / "ckpt")
    assert text(tmp_path) == text(GOLDEN / "obj_module")


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in GOLDEN.glob("*/checkpoint")))
def test_a_state_file_of_tensorflow_is_read_and_written_as_the_same_bytes(tmp_path: Path, folder: str) -> None:
    """C399"""
    copy = shutil.copytree(GOLDEN / folder, tmp_path / folder)
    state = get_checkpoint_state(copy)
    assert state is not None
    (copy / "checkpoint").unlink()
    write_checkpoint_state(str(copy), state, STORAGE)
    assert (copy / "checkpoint").read_bytes() == (GOLDEN / folder / "checkpoint").read_bytes()


def test_every_field_of_a_state_file_is_read() -> None:
    directory = GOLDEN / "manager"
    assert get_checkpoint_state(directory) == CheckpointState(
        str(directory / "ckpt-4"),
        (str(directory / "ckpt-3"), str(directory / "ckpt-4")),
        (1700000000.125, 1700000000.375),
        1700000000.625,
    )


def test_time_stamps_are_written_in_their_shortest_form(tmp_path: Path) -> None:
    state = CheckpointState("a", ("a",), (1e9 / 3,), 0.1)
    write_checkpoint_state(str(tmp_path), state, STORAGE)
    assert text(tmp_path).splitlines()[2:] == [
        "all_model_checkpoint_timestamps: 333333333.3333333",
        "last_preserved_timestamp: 0.1",
    ]


def test_paths_are_stored_as_relative_to_the_state_file(tmp_path: Path) -> None:
    """C053"""
    (tmp_path / "run").mkdir()
    write(tmp_path / "run", str(tmp_path / "run" / "sub" / "one"), str(tmp_path / "two"))
    assert text(tmp_path / "run").splitlines()[1:] == [
        'all_model_checkpoint_paths: "sub/one"',
        'all_model_checkpoint_paths: "../two"',
    ]


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ('with "quotes"', r"with \"quotes\""),
        ("back\\slash", r"back\\slash"),
        ("hé", "hé"),
        ("two\nlines", r"two\nlines"),
    ],
)
def test_names_are_quoted_as_in_tensorflows_text_and_found_again(tmp_path: Path, name: str, stored: str) -> None:
    """C053"""
    path = Checkpoint().save(tmp_path / name)
    assert text(tmp_path).splitlines()[0] == f'model_checkpoint_path: "{stored}-1"'
    assert latest_checkpoint(tmp_path) == path


def test_a_checkpoint_with_the_path_of_the_state_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"path of the state file, '.*/checkpoint'; save it under another name"):
        write(tmp_path, str(tmp_path / "checkpoint"))
    assert list(tmp_path.iterdir()) == []


def test_replacing_a_state_file_leaves_nothing_else_behind(tmp_path: Path) -> None:
    write(tmp_path, "one")
    write(tmp_path, str(tmp_path / "two"))
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_state_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, str(tmp_path / "one"))
    before = text(tmp_path)

    def refuse(source: str, destination: str) -> None:
        raise OSError(28, "No space left on device", destination)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, str(tmp_path / "two"))
    assert text(tmp_path) == before
    assert os.listdir(tmp_path) == ["checkpoint"]


# ----------------------------------------------------------------------------------------------- reading


def test_a_folder_that_was_moved_still_leads_to_its_checkpoint(tmp_path: Path) -> None:
    """C053"""
    Checkpoint(x=torch.tensor(1)).save(tmp_path / "old" / "ckpt")
    (tmp_path / "old").rename(tmp_path / "new")
    path = latest_checkpoint(tmp_path / "new")
    assert path == str(tmp_path / "new" / "ckpt-1")
    x = torch.tensor(0)
    Checkpoint(x=x).restore(path).assert_consumed()
    assert torch.equal(x, torch.tensor(1))


def test_an_absolute_path_is_kept(tmp_path: Path) -> None:
    elsewhere = Checkpoint().write(tmp_path / "elsewhere" / "ckpt")
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{elsewhere}"\n')
    assert latest_checkpoint(tmp_path) == elsewhere


def test_the_latest_checkpoint_of_tensorflows_folders_is_found() -> None:
    """C399"""
    assert latest_checkpoint(GOLDEN / "manager") == str(GOLDEN / "manager" / "ckpt-4")
    assert latest_checkpoint(str(GOLDEN / "v1_saver")) == str(GOLDEN / "v1_saver" / "model.ckpt-3")


def test_a_state_file_of_another_name_is_found_by_that_name(tmp_path: Path) -> None:
    path = Checkpoint().save(tmp_path / "ckpt")
    (tmp_path / "checkpoint").rename(tmp_path / "best")
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path, "best") == path


def test_without_a_state_file_there_is_no_latest_checkpoint(tmp_path: Path) -> None:
    Checkpoint().write(tmp_path / "ckpt")
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None
    assert latest_checkpoint(tmp_path / "ckpt.index") is None


def test_a_latest_checkpoint_whose_files_are_gone_is_none_and_an_older_one_is_not_tried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = Checkpoint()
    first = checkpoint.save(tmp_path / "ckpt")
    write(tmp_path, first, str(tmp_path / "ckpt-2"))
    assert latest_checkpoint(tmp_path) is None
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("torch_trackckpt", logging.ERROR)
    assert str(tmp_path / "ckpt-2") in record.getMessage()


@pytest.mark.parametrize(
    "content", [b"nonsense", b'model_checkpoint_path: "a', b'unknown_field: "a"', b'model_checkpoint_path: "\xff"']
)
def test_a_state_file_that_cannot_be_understood_counts_as_absent_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    assert latest_checkpoint(tmp_path) is None
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("torch_trackckpt", logging.WARNING)
    assert str(tmp_path / "checkpoint") in record.getMessage()


def test_a_state_file_that_is_a_directory_counts_as_absent_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "checkpoint").mkdir()
    assert latest_checkpoint(tmp_path) is None
    assert "is ignored" in caplog.text


@pytest.mark.parametrize("content", ["", 'all_model_checkpoint_paths: "a"'])
def test_a_state_file_that_names_no_latest_checkpoint_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "checkpoint").write_text(content)
    with pytest.raises(ValueError, match=r"/checkpoint' names no checkpoint; its model_checkpoint_path is missing"):
        latest_checkpoint(tmp_path)


# ------------------------------------------------------------------------------- paths that lead nowhere anymore


def saved(directory: Path, stored: str, name: str = "ckpt-1") -> str:
    """A checkpoint in a directory whose state file calls it by another path."""
    path = Checkpoint(x=torch.tensor(1)).write(directory / name)
    stored = stored.replace("\\", "\\\\")
    (directory / "checkpoint").write_text(
        f'model_checkpoint_path: "{stored}"\nall_model_checkpoint_paths: "{stored}"\n'
    )
    return path


@pytest.mark.parametrize(
    "stored",
    [
        "/gone/run/ckpt-1",
        "//gone/ckpt-1",
        "../elsewhere/ckpt-1",
        "sub/folder/ckpt-1",
        "../../../../../../../../../ckpt-1",
        r"C:\runs\first run\ckpt-1",
        r"runs\ckpt-1",
        r"\\server\share/runs\ckpt-1",
        "gs://bucket/run/ckpt-1",
        "/gone/ckpt-1.index",
    ],
)
def test_a_path_that_is_gone_stands_for_the_same_name_beside_the_state_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stored: str
) -> None:
    """C254"""
    path = saved(tmp_path / "run", stored)
    found = latest_checkpoint(tmp_path / "run")
    assert found in (path, path + ".index")
    x = torch.tensor(0)
    Checkpoint(x=x).read(found).assert_consumed()
    assert x == 1
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("torch_trackckpt", logging.WARNING)
    assert repr(str(tmp_path / "run")) in record.getMessage()
    what = "on remote storage" if stored.startswith("gs:") else "gone"
    assert f"which is {what}; the checkpoint of the same name beside it is taken" in record.getMessage()


def test_a_path_that_exists_wins_over_the_same_name_beside_the_state_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = Checkpoint().write(tmp_path / "elsewhere" / "ckpt-1")
    saved(tmp_path / "run", elsewhere)
    assert latest_checkpoint(tmp_path / "run") == elsewhere
    saved(tmp_path / "run", "../elsewhere/ckpt-1")
    assert latest_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "../elsewhere/ckpt-1")
    assert not caplog.records


def test_the_state_itself_keeps_paths_that_are_gone(tmp_path: Path) -> None:
    saved(tmp_path, "/gone/ckpt-1")
    assert get_checkpoint_state(tmp_path) == CheckpointState("/gone/ckpt-1", ("/gone/ckpt-1",))


@pytest.mark.parametrize(
    "stored", ["/gone/ckpt-2", "/", "..", ".", "/gone/", "\\\\", "", "ckpt-1/", "ckpt", "/gone/run"]
)
def test_where_nothing_of_the_name_is_there_no_checkpoint_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stored: str
) -> None:
    """C254"""
    (tmp_path / "run").mkdir()
    saved(tmp_path, stored or "\\x20")
    assert latest_checkpoint(tmp_path) is None
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("torch_trackckpt", logging.ERROR)
    assert "but there is no such checkpoint" in record.getMessage()


def test_the_latest_checkpoint_of_a_moved_folder_is_found_by_a_state_file_of_another_name(tmp_path: Path) -> None:
    path = saved(tmp_path, "/gone/ckpt-1")
    (tmp_path / "sub").mkdir()
    (tmp_path / "checkpoint").rename(tmp_path / "best")
    assert latest_checkpoint(tmp_path, "best") == path
    shutil.move(tmp_path / "best", tmp_path / "sub" / "best")
    assert latest_checkpoint(tmp_path, "sub/best") is None


@pytest.mark.parametrize(("directory", "prefix"), [(".", "./"), ("", "")])
def test_the_working_directory_may_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str, prefix: str
) -> None:
    """C258"""
    monkeypatch.chdir(tmp_path)
    Checkpoint().save("ck")
    assert latest_checkpoint(directory) == prefix + "ck-1"
    saved(tmp_path, "/gone/ckpt-1")
    assert latest_checkpoint(directory) == prefix + "ckpt-1"


# -------------------------------------------------------------------------------------------- the older format


def test_the_file_of_an_older_checkpoint_is_the_latest(tmp_path: Path) -> None:
    """C380"""
    folder = shutil.copytree(GOLDEN / "v1_saver", tmp_path / "run")
    assert latest_checkpoint(folder) == str(folder / "model.ckpt-3")


@pytest.mark.parametrize("stored", ["", "/gone/run/"])
def test_the_pattern_of_an_older_checkpoint_is_the_latest(tmp_path: Path, stored: str) -> None:
    """C380"""
    folder = shutil.copytree(GOLDEN / "v1_sharded", tmp_path / "run")
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{stored}model.ckpt-7-?????-of-00003"\n')
    path = latest_checkpoint(folder)
    assert path == str(folder / "model.ckpt-7-?????-of-00003")
    assert len(load_checkpoint(path)) == len(load_checkpoint(folder)) > 1


def test_a_pattern_does_not_lead_out_of_a_folder_whose_name_is_one(tmp_path: Path) -> None:
    """C380"""
    for name in ("run[1]", "run1"):
        folder = shutil.copytree(GOLDEN / "v1_sharded", tmp_path / name)
        (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-7-?????-of-00003"\n')
    for file in (tmp_path / "run1").glob("model*"):
        file.write_bytes(b"another run")
    assert len(load_checkpoint(tmp_path / "run[1]")) == len(load_checkpoint(GOLDEN / "v1_sharded" / "model.ckpt-7")) > 1


def test_a_pattern_that_matches_nothing_is_no_checkpoint(tmp_path: Path) -> None:
    """C254"""
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-7-?????-of-00003"\n')
    assert latest_checkpoint(tmp_path) is None


# ---------------------------------------------------------------------------------- a state file that names itself


@pytest.mark.parametrize(
    "stored",
    [
        "checkpoint",
        "./checkpoint",
        "../run/checkpoint",
        "{run}/checkpoint",
        "{run}/../run//checkpoint",
        "/gone/checkpoint",
    ],
)
def test_a_state_file_is_no_checkpoint_of_its_own(tmp_path: Path, stored: str) -> None:
    """C254"""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint").write_text(f'model_checkpoint_path: "{stored.format(run=tmp_path / "run")}"\n')
    assert latest_checkpoint(tmp_path / "run") is None


def test_a_state_file_that_is_reached_by_a_link_is_no_checkpoint_of_its_own(tmp_path: Path) -> None:
    """C254"""
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "run" / "checkpoint").write_text(f'model_checkpoint_path: "{tmp_path / "link" / "checkpoint"}"\n')
    assert latest_checkpoint(tmp_path / "run") is None


def test_a_bundle_may_have_the_name_of_its_state_file(tmp_path: Path) -> None:
    path = Checkpoint(x=torch.tensor(1)).write(tmp_path / "checkpoint")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "checkpoint"\n')
    assert latest_checkpoint(tmp_path) == path
    x = torch.tensor(0)
    Checkpoint(x=x).read(path).assert_consumed()
    assert x == 1


def test_an_older_checkpoint_with_the_name_of_another_state_file_is_found(tmp_path: Path) -> None:
    """C380"""
    shutil.copy(GOLDEN / "v1_saver" / "model.ckpt-3", tmp_path / "checkpoint")
    (tmp_path / "best").write_text('model_checkpoint_path: "checkpoint"\n')
    assert latest_checkpoint(tmp_path, "best") == str(tmp_path / "checkpoint")


def test_an_older_checkpoint_in_the_place_of_the_state_file_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """C252"""
    shutil.copy(GOLDEN / "v1_saver" / "model.ckpt-3", tmp_path / "checkpoint")
    assert latest_checkpoint(tmp_path) is None
    (record,) = caplog.records
    assert "is ignored, because it cannot be understood" in record.getMessage()


@pytest.mark.parametrize("named", [".", "./", "/another/machine/run/", "C:\\run\\"])
def test_a_prefix_without_a_name_is_found_in_its_folder(tmp_path: Path, named: str) -> None:
    """C258: Keras saves weights under a prefix that ends in a separator, for which the state file has a dot."""
    path = Checkpoint(x=torch.ones(2)).write(f"{tmp_path}/")
    escaped = named.replace("\\", "\\\\")
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{escaped}"\n')
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.replace("/./", "/") == path
    assert list_variables(tmp_path) == list_variables(latest) == list_variables(path)


def test_a_state_file_that_is_no_file_is_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """C252"""
    os.mkfifo(tmp_path / "checkpoint")
    assert latest_checkpoint(tmp_path) is None
    assert "is no file" in caplog.text


def test_a_path_that_no_file_can_have_makes_a_state_file_unusable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """C252"""
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "a\\000b"\n')
    assert latest_checkpoint(tmp_path) is None
    assert "zero byte" in caplog.text


def test_of_two_latest_checkpoints_the_last_counts(tmp_path: Path) -> None:
    """C255: as protocol buffers have it."""
    path = Checkpoint().write(tmp_path / "b")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "a"\nmodel_checkpoint_path: "b"\n')
    assert latest_checkpoint(tmp_path) == path
