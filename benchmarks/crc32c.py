"""CRC-32C: the speed of each kernel of this processor, by the length of the data.

    python benchmarks/crc32c.py [--rounds 15]

Lengths up to 512 KiB are read again and again and lie in a cache; pieces of 64 MiB are taken in turn from 512 MiB, more
than caches hold, and come from memory. The kernels take turns, each in every round; medians are shown. Every length is
one call from Python, whose own cost is in the figures; it is shown as well, and is most of the time below some 4 KiB.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from itertools import cycle, islice

import numpy as np

from torch_trackckpt import _native

IN_CACHE = {"32": 32, "100": 100, "1 KiB": 1024, "2.5 KiB": 2560, "4 KiB": 4096, "64 KiB": 1 << 16, "512 KiB": 1 << 19}
IN_MEMORY = {"64 MiB": 1 << 26}
MEMORY = 1 << 29
BYTES_PER_MEASUREMENT = 1 << 22
MOST_CALLS = 2000


def seconds_per_call(kernel: str, pieces: list[memoryview]) -> float:
    start = time.perf_counter()
    for piece in pieces:
        _native.crc32c(piece, 0, kernel)
    return (time.perf_counter() - start) / len(pieces)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    kernels = _native.crc32c_implementations()
    memory = memoryview(np.random.default_rng(0).bytes(MEMORY))
    times: dict[tuple[str, str], list[float]] = {}
    for title, size in {"a call": 0, **IN_CACHE, **IN_MEMORY}.items():
        calls = min(MOST_CALLS, max(1, BYTES_PER_MEASUREMENT // max(size, 1)))
        step = size if title in IN_MEMORY else 0
        offsets = cycle(range(0, MEMORY - size + 1, step) if step else [0])
        for number in range(arguments.rounds + 1):
            for kernel in kernels:
                pieces = [memory[offset : offset + size] for offset in islice(offsets, calls)]
                measured = seconds_per_call(kernel, pieces)
                if number:  # the first warms up
                    times.setdefault((kernel, title), []).append(measured)
    print(f"{os.cpu_count()} cores, {platform.machine()}, {arguments.rounds} rounds; GB/s, and of an empty call ns")
    titles = ["a call", *IN_CACHE, *IN_MEMORY]
    print(f"{'':18}" + "".join(f"{title:>10}" for title in titles))
    for kernel in kernels:
        medians = {title: statistics.median(times[kernel, title]) for title in titles}
        cells = f"{medians['a call'] * 1e9:10.0f}"
        for title, size in {**IN_CACHE, **IN_MEMORY}.items():
            cells += f"{size / medians[title] / 1e9:10.2f}"
        print(f"{kernel:18}{cells}")


if __name__ == "__main__":
    main()
