"""A server of S3 in a process of its own on this machine, for measurements and tests."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

# Ends when its standard input does, and that is when whoever started it ends, in whatever way.
_SERVER = """
import logging, sys
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """Its port. Any key and any secret are taken."""
    command = [sys.executable, "-W", "ignore", "-c", _SERVER]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()
