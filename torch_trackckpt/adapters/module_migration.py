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

import contextlib
import copy
import dataclasses
import functools
import types
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from torch_trackckpt.adapters.late_children import ModuleWaiting
from torch_trackckpt.adapters.module import ModuleAdapter
from torch_trackckpt.adapters.registry import adapt
from torch_trackckpt.adapters.tensor import is_made_of_tensors
from torch_trackckpt.errors import RestoreError

__all__ = ["Rehearsal", "can_migrate", "live_parts", "live_tensors", "rehearse_loading"]

_COPIED = (dict, list, set, OrderedDict)
"""Attributes of these types are copied one level deep, so that a stand-in may change its own."""

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
    return kind._load_from_state_dict is not nn.Module._load_from_state_dict or bool(_own_hooks(module))


def live_parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A module and all below it, each with its dotted name and a dot behind it: the prefix of what it has.

    They come as ``load_state_dict`` reaches them, a module with two names twice; without wrappers, scripted
    modules, and those that have an adapter of their own.
    """
    stack: list[tuple[str, nn.Module, frozenset[int]]] = [("", _unwrapped(module), frozenset())]
    while stack:
        prefix, part, above = stack.pop()
        yield prefix, part
        above = above | {id(part)}
        children = [(f"{prefix}{name}.", child) for name, child in _children(part) if id(child) not in above]
        stack += [(name, child, above) for name, child in reversed(children)]


def live_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Everything that ``load_state_dict`` loads into, by name."""
    return {prefix + name: tensor for prefix, part in live_parts(module) for name, tensor in _own_tensors(part).items()}


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
        self._source = {_storage(value): name for name, value in values.items()}
        self._cast = _Cast(_unwrapped(module), needs.tensors)
        self._written: set[int | None] = set()
        """Storages of stored values that were written to."""
        self._filled: dict[str, torch.Tensor] = {}
        """By name, tensors of stand-ins that modules have filled in their own way."""
        self._left: dict[str, object] = {}
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
        state = OrderedDict((key, value) for key, value in state.items() if isinstance(key, str))
        given: set[str] = set()
        for name, child in _children(module):
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
        own = _own_tensors(module)
        storages = {name: _storage(tensor) for name, tensor in own.items()}
        metadata = {"version": self._versions[prefix]} if prefix in self._versions else {}
        errors: list[str] = []
        failure: Exception | None = None
        with _Watch(self._cast.storages) as watch:
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
            used = watch.touched | written | set(map(_storage, (*kept.values(), *filled.values())))
            # What was loaded into a tensor that is used then is used as well.
            loaded = [state.get(prefix + name) for name in own if storages[name] in used or prefix + name in filled]
            # Its own tensors may have decided without an operator that shows it, such as by their device.
            used |= {*map(_storage, loaded), *storages.values()}
            if self._needs_more(used):
                self._is_repeated = True
            elif failure or refusals:
                everything = set(map(_storage, (*before.values(), *live_tensors(module).values())))
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
        for name, tensor in _own_tensors(module).items():
            if _fits(state.get(prefix + name), tensor):
                self._filled.pop(prefix + name, None)

    def _filled_by(
        self,
        module: nn.Module,
        state: Mapping[str, Any],
        prefix: str,
        own: Mapping[str, torch.Tensor],
        storages: Mapping[str, int | None],
        watch: _Watch,
    ) -> dict[str, torch.Tensor]:
        """Tensors of stand-ins that have got values otherwise than by one copy of the entry of their name."""
        copies = Counter(storages[name] for name, tensor in own.items() if _fits(state.get(prefix + name), tensor))
        changed = {storage for storage, number in watch.written.items() if number != copies[storage]}
        changed &= self._cast.storages
        now = _own_tensors(module)
        filled = {
            prefix + name: now[name]
            for name in own
            if name in now and (now[name] is not own[name] or _storage(now[name]) != storages[name])
        }
        return filled | {name: tensor for name, tensor in self._cast.tensors.items() if _storage(tensor) in changed}

    def _is_made(self, name: str, value: object) -> bool:
        """Whether a value is neither a stored one nor what the tensor of this name has already."""
        return self._source_of(value) is None and not self._is_kept(name, value)

    def _source_of(self, value: object) -> str | None:
        """The stored value that a value is, perhaps detached or made a parameter."""
        name = self._source.get(_storage(value))
        is_whole = name is not None and _is_same_view(value, self._values[name])
        return name if is_whole and _storage(value) not in self._written else None

    def _is_kept(self, name: str, value: object) -> bool:
        tensor = self._cast.tensors.get(name)
        return tensor is not None and _storage(value) == _storage(tensor) and _is_same_view(value, tensor)

    def outcome(self) -> Rehearsal:
        """What has become of the stored values."""
        found = Rehearsal(attributes=self._attributes)
        for name, value in {**self._left, **self._filled}.items():
            if name not in self._filled and (source := self._source_of(value)) is not None:
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


class _Cast:
    """The stand-ins for a module and all below it.

    Args:
        module: the live module.
        real: identities of live tensors that are copied with their values.
    """

    def __init__(self, module: nn.Module, real: set[int]) -> None:
        self._real = real
        self._of_module: dict[int, nn.Module] = {}
        self._of_tensor: dict[int, torch.Tensor] = {}
        self._live_tensors: dict[int, torch.Tensor] = {}
        self.live: dict[int, nn.Module] = {}
        """Identity of a stand-in -> live module."""
        parts = list(live_parts(module))
        for _, part in parts:
            self._stand_in(part)
        for _, part in parts:
            self._connect(part)
        self.root = self._of_module[id(module)]
        self.tensors = live_tensors(self.root)
        """By name."""
        self.storages = {_storage(tensor) for tensor in self._of_tensor.values()} - {None}

    def originals_in(self, storages: set[int | None]) -> set[int]:
        """Identities of the live tensors whose stand-ins are in these storages."""
        return {identity for identity, made in self._of_tensor.items() if _storage(made) in storages - {None}}

    def original(self, value: object) -> object:
        """The live tensor or module that a stand-in stands for; any other value itself."""
        if isinstance(value, nn.Module):
            return self.live.get(id(value), value)
        return self._live_tensors.get(id(value), value)

    def _stand_in(self, module: nn.Module) -> None:
        if id(module) in self._of_module:
            return
        made = object.__new__(type(module))
        attributes = vars(made)
        for name, value in vars(module).items():
            attributes[name] = copy.copy(value) if type(value) in _COPIED else value
        for name in ("_parameters", "_buffers"):
            attributes[name] = {
                own_name: None if tensor is None else self._tensor(tensor)
                for own_name, tensor in vars(module)[name].items()
            }
        # What is stored of it is no value of a state_dict.
        attributes["set_extra_state"] = _ignore
        self._of_module[id(module)] = made
        self.live[id(made)] = module

    def _connect(self, module: nn.Module) -> None:
        """Gives a stand-in its children and hooks."""
        attributes = vars(self._of_module[id(module)])
        attributes["_modules"] = {
            name: child if child is None else self._of_module.get(id(_unwrapped(child)), child)
            for name, child in module._modules.items()
        }
        attributes["_load_state_dict_pre_hooks"] = OrderedDict()
        for wrapped in _own_hooks(module):
            hook = self._rebound(getattr(wrapped, "hook", wrapped))
            with_module = getattr(wrapped, "with_module", False)
            self._of_module[id(module)]._register_load_state_dict_pre_hook(hook, with_module)  # type: ignore[no-untyped-call]

    def _rebound(self, hook: Any) -> Any:
        """The hook as one of stand-ins, where it is a method, or has a module among arguments that it was given."""
        if isinstance(hook, types.MethodType):
            return types.MethodType(hook.__func__, self._of_module.get(id(hook.__self__), hook.__self__))
        if isinstance(hook, functools.partial):
            given = [self._of_module.get(id(value), value) for value in hook.args]
            named = {name: self._of_module.get(id(value), value) for name, value in hook.keywords.items()}
            return functools.partial(self._rebound(hook.func), *given, **named)
        return hook

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in self._of_tensor:
            made = _copy_of(tensor, is_real=id(tensor) in self._real)
            vars(made).update(vars(tensor))
            self._of_tensor[id(tensor)] = made
            self._live_tensors[id(made)] = tensor
        return self._of_tensor[id(tensor)]


def _copy_of(tensor: torch.Tensor, *, is_real: bool) -> torch.Tensor:
    if is_lazy(tensor):
        kind: Any = UninitializedParameter if isinstance(tensor, nn.Parameter) else UninitializedBuffer
        lazy: torch.Tensor = kind(device="meta", dtype=tensor.data.dtype)
        return lazy
    if is_made_of_tensors(tensor):
        # Nothing is loaded into it here: what is stored of it is no entry of a state_dict.
        return tensor
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        memory = tensor.detach().clone() if is_real else torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            return torch.Tensor._make_subclass(type(tensor), memory, tensor.requires_grad)
        return memory


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees which tensors operators write to, and which they read beside torch's copy of an entry into a parameter.

    Args:
        parameters: storages of the tensors of stand-ins.
    """

    def __init__(self, parameters: set[int | None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters = parameters
        self.touched: set[int | None] = set()
        self.written: Counter[int | None] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To skip it, torch would load torch._dynamo, which takes seconds; nothing here is ever compiled.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        named = [(argument, kwargs.get(argument.name)) for argument in func._schema.arguments[len(args) :]]
        for argument, value in (*zip(func._schema.arguments, args, strict=False), *named):
            storages = {_storage(item) for item in (value if isinstance(value, (list, tuple)) else [value])} - {None}
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.written.update(storages)
            elif not self._is_only_passed_on(func, args):
                self.touched |= storages
        return func(*args, **kwargs)

    def _is_only_passed_on(self, func: Any, args: Any) -> bool:
        if func is torch.ops.aten.copy_.default:
            return _storage(args[0]) in self._parameters
        return func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


def _own_hooks(module: nn.Module) -> list[Any]:
    """The ``load_state_dict`` pre-hooks of a module that are neither this package's nor torch's for lazy modules."""
    return [
        wrapped
        for wrapped in module.__dict__.get("_load_state_dict_pre_hooks", {}).values()
        if not isinstance(hook := getattr(wrapped, "hook", wrapped), ModuleWaiting)
        and getattr(hook, "__func__", None) is not LazyModuleMixin._lazy_load_hook
    ]


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    found = [(name, _unwrapped(child)) for name, child in module._modules.items() if child is not None]
    return [
        (name, child)
        for name, child in found
        if isinstance(adapt(child), ModuleAdapter) and not isinstance(child, torch.jit.ScriptModule)
    ]


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of wrappers that have no node of their own."""
    adapter = adapt(module)
    return adapter.adapted if isinstance(adapter, ModuleAdapter) else module


def _own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """What ``load_state_dict`` loads into, of a module without those below it."""
    return {
        name: tensor
        for name, tensor in _registered(module)
        if name not in module._non_persistent_buffers_set and not is_made_of_tensors(tensor)
    }


def _registered(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    registered = (*module._parameters.items(), *module._buffers.items())
    return [(name, tensor) for name, tensor in registered if tensor is not None]


def _fits(value: object, tensor: torch.Tensor) -> bool:
    """Whether torch copies an entry into a tensor."""
    if not isinstance(value, torch.Tensor) or is_lazy(tensor) or is_lazy(value):
        return False
    return value.shape == tensor.shape or (tensor.dim() == 0 and tuple(value.shape) == (1,))


def _storage(value: object) -> int | None:
    """Tells memory from other memory, also where there is none, as on the meta device."""
    if not isinstance(value, torch.Tensor) or is_lazy(value):
        return None
    with contextlib.suppress(NotImplementedError, RuntimeError):
        return int(value.untyped_storage()._cdata)
    return None


def _is_same_view(one: Any, other: torch.Tensor) -> bool:
    return bool(
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.storage_offset() == other.storage_offset()
    )


def _ignore(state: object) -> None:
    pass
