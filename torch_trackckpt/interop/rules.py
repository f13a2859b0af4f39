"""Rules from the names of TensorFlow's variables to those of a torch module, as plain values.

    Rule       a pattern for one name in the file, the name in torch, and the transform between the two layouts
    Scope      a pattern for what several variables have before their last parts, and rules for these parts
    RuleSet    rules in order, of which the first that matches wins; what to leave out; what else to know of a model

Patterns are written by whoever writes rules. Nothing that a file holds is ever used as one.
"""

from __future__ import annotations

import dataclasses
import re
from functools import cached_property

from torch_trackckpt.interop.transforms import AS_IS, Transform

__all__ = ["TRAINING_STATE", "Rule", "RuleSet", "Scope"]

TRAINING_STATE = (
    r"(.*/)?(global_step|beta[12]_power(_\d+)?|good_steps|bad_steps|loss_scale)",
    r".*/(adam_m|adam_v|AdamWeightDecayOptimizer(_1)?|LAMB(_1)?|Adam(_1)?|Momentum|RMSProp(_[12])?|Adagrad|"
    r"Adadelta(_1)?|Ftrl(_1)?)",
    r".*/(biased|local_step)",
)
"""Patterns of what optimizers and moving averages of TensorFlow 1 store beside the variables of a model."""

_FIELD = re.compile(r"\{(\w+)([+-]\d+)?\}")


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where one kind of variable goes. The pattern has to match the whole name.

    Raises:
        ValueError: the pattern is no regular expression.

    Example:
        >>> from torch_trackckpt.interop import TRANSPOSED, Rule
        >>> rule = Rule(r"block(\\d+)/dense/kernel", "blocks.{1-1}.fc.weight", TRANSPOSED)
        >>> rule.torch_name("block3/dense/kernel")
        'blocks.2.fc.weight'
    """

    pattern: str
    """A regular expression."""
    name: str
    """The dotted name in torch. ``{1}`` stands for the first group of the pattern and ``{word}`` for one of that name;
    ``{1-1}`` and ``{1+2}`` for the number that it matched, and so much less or more."""
    transform: Transform = AS_IS
    has_classes: bool = False
    """Whether the first dimension in torch counts classes, of which ``drop_background_class`` drops the first."""

    def __post_init__(self) -> None:
        _check_pattern(self.pattern)

    def _check_fields(self) -> None:
        known = {*map(str, range(self._compiled.groups + 1)), *self._compiled.groupindex}
        for field, _ in _FIELD.findall(self.name):
            if field not in known:
                raise ValueError(f"{self.name!r} has {{{field}}}, but the pattern {self.pattern!r} has no such group.")

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def torch_name(self, name: str) -> str | None:
        """The name in torch for a name in the file; None where the rule is not for it.

        Raises:
            ValueError: the name in torch counts from what is no number.
        """
        match = self._compiled.fullmatch(name)
        if match is None:
            return None

        def field(found: re.Match[str]) -> str:
            group, offset = found.groups()
            text = match[int(group) if group.isdecimal() else group] or ""
            if offset is None:
                return text
            if not text.isdecimal():
                raise ValueError(f"{self.name!r} counts from {{{group}}}, which is {text!r} in {name!r} and no number.")
            return str(int(text) + int(offset))

        return _FIELD.sub(field, self.name)

    @property
    def _described(self) -> str:
        transform = "" if self.transform == AS_IS else f" {self.transform.name}"
        return f"`{self.pattern}` → `{self.name}`{transform}"


@dataclasses.dataclass(frozen=True)
class Scope:
    """The variables of a layer, wherever the layer is.

    Example:
        >>> from torch_trackckpt.interop import TRANSPOSED, Rule, Scope
        >>> dense = (Rule("kernel", "weight", TRANSPOSED), Rule("bias", "bias"))
        >>> [rule.name for rule in Scope(r"layer_(\\d+)", "layers.{1}", dense).rules]
        ['layers.{1}.weight', 'layers.{1}.bias']
    """

    pattern: str
    """A regular expression for the part of the names that the variables share, without the slash that follows."""
    name: str
    """What their names in torch share, without the dot that follows; empty if nothing."""
    variables: tuple[Rule, ...]
    """Rules for the rest of the names. They may refer to the groups of the scope; their own groups are counted after
    those."""

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """The same as rules for whole names."""
        before = f"{self.name}." if self.name else ""
        return tuple(
            Rule(f"{self.pattern}/{rule.pattern}", before + rule.name, rule.transform, rule.has_classes)
            for rule in self.variables
        )


@dataclasses.dataclass(frozen=True)
class RuleSet:
    """Everything that there is to know of how one family of models stands in a file.

    What `ignore` matches is dropped first. Then the first rule that matches a name is the one for it. What no rule
    matches is reported.

    Raises:
        ValueError: a pattern is no regular expression, or a name refers to a group that its pattern does not have.

    Example:
        >>> from torch_trackckpt.interop import TRANSPOSED, Rule, RuleSet
        >>> rules = RuleSet("mine", (Rule("w", "fc.weight", TRANSPOSED), Rule("b", "fc.bias")))
        >>> rules.find("w").torch_name("w"), rules.find("v"), rules.ignores("w/Adam_1")
        ('fc.weight', None, True)
    """

    title: str
    """What messages call it."""
    rules: tuple[Rule | Scope, ...]
    ignore: tuple[str, ...] = TRAINING_STATE
    """Patterns of names in the file that nobody asks for."""
    optional: tuple[str, ...] = (r"(.*\.)?num_batches_tracked", r"(.*\.)?(position_ids|token_type_ids)")
    """Patterns of names in torch that keep their values if the file has none: TensorFlow has nothing of the kind."""
    constants: tuple[tuple[str, float], ...] = ()
    """Patterns of names in torch, and the number that stands for the value where a layer was stored without it: the
    scale of a batch normalisation without gamma is 1."""
    epsilon: float | None = None
    """What the normalisation layers add to the variance in TensorFlow; the status names those that add something else.
    None if that is not known."""
    notes: tuple[str, ...] = ()
    """What the module has to do in another way than its names suggest; the status tells it."""

    def __post_init__(self) -> None:
        for pattern in (*self.ignore, *self.optional, *(pattern for pattern, _ in self.constants)):
            _check_pattern(pattern)
        for rule in self._each_rule:
            rule._check_fields()

    @cached_property
    def _each_rule(self) -> tuple[Rule, ...]:
        return tuple(each for rule in self.rules for each in (rule.rules if isinstance(rule, Scope) else (rule,)))

    def find(self, name: str) -> Rule | None:
        """The rule for a name in the file."""
        return next((rule for rule in self._each_rule if rule._compiled.fullmatch(name)), None)

    def ignores(self, name: str) -> bool:
        """Whether a name in the file is dropped."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignore)

    def ignoring(self, *patterns: str) -> RuleSet:
        """The same rules, with more to drop."""
        return dataclasses.replace(self, ignore=(*self.ignore, *patterns))

    def is_optional(self, torch_name: str) -> bool:
        """Whether nothing is missing where the file has nothing for a torch tensor."""
        return any(re.fullmatch(pattern, torch_name) for pattern in self.optional)

    def constant(self, torch_name: str) -> float | None:
        """The number that stands for the value of a torch tensor which the file does not have."""
        return next((number for pattern, number in self.constants if re.fullmatch(pattern, torch_name)), None)

    def markdown(self) -> str:
        """The rules as a table, for documentation."""
        rows = ["| TensorFlow | torch | variables |", "| --- | --- | --- |"]
        for rule in self.rules:
            if isinstance(rule, Scope):
                variables = "; ".join(each._described for each in rule.variables)
                cells = [f"`{rule.pattern}/`", f"`{rule.name}.`" if rule.name else "", variables]
            else:
                cells = [f"`{rule.pattern}`", f"`{rule.name}`", rule.transform.name]
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        return "\n".join(rows)


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"The pattern {pattern!r} is no regular expression: {error}.") from error
