"""Which files make up the checkpoint at a path."""

import logging
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trackckpt import Checkpoint, CheckpointReader, load_checkpoint
from torch_trackckpt.bundle.file_names import BundleFiles, V1Files, checkpoint_exists, find_checkpoint
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError, UnsupportedFormatError

GOLDEN = Path(__file__).parent.parent / "golden"

# Characters that mean something to glob, to regular expressions, or to nobody.
ODD_NAMES = [
    "m[1]",
    "m[!a]",
    "m*",
    "m?",
    "[",
    "m]",
    "m{a,b}",
    "~",
    "$HOME",
    "m\\",
    "a b",
    "é…😀",
    "new\nline",
    "%s",
]


def touch(*paths: Path) -> tuple[str, ...]:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tuple(map(str, paths))


def shards(prefix: Path, total: int, *, missing: tuple[int, ...] = ()) -> tuple[str, ...]:
    """Empty files of the older format."""
    numbers = [number for number in range(total) if number not in missing]
    return touch(*(prefix.parent / f"{prefix.name}-{number:05d}-of-{total:05d}" for number in numbers))


def bundle(prefix: Path | str, suffix: str = "") -> BundleFiles:
    """An empty index, and how it should be found."""
    touch(Path(f"{prefix}.index{suffix}"))
    return BundleFiles(str(prefix), f"{prefix}.index{suffix}", (".next", "") if suffix else ("",))


def v1_file(path: Path) -> Path:
    return Path(shutil.copy(GOLDEN / "v1_saver" / "model.ckpt-3", path))


def assert_none(path: Path | str, pattern: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match=pattern):
        find_checkpoint(str(path))
    assert not checkpoint_exists(str(path))


# ------------------------------------------------------------------------------------------------------ bundles


@pytest.mark.parametrize("name", [*ODD_NAMES, "checkpoint", "-1", ".hidden", "x.index", "x.data", "m-00000-of-00001"])
def test_an_index_makes_a_bundle_of_any_name(tmp_path: Path, name: str) -> None:
    """C347"""
    expected = bundle(tmp_path / name)
    assert find_checkpoint(f"{tmp_path}/{name}") == expected
    assert find_checkpoint(f"{tmp_path}/{name}.index") == expected
    assert checkpoint_exists(f"{tmp_path}/{name}")


def test_a_prefix_may_end_with_a_slash(tmp_path: Path) -> None:
    """C051"""
    touch(tmp_path / "run" / ".index")
    for path in (f"{tmp_path}/run/", f"{tmp_path}/run/.index"):
        assert find_checkpoint(path) == BundleFiles(f"{tmp_path}/run/", f"{tmp_path}/run/.index", ("",))


def test_a_prefix_may_be_relative_or_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / ".index", tmp_path / "ckpt.index")
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("ckpt").prefix == "ckpt"
    assert find_checkpoint("./ckpt").prefix == "./ckpt"
    assert find_checkpoint("").index == ".index"


def test_a_prefix_that_ends_in_index_itself_is_found_with_and_without_a_second_one(tmp_path: Path) -> None:
    """C347"""
    expected = bundle(tmp_path / "x.index")
    bundle(tmp_path / "x")
    assert find_checkpoint(f"{tmp_path}/x.index") == expected
    assert find_checkpoint(f"{tmp_path}/x.index.index") == expected
    assert find_checkpoint(f"{tmp_path}/x").prefix == f"{tmp_path}/x"


def test_a_complete_replacement_wins_over_what_it_replaces(tmp_path: Path) -> None:
    bundle(tmp_path / "ckpt")
    expected = bundle(tmp_path / "ckpt", ".next")
    for path in (f"{tmp_path}/ckpt", f"{tmp_path}/ckpt.index"):
        assert find_checkpoint(path) == expected


def test_a_replacement_alone_is_found(tmp_path: Path) -> None:
    expected = bundle(tmp_path / "ckpt", ".next")
    for path in (f"{tmp_path}/ckpt", f"{tmp_path}/ckpt.index"):
        assert find_checkpoint(path) == expected


def test_files_that_are_being_written_are_no_checkpoint(tmp_path: Path) -> None:
    touch(*(tmp_path / f"ckpt.{name}.tempstate12ab" for name in ("index", "data-00000-of-00001")))
    assert_none(tmp_path / "ckpt", "There is no checkpoint")


def test_a_link_to_an_index_is_an_index_and_one_to_nowhere_is_none(tmp_path: Path) -> None:
    bundle(tmp_path / "real")
    os.symlink(tmp_path / "real.index", tmp_path / "link.index")
    os.symlink(tmp_path / "missing", tmp_path / "broken.index")
    assert find_checkpoint(f"{tmp_path}/link").index == f"{tmp_path}/link.index"
    assert_none(tmp_path / "broken", r"no file '.*/broken\.index'")


# --------------------------------------------------------------------------------------------- newer before older


def test_an_index_shadows_an_older_file_of_the_name(tmp_path: Path) -> None:
    """C380"""
    v1_file(tmp_path / "model")
    shards(tmp_path / "model", 2)
    assert isinstance(find_checkpoint(f"{tmp_path}/model"), V1Files)
    expected = bundle(tmp_path / "model")
    assert find_checkpoint(f"{tmp_path}/model") == expected


def test_a_damaged_index_still_shadows_an_older_file(tmp_path: Path) -> None:
    """C380, C386: there is no fall-back to other values."""
    v1_file(tmp_path / "model")
    (tmp_path / "model.index").write_bytes(b"damaged" * 20)
    with pytest.raises(DataLossError, match=r"model\.index"):
        CheckpointReader(tmp_path / "model")


def test_an_index_of_the_exact_name_wins_over_what_the_name_matches_as_a_pattern(tmp_path: Path) -> None:
    expected = bundle(tmp_path / "model*")
    v1_file(tmp_path / "model1")
    assert find_checkpoint(f"{tmp_path}/model*") == expected


# --------------------------------------------------------------------------------------------- the older format


@pytest.mark.parametrize("name", [*ODD_NAMES, "checkpoint", ".hidden", "m-00000-of-00001"])
def test_a_file_without_an_index_is_of_the_older_format_whatever_its_name(tmp_path: Path, name: str) -> None:
    """C380"""
    path = str(v1_file(tmp_path / name))
    touch(tmp_path / "m", tmp_path / "m1")
    assert find_checkpoint(path) == V1Files(path, (path,))
    assert torch.equal(torch.as_tensor(load_checkpoint(path).get_tensor("scope/b")), torch.tensor([1, 2]))


@pytest.mark.parametrize("pattern", ["-?????-of-00003", "-*-of-00003", "-0000[0-2]-of-*", "-*"])
def test_a_pattern_stands_for_the_files_that_match_it(tmp_path: Path, pattern: str) -> None:
    """C380"""
    paths = shards(tmp_path / "m", 3)
    shards(tmp_path / "other", 2)
    path = f"{tmp_path}/m{pattern}"
    assert find_checkpoint(path) == V1Files(path, paths)


def test_a_pattern_tells_checkpoints_of_several_totals_apart(tmp_path: Path) -> None:
    two, three = shards(tmp_path / "m", 2), shards(tmp_path / "m", 3)
    assert find_checkpoint(f"{tmp_path}/m-?????-of-00002") == V1Files(f"{tmp_path}/m-?????-of-00002", two)
    assert find_checkpoint(f"{tmp_path}/m-?????-of-00003") == V1Files(f"{tmp_path}/m-?????-of-00003", three)


@pytest.mark.parametrize("name", [*(name for name in ODD_NAMES if name != "m*"), "checkpoint", "m-7"])
def test_shards_are_found_by_what_their_names_begin_with(tmp_path: Path, name: str) -> None:
    """C380"""
    paths = shards(tmp_path / name, 3)
    shards(tmp_path / f"{name}-8", 2)
    shards(tmp_path / "z", 4)
    assert find_checkpoint(f"{tmp_path}/{name}") == V1Files(f"{tmp_path}/{name}", paths)


def test_shards_of_two_totals_are_not_mixed(tmp_path: Path) -> None:
    """C380"""
    shards(tmp_path / "m", 2)
    shards(tmp_path / "m", 3)
    assert_none(
        tmp_path / "m",
        re.escape(
            f"several checkpoints at '{tmp_path}/m'; name one of them: '{tmp_path}/m-?????-of-00002' or "
            f"'{tmp_path}/m-?????-of-00003'."
        ),
    )


def test_names_that_only_look_like_shards_are_none(tmp_path: Path) -> None:
    touch(*(tmp_path / f"m{end}" for end in ("-1-of-2", "-00000-of-00001.tmp", "-abcde-of-00002", "-00000-of-", "x")))
    assert_none(tmp_path / "m", "There is no checkpoint")


def test_a_folder_whose_name_is_a_pattern_is_that_folder(tmp_path: Path) -> None:
    """C380: the state file of a run names its checkpoint by a pattern; its folder's name must not become one."""
    shards(tmp_path / "run1" / "m", 2)
    paths = shards(tmp_path / "run[1]" / "m", 2)
    assert find_checkpoint(f"{tmp_path}/run[1]/m-?????-of-00002").paths == paths  # type: ignore[union-attr]
    assert find_checkpoint(f"{tmp_path}/run[1]/m").paths == paths  # type: ignore[union-attr]


def test_a_pattern_may_be_in_the_folder_too(tmp_path: Path) -> None:
    paths = shards(tmp_path / "run1" / "m", 2)
    assert find_checkpoint(f"{tmp_path}/run?/m-?????-of-00002").paths == paths  # type: ignore[union-attr]


def test_a_pattern_matches_no_folders(tmp_path: Path) -> None:
    (tmp_path / "model-1").mkdir()
    assert_none(tmp_path / "model-*", "There is no checkpoint")
    path = v1_file(tmp_path / "model-2")
    assert find_checkpoint(f"{tmp_path}/model-*").paths == (str(path),)  # type: ignore[union-attr]


def test_the_values_of_all_files_of_a_pattern_are_read(tmp_path: Path) -> None:
    """C380"""
    folder = shutil.copytree(GOLDEN / "v1_sharded", tmp_path / "odd [name]*")
    readers = [
        load_checkpoint(f"{folder}/model.ckpt-7"),
        load_checkpoint(f"{GOLDEN}/v1_sharded/model.ckpt-7-?????-of-00003"),
    ]
    first, second = ({key: reader.get_tensor(key) for key in reader} for reader in readers)
    assert first.keys() == second.keys()
    assert len(first) > 1
    assert all(torch.equal(torch.as_tensor(first[key]), torch.as_tensor(second[key])) for key in first)


def test_a_link_to_nowhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    """C353"""
    os.symlink(tmp_path / "missing", tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/model"):
        CheckpointReader(tmp_path / "model")


# ----------------------------------------------------------------------------------------------- missing shards


@pytest.mark.parametrize("path", ["m", "m-?????-of-00004"])
def test_missing_shards_are_counted_and_the_first_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    paths = shards(tmp_path / "m", 4, missing=(1, 3))
    assert find_checkpoint(f"{tmp_path}/{path}").paths == paths  # type: ignore[union-attr]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("torch_trackckpt", logging.WARNING)
    assert record.getMessage().startswith(
        f"2 of 4 files of the checkpoint {tmp_path}/m are missing, the first is number 00001;"
    )


def test_where_no_shard_is_missing_nothing_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards(tmp_path / "m", 4)
    find_checkpoint(f"{tmp_path}/m")
    assert not caplog.records


def test_a_total_that_is_made_up_costs_no_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / f"m-00000-of-{10**30}")
    find_checkpoint(f"{tmp_path}/m")
    assert "the first is number 00001" in caplog.text


def test_values_in_shards_that_are_there_can_be_read(tmp_path: Path) -> None:
    """C380"""
    folder = shutil.copytree(GOLDEN / "v1_sharded", tmp_path / "copy")
    whole = load_checkpoint(folder / "model.ckpt-7")
    expected = {key: whole.get_tensor(key) for key in whole}
    (folder / "model.ckpt-7-00001-of-00003").unlink()
    rest = load_checkpoint(folder / "model.ckpt-7")
    found = {key: rest.get_tensor(key) for key in rest if not rest.stored_slices(key)}
    assert found
    assert all(torch.equal(torch.as_tensor(found[key]), torch.as_tensor(expected[key])) for key in found)


# ---------------------------------------------------------------------------------------------- what is refused


def test_a_data_file_is_refused_with_the_name_of_its_checkpoint(tmp_path: Path) -> None:
    """C347"""
    path = Checkpoint(x=torch.ones(1)).write(tmp_path / "a.data-00000-of-00002")
    data = f"{path}.data-00000-of-00001"
    for opener in (find_checkpoint, CheckpointReader, load_checkpoint):
        with pytest.raises(CheckpointNotFoundError, match=rf"^'{data}' is a data file of .*; pass '{path}', beside"):
            opener(data)
    assert find_checkpoint(path).prefix == path


def test_a_data_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    """C353"""
    assert_none(tmp_path / "ckpt.data-00000-of-00001", "There is no checkpoint at")


@pytest.mark.parametrize("end", ["", "/", "/.", "/../run"])
def test_a_directory_is_refused_with_what_finds_the_newest_in_it(tmp_path: Path, end: str) -> None:
    """C064"""
    path = Checkpoint().save(tmp_path / "run" / "ckpt")
    assert checkpoint_exists(path)
    assert_none(f"{tmp_path}/run{end}", rf"is a directory, .*; latest_checkpoint\('{tmp_path}/run{end}'\) finds")


def test_a_link_to_a_directory_is_a_directory(tmp_path: Path) -> None:
    """C064"""
    os.symlink(tmp_path, tmp_path / "link")
    assert_none(tmp_path / "link", "is a directory")


@pytest.mark.parametrize("path", ["", "/", "missing", "missing/", "a\0b", "\ud800", "[", "**", "x" * 5000, ".index"])
def test_a_path_without_files_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """C353"""
    monkeypatch.chdir(tmp_path)
    assert_none(path, "is no checkpoint at|is a directory")


def test_the_state_file_is_no_table_and_says_so(tmp_path: Path) -> None:
    Checkpoint().save(tmp_path / "ckpt")
    with pytest.raises(DataLossError, match=rf"{tmp_path}/checkpoint"):
        CheckpointReader(tmp_path / "checkpoint")


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 47, b"\0" * 48, b"hello" * 1000])
def test_a_file_that_is_no_checkpoint_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    """C386"""
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataLossError, match=rf"{tmp_path}/file"):
        load_checkpoint(tmp_path / "file")


def test_an_index_without_its_suffix_is_not_taken_for_an_older_file(tmp_path: Path) -> None:
    """C380"""
    path = Checkpoint(x=torch.ones(1)).write(tmp_path / "ckpt")
    os.rename(path + ".index", tmp_path / "renamed")
    with pytest.raises(UnsupportedFormatError, match=rf"{tmp_path}/renamed: the index of a checkpoint in the newer"):
        load_checkpoint(tmp_path / "renamed")


@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12))
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_a_checkpoint_of_any_name_is_found_again_and_no_other_is(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("names")
    touch(folder / "mm.index", folder / "m-00000-of-00001")
    assert checkpoint_exists(f"{folder}/mm")
    expected = bundle(f"{folder}/{name}")
    assert find_checkpoint(f"{folder}/{name}") == expected
    os.unlink(expected.index)
    found = [find_checkpoint(f"{folder}/{name}")] if checkpoint_exists(f"{folder}/{name}") else []
    assert expected not in found
    shutil.rmtree(folder)
