"""Which value of a file goes to which tensor of a module, by rules; no value is read here, and nothing changes.

drop what the rules ignore, and moving averages or what they stand in for
find the first rule for each name that is left, and with it the name in torch
compare shapes and types, and collect everything that does not fit
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_trackckpt.adapters.tensor import is_made_of_tensors
from torch_trackckpt.bundle.memory import is_dtensor
from torch_trackckpt.bundle.reader import StoredTensor
from torch_trackckpt.interop.rules import Rule, RuleSet
from torch_trackckpt.interop.transforms import AS_IS, WITHOUT_BACKGROUND, Transform

__all__ = ["LiveTensors", "Pair", "Pairing", "epsilons", "misfit", "obstacle", "pair"]

_AVERAGE = "/ExponentialMovingAverage"


class LiveTensors:
    """The parameters and persistent buffers of a module, by all of their names.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.by_name: dict[str, torch.Tensor] = {}
        self.names_of: dict[int, list[str]] = {}
        """By address: all names of a tensor, the first of the module's first."""
        for path, part in module.named_modules(remove_duplicate=False):
            before = f"{path}." if path else ""
            for name, tensor in (*part._parameters.items(), *part._buffers.items()):
                if tensor is not None and name not in part._non_persistent_buffers_set:
                    self.by_name[before + name] = tensor
                    self.names_of.setdefault(id(tensor), []).append(before + name)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A stored value, and the tensor that it goes to."""

    name: str
    """In torch."""
    tensor: torch.Tensor
    stored: StoredTensor
    variable: str
    """The name that the optimizer's values begin with; the key itself, unless that is a moving average."""
    transform: Transform


@dataclasses.dataclass
class Pairing:
    """What was found."""

    pairs: list[Pair] = dataclasses.field(default_factory=list)
    constants: dict[str, float] = dataclasses.field(default_factory=dict)
    """Names in torch, and the numbers that stand for what was not stored."""
    unused: dict[str, str] = dataclasses.field(default_factory=dict)
    """Keys that have no place, and why."""
    ignored: list[str] = dataclasses.field(default_factory=list)
    """Keys that were dropped."""
    unmatched: list[str] = dataclasses.field(default_factory=list)
    """Names in torch that the file has nothing for."""
    inexact: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    conflicts: list[str] = dataclasses.field(default_factory=list)


def pair(
    stored: Iterable[StoredTensor], live: LiveTensors, rules: RuleSet, *, use_ema: bool, drop_background_class: bool
) -> Pairing:
    """Pairs what a file holds with the tensors of a module.

    Args:
        stored: everything in the file.
        live: the tensors.
        rules: the rules.
        use_ema: takes moving averages for what they are averages of.
        drop_background_class: leaves out the first class where a rule says that there are classes.
    """
    pairing = Pairing()
    for variable, value in _variables(stored, rules, use_ema, pairing).items():
        rule = rules.find(variable)
        name = None if rule is None else rule.torch_name(variable)
        if rule is None or name is None:
            pairing.unused[value.key] = "no rule matches it"
        elif name not in live.by_name:
            pairing.unused[value.key] = f"the module has no {name!r}"
        else:
            transform = _transform(rule, drop_background_class)
            pairing.pairs.append(Pair(name, live.by_name[name], value, variable, transform))
            pairing.conflicts += _conflicts(pairing.pairs[-1], rule)
    _find_doubles(pairing, live)
    _find_missing(pairing, live, rules)
    return pairing


def _variables(
    stored: Iterable[StoredTensor], rules: RuleSet, use_ema: bool, pairing: Pairing
) -> dict[str, StoredTensor]:
    """By the names of variables: what is to be loaded for each."""
    plain: dict[str, StoredTensor] = {}
    averages: dict[str, StoredTensor] = {}
    for value in stored:
        variable = value.key.removesuffix(_AVERAGE)
        if rules.ignores(value.key) or rules.ignores(variable):
            pairing.ignored.append(value.key)
        else:
            (plain if variable == value.key else averages)[variable] = value
    if not use_ema:
        pairing.ignored += [average.key for name, average in averages.items() if name in plain]
        only_averages = {name: average for name, average in averages.items() if name not in plain}
        pairing.unused |= {
            average.key: "it is a moving average, and there is no value beside it; use_ema=True loads it"
            for average in only_averages.values()
        }
        return plain
    if not averages:
        pairing.conflicts.append(
            f"use_ema=True asks for moving averages, but no name in the file ends in {_AVERAGE!r}; leave use_ema out"
        )
    pairing.ignored += [plain[name].key for name in averages if name in plain]
    pairing.inexact += [
        (name, "there is no moving average of it; the value itself was loaded")
        for name in plain
        if averages and name not in averages and rules.find(name) is not None
    ]
    return plain | averages


def _transform(rule: Rule, drop_background_class: bool) -> Transform:
    return rule.transform.then(WITHOUT_BACKGROUND) if rule.has_classes and drop_background_class else rule.transform


def _conflicts(pair: Pair, rule: Rule) -> list[str]:
    found = misfit(pair.name, pair.tensor, pair.stored, pair.transform)
    if not found or is_lazy(pair.tensor):
        return found
    shape, here = pair.transform.torch_shape(pair.stored.shape), tuple(pair.tensor.shape)
    if shape == here:
        return found
    if rule.has_classes and shape is not None and shape == (here[0] + 1, *here[1:]):
        advice = "the file has one class more, the background: drop_background_class=True leaves it out"
    elif rule.has_classes and shape is not None and (shape[0] + 1, *shape[1:]) == here:
        advice = "the file has as many classes as the module: leave drop_background_class out"
    else:
        advice = f"make the module with the sizes of the file, or correct the rule {rule.pattern!r}"
    return [f"{text}; {advice}" if "shape" in text else text for text in found]


def misfit(name: str, tensor: torch.Tensor, stored: StoredTensor, transform: Transform) -> list[str]:
    """Why a stored value cannot go to a tensor.

    Args:
        name: what to call the tensor.
        tensor: it.
        stored: the value.
        transform: between the two.
    """
    if reason := obstacle(tensor, transform == AS_IS):
        return [f"{name} (from {stored.key}): {reason}"]
    found = []
    shape, here = transform.torch_shape(stored.shape), tuple(tensor.shape)
    if shape != here:
        becomes = (
            "" if transform == AS_IS else f" ({transform.name}: {'does not apply' if shape is None else list(shape)})"
        )
        found.append(
            f"{name}: {stored.key} has shape {list(stored.shape)}{becomes}, but the shape here is {list(here)}"
        )
    if not stored.dtype.is_twin or stored.dtype.torch_dtype != tensor.dtype:
        here_dtype = str(tensor.dtype).removeprefix("torch.")
        found.append(
            f"{name}: {stored.key} is {stored.dtype}, but the tensor here is {here_dtype}; convert the module before "
            "(module.to), and back afterwards"
        )
    return found


def obstacle(tensor: torch.Tensor, is_whole: bool) -> str | None:
    """Why a live tensor cannot take values now.

    Args:
        tensor: the parameter or buffer.
        is_whole: whether the value is taken as it is stored, as a plain load does; a DTensor can do that alone.
    """
    if is_lazy(tensor):
        return "the parameter is not initialised yet; run one forward pass first"
    if tensor.is_meta:
        return "the tensor is on the meta device; give it memory first (Module.to_empty)"
    is_divided = is_dtensor(tensor)
    if (is_divided or is_made_of_tensors(tensor)) and not (is_divided and is_whole):
        return f"a {type(tensor).__name__} cannot take values here; load before the module is sharded or quantised"
    return None


def _find_doubles(pairing: Pairing, live: LiveTensors) -> None:
    """Two values for one tensor, also where it has several names."""
    first: dict[int, Pair] = {}
    for each in pairing.pairs:
        other = first.setdefault(id(each.tensor), each)
        if other is not each:
            also = "" if other.name == each.name else f", which is {other.name} as well"
            pairing.conflicts.append(
                f"{each.name}{also}: the rules map both {other.stored.key!r} and {each.stored.key!r} to it; correct "
                "them, or have them ignore one"
            )


def _find_missing(pairing: Pairing, live: LiveTensors, rules: RuleSet) -> None:
    """What the module has and the file has not; some of that is known all the same."""
    found = {id(each.tensor) for each in pairing.pairs}
    modules = {each.name.rpartition(".")[0] for each in pairing.pairs}
    for address, names in live.names_of.items():
        if address in found or any(rules.is_optional(name) for name in names):
            continue
        name = names[0]
        constant = rules.constant(name)
        # If nothing of a layer is stored, the layer is missing and not its scale.
        if constant is None or name.rpartition(".")[0] not in modules:
            pairing.unmatched.append(name)
        else:
            pairing.constants[name] = constant
            pairing.inexact.append(
                (name, f"nothing is stored for it, which stands for {constant:g}; it was not trained")
            )


def epsilons(pairing: Pairing, module: nn.Module, rules: RuleSet) -> Mapping[str, float]:
    """Normalisation layers that got values, and add something else than TensorFlow's."""
    if rules.epsilon is None:
        return {}
    found = {}
    for path in dict.fromkeys(each.name.rpartition(".")[0] for each in pairing.pairs):
        epsilon = getattr(module.get_submodule(path), "eps", None)
        if isinstance(epsilon, float) and epsilon != rules.epsilon:
            found[path] = epsilon
    return found
