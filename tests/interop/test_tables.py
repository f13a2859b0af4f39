"""The documentation shows the rules that there are."""

from __future__ import annotations

import re

from torch_trackckpt import interop
from torch_trackckpt.interop import RuleSet

from .tables import PAGE, with_tables


def test_the_tables_of_the_documentation_are_those_of_the_rules() -> None:
    text = PAGE.read_text()
    assert text == with_tables(text), "run: python tests/interop/tables.py"


def test_every_set_of_rules_is_in_the_documentation() -> None:
    sets = {name for name in interop.__all__ if isinstance(getattr(interop, name), RuleSet)}
    assert sets == set(
        re.findall(r"[A-Z][A-Z_0-9]+_(?:V\d|MODEL|TRAINING|CLASSIFICATION|ANSWERING)\b", PAGE.read_text())
    )
