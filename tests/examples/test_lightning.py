"""The example of a Lightning training that is killed and started again."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "lightning.py"
NEEDED = {"lightning": "lightning", "sklearn": "scikit-learn"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_a_training_that_was_killed_in_an_epoch_ends_bit_identical(tmp_path: Path) -> None:
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} is not installed")

    whole = run(f"--directory={tmp_path / 'whole'}")
    killed = run(f"--directory={tmp_path / 'broken'}", "--die-after-step=37")
    resumed = run(f"--directory={tmp_path / 'broken'}")

    assert whole.returncode == resumed.returncode == 0, whole.stderr + resumed.stderr
    assert killed.returncode == -signal.SIGKILL
    assert whole.stdout.splitlines()[-2:] == resumed.stdout.splitlines()[-2:]
    # Weights, optimizer, schedule, counters and random states, and the names of all of them.
    newest = [(tmp_path / name / "ckpt-96.data-00000-of-00001").read_bytes() for name in ("whole", "broken")]
    assert newest[0] == newest[1]
