"""Where the code of a class assigns the attributes of its objects: read from the bytecode, nothing is run."""

from __future__ import annotations

import dataclasses
import dis
import inspect
import types
from collections.abc import Iterable, Iterator

__all__ = ["Assignments", "assignments_of", "code_of"]


@dataclasses.dataclass
class Assignments:
    """Where one attribute is assigned."""

    is_changed: bool = False
    """By code that runs later than ``__init__`` and the methods that it calls."""
    is_counted: bool = False
    """By such code from what it was, as in ``+=``."""
    is_computed: bool = False
    """By other code, and not as a literal."""
    literals: list[object] = dataclasses.field(default_factory=list)
    """What is assigned as a literal."""


def assignments_of(kinds: Iterable[type]) -> dict[str, Assignments]:
    """By name, the attributes that methods of classes assign.

    Example:
        >>> from torch_trackckpt.graph.assignments import assignments_of
        >>> class Counter:
        ...     def __init__(self, start):
        ...         self.step, self.start = 0, start
        ...         self.kind = 3
        ...     def count(self):
        ...         self.step += 1
        >>> found = assignments_of([Counter])
        >>> found["step"].is_changed, found["start"].literals, found["kind"].literals
        (True, [], [3])
    """
    methods = [method for kind in kinds for method in _codes_of(kind)]
    made_by = {"__init__"}.union(*(code.co_names for method, code in methods if method == "__init__"))
    found: dict[str, Assignments] = {}
    for method, code in methods:
        for name, literal, is_counted in _stores(code):
            assigned = found.setdefault(name, Assignments())
            assigned.is_changed |= method not in made_by
            assigned.is_counted |= method not in made_by and is_counted
            assigned.is_computed |= method in made_by and not literal
            assigned.literals += literal
    return found


def _codes_of(kind: type) -> Iterator[tuple[str, types.CodeType]]:
    """The code of each method of a class, with what is defined inside of it."""
    for name, member in vars(kind).items():
        functions = (member.fget, member.fset) if isinstance(member, property) else (member,)
        for function in functions:
            code = code_of(function)
            if code is not None:
                yield from ((name, part) for part in _nested(code))


def code_of(function: object) -> types.CodeType | None:
    """The code of a function, below its decorators; None where it is no function in Python."""
    if isinstance(function, (staticmethod, classmethod)):
        function = function.__func__
    # Other objects may claim to wrap anything.
    if isinstance(function, types.FunctionType):
        function = inspect.unwrap(function)
    return function.__code__ if isinstance(function, types.FunctionType) else None


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _stores(code: types.CodeType) -> Iterator[tuple[str, list[object], bool]]:
    """Each attribute that the code assigns; with the literal, where it is one, and whether it is ``+=`` or the like."""
    instructions = [item for item in dis.get_instructions(code) if item.opname != "EXTENDED_ARG"]
    for index, item in enumerate(instructions):
        if item.opname == "STORE_ATTR":
            value, owner = instructions[max(index - 2, 0)], instructions[max(index - 1, 0)]
            # Python 3.14 has an instruction of its own for small integers.
            is_literal = value.opname in ("LOAD_CONST", "LOAD_SMALL_INT") and owner.opname.startswith("LOAD_FAST")
            # The object, which such a statement has on the stack below the value, is brought up at last.
            is_counted = owner.opname in ("SWAP", "ROT_TWO")
            yield item.argval, [value.argval] if is_literal else [], is_counted
