"""The smaller examples: killed in mid-run and started again, each ends like the one that ran through, bit for bit."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torch_trackckpt import CheckpointReader, latest_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(example: str, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{example}.py"), f"--directory={directory}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def values(directory: Path) -> dict[str, object]:
    path = latest_checkpoint(directory)
    assert path is not None
    reader = CheckpointReader(path)
    return {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}


def is_same(left: object, right: object) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.dtype == right.dtype and left.numpy().tobytes() == right.numpy().tobytes()
    return bool(np.array_equal(np.asarray(left), np.asarray(right)))


@pytest.mark.parametrize(
    ("example", "steps", "die_after", "restored"),
    [("plain_loop", 40, 27, 20), ("amp_ema", 40, 27, 20), ("hugging_face", 24, 21, 16)],
    ids=["plain loop", "mixed precision and an average", "Hugging Face"],
)
def test_a_killed_and_resumed_example_ends_bit_identical_to_an_uninterrupted_one(
    example: str, steps: int, die_after: int, restored: int, tmp_path: Path
) -> None:
    if example == "hugging_face" and importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    whole = run(example, tmp_path / "whole", f"--steps={steps}")
    killed = run(example, tmp_path / "broken", f"--steps={steps}", f"--die-after-step={die_after}")
    resumed = run(example, tmp_path / "broken", f"--steps={steps}")

    assert (whole.returncode, killed.returncode, resumed.returncode) == (0, -9, 0), whole.stderr + resumed.stderr
    assert f"step {restored}" in resumed.stdout
    assert resumed.stdout.splitlines()[-1].split(", saved")[0] == whole.stdout.splitlines()[-1].split(", saved")[0]
    expected, found = values(tmp_path / "whole"), values(tmp_path / "broken")
    assert [key for key in expected if not is_same(expected[key], found.get(key))] == []
