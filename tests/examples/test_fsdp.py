"""The sharded example runs under torchrun, is killed, and goes on: with as many processes, with others, or alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from torch_trackckpt import load_checkpoint

SCRIPT = Path(__file__).parents[2] / "examples" / "fsdp.py"
PATIENCE_SECONDS = 150


def run(num_processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command = [sys.executable, *(launcher if num_processes else []), str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE_SECONDS)


def values(path: str) -> dict[str, list[float]]:
    stored = load_checkpoint(path)
    return {key: stored.get_tensor(key).tolist() for key in stored if key.startswith("model/")}


def test_a_killed_training_goes_on_as_if_nothing_had_happened_and_with_other_processes(tmp_path: Path) -> None:
    whole = run(2, "--directory", tmp_path / "whole", "--steps", 10)
    assert whole.returncode == 0, whole.stderr
    assert f"2 processes, 10 steps, saved as {tmp_path}/whole/ckpt-2" in whole.stdout

    killed = run(2, "--directory", tmp_path / "killed", "--steps", 10, "--die-after-step", 7)
    assert killed.returncode != 0
    resumed = run(2, "--directory", tmp_path / "killed", "--steps", 10)
    assert resumed.returncode == 0, resumed.stderr
    assert f"restored {tmp_path}/killed/ckpt-1, step 5" in resumed.stdout
    assert values(f"{tmp_path}/killed/ckpt-2") == values(f"{tmp_path}/whole/ckpt-2")

    # The same script, unchanged, in one process.
    alone = run(0, "--directory", tmp_path / "killed", "--steps", 15)
    assert alone.returncode == 0, alone.stderr
    assert re.search(r"restored .*/ckpt-2, step 10", alone.stdout)
    assert f"1 processes, 15 steps, saved as {tmp_path}/killed/ckpt-3" in alone.stdout
