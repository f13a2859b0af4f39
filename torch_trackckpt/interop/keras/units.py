"""A torch module as a sequence of what may be Keras layers.

    unit    a module that has a rule; what is inside of it is the rule's matter
    raw     a parameter or buffer of a module without a rule: it may be a Keras variable as it is

Both go by their dotted names, without those that wrappers (``torch.compile``, DistributedDataParallel) put in between.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_trackckpt.adapters import adapt
from torch_trackckpt.adapters.module import ModuleAdapter
from torch_trackckpt.errors import MismatchError
from torch_trackckpt.interop.keras.arrays import Transform
from torch_trackckpt.interop.keras.composition import form_of
from torch_trackckpt.interop.keras.layers import dense_after_flatten
from torch_trackckpt.interop.keras.registry import LayerForm, Rule, StoredShapes, parts_of, rule_for

__all__ = ["AfterFlatten", "Net", "Raw", "Unit", "shapes_of_tensors", "unwrapped"]

AfterFlatten = Mapping[str, Sequence[int] | None]
"""By the names of modules: the feature map that is flattened before them, channels last; None where the net itself
flattens channels last."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclasses.dataclass(frozen=True)
class Unit:
    """A module, or a part of one, that may be a Keras layer."""

    name: str
    names: tuple[str, ...]
    """Of a module that is in several places: all of them."""
    module: nn.Module = dataclasses.field(repr=False)
    module_name: str
    """That of the module, which the names of its tensors begin with."""
    rule: Rule = dataclasses.field(repr=False)
    parts: tuple[Unit, ...] = ()
    """Where it is several layers of Keras."""
    is_part: bool = False

    def form(self, stored: StoredShapes | None) -> LayerForm | None:
        """What it is in Keras's terms."""
        return form_of(self.module, stored, self.rule)

    @property
    def kind(self) -> str:
        """The class of the module."""
        return type(self.module).__name__

    @property
    def shapes(self) -> str:
        """Those of its tensors, for messages."""
        return shapes_of_tensors(self.module)

    def __hash__(self) -> int:
        return hash(self.name)


@dataclasses.dataclass(frozen=True)
class Raw:
    """A parameter or buffer of a module without a rule."""

    name: str
    module: nn.Module = dataclasses.field(repr=False)
    module_name: str
    own_name: str

    @property
    def tensor(self) -> torch.Tensor:
        """The live one."""
        found = getattr(self.module, self.own_name)
        assert isinstance(found, torch.Tensor)
        return found

    @property
    def is_parameter(self) -> bool:
        """Else a buffer."""
        return isinstance(self.tensor, nn.Parameter)


def unwrapped(module: nn.Module) -> nn.Module:
    """What a wrapper without state of its own wraps; else the module itself."""
    adapter = adapt(module)
    inside = adapter.adapted if isinstance(adapter, ModuleAdapter) else module
    return inside if isinstance(inside, nn.Module) else module


class Net:
    """The units and raw tensors of a module, in the order of registration.

    Args:
        module: the model.
        after_flatten: see `AfterFlatten`.

    Raises:
        MismatchError: `after_flatten` names a module that is not there; or a parameter has no shape yet.
    """

    def __init__(self, module: nn.Module, after_flatten: AfterFlatten | None = None) -> None:
        self.module = unwrapped(module)
        self._after_flatten = dict(after_flatten or {})
        self.units: list[Unit] = []
        self.raw: list[Raw] = []
        self.containers: dict[str, list[Unit]] = {}
        """Modules without a rule, by name, with the units below them."""
        names: dict[int, list[str]] = {}
        modules: dict[int, nn.Module] = {}
        for name, each in self._walk("", self.module, frozenset()):
            names.setdefault(id(each), []).append(name)
            modules[id(each)] = each
        for identity, each in modules.items():
            self._add(each, names[identity])
        for name in self._after_flatten:
            if not any(name in unit.names for unit in self.units):
                raise MismatchError(
                    f"after_flatten names {name!r}, which is no layer of the net. Its layers are "
                    f"{', '.join(unit.name for unit in self.units) or 'none'}."
                )
        tied: set[int] = set()
        for unit in list(self.units):
            tensors = {id(tensor) for tensor in unit.module.parameters()}
            if tensors and tensors <= tied:
                # It has nothing of its own that Keras could store.
                self.units.remove(unit)
            tied |= tensors
        for name in [name for each in names.values() for name in each]:
            below = [u for u in self.units if any(_is_below(own, name) for own in u.names)]
            if below and not any(name in unit.names for unit in self.units):
                self.containers[name] = below

    def _walk(self, name: str, module: nn.Module, above: frozenset[int]) -> Iterator[tuple[str, nn.Module]]:
        module = unwrapped(module)
        if id(module) in above:
            return
        yield name, module
        if rule_for(module) is None:
            for child_name, child in module._modules.items():
                if child is not None:
                    below = f"{name}.{child_name}" if name else child_name
                    yield from self._walk(below, child, above | {id(module)})

    def _add(self, module: nn.Module, names: Sequence[str]) -> None:
        name = names[0]
        rule = rule_for(module)
        own: dict[str, torch.Tensor | None] = dict(module._parameters)
        own |= {key: value for key, value in module._buffers.items() if key not in module._non_persistent_buffers_set}
        lazy = [key for key, value in own.items() if value is not None and is_lazy(value)]
        if lazy:
            raise MismatchError(
                f"{name or 'The module'} ({type(module).__name__}) has no shapes yet ({', '.join(lazy)}); run one "
                "forward pass first."
            )
        if rule is None:
            for key, value in own.items():
                if value is not None:
                    self.raw.append(Raw(f"{name}.{key}" if name else key, module, name, key))
            return
        feature_map = self._after_flatten.get(name)
        if feature_map is not None and isinstance(module, nn.Linear):
            rule = _told(dense_after_flatten(feature_map), name)
        elif feature_map is not None and isinstance(module, nn.BatchNorm1d):
            rule = _told(_vectors_after_flatten(rule, feature_map), name)
        elif feature_map is not None:
            raise MismatchError(f"after_flatten[{name!r}]: a {type(module).__name__} has no inputs in another order.")
        form = rule(module, None)
        parts = tuple(
            Unit(f"{name}.{part.name}", (f"{name}.{part.name}",), module, name, part.rule, is_part=True)
            for part in parts_of(module)
        )
        if parts or form is None or form.variables or form.refused:
            self.units.append(Unit(name, tuple(names), module, name, rule, parts))

    def unit(self, name: str) -> Unit | None:
        """The unit of a name, or the part of one."""
        for unit in self.units:
            if name in unit.names:
                return unit
            for part in unit.parts:
                if name == part.name:
                    return part
        return None

    def feature_map(self, unit: Unit) -> Sequence[int] | None:
        """What the caller has said of the feature map that is flattened before a unit.

        Raises:
            KeyError: nothing.
        """
        return self._after_flatten[unit.name]

    def flattened(self, units: Iterable[Unit]) -> list[tuple[Unit, int, int]]:
        """Those modules that may follow a flattened feature map, of units in the order of the data; with the number of
        inputs and that of the map's channels."""
        found = []
        channels: int | None = None
        for unit in units:
            module = unit.module
            if isinstance(module, _CONVOLUTIONS):
                channels = module.out_channels
            elif isinstance(module, nn.Linear | nn.BatchNorm1d):
                size = module.in_features if isinstance(module, nn.Linear) else module.num_features
                if channels and size > channels and size % channels == 0:
                    found.append((unit, size, channels))
                channels = None if isinstance(module, nn.Linear) else channels
            elif isinstance(module, nn.Embedding | nn.EmbeddingBag | nn.RNNBase | nn.MultiheadAttention):
                channels = None
        return found


def _vectors_after_flatten(rule: Rule, feature_map: Sequence[int]) -> Rule:
    """A rule for what is normalised between a flattened feature map and a Linear: one value for each input of that."""
    *space, channels = feature_map
    last = len(space)
    transform = Transform(
        "inputs from HWC to CHW",
        lambda pieces: pieces[0].reshape(channels, *space).permute(*range(1, last + 1), 0).reshape(-1),
        lambda array: (array.reshape(*feature_map).permute(last, *range(last)).reshape(-1),),
    )

    def reordered(module: nn.BatchNorm1d, stored: StoredShapes | None) -> LayerForm | None:
        if math.prod(feature_map) != module.num_features:
            raise ValueError(
                f"A feature map of shape {list(feature_map)} has {math.prod(feature_map)} elements, but the "
                f"BatchNorm1d behind it has {module.num_features}. Give the shape that Keras flattens, channels last."
            )
        form = rule(module, stored)
        if form is None:
            return None
        arrays = {name: dataclasses.replace(array, transform=transform) for name, array in form.variables.items()}
        return dataclasses.replace(form, variables=arrays)

    return reordered


def _told(rule: Rule, name: str) -> Rule:
    """A rule whose error names the module and the option."""

    def telling(module: nn.Module, stored: StoredShapes | None) -> LayerForm | None:
        try:
            return rule(module, stored)
        except ValueError as error:
            raise MismatchError(f"after_flatten[{name!r}]: {error}") from error

    return telling


def _is_below(name: str, container: str) -> bool:
    return container == "" or name.startswith(f"{container}.")


def shapes_of_tensors(module: nn.Module) -> str:
    """Names and shapes of a module's parameters and buffers, for messages."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items() if math.prod(tensor.shape) != 1)
