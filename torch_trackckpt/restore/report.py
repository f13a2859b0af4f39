"""What became of each value of a restore, as data, as text and as HTML."""

from __future__ import annotations

import dataclasses
import difflib
import html
from collections.abc import Iterator, Sequence

__all__ = ["RestoreReport", "ValueReport", "with_hints"]

_MOST_SHOWN = 10
_MOST_HINTS = 50


@dataclasses.dataclass(frozen=True)
class ValueReport:
    """One value of a checkpoint, or of the program."""

    name: str
    """Its readable path, such as ``(root).model.fc.weight``."""
    key: str = ""
    """The key that the checkpoint has it under; empty for what is only in the program."""
    dtype: str = ""
    shape: tuple[int, ...] | None = None
    hint: str = ""
    """For what has no counterpart: the nearest name among those on the other side that have none either."""
    note: str = ""
    """What else there is to say, such as what to do."""


@dataclasses.dataclass(frozen=True)
class RestoreReport:
    """What a restore has matched so far. ``print`` shows a table, notebooks an HTML one.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint
        >>> path = Checkpoint(weight=torch.ones(2)).write(tempfile.mkdtemp() + "/ckpt")
        >>> report = Checkpoint(weights=torch.zeros(2)).read(path).expect_partial().report()
        >>> [value.hint for value in report.waiting]
        ['(root).weights']
    """

    checkpoint: str
    """The path of the checkpoint."""
    restored: tuple[ValueReport, ...] = ()
    """What live objects have taken."""
    waiting: tuple[ValueReport, ...] = ()
    """What will be restored if an object of this name appears where it is waited for."""
    only_in_checkpoint: tuple[ValueReport, ...] = ()
    """What nothing waits for: the live objects do not want it, or are gone."""
    only_in_program: tuple[ValueReport, ...] = ()
    """Values of live objects that the checkpoint has nothing for."""
    superseded: tuple[ValueReport, ...] = ()
    """What was not assigned because the live objects have values of a later restore."""

    @property
    def is_complete(self) -> bool:
        """Whether every value has its counterpart."""
        return not (self.waiting or self.only_in_checkpoint or self.only_in_program)

    def __str__(self) -> str:
        lines = [f"{self.checkpoint}: {self._counts()}"]
        rows = [row for title, values in self._sections() for row in _rows(title, values)]
        if rows:
            widths = [max(len(row[column]) for row in rows) for column in range(3)]
            lines += [
                "  "
                + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
                for row in rows
            ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [row for title, values in self._sections() for row in _rows(title, values)]
        cells = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        head = "<tr><th>state</th><th>name</th><th>value</th><th>note</th></tr>" if rows else ""
        caption = f"{html.escape(self.checkpoint)}: {self._counts()}"
        return f"<table><caption>{caption}</caption>{head}{cells}</table>"

    def _counts(self) -> str:
        told = [f"{len(self.restored)} values restored"]
        told += [f"{len(values)} {title}" for title, values in self._sections() if values]
        return ", ".join(told)

    def _sections(self) -> list[tuple[str, Sequence[ValueReport]]]:
        """What a reader has to know of; restored values are only counted."""
        return [
            ("waiting", self.waiting),
            ("only in checkpoint", self.only_in_checkpoint),
            ("only in program", self.only_in_program),
            ("superseded", self.superseded),
        ]


def _rows(title: str, values: Sequence[ValueReport]) -> Iterator[tuple[str, str, str, str]]:
    for value in values[:_MOST_SHOWN]:
        kind = f"{value.dtype} {list(value.shape)}" if value.shape is not None else value.dtype
        yield title, value.name, kind, f"like {value.hint}?" if value.hint else value.note
    if len(values) > _MOST_SHOWN:
        yield title, f"and {len(values) - _MOST_SHOWN} more", "", ""


def with_hints(values: Sequence[ValueReport], others: Sequence[ValueReport]) -> tuple[ValueReport, ...]:
    """The same values, the first of them with the nearest of the others' names where one of its shape is near."""
    hinted = []
    for value in values[:_MOST_HINTS]:
        if value.note:
            hinted.append(value)
            continue
        alike = [other.name for other in others if other.shape == value.shape][: 10 * _MOST_HINTS]
        nearest = difflib.get_close_matches(value.name, alike, n=1)
        hinted.append(dataclasses.replace(value, hint=nearest[0]) if nearest else value)
    return (*hinted, *values[_MOST_HINTS:])
