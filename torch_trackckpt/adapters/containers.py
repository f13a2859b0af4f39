"""Lists, tuples and dicts as nodes: children by index or by key."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch_trackckpt.adapters.registry import Adapter, is_trackable, register_adapter
from torch_trackckpt.errors import UnsupportedValueError

__all__ = ["DictAdapter", "SequenceAdapter"]


class SequenceAdapter(Adapter):
    """Children ``"0"``, ``"1"``, ...; an element that is not trackable keeps its number but has no node."""

    def _trackable_children(self) -> Mapping[str, object]:
        return {str(index): element for index, element in enumerate(self.adapted)}

    def _lookup_dependency(self, name: str) -> object | None:
        # The spelling is checked first: a name from a file may be a number of a million digits.
        if len(name) > 19 or not re.fullmatch("0|[1-9][0-9]*", name) or int(name) >= len(self.adapted):
            return None
        child: object = self.adapted[int(name)]
        return child


class DictAdapter(Adapter):
    """Children by key."""

    def _trackable_children(self) -> Mapping[str, object]:
        for key, value in self.adapted.items():
            if not isinstance(key, str) and is_trackable(value):
                raise UnsupportedValueError(
                    f"A dict has the non-string key {key!r} for a trackable {type(value).__name__}: "
                    "local names are text, use a string key."
                )
        return {key: value for key, value in self.adapted.items() if isinstance(key, str)}

    def _lookup_dependency(self, name: str) -> object | None:
        # Not by indexing: a defaultdict would make an entry.
        child: object | None = self.adapted.get(name)
        return child


register_adapter(list, SequenceAdapter)
register_adapter(tuple, SequenceAdapter)
register_adapter(dict, DictAdapter)
