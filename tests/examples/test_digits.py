"""The demonstration runs and finds that its interrupted training lost nothing."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from torch_trackckpt import Checkpoint

SCRIPT = Path(__file__).parents[2] / "examples" / "digits.py"
NEEDED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONUTF8": "1", "COLUMNS": "100"}
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, env=environment)


@pytest.fixture
def digits() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("digits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def needed() -> None:
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} is not installed")


@pytest.mark.usefixtures("needed")
def test_a_killed_and_resumed_training_ends_bit_identical_to_an_uninterrupted_one(tmp_path: Path) -> None:
    result = run(f"--directory={tmp_path}", "--steps=16", "--no-tensorflow")

    assert result.returncode == 0, result.stdout + result.stderr
    assert "Bit-identical: 42 values and the object graph of the two last checkpoints are equal." in result.stdout
    assert "SIGKILL came after step 9, the latest checkpoint after step 8: 1 lost." in result.stdout
    assert "│  │  │  ├─ exp_avg (optimizer)     float32 [32, 1, 3, 3]" in result.stdout
    assert "DIFFERENT" not in result.stdout
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    data = [(tmp_path / run / "ckpt-8.data-00000-of-00001").read_bytes() for run in ("uninterrupted", "interrupted")]
    assert data[0] == data[1]


def test_too_few_steps_are_refused_with_the_fewest_that_do(tmp_path: Path) -> None:
    result = run(f"--directory={tmp_path}", "--steps=15")

    assert result.returncode == 2
    assert "--steps 15 is too few; take 16 or more" in result.stderr


@pytest.mark.usefixtures("needed")
def test_one_differing_bit_is_noticed_and_named(
    digits: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Checkpoint(step=torch.tensor(1), losses=torch.tensor([0.0])).write(tmp_path / "one")
    other = Checkpoint(step=torch.tensor(1), losses=torch.tensor([-0.0])).write(tmp_path / "other")

    assert digits.compare(one, one)
    assert not digits.compare(one, other)

    assert (
        "NOT bit-identical: 1 of 3 values differ, the first is losses/.ATTRIBUTES/VARIABLE_VALUE."
        in capsys.readouterr().out
    )


def test_a_missing_package_is_a_sentence_with_the_line_that_installs_it(digits: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"also needs no-such-package: pip install no-such-package$"):
        digits.require({"no_such_module": "no-such-package", "torch": "torch"})
