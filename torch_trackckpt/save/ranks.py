"""Which rank writes what.

    replicated   a parameter, or what an optimizer keeps for one, is the same on all ranks that have it, and one of them
                 writes it, so that all write about as much. Other tensors (of a batch normalisation, say)
                 are taken from the first rank that has them, as DistributedDataParallel does.
    sharded      of a DTensor each rank has a part, which is written as a slice; of several equal parts one is, and of
                 several meshes that each have all of it, one writes
    by rank      a python state (random numbers, the position of a data loader) that is not the same on all ranks is
                 kept for each of them, under a key of its own: its tensors are slices of one with a dimension more;
                 its JSON goes to rank 0, which writes that of all, because TensorFlow reads no slices of strings

What every rank decides for itself here, from what it has and what rank 0 has told it, comes to the same on all of them.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import hashlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from torch_trackckpt import _native
from torch_trackckpt.bundle.dtypes import data_type_of_torch
from torch_trackckpt.bundle.memory import memory_obstacle
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.distributed.dtensor import copies_of, is_dtensor, parts_of, ranks_of
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.graph.keys import attribute_key, by_rank_key
from torch_trackckpt.graph.walk import Snapshot
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY, PYTHON_STATE, Value

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Offer", "Rows", "Shares"]

_SLOT = "/.OPTIMIZER_SLOT/"

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


class Offer:
    """What a rank has to save.

    Args:
        snapshot: its graph and its values.
        size: how many ranks there are.
    """

    def __init__(self, snapshot: Snapshot, size: int) -> None:
        self.keys = snapshot.keys
        self.values = snapshot.values
        self.record = snapshot.graph.record
        self.state_keys = frozenset(snapshot.state_keys())
        # To ask a mesh takes torch much longer than anything here.
        self._ranks: dict[int, tuple[int, ...]] = {}
        self._copies: dict[tuple[int, Any], tuple[int, ...]] = {}
        self.meshes: list[tuple[int, ...]] = []
        """The ranks of meshes that not all ranks are in: others may have the same."""
        self.mesh_of: dict[str, int] = {}
        """For DTensors on one of these, which."""
        for key, value in zip(self.keys, self.values, strict=True):
            if is_dtensor(value) and len(ranks := self.ranks_of(value)) < size:
                if ranks not in self.meshes:
                    self.meshes.append(ranks)
                self.mesh_of[key] = self.meshes.index(ranks)

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
        digest = hashlib.blake2b(self.record, digest_size=16)
        digest.update(repr([list(self.described().items()), self.mesh_of]).encode())
        states = {
            key: _digest(key, value)
            for key, value in zip(self.keys, self.values, strict=True)
            if key in self.state_keys and not is_dtensor(value)
        }
        return {"digest": digest.hexdigest(), "states": states, "meshes": self.meshes}

    def details(self, shares: Shares, rank: int) -> dict[str, Any]:
        """What rank 0 has to know as well, where ranks have different things.

        Args:
            shares: what it has found so far.
            rank: which rank this is.
        """
        said: dict[str, Any] = {"states": {}, "tensors": {}}
        for key, value in zip(self.keys, self.values, strict=True):
            if key in shares.by_rank and isinstance(value, bytes):
                said["states"][key] = base64.b64encode(value).decode()
            elif key in shares.by_rank and isinstance(value, torch.Tensor):
                said["tensors"][key] = [str(value.dtype).removeprefix("torch."), list(value.shape)]
            elif key in shares.by_rank:
                raise UnsupportedValueError(
                    f"{key}: arrays of strings that are not the same on all ranks cannot be kept by rank; return them "
                    "as lists from state_dict()."
                )
        # Ranks of one kind have the same to say of the rest.
        if not shares.are_of_one_kind and shares.speaks(rank):
            said["described"] = self.described()
            said["mesh_of"] = self.mesh_of
            said["record"] = base64.b64encode(self.record).decode()
        return said

    def described(self) -> dict[str, str]:
        """The type and shape of each value, by its key."""
        return {key: _described(key, value) for key, value in zip(self.keys, self.values, strict=True)}


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
        return cls(tuple(number[digest] for digest in digests), frozenset(by_rank), tuple(meshes), meshes_of)

    @property
    def are_of_one_kind(self) -> bool:
        """Whether all ranks have the same objects."""
        return max(self.kinds) == 0

    def speaks(self, rank: int) -> bool:
        """Whether a rank is the one that says in detail what all of its kind have."""
        return self.kinds.index(self.kinds[rank]) == rank

    @property
    def need_details(self) -> bool:
        """Whether digests are not all that rank 0 has to know."""
        return not self.are_of_one_kind or bool(self.by_rank)

    def detailed(self, details: Sequence[Mapping[str, Any]]) -> Shares:
        """The same, with what those of each kind have said in detail.

        Raises:
            UnsupportedValueError: two have different things under one name.
        """
        _check_tensors(details)
        kinds_of: dict[str, dict[str, int]] = collections.defaultdict(dict)
        first: dict[str, str] = {}
        for rank, said in enumerate(details):
            for key, described in said.get("described", {}).items():
                if first.setdefault(key, described) != described and key not in self.by_rank:
                    other = self.kinds.index(int(next(iter(kinds_of[key]))))
                    raise UnsupportedValueError(
                        f"{key}: rank {rank} has {described}, and rank {other} has {first[key]}. What ranks have under "
                        "one name has to be one thing; give them different names, or shard it as a DTensor."
                    )
                kinds_of[key][str(self.kinds[rank])] = said["mesh_of"].get(key, -1)
        for key, on in kinds_of.items():
            if -1 in on.values() and len(set(on.values())) > 1:
                raise UnsupportedValueError(
                    f"{key}: some ranks have it on a mesh that others are not in, and some not. What ranks have under "
                    "one name has to be one thing; give them different names."
                )
        shared = {key: kinds for key, kinds in kinds_of.items() if len(kinds) > 1 and key != OBJECT_GRAPH_KEY}
        return dataclasses.replace(self, kinds_of=shared)

    def message(self) -> dict[str, Any]:
        """For the other ranks."""
        return {**dataclasses.asdict(self), "by_rank": sorted(self.by_rank)}

    @classmethod
    def heard(cls, message: Mapping[str, Any]) -> Shares:
        """What another rank has said by `message`."""
        meshes, meshes_of = (tuple(map(tuple, message[name])) for name in ("meshes", "meshes_of"))
        return cls(tuple(message["kinds"]), frozenset(message["by_rank"]), meshes, meshes_of, message["kinds_of"])

    def of_all(self, offer: Offer, details: Sequence[Mapping[str, Any]]) -> Rows:
        """What rank 0 writes for all: the record of the graph, states by rank, and zeros for the tensors of states that
        some ranks do not have, so that every tensor is whole.

        Args:
            offer: that of rank 0.
            details: what the ranks have said in detail.
        """
        rows = Rows([], [], {})
        size = len(self.kinds)
        for key in sorted(self.by_rank):
            tensors = {rank: said["tensors"][key] for rank, said in enumerate(details) if key in said["tensors"]}
            if not tensors:
                strings = np.empty(size, dtype=object)
                strings[:] = [base64.b64decode(said["states"].get(key, "")) for said in details]
                rows.add(by_rank_key(key), strings)
                continue
            dtype, shape = next(iter(tensors.values()))
            for rank in set(range(size)) - tensors.keys():
                zeros = torch.zeros(shape, dtype=getattr(torch, dtype), device="cpu")
                rows.add(by_rank_key(key), *_of_rank(zeros, rank, size))
        rows.add(OBJECT_GRAPH_KEY, self._record(offer, details))
        return rows

    def _record(self, offer: Offer, details: Sequence[Mapping[str, Any]]) -> bytes:
        """The record of the graph of all ranks."""
        records = [base64.b64decode(said["record"]) for said in details if "record" in said]
        if len(records) <= 1 and not self.by_rank:
            return offer.record
        return _native.union_of_graphs(records or [offer.record], {key: by_rank_key(key) for key in self.by_rank})

    def rows(self, offer: Offer, rank: int) -> Rows:
        """What a rank writes of what it has."""
        rows = Rows([], [], {})
        for row in self._of(offer, rank):
            rows.add(*row)
        written = set(rows.keys)
        for key, value in zip(offer.keys, offer.values, strict=True):
            if key in written and is_dtensor(value):
                rows.wholes[key] = value
        return rows

    def _of(self, offer: Offer, rank: int) -> Iterator[tuple[str, Value, TensorSlice | None]]:
        owners = _Owners()
        holders: dict[tuple[str, ...], tuple[int, ...]] = {}
        # All ranks that have a value come to it in this order, whatever else they have.
        for key, value in sorted(zip(offer.keys, offer.values, strict=True), key=lambda pair: pair[0]):
            if key == OBJECT_GRAPH_KEY:
                continue
            if key in self.by_rank:
                if isinstance(value, torch.Tensor):
                    yield by_rank_key(key), *_of_rank(value, rank, len(self.kinds))
            elif is_dtensor(value):
                if rank in self._writing_mesh(key, value, offer, rank, owners, holders):
                    yield from ((key, view, part) for view, part in _own_parts(value, offer, rank, owners))
            elif isinstance(value, torch.nn.Parameter) or (_SLOT in key and isinstance(value, torch.Tensor)):
                if owners.choose(self._holders(key, rank, holders), value.nbytes) == rank:
                    yield key, value, None
            elif self._holders(key, rank, holders)[0] == rank:
                yield key, value, None

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
        if key not in offer.mesh_of:
            return offer.ranks_of(tensor)
        number_in = self.kinds_of.get(key) or {str(self.kinds[rank]): offer.mesh_of[key]}
        holders = self._holders(key, rank, known)
        meshes = {self.meshes[self.meshes_of[other][number_in[str(self.kinds[other])]]] for other in holders}
        # By the meshes, not by ranks of them: those may have values together that the rest of the meshes do not see.
        return owners.choose(tuple(sorted(meshes)), tensor.numel() * tensor.element_size())


def _own_parts(
    tensor: DTensor, offer: Offer, rank: int, owners: _Owners
) -> Iterator[tuple[torch.Tensor, TensorSlice | None]]:
    """What a rank writes of a tensor that its mesh writes."""
    if not tensor.numel():
        if rank == min(offer.ranks_of(tensor)):
            yield torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"), None
        return
    parts = parts_of(tensor)
    if owners.choose(offer.copies_of(tensor), sum(view.nbytes for _, view in parts)) == rank:
        yield from ((view, part) for part, view in parts)


def _check_tensors(details: Sequence[Mapping[str, Any]]) -> None:
    """Refuses tensors of states by rank that are not of one type and shape: they could not be parts of one."""
    first: dict[str, tuple[int, Any]] = {}
    for rank, said in enumerate(details):
        for key, tensor in said["tensors"].items():
            other, its = first.setdefault(key, (rank, tensor))
            if its != tensor:
                raise UnsupportedValueError(
                    f"{key}: in the state of rank {rank} it is a tensor of {tensor[0]} {tensor[1]}, and in that of "
                    f"rank {other} of {its[0]} {its[1]}. What each rank has for itself has to be of one type and "
                    "shape, or no tensor: lists of numbers, say."
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


def _of_rank(value: torch.Tensor, rank: int, size: int) -> tuple[torch.Tensor, TensorSlice]:
    """A tensor of one rank as its part of those of all."""
    shape = tuple(value.shape)
    part = TensorSlice.box((size, *shape), (rank, *(0 for _ in shape)), (1, *shape))
    return value[None], part


def _state_of(key: str) -> str:
    """The key of the state that a tensor is in, if it is in one."""
    path, _, _ = key.partition("/.ATTRIBUTES/")
    return attribute_key(path.rpartition("/")[0], PYTHON_STATE)


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
    if not isinstance(value, torch.Tensor):
        return "a string" if isinstance(value, bytes) else f"strings {list(value.shape)}"
    if not is_dtensor(value) and (obstacle := memory_obstacle(value)):
        raise UnsupportedValueError(f"{key}: {obstacle}")
    try:
        dtype = data_type_of_torch(value.dtype)
    except UnsupportedValueError as error:
        raise UnsupportedValueError(f"{key}: {error}") from error
    kind = "a DTensor of " if is_dtensor(value) else "a parameter of " if isinstance(value, torch.nn.Parameter) else ""
    return f"{kind}{dtype} {list(value.shape)}"
