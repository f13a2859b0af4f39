"""Jobs of several processes: each runs one function of a test module, as torchrun would start it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE_SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one rank."""

    status: int
    """That of the process; negative where a signal ended it."""
    result: Any
    """What the function has returned."""
    error: str
    """The last line of what it has raised."""
    output: str
    seconds: float


def run_ranks(
    size: int,
    function: str,
    *arguments: Any,
    keeps_store: bool = True,
    exits: bool = False,
    timeout: float = PATIENCE_SECONDS,
) -> list[Outcome]:
    """Runs ``module:function(rank, size, *arguments)`` in processes that have a process group of gloo.

    Args:
        size: how many.
        function: where the function is; the module is one of the folder of tests.
        arguments: what can be JSON.
        keeps_store: whether this process keeps the store of the group, as torchrun does; else rank 0 does.
        exits: whether the interpreter is to exit in the usual way.
        timeout: how long all of it may take.
    """
    store = dist.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False) if keeps_store else None
    port = store.port if store is not None else _free_port()
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        processes = []
        for rank in range(size):
            environment = {
                **os.environ,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "OMP_NUM_THREADS": "1",
                "TORCHELASTIC_USE_AGENT_STORE": str(keeps_store),
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
            }
            result = Path(place, str(rank))
            command = [sys.executable, __file__, function, json.dumps(arguments), str(result), str(exits)]
            with result.with_suffix(".out").open("w") as output:
                processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
        ends: list[float] = []
        try:
            for process in processes:
                process.wait(max(0.1, timeout - (time.monotonic() - began)))
                ends.append(time.monotonic() - began)
        except subprocess.TimeoutExpired:
            shown = "\n".join(Path(place, f"{rank}.out").read_text() for rank in range(size))
            raise AssertionError(f"A rank did not end within {timeout} seconds:\n{shown}") from None
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [_outcome(Path(place, str(rank)), process, ends[rank]) for rank, process in enumerate(processes)]


def results_of(outcomes: Sequence[Outcome]) -> list[Any]:
    """What the ranks have returned, if all of them did well."""
    for rank, outcome in enumerate(outcomes):
        assert outcome.status == 0, f"rank {rank}: {outcome.output}"
    return [outcome.result for outcome in outcomes]


def _outcome(result: Path, process: subprocess.Popen[bytes], seconds: float) -> Outcome:
    said = json.loads(result.read_text()) if result.exists() else {}
    output = result.with_suffix(".out").read_text()
    return Outcome(process.returncode, said.get("result"), said.get("error", ""), output, seconds)


def _free_port() -> int:
    import socket

    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def main() -> None:
    function, arguments, result, exits = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    module, name = function.split(":")
    said: dict[str, Any] = {}
    status = 0
    try:
        run = getattr(importlib.import_module(module), name)
        said["result"] = run(dist.get_rank(), dist.get_world_size(), *json.loads(arguments))
    except BaseException as error:
        traceback.print_exc()
        said["error"] = f"{type(error).__name__}: {error}"
        status = 1
    Path(result).write_text(json.dumps(said))
    if exits == "True":
        return
    if status == 0:
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of torch's that are still there at the exit of the interpreter abort it now and then.
    os._exit(status)


if __name__ == "__main__":
    main()
