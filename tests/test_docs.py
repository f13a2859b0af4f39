"""The programs in the documentation run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    "containers",
    "data",
    "from-keras",
    "from-name-based",
    "lightning",
    "manager",
    "own-objects",
    "reading",
    "remote",
    "restoring",
    "saving",
    "views",
    "what-is-saved",
]

VERBATIM = {"from-keras"}
"""Pages whose blocks of plain text are what their programs print."""

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run_as_one_program(page: str) -> None:
    """C200, C340, C345: from the root of the repository, as the paths in them say."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    blocks = _BLOCK.findall(text)
    assert len(blocks) == text.count("```python") > 0
    program = "\n".join(blocks)
    before = _files()
    output = _run("-W", "error", "-c", program)
    assert output.count("\n") >= program.count("print(")
    assert _files() == before
    if page in VERBATIM:
        shown = [text for language, text in _FENCED.findall(text) if not language]
        assert shown
        assert all(block.strip() in output for block in shown)


def _run(*arguments: str) -> str:
    """What Python prints from the root of the repository."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _files() -> set[Path]:
    """What lies beside the checkpoints that the pages read."""
    return set((ROOT / "tests" / "corpus").rglob("*"))


def _lines_of_what_is_saved() -> list[str]:
    """The second column of the tables."""
    text = (ROOT / "docs" / "what-is-saved.md").read_text()
    return re.findall(r"^\| [^|]+ \| `(Checkpoint\(.*\))` \| [^|]+ \|$", text, re.MULTILINE)


def test_every_line_of_the_tables_of_what_is_saved_saves_and_restores(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "what-is-saved.md").read_text()
    lines = _lines_of_what_is_saved()
    assert len(lines) == len(re.findall(r"^\| ", text, re.MULTILINE)) - 2 * text.count("\n| ---") > 30
    program = "\n".join(_BLOCK.findall(text)) + _SAVE_AND_RESTORE
    # The packages that it uses warn of this and that.
    output = _run("-c", program, str(tmp_path), *lines)
    assert output.splitlines()[-len(lines) :] == [f"restored {line}" for line in lines]


_SAVE_AND_RESTORE = """
import sys
for index, line in enumerate(sys.argv[2:]):
    checkpoint = eval(line)
    if "Lazy" in line:
        checkpoint.layer(torch.ones(1, 4))
    path = checkpoint.save(f"{sys.argv[1]}/{index}")
    eval(line).restore(path).assert_consumed()
    print("restored", line)
"""
