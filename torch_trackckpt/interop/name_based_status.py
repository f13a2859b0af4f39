"""What became of a checkpoint that was loaded by rules."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence

from torch_trackckpt.restore.report import RestoreReport

__all__ = ["RulesLoadStatus"]

_MOST_NAMED = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class RulesLoadStatus:
    """The outcome of `load_name_based`. Each assertion returns the status, so that calls can be chained.

    ``print`` shows a table of what was not loaded, and what is not exact; notebooks show it as HTML.
    """

    checkpoint: str
    """The path."""
    rules: str
    """What the rules are called."""
    bound: Mapping[str, str]
    """For each torch tensor that was loaded, the key that its value was stored under."""
    slots: Mapping[str, Mapping[str, str]]
    """For each parameter whose optimizer's state was loaded: torch's name of a slot, and the key."""
    unmatched_torch: tuple[str, ...]
    """Tensors of the module, and state of the optimizer for them (``fc.weight: exp_avg``), that the file has nothing
    for."""
    unused_keys: Mapping[str, str]
    """Keys that no tensor takes, and why."""
    ignored: tuple[str, ...]
    """Keys that the rules drop."""
    inexact: tuple[tuple[str, str], ...]
    """A tensor, layer, optimizer or the whole model, and what is, or goes on, otherwise than in TensorFlow."""
    global_step: int | None
    """How many steps the program had done, where the file tells it under this name."""
    _report: RestoreReport = dataclasses.field(repr=False)

    def assert_consumed(self) -> RulesLoadStatus:
        """Asserts that every tensor of the module has got a value, and that nothing in the file was left over but what
        the rules drop.

        Raises:
            AssertionError: naming what did not match.
        """
        return self._assert_none([*self._complaints_of_module(), *self._complaints_of_file()])

    def assert_existing_objects_matched(self) -> RulesLoadStatus:
        """Asserts that every tensor of the module has got a value; the file may hold more.

        Raises:
            AssertionError: naming what did not match.
        """
        return self._assert_none(self._complaints_of_module())

    def assert_nontrivial_match(self) -> RulesLoadStatus:
        """Asserts that any tensor has got a value.

        Raises:
            AssertionError: none has.
        """
        if self.bound:
            return self
        return self._assert_none([f"Nothing of {self.checkpoint!r} goes to a tensor by the rules {self.rules!r}."])

    def report(self) -> RestoreReport:
        """What became of each value."""
        return self._report

    def _assert_none(self, complaints: list[str]) -> RulesLoadStatus:
        if complaints:
            raise AssertionError("\n".join(complaints))
        return self

    def _complaints_of_module(self) -> list[str]:
        if not self.unmatched_torch:
            return []
        return [
            f"{self.checkpoint!r} has nothing for {len(self.unmatched_torch)} values of the program, by the rules "
            f"{self.rules!r}: {_listed(self.unmatched_torch)}. They keep what they have."
        ]

    def _complaints_of_file(self) -> list[str]:
        if not self.unused_keys:
            return []
        listed = _listed([f"{key} ({why})" for key, why in self.unused_keys.items()])
        return [
            f"{len(self.unused_keys)} values of {self.checkpoint!r} were not used: {listed}. RuleSet.ignoring(...) "
            "says what nobody asks for."
        ]

    def __str__(self) -> str:
        return "\n".join([str(self._report), *(f"  inexact  {names}: {why}" for names, why in self._by_reason())])

    def _repr_html_(self) -> str:
        rows = [f"<tr><td>{html.escape(each)}</td><td>{html.escape(why)}</td></tr>" for each, why in self._by_reason()]
        table = f"<table><caption>inexact</caption><tbody>{''.join(rows)}</tbody></table>" if rows else ""
        return self._report._repr_html_() + table

    def _by_reason(self) -> list[tuple[str, str]]:
        """What is not exact, each reason once."""
        names: dict[str, list[str]] = {}
        for name, why in self.inexact:
            names.setdefault(why, []).append(name)
        return [
            (each[0] if len(each) == 1 else f"{each[0]} and {len(each) - 1} more", why) for why, each in names.items()
        ]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return shown + (f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
