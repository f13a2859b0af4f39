"""What stands where a file of a checkpoint should be, and is none."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from native import crafted

from torch_trackckpt._native import V1Reader
from torch_trackckpt.errors import DataLossError, UnsupportedFormatError

LFS_POINTER = b"""\
version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""


def open_index(path: Path) -> None:
    crafted.open_reader(path.with_suffix(""))


def open_v1(path: Path) -> None:
    V1Reader([str(path)])


OPENERS = pytest.mark.parametrize("open_table", [open_index, open_v1], ids=["V2", "V1"])


@OPENERS
def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path: Path, open_table: Callable[[Path], None]) -> None:
    path = tmp_path / "ckpt.index"
    os.mkfifo(path)
    with pytest.raises(UnsupportedFormatError, match=re.escape(f"{path}: not a regular file")):
        open_table(path)


@OPENERS
def test_a_device_is_refused(tmp_path: Path, open_table: Callable[[Path], None]) -> None:
    path = tmp_path / "ckpt.index"
    path.symlink_to("/dev/zero")
    with pytest.raises(UnsupportedFormatError, match="not a regular file"):
        open_table(path)


@OPENERS
def test_a_folder_is_refused_as_one(tmp_path: Path, open_table: Callable[[Path], None]) -> None:
    path = tmp_path / "ckpt.index"
    path.mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        open_table(path)
    assert caught.value.filename == str(path)


def test_a_data_file_that_is_a_pipe_is_refused(prefix: Path) -> None:
    crafted.write_bundle(prefix, [(b"x", crafted.UINT8, (3,), b"abc")])
    data = Path(f"{prefix}.data-00000-of-00001")
    data.unlink()
    os.mkfifo(data)
    with pytest.raises(UnsupportedFormatError, match=re.escape(str(data))):
        crafted.open_reader(prefix).check([b"x"])


def test_a_symbolic_link_to_a_file_is_read(prefix: Path) -> None:
    crafted.write_bundle(prefix, [(b"x", crafted.UINT8, (3,), b"abc")])
    for suffix in (".index", ".data-00000-of-00001"):
        Path(f"{prefix}-link{suffix}").symlink_to(f"{prefix}{suffix}")
    assert crafted.read_bundle(Path(f"{prefix}-link")) == [(b"x", crafted.UINT8, (3,), b"abc")]


@OPENERS
@pytest.mark.parametrize("pointer", [LFS_POINTER, LFS_POINTER[:42]], ids=["whole", "cut"])
def test_a_git_lfs_pointer_is_named_with_the_remedy(
    tmp_path: Path, open_table: Callable[[Path], None], pointer: bytes
) -> None:
    path = tmp_path / "ckpt.index"
    path.write_bytes(pointer)
    with pytest.raises(DataLossError, match="sstable") as caught:
        open_table(path)
    assert str(path) in str(caught.value)
    assert "Git LFS pointer, not the data itself" in str(caught.value)
    assert "`git lfs pull`" in str(caught.value)


@OPENERS
@pytest.mark.parametrize(
    "content",
    [b"", b"version https://git-lfs", b" " + LFS_POINTER, b"version https://example.com/spec/v1" * 9, bytes(200)],
)
def test_other_files_are_not_taken_for_pointers(
    tmp_path: Path, open_table: Callable[[Path], None], content: bytes
) -> None:
    path = tmp_path / "ckpt.index"
    path.write_bytes(content)
    with pytest.raises(DataLossError, match="an sstable") as caught:
        open_table(path)
    assert "LFS" not in str(caught.value)
