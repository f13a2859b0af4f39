"""`CheckpointReader.verify`: everything is looked at, and everything that is wrong is named."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from native import crafted, crafted_v1

from torch_trackckpt import CheckpointReader
from torch_trackckpt.bundle import verification
from torch_trackckpt.errors import (
    CheckpointNotFoundError,
    DataLossError,
    TensorNotFoundError,
    UnsupportedFormatError,
)

ALL = (0, -1)
FLOAT, STRING = 1, 7


def write(prefix: Path) -> CheckpointReader:
    """Numbers, strings and slices in two data files: `a`, `b` and `s` in the first, `c` in the second, `w` in both."""
    bundle = crafted.Bundle()
    for number, name in enumerate((b"a", b"b", b"c")):
        bundle.add_array(name, FLOAT, np.full((10,), number, np.float32), shard_id=number // 2)
    bundle.add_array(b"empty", FLOAT, np.zeros((0, 3), np.float32))
    bundle.add_array(b"s", STRING, np.array([b"one", b"two"], dtype=object))
    bundle.add_slices(b"w", FLOAT, np.ones((2, 4), np.float32), [((0, 1), ALL), ((1, 1), ALL)], shards=(0, 1))
    bundle.write(prefix)
    return CheckpointReader(prefix)


def flip(prefix: Path, key: bytes) -> None:
    """Damages the first byte of what is stored under a key."""
    entry = crafted.open_reader(prefix).find(key)
    assert entry is not None
    crafted.flip(Path(f"{prefix}.data-{entry.shard_id:05d}-of-00002"), entry.offset)


def test_a_sound_checkpoint_passes(tmp_path: Path) -> None:
    reader = write(tmp_path / "ckpt")
    reader.verify()
    reader.verify(["a", "s"])
    reader.verify(key for key in reader)
    reader.verify([])


# ------------------------------------------------------------------------------------------------ progress


@pytest.mark.parametrize("at_once", [1, 40, 100, 1 << 20])
def test_progress_increases_up_to_the_number_of_bytes(
    tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "AT_ONCE_BYTES", at_once)
    reader = write(tmp_path / "ckpt")
    total = sum(stored.nbytes for stored in reader.all_stored())
    calls: list[tuple[int, int]] = []
    reader.verify(progress=lambda done, all_: calls.append((done, all_)))
    assert {all_ for _, all_ in calls} == {total}
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (total, total)
    assert len(calls) == {1: 6, 40: 5, 100: 2, 1 << 20: 1}[at_once]


def test_the_progress_of_a_subset_ends_at_its_own_bytes(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write(tmp_path / "ckpt").verify(["w", "a"], progress=lambda *numbers: calls.append(numbers))
    assert calls[-1] == (72, 72)


@pytest.mark.parametrize("keys", [[], ["empty"]])
def test_the_progress_of_nothing_ends_too(tmp_path: Path, keys: list[str]) -> None:
    calls: list[tuple[int, int]] = []
    write(tmp_path / "ckpt").verify(keys, progress=lambda *numbers: calls.append(numbers))
    assert calls[-1] == (0, 0)


def test_progress_goes_on_over_damage_and_an_error_of_the_callback_ends_it(tmp_path: Path) -> None:
    prefix = tmp_path / "ckpt"
    reader = write(prefix)
    flip(prefix, b"a")
    calls: list[tuple[int, int]] = []
    with pytest.raises(DataLossError):
        reader.verify(progress=lambda *numbers: calls.append(numbers))
    assert calls[-1][0] == calls[-1][1] > 0

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reader.verify(progress=stop)


# ------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_every_damaged_value_is_named_and_no_other(
    tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C355, C382, C383"""
    monkeypatch.setattr(verification, "AT_ONCE_BYTES", at_once)
    prefix = tmp_path / "ckpt"
    reader = write(prefix)
    for key in (b"a", b"c", b"s", crafted.witness.slice_key(b"w", ((1, 1), ALL))):
        flip(prefix, key)
    with pytest.raises(DataLossError, match=rf"^4 values of '{prefix}' cannot be read:\n") as caught:
        reader.verify()
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["a", "c", "s", "w"]
    for line, reason in zip(lines, ["Checksum", "Checksum", "length checksum", "Checksum"], strict=True):
        assert f"{reason} does not match" in line
    reader.verify(["b", "empty"])


def test_one_damaged_value_is_an_error_of_its_own(tmp_path: Path) -> None:
    """C382"""
    prefix = tmp_path / "ckpt"
    reader = write(prefix)
    flip(prefix, b"b")
    with pytest.raises(DataLossError, match=r"^Checksum does not match: key b, "):
        reader.verify()
    with pytest.raises(DataLossError, match=r"^Checksum does not match: key b, "):
        reader.verify(["b"])
    reader.verify(["a", "c", "s", "w"])


def test_a_data_file_that_is_missing_is_named_and_is_what_is_wrong(tmp_path: Path) -> None:
    """C385: nothing is damaged, however many values lie in it."""
    reader = write(tmp_path / "ckpt")
    (tmp_path / "ckpt.data-00001-of-00002").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"ckpt\.data-00001-of-00002") as caught:
        reader.verify()
    assert "c" in str(caught.value)
    with pytest.raises(CheckpointNotFoundError, match=r"ckpt\.data-00001-of-00002"):
        reader.verify(["c"])
    reader.verify(["a", "b", "s", "empty"])


def test_damage_beside_a_missing_file_is_damage_and_both_are_named(tmp_path: Path) -> None:
    """C385"""
    prefix = tmp_path / "ckpt"
    reader = write(prefix)
    flip(prefix, b"a")
    (tmp_path / "ckpt.data-00001-of-00002").unlink()
    with pytest.raises(DataLossError, match=r"^3 values") as caught:
        reader.verify()
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["a", "c", "w"]
    assert "Checksum" in lines[0]
    assert all("ckpt.data-00001-of-00002" in line for line in lines[1:])


def test_a_cut_data_file_costs_the_values_beyond_the_cut(tmp_path: Path) -> None:
    """C384"""
    prefix = tmp_path / "ckpt"
    reader = write(prefix)
    crafted.cut(Path(f"{prefix}.data-00000-of-00002"), 41)
    with pytest.raises(DataLossError) as caught:
        reader.verify()
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == ["b", "empty", "s", "w"]
    reader.verify(["a", "c"])


def test_a_hole_between_slices_is_named(tmp_path: Path) -> None:
    """C374"""
    bundle = crafted.Bundle()
    bundle.add_slices(b"w", FLOAT, np.ones((2, 4), np.float32), [((0, 1), ALL)])
    bundle.add_array(b"x", FLOAT, np.ones(2, np.float32))
    bundle.write(tmp_path / "ckpt")
    with pytest.raises(DataLossError, match="w"):
        CheckpointReader(tmp_path / "ckpt").verify()
    CheckpointReader(tmp_path / "ckpt").verify(["x"])


def test_an_unknown_key_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    """C350"""
    prefix = tmp_path / "ckpt"
    reader = write(prefix)
    flip(prefix, b"a")
    with pytest.raises(TensorNotFoundError, match="Key nothing not found"):
        reader.verify(["a", "nothing"])


# -------------------------------------------------------------------------------- types, formats


@pytest.mark.parametrize(
    "name", ["v2_dtypes", "v2_strings", "v2_slices_merged", "crafted_big_endian", "v1_basic", "v1_slices", "v1_sharded"]
)
def test_files_of_every_kind_pass(name: str) -> None:
    """C376, C380"""
    calls: list[tuple[int, int]] = []
    CheckpointReader(crafted.golden(name)).verify(progress=lambda *numbers: calls.append(numbers))
    assert calls[-1][0] == calls[-1][1] > 0


def test_variants_are_verified_though_nothing_is_made_of_them(tmp_path: Path) -> None:
    """C381"""
    source = crafted.GOLDEN / "variant"
    CheckpointReader(source / "ckpt").verify()
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    reader = CheckpointReader(tmp_path / "ckpt")
    entry = crafted.open_reader(tmp_path / "ckpt").find(b"matrix")
    assert entry is not None
    crafted.flip(tmp_path / "ckpt.data-00000-of-00001", entry.offset + entry.size // 2)
    with pytest.raises(DataLossError, match="matrix"):
        reader.verify()
    reader.verify(["none", "number", "scalar"])
    assert torch.as_tensor(reader.get_tensor("number")).shape == (1,)


@pytest.mark.parametrize("number", [0, 20, 34, 101])
def test_a_type_that_cannot_be_read_is_named_beside_what_can(tmp_path: Path, number: int) -> None:
    """C390: its checksum can be right, but nobody can tell whether its size is."""
    bundle = crafted.Bundle()
    bundle.add(b"odd", number, (2,), b"\0" * 8)
    bundle.add_array(b"x", FLOAT, np.ones(2, np.float32))
    bundle.write(tmp_path / "ckpt")
    reader = CheckpointReader(tmp_path / "ckpt")
    with pytest.raises(UnsupportedFormatError, match="odd"):
        reader.verify()
    reader.verify(["x"])
    crafted.flip(tmp_path / "ckpt.data-00000-of-00001", -1)
    with pytest.raises(DataLossError, match=r"^2 values") as caught:
        reader.verify()
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == ["odd", "x"]


def test_a_damaged_v1_file_is_found_by_name(tmp_path: Path) -> None:
    """C380, C382"""
    described = [crafted_v1.tensor_meta(name, 3, (300,), [(ALL,)]) for name in (b"a", b"b")]
    records = [crafted_v1.saved(name, (ALL,), crafted_v1.proto(3, crafted_v1.numbers([300]))) for name in (b"a", b"b")]
    path = crafted_v1.write_records(tmp_path / "model.ckpt", crafted_v1.meta(described), records, block_size=64)
    reader = CheckpointReader(path)
    calls: list[tuple[int, int]] = []
    reader.verify(progress=lambda *numbers: calls.append(numbers))
    assert calls[-1] == (2400, 2400)
    at = path.read_bytes().rfind(bytes([1, 2, 3, 4, 5, 6, 7]))  # among the numbers of b
    crafted.flip(path, at)
    reader = CheckpointReader(path)
    with pytest.raises(DataLossError, match="block checksum mismatch") as caught:
        reader.verify()
    assert re.search(r"\bb\b", str(caught.value))
    reader.verify(["a"])
    assert torch.as_tensor(reader.get_tensor("a")).tolist() == list(range(300))
