"""Fixtures of remote storage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What is behind ``counted://``."""
    pytest.importorskip("fsspec", reason="fsspec is not installed (pip install 'torch_trackckpt[test]')")
    from remote_memory import counted_place

    yield from counted_place(monkeypatch)


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """A server of S3, for all tests; each has a bucket of its own."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (pip install 'torch_trackckpt[test]')")
    pytest.importorskip("moto", reason="moto is not installed (pip install 'torch_trackckpt[test]')")
    from benchmarks.stand_in import s3_server

    with s3_server() as port:
        yield port


@pytest.fixture
def s3(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A proxy before the server. fsspec goes through it, and does not try again for long."""
    import fsspec
    import s3fs
    from faulty_proxy import FaultyProxy

    proxy = FaultyProxy(s3_port)
    settings = {
        "endpoint_url": proxy.url,
        "key": "somebody",
        "secret": "a secret that no log has",
        "client_kwargs": {"region_name": "eu-west-1"},
        "config_kwargs": {"retries": {"max_attempts": 0}, "read_timeout": 30},
    }
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 3)
    yield proxy
    proxy.close()


@pytest.fixture
def bucket(s3: Any, request: pytest.FixtureRequest) -> str:
    """The URL of a new bucket."""
    import re

    import fsspec

    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[-50:].strip("-") + "-b"
    fsspec.filesystem("s3").mkdir(name)
    s3.clear()
    return f"s3://{name}"


@pytest.fixture(scope="session")
def gcs_port() -> Iterator[int]:
    """A server of Google's storage, for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        # What gcsfs asks by another protocol, which the server does not know, is looked at when it is imported.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        pytest.importorskip("gcsfs", reason="gcsfs is not installed (pip install 'torch_trackckpt[test]')")
    pytest.importorskip(
        "gcp_storage_emulator", reason="gcp-storage-emulator is not installed (pip install 'torch_trackckpt[test]')"
    )
    from cloud_servers import gcs_server

    with gcs_server() as port:
        yield port


@pytest.fixture(scope="session")
def azure_port() -> Iterator[int]:
    """A server of Azure's blobs, for all tests."""
    import shutil

    pytest.importorskip("adlfs", reason="adlfs is not installed (pip install 'torch_trackckpt[test]')")
    if (program := shutil.which("azurite-blob")) is None:
        pytest.skip("azurite is not installed (npm install --global azurite)")
    from cloud_servers import azurite

    with azurite(program) as port:
        yield port


@pytest.fixture(params=["gs", "az"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A new bucket of Google's storage, and one of Azure's, with a proxy before each."""
    port = request.getfixturevalue({"gs": "gcs_port", "az": "azure_port"}[request.param])
    from clouds import Cloud

    cloud = Cloud(request.param, port, request.node.name, monkeypatch)
    yield cloud
    cloud.close()
