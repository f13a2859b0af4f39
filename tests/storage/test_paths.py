"""Paths of this machine and URLs."""

import os
from pathlib import Path

import pytest

from torch_trackckpt.storage import paths
from torch_trackckpt.storage.choice import storage_for
from torch_trackckpt.storage.local import LocalStorage


@pytest.mark.parametrize(
    ("path", "is_url"),
    [
        ("s3://bucket/run/ckpt", True),
        ("memory://ckpt", True),
        ("file:///tmp/ckpt", True),
        ("simplecache::s3://bucket/ckpt", True),
        ("/s3://bucket", False),
        ("run/ckpt", False),
        ("C:\\runs\\ckpt", False),
        ("", False),
        ("://", False),
    ],
)
def test_a_url_begins_with_a_scheme(path: str, is_url: bool) -> None:
    assert paths.is_url(path) == paths.is_absolute(path) == is_url or os.path.isabs(path)


@pytest.mark.parametrize(
    ("path", "directory"),
    [
        ("s3://bucket/run/ckpt", "s3://bucket/run"),
        ("s3://bucket/ckpt", "s3://bucket"),
        ("memory://ckpt", "memory://"),
        ("file:///tmp/ckpt", "file:///tmp"),
        ("run/ckpt", "run"),
        ("ckpt", ""),
        ("/ckpt", "/"),
    ],
)
def test_the_directory_of_a_url_keeps_its_scheme(path: str, directory: str) -> None:
    assert paths.directory(path) == directory


@pytest.mark.parametrize(
    ("path", "directory", "relative"),
    [
        ("s3://bucket/run/ckpt-1", "s3://bucket/run", "ckpt-1"),
        ("s3://bucket/run/ckpt-1", "s3://bucket/run/", "ckpt-1"),
        ("s3://bucket/run/ckpt-1", "s3://bucket", "run/ckpt-1"),
        ("s3://bucket/run/ckpt-1", "s3://bucket/ru", "s3://bucket/run/ckpt-1"),
        ("s3://bucket/run/ckpt-1", "s3://other", "s3://bucket/run/ckpt-1"),
        ("s3://bucket/run/ckpt-1", "/local", "s3://bucket/run/ckpt-1"),
        ("memory://ckpt-1", "memory://", "ckpt-1"),
        ("/local/ckpt-1", "s3://bucket", "/local/ckpt-1"),
        ("/a/b/ckpt-1", "/a/c", "../b/ckpt-1"),
    ],
)
def test_a_path_and_its_directory_give_each_other(path: str, directory: str, relative: str) -> None:
    assert paths.relative(path, directory) == relative
    assert os.path.normpath(paths.joined(directory, relative)) == os.path.normpath(path)


def test_only_local_paths_depend_on_where_the_program_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert paths.anchored("ckpt") == paths.absolute("ckpt") == str(tmp_path / "ckpt")
    assert paths.anchored("s3://b/../ckpt") == paths.absolute("s3://b/../ckpt") == "s3://b/../ckpt"
    assert paths.same("ckpt", str(tmp_path / "ckpt"))
    assert not paths.same("s3://b/ckpt", "s3://b//ckpt")


def test_a_url_that_was_taken_for_a_local_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a directory called 's3:' would come into being, and hold what was to be safe."""
    with pytest.raises(ValueError, match=r"'s3:/bucket/ckpt' looks like a URL that has lost a slash.*pathlib"):
        storage_for(os.fspath(Path("s3://bucket/ckpt")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    assert isinstance(storage_for("s3:/bucket/ckpt"), LocalStorage)
