"""What became of each value of a restore, as data, as text and as HTML."""

from __future__ import annotations

import dataclasses
import functools
import html
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["RestoreReport", "ValueReport", "with_hints"]

_MOST_SHOWN = 10
_MOST_HINTS = 20
_MOST_COMPARED = 1000
_LEAST_LIKENESS = 0.6
_WIDEST = 72


@dataclasses.dataclass(frozen=True)
class ValueReport:
    """One value of a checkpoint, or of the program."""

    name: str
    """Its readable path, such as ``(root).model.fc.weight``."""
    key: str = ""
    """The key that the checkpoint has it under; empty for what is only in the program, and for parts of a value."""
    dtype: str = ""
    shape: tuple[int, ...] | None = None
    """None where it is no tensor, or not known yet."""
    hint: str = ""
    """For what has no counterpart: the nearest name among those on the other side that have none either."""
    note: str = ""
    """What else there is to say, such as what to do."""
    slot_name: str = ""
    """For a slot variable: which one it is, such as ``exp_avg``."""
    slots: str = ""
    """For a slot variable: to which set it belongs, such as ``(root).optimizer's state for (root).model.fc.weight``."""

    @property
    def _kind(self) -> tuple[object, ...]:
        """Equal for two values that may be the same one under different names."""
        is_tensor = self.shape is not None and self.dtype != "string"
        return (self.dtype, self.shape) if is_tensor else ()

    @property
    def _described(self) -> str:
        return f"{self.dtype} {list(self.shape)}" if self.shape else self.dtype


@dataclasses.dataclass(frozen=True)
class RestoreReport:
    """What a restore has matched so far. ``print`` shows a table, notebooks an HTML one.

    Each value of the checkpoint is in one of `restored`, `waiting`, `only_in_checkpoint`, `superseded` and `skipped`.
    The tables count what was restored or skipped, and show the first of the others; the slots that an optimizer keeps
    for one variable share a row.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint
        >>> path = Checkpoint(weight=torch.ones(2)).write(tempfile.mkdtemp() + "/ckpt")
        >>> report = Checkpoint(weights=torch.zeros(2)).read(path).expect_partial().report()
        >>> [value.hint for value in report.waiting]
        ['(root).weights']
    """

    checkpoint: str
    """The path of the checkpoint; empty where there is none."""
    restored: tuple[ValueReport, ...] = ()
    """What live objects have taken."""
    waiting: tuple[ValueReport, ...] = ()
    """What will be restored if an object of this name appears where it is waited for."""
    only_in_checkpoint: tuple[ValueReport, ...] = ()
    """What nothing waits for: the live objects do not want it, or are gone."""
    only_in_program: tuple[ValueReport, ...] = ()
    """Values of live objects that the checkpoint has nothing for."""
    superseded: tuple[ValueReport, ...] = ()
    """What was not assigned because the live objects have other values: newer ones, or those of another name."""
    skipped: tuple[ValueReport, ...] = ()
    """What the caller has left out by ``experimental_skip_slot_variables``."""

    @property
    def is_complete(self) -> bool:
        """Whether every value has its counterpart."""
        return not (self.waiting or self.only_in_checkpoint or self.only_in_program)

    def __str__(self) -> str:
        rows = self._rows()
        widths = [min(max(map(len, column)), _WIDEST) for column in list(zip(*rows, strict=True))[:-1]]
        lines = [
            "  ".join(["", *(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
            for row in rows
        ]
        return "\n".join([f"{self._title}: {self._counts()}", *lines])

    def _repr_html_(self) -> str:
        rows = self._rows()
        caption = f"<caption>{html.escape(self._title)}: {self._counts()}</caption>"
        head = "<thead><tr><th>state</th><th>name</th><th>value</th><th>note</th></tr></thead>" if rows else ""
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        return f"<table>{caption}{head}<tbody>{''.join(f'<tr>{row}</tr>' for row in cells)}</tbody></table>"

    @property
    def _title(self) -> str:
        return self.checkpoint or "no checkpoint"

    def _counts(self) -> str:
        told = [f"{len(self.restored)} value{'' if len(self.restored) == 1 else 's'} restored"]
        counted = [*self._sections(), ("skipped", self.skipped)]
        return ", ".join([*told, *(f"{len(values)} {state}" for state, values in counted if values)])

    def _sections(self) -> list[tuple[str, Sequence[ValueReport]]]:
        """What a reader has to know of one by one."""
        return [
            ("waiting", self.waiting),
            ("only in checkpoint", self.only_in_checkpoint),
            ("only in program", self.only_in_program),
            ("superseded", self.superseded),
        ]

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [(state, *row) for state, values in self._sections() for row in _rows(values)]


def _rows(values: Sequence[ValueReport]) -> Iterator[tuple[str, str, str]]:
    """Name, kind and note, of the first values."""
    groups: dict[str, list[ValueReport]] = {}
    for value in values:
        groups.setdefault(value.slots or value.name, []).append(value)
    shown = 0
    for name, group in list(groups.items())[:_MOST_SHOWN]:
        shown += len(group)
        if group[0].slots:
            yield name, ", ".join(value.slot_name for value in group), group[0].note
        else:
            for value in group:
                yield name, value._described, value.note or (f"like {value.hint}?" if value.hint else "")
    if shown < len(values):
        yield f"and {len(values) - shown} more", "", ""


def with_hints(values: Sequence[ValueReport], others: Iterable[ValueReport]) -> tuple[ValueReport, ...]:
    """The same values, the first of them with the nearest of the others' names where one of its kind is near.

    Slots get no hints: they go where their variable and their optimizer go.
    """
    names = defaultdict(list)
    for other in others:
        if not other.slots:
            names[other._kind].append(other.name)
    hinted = []
    for value in values[:_MOST_HINTS]:
        alike = [] if value.note or value.slots else names[value._kind][:_MOST_COMPARED]
        nearest = max(alike, key=functools.partial(_likeness, value.name), default="")
        is_near = nearest not in ("", value.name) and _likeness(value.name, nearest) >= _LEAST_LIKENESS
        hinted.append(dataclasses.replace(value, hint=nearest) if is_near else value)
    return (*hinted, *values[_MOST_HINTS:])


def _likeness(one: str, other: str) -> float:
    """How much of two names is the same before and after the one place where they differ: what renaming leaves."""
    # What follows is the part of an object that a value is; the program's side does not tell it.
    one, other = one.partition(": ")[0], other.partition(": ")[0]
    shorter, longer = sorted((len(one), len(other)))
    before = _num_equal(one, other)
    after = min(_num_equal(reversed(one), reversed(other)), shorter - before)
    return (before + after) / longer


def _num_equal(one: Iterable[str], other: Iterable[str]) -> int:
    """How many characters are the same from the beginning on."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
