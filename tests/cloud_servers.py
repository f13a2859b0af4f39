"""Servers of Google's and of Azure's object storage, each in a process of its own on this machine."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator

# Ends when its standard input does, and that is when the tests end, in whatever way. It closes each connection when it
# has answered, and complains of clients that do so before.
_GCS_SERVER = """
import functools, http.server, sys, threading
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage
handler = functools.partial(RequestHandler, Storage(use_memory_fs=True))
server = http.server.HTTPServer(("127.0.0.1", 0), handler)
server.handle_error = lambda *arguments: None
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
sys.stdin.read()
"""

AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of the account that every Azurite has."""


@contextlib.contextmanager
def gcs_server() -> Iterator[int]:
    """The port of a server of Google's storage: the package gcp-storage-emulator."""
    with _running([sys.executable, "-W", "ignore", "-c", _GCS_SERVER]) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


@contextlib.contextmanager
def azurite(program: str) -> Iterator[int]:
    """The port of a server of Azure's blobs: Azurite, which is a program of node.

    Args:
        program: ``azurite-blob``, or where it is.
    """
    options = ["--blobHost=127.0.0.1", "--blobPort=0", "--inMemoryPersistence", "--disableTelemetry"]
    with _running([program, *options, "--skipApiVersionCheck"]) as process:
        assert process.stdout is not None
        ports = (re.search(r"successfully listens on http://127\.0\.0\.1:(\d+)", line) for line in process.stdout)
        yield next(int(found[1]) for found in ports if found)


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
