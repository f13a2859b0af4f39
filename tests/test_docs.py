"""The programs in the documentation run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["containers", "data", "lightning", "manager", "reading", "restoring", "saving", "views"]

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run_as_one_program(page: str) -> None:
    """C200, C340, C345: from the root of the repository, as the paths in them say."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    blocks = _BLOCK.findall(text)
    assert len(blocks) == text.count("```python") > 0
    program = "\n".join(blocks)
    before = _files()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") >= program.count("print(")
    assert _files() == before


def _files() -> set[Path]:
    """What lies beside the checkpoints that the pages read."""
    return set((ROOT / "tests" / "corpus").rglob("*"))
