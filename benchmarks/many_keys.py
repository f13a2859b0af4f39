"""Looking into a checkpoint of very many tensors, beside TensorFlow.

    python benchmarks/many_keys.py [--directory DIR] [--keys 100000] [--rounds 5]

Opening, listing every name with its shape, and reading one tensor; also the bytes that were read from files. Each
measurement is a process of its own, so that its peak memory is its own; what the process has used before opening
(the interpreter and the imported library) is taken off. The ways take turns; medians are shown, and beside each the
median of its ratio to TensorFlow in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from torch_trackckpt.bundle.writer import BundleWriter

NUM_ELEMENTS = 64

WAYS = {
    "tf.train.load_checkpoint": """
        import os
        os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
        import tensorflow as tf
        load = tf.train.load_checkpoint
    """,
    "torch_trackckpt": """
        import torch_trackckpt
        load = torch_trackckpt.load_checkpoint
    """,
}

MEASURE = """
import json, re, sys, time

def proc(path, field):
    with open(path) as file:
        return int(re.search(rf"^{field}:\\s*(\\d+)", file.read(), re.MULTILINE)[1])

prefix, name, num_keys = sys.argv[1], sys.argv[2], int(sys.argv[3])
peak, read = proc("/proc/self/status", "VmHWM"), proc("/proc/self/io", "rchar")
start = time.perf_counter()
reader = load(prefix)
opened = time.perf_counter()
shapes = reader.get_variable_to_shape_map()
listed = time.perf_counter()
value = reader.get_tensor(name)
done = time.perf_counter()
assert len(shapes) == num_keys and float(value.sum()) > 0
print(json.dumps({
    "open": opened - start, "list": listed - opened, "one": done - listed, "all": done - start,
    "MiB": (proc("/proc/self/status", "VmHWM") - peak) / 1024,
    "read": (proc("/proc/self/io", "rchar") - read) / 2**20,
}))
"""

COLUMNS = {
    "open": "open, ms",
    "list": "list, ms",
    "one": "one tensor, ms",
    "all": "all, ms",
    "MiB": "memory, MiB",
    "read": "read, MiB",
}


def key(number: int) -> str:
    """A name of usual length."""
    return f"model/layers/{number // 8}/block/{number % 8}/kernel/.ATTRIBUTES/VARIABLE_VALUE"


def write(prefix: Path, num_keys: int) -> None:
    values = torch.rand(num_keys, NUM_ELEMENTS)
    with BundleWriter(f"{prefix}.data-00000-of-00001", f"{prefix}.index", durable=False) as writer:
        for number in range(num_keys):
            writer.add(key(number), values[number])


def measure(way: str, prefix: Path, num_keys: int) -> dict[str, float]:
    setup = "\n".join(line.strip() for line in WAYS[way].splitlines())
    command = [sys.executable, "-c", setup + MEASURE, str(prefix), key(num_keys // 2), str(num_keys)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return {name: value * (1000 if COLUMNS[name].endswith("ms") else 1) for name, value in measured.items()}


def report(times: dict[str, list[dict[str, float]]]) -> None:
    reference = times[next(iter(WAYS))]
    print(f"{'':26}" + "".join(f"{title:>22}" for title in COLUMNS.values()))
    for way, rounds in times.items():
        cells = ""
        for name in COLUMNS:
            median = statistics.median(row[name] for row in rounds)
            ratios = [row[name] / base[name] for base, row in zip(reference, rounds, strict=True) if base[name]]
            cells += f"{median:14.2f}" + (f" ({statistics.median(ratios):5.2f})" if ratios else " " * 8)
        print(f"{way:26}{cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="where to write; a temporary directory by default")
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        prefix = Path(directory) / "ckpt"
        write(prefix, arguments.keys)
        sizes = [os.path.getsize(f"{prefix}{suffix}") / 2**20 for suffix in (".index", ".data-00000-of-00001")]
        print(
            f"{arguments.keys} tensors, index {sizes[0]:.1f} MiB, data {sizes[1]:.1f} MiB, {arguments.rounds} rounds, "
            f"{os.cpu_count()} cores, {platform.machine()}; in brackets the ratio to TensorFlow"
        )
        times: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for round_index in range(arguments.rounds + 1):
            for way in WAYS:
                measured = measure(way, prefix, arguments.keys)
                if round_index:  # the first warms the page cache up
                    times[way].append(measured)
    report(times)


if __name__ == "__main__":
    main()
