"""The checkpoints of other people in tests/corpus, and what TensorFlow read of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
MANIFEST = json.loads((CORPUS / "manifest.json").read_text())


@dataclasses.dataclass(frozen=True)
class Content:
    """One checkpoint, SavedModel or state file of an item."""

    item: str
    facts: dict[str, Any]

    @property
    def path(self) -> str:
        """Where it is: a prefix, a directory, or a file."""
        return str(CORPUS / self.item / self.facts["prefix"])

    def __str__(self) -> str:
        return f"{self.item}/{self.facts['prefix']}"


def contents(*kinds: str) -> list[Content]:
    """Everything of these kinds."""
    return [
        Content(item, facts)
        for item, description in MANIFEST["items"].items()
        for facts in description["contents"]
        if facts["kind"] in kinds
    ]


CHECKPOINTS = [content for content in contents("v1", "v2") if "error" not in content.facts]
