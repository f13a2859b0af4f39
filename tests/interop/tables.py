"""Puts the tables of the rule sets into the documentation: ``python tests/interop/tables.py``."""

from __future__ import annotations

import re
from pathlib import Path

from torch_trackckpt import interop
from torch_trackckpt.interop import RuleSet

PAGE = Path(__file__).parents[2] / "docs" / "from-name-based.md"


def with_tables(text: str) -> str:
    """The page with the tables as they are now: each under a heading that is the name of its set."""
    begin, heading, rest = text.partition("## The rules that are there\n")
    parts = re.split(r"^### (\w+)\n", rest, flags=re.MULTILINE)
    return begin + heading + parts[0] + "\n".join(_section(name) for name in parts[1::2])


def _section(name: str) -> str:
    rules = getattr(interop, name)
    assert isinstance(rules, RuleSet)
    told = [f"- {note}" for note in rules.notes]
    if rules.epsilon is not None:
        told.append(f"- The normalisation layers have eps={rules.epsilon:g}.")
    told += [f"- `{pattern}` is {number:g} where nothing is stored for it." for pattern, number in rules.constants]
    notes = "\n".join(told) + "\n\n" if told else ""
    return f"### {name}\n\n{notes}{rules.markdown()}\n"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
