"""Which rank writes what.

    replicated   a parameter, or what an optimizer keeps for one, is the same on all ranks that have it, and one of them
                 writes it, so that all write about as much. Other tensors (of a batch normalisation, say)
                 are taken from the first rank that has them, as DistributedDataParallel does.
    sharded      of a DTensor each rank has a part, which is written as a slice; of several equal parts one is, and of
                 several meshes that each have all of it, one writes
    by rank      a python state (random numbers, the position of a data loader) that is not the same on all ranks is
                 kept for each of them, under a key of its own: its tensors are slices of one with a dimension more,
                 or of one with a single dimension where they are not of one shape (`graph.keys` has the format);
                 its JSON goes to rank 0, which writes that of all, because TensorFlow reads no slices of strings

What every rank decides for itself here, from what it has and what rank 0 has told it, comes to the same on all of them.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import functools
import hashlib
import heapq
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from torch_trackckpt import _native
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.distributed.dtensor import copies_of, is_dtensor, local_boxes_of, ranks_of
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.graph.keys import attribute_key, by_rank_key, by_rank_shapes_key
from torch_trackckpt.graph.walk import Snapshot
from torch_trackckpt.save.facts import Facts, described, digest_of
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY, PYTHON_STATE, Value

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Offer", "Offered", "Recipe", "Rows", "Shapes", "Shares"]

_SLOT = "/.OPTIMIZER_SLOT/"

Shapes = dict[str, list[list[int] | None]]
"""By their keys, of values by rank, the shape of that of each rank; None for ranks that have none."""

_Make = Callable[[Any], torch.Tensor]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Rows:
    """The columns of a plan."""

    keys: list[str]
    values: list[Value]
    parts: dict[int, TensorSlice]
    """For rows that are parts of tensors, which."""
    wholes: dict[str, DTensor] = dataclasses.field(default_factory=dict)
    """By its key, each tensor that lies in several processes, of which values are what this one has."""

    def add(self, key: str, value: Value, part: TensorSlice | None = None) -> None:
        """One more row; `part` is None where the value is a whole one."""
        if part is not None and not part.is_whole:
            self.parts[len(self.keys)] = part
        self.keys.append(key)
        self.values.append(value)

    @property
    def record(self) -> bytes:
        """That of the object graph, where it is among them."""
        record = self.values[self.keys.index(OBJECT_GRAPH_KEY)]
        assert isinstance(record, bytes)
        return record

    def followed_by(self, other: Rows) -> Rows:
        """These rows and others."""
        count = len(self.keys)
        moved = {count + row: part for row, part in other.parts.items()}
        return Rows(
            [*self.keys, *other.keys],
            [*self.values, *other.values],
            {**self.parts, **moved},
            {**self.wholes, **other.wholes},
        )


@dataclasses.dataclass(frozen=True)
class Offered:
    """What follows from the facts of a rank. It keeps none of the values alive."""

    facts: Facts
    meshes: list[tuple[int, ...]]
    """The ranks of meshes that not all ranks are in: others may have the same."""
    mesh_of: dict[str, int]
    """For DTensors on one of these, which."""
    digest: str
    """Of the graph, and of what the values are."""


class Offer:
    """What a rank has to save.

    Args:
        snapshot: its graph and its values.
        size: how many ranks there are.
        before: what was offered at the save before; most likely that is the same.

    Raises:
        UnsupportedValueError: something cannot be saved.
    """

    def __init__(self, snapshot: Snapshot, size: int, before: Offered | None = None) -> None:
        self.keys = snapshot.keys
        self.values = snapshot.values
        self.record = snapshot.graph.record
        self.state_keys = frozenset(snapshot.state_keys())
        facts, self.memory = Facts.of(snapshot, self.state_keys)
        """The values as they lie here, each DTensor as what this process has of it."""
        # To ask a mesh takes torch much longer than anything here.
        self._ranks: dict[int, tuple[int, ...]] = {}
        self._copies: dict[tuple[int, Any], tuple[int, ...]] = {}
        self.offered = before if before is not None and before.facts == facts else self._offered(facts, size)
        """What follows from what the values are, but for what is in them."""

    def _offered(self, facts: Facts, size: int) -> Offered:
        meshes: list[tuple[int, ...]] = []
        mesh_of: dict[str, int] = {}
        for key, value in zip(self.keys, self.values, strict=True):
            if is_dtensor(value) and len(ranks := self.ranks_of(value)) < size:
                if ranks not in meshes:
                    meshes.append(ranks)
                mesh_of[key] = meshes.index(ranks)
        digest = hashlib.blake2b(self.record, digest_size=16)
        digest.update(repr([list(self.described().items()), mesh_of]).encode())
        return Offered(facts, meshes, mesh_of, digest.hexdigest())

    def ranks_of(self, tensor: DTensor) -> tuple[int, ...]:
        """All ranks of a tensor's mesh."""
        mesh = id(tensor.device_mesh)
        if mesh not in self._ranks:
            self._ranks[mesh] = ranks_of(tensor)
        return self._ranks[mesh]

    def copies_of(self, tensor: DTensor) -> tuple[int, ...]:
        """The ranks that have the same part of a tensor."""
        place = id(tensor.device_mesh), tensor.placements
        if place not in self._copies:
            self._copies[place] = copies_of(tensor)
        return self._copies[place]

    def summary(self) -> dict[str, Any]:
        """What rank 0 has to know at first: a digest of what there is, and one of each python state."""
        states = {
            key: digest_of(key, value)
            for key, value in zip(self.keys, self.values, strict=True)
            if key in self.state_keys and not is_dtensor(value)
        }
        return {"digest": self.offered.digest, "states": states, "meshes": self.offered.meshes}

    def details(self, shares: Shares, rank: int) -> dict[str, Any]:
        """What rank 0 has to know as well, where ranks have different things.

        Args:
            shares: what it has found so far.
            rank: which rank this is.
        """
        said: dict[str, Any] = {"states": {}, "tensors": {}}
        for key, value in self.by_rank(shares):
            if isinstance(value, bytes):
                said["states"][key] = base64.b64encode(value).decode()
            elif isinstance(value, torch.Tensor):
                said["tensors"][key] = [str(value.dtype).removeprefix("torch."), list(value.shape)]
            else:
                raise UnsupportedValueError(
                    f"{key}: arrays of strings that are not the same on all ranks cannot be kept by rank; return them "
                    "as lists from state_dict()."
                )
        # Ranks of one kind have the same to say of the rest.
        if not shares.know_kinds and shares.speaks(rank):
            said["described"] = self.described()
            said["mesh_of"] = self.offered.mesh_of
            said["record"] = base64.b64encode(self.record).decode()
        return said

    def by_rank(self, shares: Shares) -> Iterator[tuple[str, Value]]:
        """The values that are kept for each rank, by their keys."""
        if shares.by_rank:
            yield from (pair for pair in zip(self.keys, self.values, strict=True) if pair[0] in shares.by_rank)

    def described(self) -> dict[str, str]:
        """The type and shape of each value, by its key; of states not even that, since they may be kept by rank."""
        return {
            key: "a state" if key in self.state_keys and not is_dtensor(value) else described(key, value)
            for key, value in zip(self.keys, self.values, strict=True)
        }


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Which of its values a rank writes, and as what. It follows from what the ranks have, and holds none of it."""

    keys: list[str]
    sources: list[int]
    """For each row, that of the offer that it is made of."""
    makes: dict[int, _Make]
    """For rows that are not what lies there as it is, what makes them of it."""
    parts: dict[int, TensorSlice]
    wholes: list[int]
    """The rows of the offer that are DTensors, of which something is written."""

    def add(self, key: str, source: int, make: _Make | None = None, part: TensorSlice | None = None) -> None:
        """One more row."""
        row = len(self.keys)
        if make is not None:
            self.makes[row] = make
        if part is not None and not part.is_whole:
            self.parts[row] = part
        self.keys.append(key)
        self.sources.append(source)

    def rows_of(self, offer: Offer) -> Rows:
        """What it makes of an offer. It is not to be added to."""
        values = [offer.memory[source] for source in self.sources]
        for row, make in self.makes.items():
            values[row] = make(values[row])
        wholes: dict[str, Any] = {offer.keys[row]: offer.values[row] for row in self.wholes}
        return Rows(self.keys, values, self.parts, wholes)


@dataclasses.dataclass(frozen=True)
class Shares:
    """What rank 0 has found of the offers of all ranks."""

    kinds: tuple[int, ...]
    """For each rank which kind of offer it has made: ranks of one kind have the same."""
    by_rank: frozenset[str]
    """The keys of states that are not the same on all ranks that have them."""
    meshes: tuple[tuple[int, ...], ...]
    """Meshes that not all ranks are in."""
    meshes_of: tuple[tuple[int, ...], ...]
    """For each rank which of them it has told of, in the order in which it has."""
    know_kinds: bool
    """Whether it is known what ranks of each kind have."""
    kinds_of: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    """The keys that several kinds have, and for each kind, which of a rank's meshes the value is on: -1 for none.
    Another key is only had by ranks of one kind."""

    @classmethod
    def summarised(cls, summaries: Sequence[Mapping[str, Any]]) -> Shares:
        """From the summaries of all ranks."""
        digests = [summary["digest"] for summary in summaries]
        number = {digest: kind for kind, digest in enumerate(dict.fromkeys(digests))}
        seen: dict[str, set[str]] = collections.defaultdict(set)
        for summary in summaries:
            for key, digest in summary["states"].items():
                seen[key].add(digest)
        by_rank = {key for key, found in seen.items() if len(found) > 1}
        # A state and the tensors in it go together.
        by_rank |= {state for key in by_rank if (state := _state_of(key)) in seen}
        told = [[tuple(mesh) for mesh in summary["meshes"]] for summary in summaries]
        meshes = list(dict.fromkeys(mesh for of_rank in told for mesh in of_rank))
        place = {mesh: number for number, mesh in enumerate(meshes)}
        meshes_of = tuple(tuple(place[mesh] for mesh in of_rank) for of_rank in told)
        kinds = tuple(number[digest] for digest in digests)
        return cls(kinds, frozenset(by_rank), tuple(meshes), meshes_of, know_kinds=max(kinds) == 0)

    def are_as(self, summarised: Shares) -> bool:
        """Whether these are what comes of others, of which only what ranks say at first is known."""
        return dataclasses.replace(summarised, know_kinds=True, kinds_of=self.kinds_of) == self

    def speaks(self, rank: int) -> bool:
        """Whether a rank is the one that says in detail what all of its kind have."""
        return self.kinds.index(self.kinds[rank]) == rank

    @property
    def need_details(self) -> bool:
        """Whether digests are not all that rank 0 has to know."""
        return not self.know_kinds or bool(self.by_rank)

    def detailed(self, details: Sequence[Mapping[str, Any]]) -> Shares:
        """The same, with what those of each kind have said in detail.

        Raises:
            UnsupportedValueError: two have different things under one name.
        """
        return self if self.know_kinds else self.of_kinds([said for said in details if "described" in said])

    def of_kinds(self, said_of_kinds: Sequence[Mapping[str, Any]]) -> Shares:
        """The same, with what ranks of each kind have, by the numbers of kinds.

        Raises:
            UnsupportedValueError: two have different things under one name.
        """
        kinds_of: dict[str, dict[str, int]] = collections.defaultdict(dict)
        first: dict[str, str] = {}
        for kind, said in enumerate(said_of_kinds):
            for key, text in said["described"].items():
                if first.setdefault(key, text) != text and key not in self.by_rank:
                    rank, other = (self.kinds.index(int(number)) for number in (kind, next(iter(kinds_of[key]))))
                    raise UnsupportedValueError(
                        f"{key}: rank {rank} has {text}, and rank {other} has {first[key]}. What ranks have under "
                        "one name has to be one thing; give them different names, or shard it as a DTensor."
                    )
                kinds_of[key][str(kind)] = said["mesh_of"].get(key, -1)
        for key, on in kinds_of.items():
            if -1 in on.values() and len(set(on.values())) > 1:
                raise UnsupportedValueError(
                    f"{key}: some ranks have it on a mesh that others are not in, and some not. What ranks have under "
                    "one name has to be one thing; give them different names."
                )
        shared = {key: kinds for key, kinds in kinds_of.items() if len(kinds) > 1 and key != OBJECT_GRAPH_KEY}
        return dataclasses.replace(self, know_kinds=True, kinds_of=shared)

    def message(self) -> dict[str, Any]:
        """For the other ranks."""
        return {**dataclasses.asdict(self), "by_rank": sorted(self.by_rank)}

    @classmethod
    def heard(cls, message: Mapping[str, Any]) -> Shares:
        """What another rank has said by `message`."""
        meshes, meshes_of = (tuple(map(tuple, message[name])) for name in ("meshes", "meshes_of"))
        return cls(
            tuple(message["kinds"]),
            frozenset(message["by_rank"]),
            meshes,
            meshes_of,
            message["know_kinds"],
            message["kinds_of"],
        )

    def shapes_of(self, details: Sequence[Mapping[str, Any]]) -> Shapes:
        """Of the values by rank that are not of one shape in all ranks, or among which are empty strings, which shape
        each rank has; None for ranks that have none.

        Raises:
            UnsupportedValueError: two are not of one type.
        """
        _check_tensors(details)
        found: Shapes = {}
        for key in sorted(self.by_rank):
            shapes = [
                said["tensors"][key][1] if key in said["tensors"] else [] if key in said["states"] else None
                for said in details
            ]
            if shapes.count(shapes[0]) < len(shapes) or "" in (said["states"].get(key) for said in details):
                found[key] = shapes
        return found

    def of_all(self, record: bytes, details: Sequence[Mapping[str, Any]], shapes: Shapes) -> Rows:
        """What rank 0 writes for all: the record of the graph, and of states by rank what is no tensor, or is empty in
        all ranks.

        Args:
            record: that of all; see `record_of_all`.
            details: what the ranks have said in detail.
            shapes: see `shapes_of`.
        """
        rows = Rows([], [], {})
        for key in sorted(self.by_rank):
            if key in shapes:
                rows.add(by_rank_shapes_key(key), json.dumps(shapes[key]).encode())
            dtypes = [said["tensors"][key][0] for said in details if key in said["tensors"]]
            if not dtypes:
                strings = np.empty(len(self.kinds), dtype=object)
                strings[:] = [base64.b64decode(said["states"].get(key, "")) for said in details]
                rows.add(by_rank_key(key), strings)
            elif key in shapes and not sum(_lengths(shapes[key])):
                rows.add(by_rank_key(key), torch.empty(0, dtype=getattr(torch, dtypes[0]), device="cpu"))
        rows.add(OBJECT_GRAPH_KEY, record)
        return rows

    def record_of_all(self, records: Sequence[bytes]) -> bytes:
        """The record of the graph of all ranks, from those of each kind."""
        if len(records) == 1 and not self.by_rank:
            return records[0]
        return _native.union_of_graphs(list(records), {key: by_rank_key(key) for key in self.by_rank})

    def rows(self, offer: Offer, rank: int, shapes: Shapes, recipe: Recipe | None = None) -> Rows:
        """What a rank writes of what it has.

        Args:
            offer: what it has.
            rank: which rank this is.
            shapes: see `shapes_of`.
            recipe: that of these shares, if it is known.
        """
        rows = (recipe or self.recipe(offer, rank)).rows_of(offer)
        own = Rows([], [], {})
        for key, value in offer.by_rank(self):
            if isinstance(value, torch.Tensor) and key not in shapes:
                own.add(by_rank_key(key), *_as_row(value, rank, len(self.kinds)))
            elif isinstance(value, torch.Tensor) and value.numel():
                own.add(by_rank_key(key), *_as_run(value, rank, _lengths(shapes[key])))
        return rows.followed_by(own) if own.keys else rows

    def recipe(self, offer: Offer, rank: int) -> Recipe:
        """Which of its values a rank writes, but for those by rank."""
        recipe = Recipe([], [], {}, {}, [])
        owners = _Owners()
        holders: dict[tuple[str, ...], tuple[int, ...]] = {}
        # All ranks that have a value come to it in this order, whatever else they have.
        for row in sorted(range(len(offer.keys)), key=offer.keys.__getitem__):
            key, value = offer.keys[row], offer.values[row]
            if key == OBJECT_GRAPH_KEY or key in self.by_rank:
                continue
            if is_dtensor(value):
                if rank in self._writing_mesh(key, value, offer, rank, owners, holders):
                    parts = list(_own_parts(value, offer, rank, owners))
                    for make, part in parts:
                        recipe.add(key, row, make, part)
                    recipe.wholes.extend([row] if parts else ())
            elif isinstance(value, torch.nn.Parameter) or (_SLOT in key and isinstance(value, torch.Tensor)):
                if owners.choose(self._holders(key, rank, holders), value.nbytes) == rank:
                    recipe.add(key, row)
            elif self._holders(key, rank, holders)[0] == rank:
                recipe.add(key, row)
        return recipe

    def _holders(self, key: str, rank: int, known: dict[tuple[str, ...], tuple[int, ...]]) -> tuple[int, ...]:
        """The ranks that have a value, of which the given one is one; for kinds that have been asked for, by what is
        known."""
        kinds = tuple(self.kinds_of.get(key, ()))
        if (found := known.get(kinds)) is None:
            wanted = set(map(int, kinds)) or {self.kinds[rank]}
            found = known[kinds] = tuple(other for other, kind in enumerate(self.kinds) if kind in wanted)
        return found

    def _writing_mesh(
        self,
        key: str,
        tensor: DTensor,
        offer: Offer,
        rank: int,
        owners: _Owners,
        known: dict[tuple[str, ...], tuple[int, ...]],
    ) -> Sequence[int]:
        """The ranks that write a tensor, of which there may be the whole on several meshes."""
        mesh_of = offer.offered.mesh_of
        if key not in mesh_of:
            return offer.ranks_of(tensor)
        number_in = self.kinds_of.get(key) or {str(self.kinds[rank]): mesh_of[key]}
        holders = self._holders(key, rank, known)
        meshes = {self.meshes[self.meshes_of[other][number_in[str(self.kinds[other])]]] for other in holders}
        # By the meshes, not by ranks of them: those may have values together that the rest of the meshes do not see.
        return owners.choose(tuple(sorted(meshes)), tensor.numel() * tensor.element_size())


def _own_parts(
    tensor: DTensor, offer: Offer, rank: int, owners: _Owners
) -> Iterator[tuple[_Make | None, TensorSlice | None]]:
    """What a rank writes of a tensor that its mesh writes, and how it is made of the local tensor."""
    if not tensor.numel():
        if rank == min(offer.ranks_of(tensor)):
            yield functools.partial(_nothing_of_shape, tuple(tensor.shape)), None
        return
    boxes = local_boxes_of(tensor)
    num_bytes = sum(local_box.box.num_elements for local_box in boxes) * tensor.element_size()
    if owners.choose(offer.copies_of(tensor), num_bytes) == rank:
        yield from ((local_box.view if len(boxes) > 1 else None, local_box.box) for local_box in boxes)


def _nothing_of_shape(shape: tuple[int, ...], local: torch.Tensor) -> torch.Tensor:
    return torch.empty(shape, dtype=local.dtype, device="cpu")


def _check_tensors(details: Sequence[Mapping[str, Any]]) -> None:
    """Refuses tensors of states by rank that are not of one type: they could not be parts of one."""
    first: dict[str, tuple[int, str]] = {}
    for rank, said in enumerate(details):
        kinds = {key: f"a tensor of {dtype}" for key, (dtype, _) in said["tensors"].items()}
        for key, kind in (*kinds.items(), *((key, "a string") for key in said["states"])):
            other, its = first.setdefault(key, (rank, kind))
            if its != kind:
                raise UnsupportedValueError(
                    f"{key}: in the state of rank {rank} it is {kind}, and in that of rank {other} {its}. What each "
                    "rank has for itself has to be of one type."
                )


class _Owners:
    """Who of several writes what all of them have. Each of them sees the same values in the same order."""

    def __init__(self) -> None:
        self._loads: dict[tuple[Any, ...], list[tuple[int, int]]] = {}

    def choose(self, several: tuple[T, ...], num_bytes: int) -> T:
        """The one that has the least to write so far, the first of them where there are more."""
        if (loads := self._loads.get(several)) is None:
            loads = self._loads[several] = [(0, place) for place in range(len(several))]
        load, place = loads[0]
        heapq.heapreplace(loads, (load + num_bytes, place))
        return several[place]


def _lengths(shapes: Sequence[Sequence[int] | None]) -> list[int]:
    return [0 if shape is None else math.prod(shape) for shape in shapes]


def _as_run(value: torch.Tensor, rank: int, lengths: Sequence[int]) -> tuple[torch.Tensor, TensorSlice]:
    """A tensor of one rank as its part of those of all, where these are of several shapes."""
    return value.reshape(-1), TensorSlice.box((sum(lengths),), (sum(lengths[:rank]),), (lengths[rank],))


def _as_row(value: torch.Tensor, rank: int, size: int) -> tuple[torch.Tensor, TensorSlice]:
    """A tensor of one rank as its part of those of all."""
    shape = tuple(value.shape)
    part = TensorSlice.box((size, *shape), (rank, *(0 for _ in shape)), (1, *shape))
    return value[None], part


def _state_of(key: str) -> str:
    """The key of the state that a tensor is in, if it is in one."""
    path, _, _ = key.partition("/.ATTRIBUTES/")
    return attribute_key(path.rpartition("/")[0], PYTHON_STATE)
