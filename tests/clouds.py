"""A bucket of Google's object storage or a container of Azure's, on a server that a proxy makes fail."""

from __future__ import annotations

import re
from typing import Any

import fsspec
import pytest
from cloud_servers import AZURITE_KEY
from faulty_proxy import FaultyProxy, Request, give_up_upload


class Cloud:
    """A new and empty place.

    Args:
        scheme: ``gs`` or ``az``.
        port: of the server.
        name: what the bucket's name is made of.
        monkeypatch: configures fsspec.
    """

    def __init__(self, scheme: str, port: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scheme = scheme
        self.proxy = FaultyProxy(port)
        self.settings = _settings(scheme, self.proxy.url)
        monkeypatch.setitem(fsspec.config.conf, scheme, self.settings)
        if scheme == "az":
            # It waits for fifteen seconds, otherwise.
            monkeypatch.setattr("azure.storage.blob.aio.ExponentialRetry.get_backoff_time", lambda *_: 0.0)
        self._bucket = re.sub(r"[^a-z0-9]+", "-", name.lower())[-50:].strip("-") + "-b"
        self.files = fsspec.filesystem(scheme)
        """The file system that a path of the bucket leads to."""
        self.files.mkdir(self._bucket)
        self.url = f"{scheme}://{self._bucket}"
        self.calm()

    def calm(self) -> None:
        """Nothing fails any more."""
        self.proxy.clear()
        if self.scheme == "gs":
            # The server knows no such request.
            self.proxy.fail("DELETE .*upload_id=", give_up_upload, times=1000)

    def asked(self, pattern: str) -> list[Request]:
        """The requests whose ``METHOD path`` the pattern finds."""
        return [request for request in self.proxy.requests if re.search(pattern, f"{request.method} {request.path}")]

    def parts(self) -> list[int]:
        """How many bytes had each part that was sent."""
        kind = {"gs": "POST .*upload_id=", "az": "PUT .*comp=block&"}[self.scheme]
        return [request.num_bytes for request in self.asked(kind)]

    def objects(self) -> dict[str, int]:
        """What is there, with sizes."""
        self.files.invalidate_cache()
        found = self.files.find(self._bucket, detail=True)
        return {path.partition("/")[2]: info["size"] for path, info in found.items()}

    def content(self, name: str) -> bytes:
        found: bytes = self.files.cat_file(f"{self._bucket}/{name}")
        return found

    def change(self, name: str, content: bytes) -> None:
        self.files.pipe_file(f"{self._bucket}/{name}", content)

    def elsewhere(self) -> Any:
        """The file system as another process has it, which knows nothing of what this one remembers."""
        return type(self.files)(**self.settings, skip_instance_cache=True)

    def close(self) -> None:
        self.proxy.close()


def _settings(scheme: str, url: str) -> dict[str, Any]:
    if scheme == "gs":
        return {"endpoint_url": url, "token": "anon", "project": "project"}
    account = "devstoreaccount1"
    connection = f"AccountName={account};AccountKey={AZURITE_KEY};BlobEndpoint={url}/{account};"
    return {"connection_string": f"DefaultEndpointsProtocol=http;{connection}"}
