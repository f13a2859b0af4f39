"""Which rank writes what.

    replicated   a parameter, or what an optimizer keeps for one, is the same on all ranks that have it, and one of them
                 writes it, so that all write about as much. Other tensors (of a batch normalisation, say)
                 are taken from the first rank that has them, as DistributedDataParallel does.
    sharded      of a DTensor each rank has a part, which is written as a slice; of several equal parts one is
    by rank      a python state (random numbers, the position of a data loader) that is not the same on all ranks is
                 written by each of them, as one slice of a tensor with a dimension more, under a key of its own

What every rank decides for itself here, from what it has and what rank 0 has told it, comes to the same on all of them.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from torch_trackckpt import _native
from torch_trackckpt.bundle.dtypes import data_type_of_torch
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.distributed.dtensor import copies_of, is_dtensor, parts_of
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.graph.keys import by_rank_key
from torch_trackckpt.graph.walk import Snapshot
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY, Value

__all__ = ["Offer", "Rows", "Shares"]

_SLOT = "/.OPTIMIZER_SLOT/"


@dataclasses.dataclass(frozen=True)
class Rows:
    """The columns of a plan."""

    keys: list[str]
    values: list[Value]
    parts: dict[int, TensorSlice]
    """For rows that are parts of tensors, which."""


class Offer:
    """What a rank has to save.

    Args:
        snapshot: its graph and its values.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.keys = snapshot.keys
        self.values = snapshot.values
        self.record = snapshot.graph.record
        self.state_keys = frozenset(snapshot.state_keys())

    def summary(self) -> dict[str, Any]:
        """What rank 0 has to know at first: a digest of what there is, and one of each python state."""
        digest = hashlib.blake2b(self.record, digest_size=16)
        digest.update(repr(list(self.described().items())).encode())
        states = {
            key: _digest(key, value)
            for key, value in zip(self.keys, self.values, strict=True)
            if key in self.state_keys and not is_dtensor(value)
        }
        return {"digest": digest.hexdigest(), "states": states}

    def details(self) -> dict[str, Any]:
        """What it has to know where ranks have different things."""
        return {"described": self.described(), "record": base64.b64encode(self.record).decode()}

    def described(self) -> dict[str, str]:
        """The type and shape of each value, by its key."""
        return {key: _described(key, value) for key, value in zip(self.keys, self.values, strict=True)}


@dataclasses.dataclass(frozen=True)
class Shares:
    """What rank 0 has found of the offers of all ranks."""

    token: str
    """A part of the names of files that are being written."""
    kinds: tuple[int, ...]
    """For each rank which kind of offer it has made: ranks of one kind have the same."""
    by_rank: frozenset[str]
    """The keys of states that are not the same on all ranks that have them."""
    kinds_of: Mapping[str, Sequence[int]]
    """The keys that several kinds have, and which; another one is only had by ranks of one."""

    @classmethod
    def summarised(cls, summaries: Sequence[Mapping[str, Any]]) -> Shares:
        """From the summaries of all ranks."""
        digests = [summary["digest"] for summary in summaries]
        number = {digest: kind for kind, digest in enumerate(dict.fromkeys(digests))}
        seen: dict[str, set[str]] = collections.defaultdict(set)
        for summary in summaries:
            for key, digest in summary["states"].items():
                seen[key].add(digest)
        by_rank = frozenset(key for key, found in seen.items() if len(found) > 1)
        return cls(secrets.token_hex(8), tuple(number[digest] for digest in digests), by_rank, {})

    @property
    def are_of_one_kind(self) -> bool:
        """Whether all ranks have the same objects."""
        return max(self.kinds) == 0

    def speaks(self, rank: int) -> bool:
        """Whether a rank is the one that says in detail what all of its kind have."""
        return self.kinds.index(self.kinds[rank]) == rank

    def detailed(self, details: Sequence[Mapping[str, Any] | None]) -> Shares:
        """The same, with what those of each kind have said in detail.

        Raises:
            UnsupportedValueError: two have different things under one name.
        """
        kinds_of: dict[str, list[int]] = collections.defaultdict(list)
        first: dict[str, str] = {}
        for rank, said in enumerate(details):
            for key, described in () if said is None else said["described"].items():
                if first.setdefault(key, described) != described and key not in self.by_rank:
                    other = self.kinds.index(kinds_of[key][0])
                    raise UnsupportedValueError(
                        f"{key}: rank {rank} has {described}, and rank {other} has {first[key]}. What ranks have under "
                        "one name has to be one thing; give them different names, or shard it as a DTensor."
                    )
                kinds_of[key].append(self.kinds[rank])
        shared = {key: kinds for key, kinds in kinds_of.items() if len(kinds) > 1 and key != OBJECT_GRAPH_KEY}
        return dataclasses.replace(self, kinds_of=shared)

    def message(self) -> dict[str, Any]:
        """For the other ranks."""
        return {**dataclasses.asdict(self), "by_rank": sorted(self.by_rank)}

    @classmethod
    def heard(cls, message: Mapping[str, Any]) -> Shares:
        """What another rank has said by `message`."""
        return cls(message["token"], tuple(message["kinds"]), frozenset(message["by_rank"]), message["kinds_of"])

    def record(self, offer: Offer, details: Sequence[Mapping[str, Any] | None] = ()) -> bytes:
        """The record of the graph of all ranks.

        Args:
            offer: that of rank 0.
            details: where there are several kinds, what was said in detail.
        """
        records = [base64.b64decode(said["record"]) for said in details if said is not None]
        if len(records) <= 1 and not self.by_rank:
            return offer.record
        return _native.union_of_graphs(records or [offer.record], {key: by_rank_key(key) for key in self.by_rank})

    def rows(self, offer: Offer, rank: int, record: bytes | None) -> Rows:
        """What a rank writes.

        Args:
            offer: its offer.
            rank: which rank it is.
            record: that of the graph of all, for the rank that writes it.
        """
        rows = Rows([], [], {})
        for key, value, part in self._of(offer, rank):
            if part is not None and not part.is_whole:
                rows.parts[len(rows.keys)] = part
            rows.keys.append(key)
            rows.values.append(value)
        if record is not None:
            rows.keys.append(OBJECT_GRAPH_KEY)
            rows.values.append(record)
        return rows

    def _of(self, offer: Offer, rank: int) -> Iterator[tuple[str, Value, TensorSlice | None]]:
        everybody = tuple(other for other, kind in enumerate(self.kinds) if kind == self.kinds[rank])
        owners = _Owners()
        for key, value in zip(offer.keys, offer.values, strict=True):
            if key == OBJECT_GRAPH_KEY:
                continue
            if key in self.by_rank:
                yield by_rank_key(key), *_of_rank(value, rank, len(self.kinds))
                continue
            if is_dtensor(value):
                parts = parts_of(value)
                if not value.numel():
                    if rank == min(copies_of(value)):
                        yield key, torch.empty(value.shape, dtype=value.dtype, device="cpu"), None
                elif owners.choose(copies_of(value), sum(view.nbytes for _, view in parts)) == rank:
                    yield from ((key, view, part) for part, view in parts)
                continue
            holders = everybody
            if key in self.kinds_of:
                holders = tuple(other for other, kind in enumerate(self.kinds) if kind in self.kinds_of[key])
            if isinstance(value, torch.nn.Parameter) or (_SLOT in key and isinstance(value, torch.Tensor)):
                if owners.choose(holders, value.nbytes) == rank:
                    yield key, value, None
            elif holders[0] == rank:
                yield key, value, None


class _Owners:
    """Who of several ranks writes what all of them have. Each of them sees the same values in the same order."""

    def __init__(self) -> None:
        self._loads: dict[tuple[int, ...], list[int]] = {}

    def choose(self, ranks: tuple[int, ...], num_bytes: int) -> int:
        """The one that has the least to write so far."""
        loads = self._loads.setdefault(ranks, [0] * len(ranks))
        place = loads.index(min(loads))
        loads[place] += num_bytes
        return ranks[place]


def _of_rank(value: Value, rank: int, size: int) -> tuple[Value, TensorSlice]:
    """A state as the part that one rank has of a tensor."""
    if isinstance(value, bytes):
        strings = np.empty(1, dtype=object)
        strings[0] = value
        return strings, TensorSlice.box((size,), (rank,), (1,))
    shape = tuple(value.shape)
    part = TensorSlice.box((size, *shape), (rank, *(0 for _ in shape)), (1, *shape))
    return value[None], part


def _digest(key: str, value: Value) -> str:
    """What tells two states apart."""
    digest = hashlib.blake2b(_described(key, value).encode(), digest_size=16)
    if isinstance(value, bytes):
        digest.update(value)
    elif isinstance(value, torch.Tensor):
        content = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        digest.update(content.flatten().view(torch.uint8).numpy().data)
    else:
        for string in value.ravel():
            digest.update(len(string).to_bytes(8, "little") + string)
    return digest.hexdigest()


def _described(key: str, value: Value) -> str:
    if isinstance(value, torch.Tensor):
        try:
            return f"{data_type_of_torch(value.dtype)} {list(value.shape)}"
        except UnsupportedValueError as error:
            raise UnsupportedValueError(f"{key}: {error}") from error
    return "a string" if isinstance(value, bytes) else f"strings {list(value.shape)}"
