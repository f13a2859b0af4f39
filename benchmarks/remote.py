"""Saves to remote storage and restores from it, beside torch.distributed.checkpoint's writer and reader for fsspec.

    python -m benchmarks.remote [--url s3://bucket/folder] [--mib 256] [--rounds 3]

Without a URL, a server of S3 on this machine (moto) stands in, which takes as long for a byte as its Python code does:
what that shows is the number of requests and what is waited for, not a network. Contenders take turns in one process;
printed are medians.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import torch
from torch import nn

from benchmarks.stand_in import s3_server
from torch_trackckpt import Checkpoint


@contextlib.contextmanager
def bucket() -> Iterator[str]:
    """The URL of a bucket on this machine."""
    with s3_server() as port:
        fsspec.config.conf["s3"] = {
            "endpoint_url": f"http://127.0.0.1:{port}",
            "key": "somebody",
            "secret": "nothing",
            "client_kwargs": {"region_name": "eu-west-1"},
        }
        fsspec.filesystem("s3").mkdir("bench")
        yield "s3://bench/run"


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def measure(url: str, mib: int, rounds: int) -> None:
    dcp: Any = importlib.import_module("torch.distributed.checkpoint")
    files: Any = importlib.import_module("torch.distributed.checkpoint._fsspec_filesystem")
    side = 1024
    model = nn.Sequential(*(nn.Linear(side, side) for _ in range(max(1, mib // 4))))
    checkpoint = Checkpoint(model=model)
    number = 0

    def save_theirs() -> None:
        dcp.save(model.state_dict(), storage_writer=files.FsspecWriter(f"{url}/dcp-{number}"), no_dist=True)

    def restore_theirs() -> None:
        state = model.state_dict()
        dcp.load(state, storage_reader=files.FsspecReader(f"{url}/dcp-{number}"), no_dist=True)
        model.load_state_dict(state)

    ways: dict[str, Callable[[], object]] = {
        "save, ours": lambda: checkpoint.write(f"{url}/ckpt-{number}"),
        "save, DCP": save_theirs,
        "restore, ours": lambda: checkpoint.read(f"{url}/ckpt-{number}").assert_consumed(),
        "restore, DCP": restore_theirs,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, act in ways.items():
            taken = seconds(act)
            if number:
                times[name].append(taken)
        fsspec.filesystem(url.partition("://")[0]).rm(url, recursive=True)
    median = {name: statistics.median(taken) for name, taken in times.items()}
    for way in ("save", "restore"):
        ours, theirs = median[f"{way}, ours"], median[f"{way}, DCP"]
        print(f"{way:10} ours {ours:6.2f} s   DCP {theirs:6.2f} s   ours / DCP {ours / theirs:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remote")
    parser.add_argument("--url", help="a place that may be emptied")
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    with bucket() if chosen.url is None else contextlib.nullcontext(chosen.url) as url:
        measure(url, chosen.mib, chosen.rounds)


if __name__ == "__main__":
    main()
