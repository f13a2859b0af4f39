"""How object paths and checkpoint keys are spelled.

    object path       local names from the root, each escaped, joined by "/"; "" for the root
    checkpoint key    <object path>/.ATTRIBUTES/<escaped attribute name>
    slot's path       <variable's path>/.OPTIMIZER_SLOT/<optimizer's path>/<escaped slot name>
    kept by rank      <checkpoint key>/.BY_RANK, where each process of a job has a value of its own: row number r, of as
                      many as there are processes, is that of rank r
    shapes by rank    <checkpoint key>/.BY_RANK/.SHAPES, where there are not such values of one shape for all, or one is
                      the empty string: JSON, a list that has for each rank the shape of its value, or null if it has
                      none. Strings are rows all the same, and of tensors the elements of all ranks follow each other
                      in one dimension

Escaping doubles "." and then writes "/" as ".S", so that no name can be taken for one of the reserved words.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "BY_RANK",
    "attribute_key",
    "by_rank_key",
    "by_rank_shapes_key",
    "escape",
    "is_by_rank",
    "object_path",
    "readable_path",
    "slot_path",
]

BY_RANK = "/.BY_RANK"
"""What the keys of values that are kept for each rank end in."""


def escape(name: str) -> str:
    """A local name as it stands in a path.

    Example:
        >>> escape("a.b/c")
        'a..b.Sc'
    """
    return name.replace(".", "..").replace("/", ".S")


def object_path(names: Iterable[str]) -> str:
    """The path that local names, from the root on, lead along.

    Example:
        >>> object_path(("model", "a.b"))
        'model/a..b'
    """
    return "/".join(map(escape, names))


def attribute_key(path: str, attribute: str) -> str:
    """The checkpoint key of an attribute of the object at ``path``."""
    return f"{path}/.ATTRIBUTES/{escape(attribute)}"


def by_rank_key(key: str) -> str:
    """The key of the values of all ranks, where they are not the same."""
    return key + BY_RANK


def by_rank_shapes_key(key: str) -> str:
    """The key of the shapes of these values, where they are not the same for all ranks."""
    return f"{by_rank_key(key)}/.SHAPES"


def is_by_rank(key: str) -> bool:
    """Whether the values of all ranks are stored under a key."""
    return key.endswith(BY_RANK)


def slot_path(variable: str, optimizer: str, slot_name: str) -> str:
    """The path of a slot variable, from the paths of its variable and its optimizer."""
    return f"{variable}/.OPTIMIZER_SLOT/{optimizer}/{escape(slot_name)}"


def readable_path(names: tuple[str, ...]) -> str:
    """Local names as messages show them.

    Example:
        >>> readable_path(("model", "fc"))
        '(root).model.fc'
    """
    return ".".join(("(root)", *names))
