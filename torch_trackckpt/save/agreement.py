"""What the ranks of a job agree on at a save, kept for the next one.

    every rank   what it has offered (`Offered`), what it was told (`Shares`), and what it writes of it (`Recipe`)
    rank 0       what ranks of each kind have, and the record of the graph of all

In a training all of it is the same from save to save. Then ranks say digests and hear that all is as before, and
nothing that takes long is done for a single value. Nothing that is kept has values in it.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch_trackckpt.graph.walk import Snapshot
from torch_trackckpt.save.ranks import Offer, Offered, Recipe, Rows, Shapes, Shares

__all__ = ["Agreement"]


@dataclasses.dataclass(frozen=True)
class _Told:
    """What rank 0 has told all."""

    name: str
    """Never the same twice."""
    digests: tuple[str, ...]
    """What ranks of each kind have offered; known on rank 0."""
    shares: Shares


class Agreement:
    """What one rank keeps of it. To be used by one save at a time."""

    def __init__(self) -> None:
        self._place: tuple[int, int] | None = None
        self._forget()

    def _forget(self) -> None:
        self._offered: Offered | None = None
        self._told: _Told | None = None
        self._recipe: tuple[Offered, Shares, Recipe] | None = None
        self._digests: tuple[str, ...] = ()
        """For each kind of ranks, that of what they offer in this save."""
        self._said: dict[str, Mapping[str, Any]] = {}
        """By such digests, what ranks have said of what they offer, where it was not the same for all."""
        self._record: tuple[list[bytes], frozenset[str], bytes] | None = None

    # On every rank.

    def offer(self, snapshot: Snapshot, rank: int, size: int) -> Offer:
        """What this rank, one of so many, has to save.

        Raises:
            UnsupportedValueError: something cannot be saved.
        """
        if self._place != (rank, size):
            self._place = rank, size
            self._forget()
        offer = Offer(snapshot, size, self._offered)
        self._offered = offer.offered
        return offer

    def summary(self, offer: Offer) -> dict[str, Any]:
        """What rank 0 has to know at first, of the offer and of what this rank was told before."""
        return {**offer.summary(), "knows": None if self._told is None else self._told.name}

    def heard(self, message: Mapping[str, Any] | None) -> Shares:
        """What rank 0 has told by a message of `begun`, or by one of shares."""
        if message is not None:
            return Shares.heard(message)
        assert self._told is not None
        return self._told.shares

    def keep(self, name: str, shares: Shares) -> None:
        """Keeps what all have been told, under a name that all know."""
        self._told = _Told(name, self._digests, shares)

    def rows(self, offer: Offer, shares: Shares, shapes: Shapes, rank: int) -> Rows:
        """What this rank writes of what it has."""
        if self._recipe is None or self._recipe[0] is not offer.offered or self._recipe[1] != shares:
            self._recipe = offer.offered, shares, shares.recipe(offer, rank)
        return shares.rows(offer, rank, shapes, self._recipe[2])

    # On rank 0.

    def begun(self, summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """What the others are told when all have said at first what they have; None where they know it."""
        shares = Shares.summarised(summaries)
        digests = tuple(dict.fromkeys(summary["digest"] for summary in summaries))
        self._digests = digests
        told = self._told
        if told is not None and told.digests == digests and told.shares.are_as(shares):
            return None if all(summary["knows"] == told.name for summary in summaries) else told.shares.message()
        if not shares.know_kinds and self._said.keys() >= set(digests):
            shares = shares.of_kinds([self._said[digest] for digest in digests])
        return shares.message()

    def detailed(self, shares: Shares, details: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the others are told when all have said the rest: shapes of values by rank, and shares, or None where
        they know them.

        Raises:
            UnsupportedValueError: ranks have different things under one name.
        """
        shapes, complete = shares.shapes_of(details), shares.detailed(details)
        if shares.know_kinds:
            return {"shapes": shapes, "shares": None}
        of_kinds = [{**said, "record": base64.b64decode(said["record"])} for said in details if "described" in said]
        self._said = dict(zip(self._digests, of_kinds, strict=True))
        return {"shapes": shapes, "shares": complete.message()}

    def of_all(self, offer: Offer, shares: Shares, details: Sequence[Mapping[str, Any]], shapes: Shapes) -> Rows:
        """What rank 0 writes for all.

        Args:
            offer: that of rank 0.
            shares: what the ranks write.
            details: what they have said in detail.
            shapes: those of values by rank.
        """
        is_one = len(self._digests) == 1
        records = [offer.record] if is_one else [self._said[digest]["record"] for digest in self._digests]
        if self._record is None or self._record[:2] != (records, shares.by_rank):
            self._record = records, shares.by_rank, shares.record_of_all(records)
        return shares.of_all(self._record[2], details, shapes)
