"""Rules are values that say where a name goes."""

from __future__ import annotations

import dataclasses

import pytest

from torch_trackckpt import interop
from torch_trackckpt.interop import AS_IS, TRANSPOSED, Rule, RuleSet, Scope

SETS = [value for value in vars(interop).values() if isinstance(value, RuleSet)]


def torch_name(rules: RuleSet, name: str) -> str | None:
    rule = rules.find(name)
    return None if rule is None else rule.torch_name(name)


def test_the_first_rule_that_matches_wins() -> None:
    rules = RuleSet("two", (Rule("a/w", "first"), Rule("a/.*", "second")))
    assert [torch_name(rules, name) for name in ("a/w", "a/v", "b")] == ["first", "second", None]


def test_a_pattern_matches_the_whole_name() -> None:
    rules = RuleSet("one", (Rule("w", "weight"),))
    assert [torch_name(rules, name) for name in ("w", "w2", "a/w", "w\n")] == ["weight", None, None, None]


def test_groups_are_named_by_number_or_word_and_counted_from() -> None:
    rule = Rule(r"(?P<kind>\w+)_(\d+)", "{kind}.{2}.{2-1}.{2+10}.{0}")
    assert rule.torch_name("conv_3") == "conv.3.2.13.conv_3"


def test_a_group_that_takes_no_part_is_empty() -> None:
    assert Rule("a(/b)?", "x{1}").torch_name("a") == "x"


def test_what_is_counted_from_has_to_be_a_number() -> None:
    with pytest.raises(ValueError, match=r"counts from \{1\}, which is 'x' in 'a/x' and no number"):
        Rule("a/(.*)", "layer.{1-1}").torch_name("a/x")


def test_a_scope_stands_for_rules_of_whole_names() -> None:
    scope = Scope(r"layer_(\d+)", "layers.{1}", (Rule("(kernel|bias)", "{2}", TRANSPOSED, has_classes=True),))
    assert scope.rules == (Rule(r"layer_(\d+)/(kernel|bias)", "layers.{1}.{2}", TRANSPOSED, True),)
    assert torch_name(RuleSet("one", (scope,)), "layer_7/bias") == "layers.7.bias"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rule("(", "x"),
        lambda: RuleSet("x", (), ignore=("(",)),
        lambda: RuleSet("x", (), optional=("[",)),
        lambda: RuleSet("x", (), constants=(("*", 1.0),)),
    ],
)
def test_a_pattern_that_is_none_is_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="is no regular expression"):
        make()


def test_a_group_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has \{2\}, but the pattern 'a\(b\)/w' has no such group"):
        RuleSet("x", (Scope("a(b)", "{2}", (Rule("w", "w"),)),))


def test_rules_cannot_be_changed() -> None:
    rules = RuleSet("one", (Rule("w", "weight"),))
    with pytest.raises(dataclasses.FrozenInstanceError):
        rules.title = "other"  # type: ignore[misc]
    assert hash(rules) == hash(RuleSet("one", (Rule("w", "weight", AS_IS),)))
    assert rules.ignoring("x").ignore == (*rules.ignore, "x")


@pytest.mark.parametrize(
    "name",
    [
        "global_step", "beta1_power", "a/beta2_power_1", "loss_scale", "bert/w/adam_m", "w/Adam_1", "w/Momentum",
        "w/RMSProp_2", "w/Adagrad", "w/Ftrl_1", "w/AdamWeightDecayOptimizer", "mean/biased", "mean/local_step",
    ],
)  # fmt: skip
def test_what_optimizers_keep_is_dropped(name: str) -> None:
    assert all(rules.ignores(name) for rules in SETS)
    assert not any(rules.ignores("bert/encoder/layer_0/output/dense/kernel") for rules in SETS)


@pytest.mark.parametrize("rules", SETS, ids=lambda rules: rules.title)
def test_every_set_has_a_table(rules: RuleSet) -> None:
    lines = rules.markdown().splitlines()
    assert len(lines) == 2 + len(rules.rules)
    assert all(line.replace("\\|", "").count("|") == 4 for line in lines)
