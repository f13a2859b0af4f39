"""What modules make of values that an older version of them saved: torch's loading of a ``state_dict``, rehearsed.

A module whose parameters had other names once overrides ``_load_from_state_dict``, or has a ``load_state_dict``
pre-hook, and turns the old entries of a ``state_dict`` into those of today before torch copies them. The rehearsal
does what ``load_state_dict`` does, in its order, but to stand-ins: objects of the same classes and with the same
attributes, whose tensors are on the meta device. The values are stand-ins as well at first, which is enough to see
where each of them goes.

Where a module does more than rename, in that it computes values, writes into tensors itself, or raises, the rehearsal
is repeated with real values for that module: what it has touched among the stored values is read, and its own tensors,
with those below that it has touched, are copies of the live ones. A live module is never changed, unless a function
that closes over it does so.

A module that also has ``state_dict`` write other entries than it has parameters and buffers stores in a form of its
own, which no checkpoint of this package has, so nothing of it is asked to load that.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from torch_trackckpt.adapters.stand_ins import (
    Cast,
    Watch,
    children_of_module,
    live_tensors,
    own_hooks,
    own_tensors,
    storage_of,
)
from torch_trackckpt.errors import RestoreError

__all__ = ["Rehearsal", "can_migrate", "rehearse_loading"]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that torch itself needs; stand-ins have others."""

_WARNING_OF_META = "for .*: copying from a non-meta parameter in the checkpoint to a meta parameter"
_ERRORS_OF_COPYING = ("size mismatch for ", "While copying the parameter named ", "While swapping the parameter named ")
"""What torch says where values do not fit. A restore checks that itself, with all other values."""

Read = Callable[[str], torch.Tensor]
"""Gives the stored value of a name."""


@dataclasses.dataclass
class Rehearsal:
    """Where stored values go, by dotted names below the module that was asked."""

    renamed: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name of today -> name in the file; also for what has kept its name, and what no live tensor takes."""
    computed: dict[str, torch.Tensor | None] = dataclasses.field(default_factory=dict)
    """Name of today -> the value that a module made; None where the live tensor keeps what it has."""
    attributes: list[tuple[nn.Module, str, object]] = dataclasses.field(default_factory=list)
    """Live module, name and value of what modules keep otherwise than as parameters and buffers."""


def can_migrate(module: nn.Module) -> bool:
    """Whether a module has a say in how a ``state_dict`` of an older version is loaded."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule) or kind.state_dict is not nn.Module.state_dict:
        return False
    if kind._save_to_state_dict not in (nn.Module._save_to_state_dict, LazyModuleMixin._save_to_state_dict):
        return False
    return kind._load_from_state_dict is not nn.Module._load_from_state_dict or bool(own_hooks(module))


def rehearse_loading(
    module: nn.Module,
    stored: Mapping[str, torch.Tensor],
    versions: Mapping[str, int],
    read: Read,
    readable: Callable[[str], str],
) -> Rehearsal:
    """Finds out what a module and those below it make of stored values.

    Args:
        module: a live module, which is not changed.
        stored: by name, tensors on the meta device of the stored dtypes and shapes, each with a storage of its own.
        versions: by prefix, the versions of the modules that were saved.
        read: gives the value in place of such a tensor; called for those only that a module computes with.
        readable: what messages call the module with a prefix.

    Raises:
        RestoreError: a module raises or refuses the values, or leaves something that is no tensor; or it computes with
            tensors of its own that are on the meta device.
        What ``read`` raises.
    """
    needs = _Needs()
    while True:
        values = {name: read(name) if name in needs.values else value for name, value in stored.items()}
        attempt = _Attempt(module, values, versions, needs, readable)
        if attempt.is_final():
            return attempt.outcome()


@dataclasses.dataclass
class _Needs:
    """What has to be real in the next attempt."""

    values: set[str] = dataclasses.field(default_factory=set)
    """Names of stored values."""
    tensors: set[int] = dataclasses.field(default_factory=set)
    """Identities of live tensors."""

    def add(self, values: set[str], tensors: set[int]) -> bool:
        """Whether this is more than was needed before."""
        is_new = not (values <= self.values and tensors <= self.tensors)
        self.values |= values
        self.tensors |= tensors
        return is_new


class _Attempt:
    """One rehearsal.

    Args:
        module: the live module.
        values: the stored values by name, real or on the meta device.
        versions: by prefix.
        needs: what is real in this attempt; what turns out to be needed beyond is added.
        readable: what messages call the module with a prefix.
    """

    def __init__(
        self,
        module: nn.Module,
        values: Mapping[str, torch.Tensor],
        versions: Mapping[str, int],
        needs: _Needs,
        readable: Callable[[str], str],
    ) -> None:
        self._values, self._versions, self._needs, self._readable = values, versions, needs, readable
        self._source = {storage_of(value): name for name, value in values.items()}
        self._cast = Cast(module, needs.tensors)
        self._written: set[int | None] = set()
        """Storages of stored values that were written to."""
        self._filled: dict[str, torch.Tensor] = {}
        """By name, tensors of stand-ins that modules have filled in their own way."""
        self._left: dict[str, object] = {}
        self._copied: dict[str, tuple[str | None, torch.Tensor]] = {}
        """By name, what torch copies into a module: the stored value that it is, and the value as it is then."""
        self._attributes: list[tuple[nn.Module, str, object]] = []
        self._is_repeated = False
        with warnings.catch_warnings(), torch.no_grad():
            warnings.filterwarnings("ignore", message=_WARNING_OF_META)
            self._load(self._cast.root, OrderedDict(values), "")

    def is_final(self) -> bool:
        """Whether nothing is needed that was not real."""
        return not self._is_repeated

    def _load(self, module: nn.Module, state: OrderedDict[str, Any], prefix: str) -> None:
        """What torch does for each module: it looks at the entries first, then its children at theirs."""
        if can_migrate(module) and not self._stores_in_its_own_form(module, state, prefix):
            self._let_migrate(module, state, prefix)
        else:
            self._note_copies(module, state, prefix)
        self._note_values(module, state, prefix)
        state = OrderedDict((key, value) for key, value in state.items() if isinstance(key, str))
        given: set[str] = set()
        for name, child in children_of_module(module):
            if id(child) in self._cast.live:
                below = f"{prefix}{name}."
                entries = OrderedDict((key, value) for key, value in state.items() if key.startswith(below))
                given |= entries.keys()
                self._load(child, entries, below)
        # An entry that is no module's business here reaches none, as in torch.
        self._left |= {key: value for key, value in state.items() if key.startswith(prefix) and key not in given}

    def _stores_in_its_own_form(self, module: nn.Module, state: Mapping[str, Any], prefix: str) -> bool:
        if not module._state_dict_hooks:
            return False
        shown: Any = OrderedDict(state)
        try:
            for hook in module._state_dict_hooks.values():
                returned = hook(module, shown, prefix, {"version": module._version})
                shown = shown if returned is None else returned
        except Exception:
            return True
        return shown.keys() != state.keys() or any(shown[key] is not value for key, value in state.items())

    def _let_migrate(self, module: nn.Module, state: OrderedDict[str, Any], prefix: str) -> None:
        before, attributes = dict(state), dict(vars(module))
        own = own_tensors(module)
        storages = {name: storage_of(tensor) for name, tensor in own.items()}
        metadata = {"version": self._versions[prefix]} if prefix in self._versions else {}
        errors: list[str] = []
        failure: Exception | None = None
        with Watch(self._cast.storages) as watch:
            try:
                module._load_from_state_dict(state, prefix, metadata, True, [], [], errors)
            except Exception as error:
                failure = error
        refusals = [text for text in errors if not str(text).startswith(_ERRORS_OF_COPYING)]
        self._note_copies(module, state, prefix)
        filled = self._filled_by(module, state, prefix, own, storages, watch)
        written = watch.written.keys() & self._source.keys()
        kept = {
            name: value
            for name, value in vars(module).items()
            if attributes.get(name, self) is not value and name not in _OF_EVERY_MODULE
        }
        known = {id(value) for value in before.values()}
        has_made = [key for key, value in state.items() if id(value) not in known and self._is_made(key, value)]
        if failure or refusals or filled or written or has_made or kept:
            used = watch.touched | written | set(map(storage_of, (*kept.values(), *filled.values())))
            # What was loaded into a tensor that is used then is used as well.
            loaded = [state.get(prefix + name) for name in own if storages[name] in used or prefix + name in filled]
            # Its own tensors may have decided without an operator that shows it, such as by their device.
            used |= {*map(storage_of, loaded), *storages.values()}
            if self._needs_more(used):
                self._is_repeated = True
            elif failure or refusals:
                everything = set(map(storage_of, (*before.values(), *live_tensors(module).values())))
                if self._needs_more(everything):
                    self._is_repeated = True
                elif not self._is_repeated:
                    raise self._refusal(module, prefix, failure or "; ".join(map(str, refusals))) from failure
        self._filled |= filled
        self._written |= written
        self._attributes += [
            (self._cast.live[id(module)], name, self._cast.original(value)) for name, value in kept.items()
        ]

    def _needs_more(self, storages: set[int | None]) -> bool:
        """Has what is in these storages be real the next time; whether it is not yet."""
        values = {self._source[storage] for storage in storages & self._source.keys()}
        return self._needs.add(values, self._cast.originals_in(storages))

    def _note_copies(self, module: nn.Module, state: Mapping[str, Any], prefix: str) -> None:
        """What torch copies comes after whatever a module further up has filled in."""
        for name, tensor in own_tensors(module).items():
            if _fits(state.get(prefix + name), tensor):
                self._filled.pop(prefix + name, None)

    def _note_values(self, module: nn.Module, state: Mapping[str, Any], prefix: str) -> None:
        """A part may change a value in place that the module above has got by then, under another name."""
        for name, tensor in own_tensors(module).items():
            value = state.get(prefix + name)
            if isinstance(value, torch.Tensor) and _fits(value, tensor):
                source = self._source_of(value)
                is_computed = source is None and not value.is_meta and not self._is_kept(prefix + name, value)
                self._copied[prefix + name] = source, value.clone() if is_computed else value

    def _filled_by(
        self,
        module: nn.Module,
        state: Mapping[str, Any],
        prefix: str,
        own: Mapping[str, torch.Tensor],
        storages: Mapping[str, int | None],
        watch: Watch,
    ) -> dict[str, torch.Tensor]:
        """Tensors of stand-ins that have got values otherwise than by one copy of the entry of their name."""
        copies = Counter(storages[name] for name, tensor in own.items() if _fits(state.get(prefix + name), tensor))
        changed = {storage for storage, number in watch.written.items() if number != copies[storage]}
        changed &= self._cast.storages
        now = own_tensors(module)
        filled = {
            prefix + name: now[name]
            for name in own
            if name in now and (now[name] is not own[name] or storage_of(now[name]) != storages[name])
        }
        return filled | {name: tensor for name, tensor in self._cast.tensors.items() if storage_of(tensor) in changed}

    def _is_made(self, name: str, value: object) -> bool:
        """Whether a value is neither a stored one nor what the tensor of this name has already."""
        return self._source_of(value) is None and not self._is_kept(name, value)

    def _source_of(self, value: object) -> str | None:
        """The stored value that a value is, perhaps detached or made a parameter."""
        name = self._source.get(storage_of(value))
        is_whole = name is not None and _is_same_view(value, self._values[name])
        return name if is_whole and storage_of(value) not in self._written else None

    def _is_kept(self, name: str, value: object) -> bool:
        tensor = self._cast.tensors.get(name)
        return tensor is not None and storage_of(value) == storage_of(tensor) and _is_same_view(value, tensor)

    def outcome(self) -> Rehearsal:
        """What has become of the stored values."""
        found = Rehearsal(attributes=self._attributes)
        for name, left in {**self._left, **self._filled}.items():
            source, value = self._copied.get(name, (self._source_of(left), left))
            value = self._filled.get(name, value)
            if name not in self._filled and source is not None:
                found.renamed[name] = source
            elif name not in self._filled and self._is_kept(name, value):
                found.computed[name] = None
            elif isinstance(value, torch.Tensor) and not value.is_meta:
                found.computed[name] = value.detach()
            elif name in self._cast.tensors:
                raise self._unusable(name, value)
        return found

    def _unusable(self, name: str, value: object) -> RestoreError:
        prefix, _, own_name = name.rpartition(".")
        prefix = prefix and prefix + "."
        if isinstance(value, torch.Tensor):
            what = (
                "is made from tensors of the module that are on the meta device and have no values; give the module "
                "its memory before the restore, by to_empty() and its initialisation"
            )
        else:
            what = f"is a {type(value).__name__}, not a tensor"
        return RestoreError(
            f"{self._readable(prefix)}: the value for {own_name} that its loading of older versions leaves {what}. "
            "Nothing has been restored."
        )

    def _refusal(self, module: nn.Module, prefix: str, reason: object) -> RestoreError:
        described = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)
        return RestoreError(
            f"{self._readable(prefix)}, a {type(module).__name__}, does not take what was stored, by its "
            f"_load_from_state_dict or a load_state_dict pre-hook: {described}\nNothing has been restored."
        )


def _fits(value: object, tensor: torch.Tensor) -> bool:
    """Whether torch copies an entry into a tensor."""
    if not isinstance(value, torch.Tensor) or is_lazy(tensor) or is_lazy(value):
        return False
    return value.shape == tensor.shape or (tensor.dim() == 0 and tuple(value.shape) == (1,))


def _is_same_view(one: Any, other: torch.Tensor) -> bool:
    return bool(
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.storage_offset() == other.storage_offset()
    )
