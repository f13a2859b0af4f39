"""Every behaviour of the conformance list is shown by a test that names it, or set aside with a reason."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
SET_ASIDE = TESTS.parent / "docs" / "conformance.md"
ITEMS = {f"C{number:03}" for number in range(1, 405)}


def named_in_tests() -> set[str]:
    """The items in docstrings of tests; a helper or a comment does not count."""
    named: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                named |= set(re.findall(r"\bC\d{3}\b", ast.get_docstring(node) or ""))
    return named


def set_aside() -> set[str]:
    (section,) = re.findall(r"^## Set aside$(.*?)^## ", SET_ASIDE.read_text(), re.MULTILINE | re.DOTALL)
    return set(re.findall(r"^\| (C\d{3}) \| \S", section, re.MULTILINE))


def test_every_item_is_shown_by_a_test_or_set_aside_with_a_reason() -> None:
    assert sorted(ITEMS - named_in_tests() - set_aside()) == []


def test_no_item_is_set_aside_that_a_test_shows() -> None:
    assert sorted(set_aside() & named_in_tests()) == []


def test_no_test_names_an_item_that_does_not_exist() -> None:
    assert sorted(named_in_tests() - ITEMS) == []
