"""Groups that were merged, split or both: fine where nothing has to be chosen."""

from typing import Any

import pytest
import torch
from adapters.optimizers import everything, is_same, linear, train
from torch import nn, optim

from torch_trackckpt import Checkpoint
from torch_trackckpt.adapters.param_groups import hyper_parameters
from torch_trackckpt.errors import MismatchError

A, B, C, D = "0.weight", "0.bias", "1.weight", "1.bias"
ALL = f"{A} {B} {C} {D}"
Groups = list[tuple[str, dict[str, Any]]]


def two_layers(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))


def grouped(model: nn.Module, groups: Groups) -> optim.Adam:
    named = dict(model.named_parameters())
    return optim.Adam(
        [{"params": [named[name] for name in names.split()], **options} for names, options in groups], foreach=False
    )


def trained(groups: Groups) -> tuple[nn.Sequential, optim.Adam]:
    model = two_layers(0)
    optimizer = grouped(model, groups)
    train(model, optimizer, 2)
    return model, optimizer


STORED: dict[str, Any] = {"lr": 0.5, "betas": (0.7, 0.8)}
LIVE: dict[str, Any] = {"lr": 0.1}

REGROUPED: dict[str, tuple[list[str], list[str]]] = {
    "merged": ([f"{A} {B}", f"{C} {D}"], [ALL]),
    "merged in part": ([A, B, f"{C} {D}"], [f"{C} {D}", f"{B} {A}"]),
    "split": ([ALL], [f"{A} {B}", f"{C} {D}"]),
    "split into each": ([ALL], [D, C, B, A]),
    "crossed": ([f"{A} {B}", f"{C} {D}"], [f"{A} {C}", f"{B} {D}"]),
    "one moved": ([A, f"{B} {C} {D}"], [f"{A} {B}", f"{C} {D}"]),
    "a chain": ([f"{A} {B}", f"{C} {D}"], [A, f"{B} {C}", D]),
}


@pytest.mark.parametrize(("saved", "live"), REGROUPED.values(), ids=REGROUPED)
def test_equal_groups_may_be_merged_and_split_and_training_goes_on_bit_for_bit(
    saved: list[str], live: list[str], prefix: str
) -> None:
    """C103, C122"""
    model, optimizer = trained([(names, STORED) for names in saved])
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = two_layers(1)
    other_optimizer = grouped(other, [(names, LIVE) for names in live])

    Checkpoint(model=other, optimizer=other_optimizer).restore(path).assert_consumed()

    for group in other_optimizer.param_groups:
        assert hyper_parameters(group) == hyper_parameters(optimizer.param_groups[0])
    named = dict(other.named_parameters())
    assert [[id(p) for p in group["params"]] for group in other_optimizer.param_groups] == [
        [id(named[name]) for name in names.split()] for names in live
    ]
    train(model, optimizer, 2)
    train(other, other_optimizer, 2)
    for name, parameter in model.named_parameters():
        assert torch.equal(named[name], parameter)
        assert is_same(other_optimizer.state[named[name]], optimizer.state[parameter])


@pytest.mark.parametrize(
    ("name", "values", "shown"),
    [
        ("lr", (0.5, 0.25), "0.5 and 0.25"),
        ("betas", ((0.9, 0.999), (0.9, 0.99)), "(0.9, 0.999) and (0.9, 0.99)"),
        ("weight_decay", (0.1, 0), "0.1 and 0"),
        ("amsgrad", (True, False), "True and False"),
        ("lr", (torch.tensor(0.5), torch.tensor(0.25)), "tensor(0.5000) and tensor(0.2500)"),
        ("initial_lr", (0.5, 0.25), "0.5 and 0.25"),
        ("note", ("decay", "no decay"), "'decay' and 'no decay'"),
    ],
)
@pytest.mark.parametrize("is_merge", [True, False], ids=["merged", "split"])
def test_a_difference_in_any_hyper_parameter_is_named_and_nothing_changes(
    name: str, values: tuple[Any, Any], shown: str, is_merge: bool, prefix: str
) -> None:
    """C122"""
    different: Groups = [(names, {name: value}) for names, value in zip((f"{A} {B}", f"{C} {D}"), values, strict=True)]
    one: Groups = [(ALL, {})]
    model, optimizer = trained(different if is_merge else one)
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other, other_optimizer = trained(one if is_merge else different)
    before = everything(other, other_optimizer)

    with pytest.raises(MismatchError) as error:
        Checkpoint(model=other, optimizer=other_optimizer).restore(path)

    assert f"whose {name!r} differ ({shown})" in str(error.value)
    assert is_same(everything(other, other_optimizer), before)


def test_a_hyper_parameter_that_one_group_lacks_is_a_difference(prefix: str) -> None:
    """C122"""
    model, optimizer = trained([(A, {"note": 1}), (f"{B} {C} {D}", {})])
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)

    with pytest.raises(MismatchError, match=r"'note' differ \(1 and none\)"):
        Checkpoint(model=model, optimizer=grouped(model, [(ALL, {})])).restore(path)


def test_groups_that_share_a_stored_one_do_not_share_its_values(prefix: str) -> None:
    """C122"""
    model, optimizer = trained([(ALL, {"schedule": [1, 2], "scale": torch.tensor(2.0)})])
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = grouped(model, [(f"{A} {B}", {}), (f"{C} {D}", {})])

    Checkpoint(model=model, optimizer=other).restore(path).assert_consumed()
    first, second = other.param_groups
    first["schedule"].append(3)
    first["scale"] += 1

    assert second["schedule"] == [1, 2]
    assert second["scale"] == 2


def test_groups_that_shared_a_list_share_one_again_where_the_stored_ones_are_equal(prefix: str) -> None:
    """C103: as after PyTorch's own load_state_dict; RAdam of torch_optimizer depends on it."""
    model, optimizer = trained([(A, {"cache": [1]}), (B, {"cache": [1]}), (f"{C} {D}", {"cache": [2]})])
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    shared: list[int] = []
    other = grouped(model, [(names, {"cache": shared}) for names in (A, B, f"{C} {D}")])

    Checkpoint(model=model, optimizer=other).restore(path).assert_consumed()
    other.param_groups[0]["cache"].append(3)

    assert [group["cache"] for group in other.param_groups] == [[1, 3], [1, 3], [2]]


def test_a_learning_rate_in_a_tensor_stays_that_tensor_in_each_part_of_a_split_group(prefix: str) -> None:
    """C103, C122"""
    model, optimizer = trained([(ALL, {"lr": 0.5})])
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    rates = [torch.tensor(0.125), torch.tensor(0.125)]
    other = grouped(model, [(f"{A} {B}", {"lr": rates[0]}), (f"{C} {D}", {"lr": rates[1]})])

    Checkpoint(model=model, optimizer=other).restore(path).assert_consumed()

    assert all(group["lr"] is rate for group, rate in zip(other.param_groups, rates, strict=True))
    assert [float(rate) for rate in rates] == [0.5, 0.5]


def test_betas_in_tensors_stay_these_tensors(prefix: str) -> None:
    """C103"""
    model, optimizer = trained([(ALL, {"betas": (0.5, 0.25)})])
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    betas = torch.tensor(0.9), torch.tensor(0.99)
    other = grouped(model, [(ALL, {})])
    other.param_groups[0]["betas"] = betas

    Checkpoint(model=model, optimizer=other).restore(path).assert_consumed()

    assert all(map(lambda now, before: now is before, other.param_groups[0]["betas"], betas))
    assert [float(beta) for beta in betas] == [0.5, 0.25]


def test_the_flat_state_of_lbfgs_cannot_be_regrouped(prefix: str) -> None:
    """C121, C122"""
    model = linear()
    optimizer = optim.LBFGS(model.parameters(), max_iter=2)
    train(model, optimizer)
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = linear(1)
    merged = optim.LBFGS([*other.parameters(), nn.Parameter(torch.ones(1))], max_iter=2)

    with pytest.raises(MismatchError, match=r"state of LBFGS runs over all of its parameters"):
        Checkpoint(model=other, optimizer=merged).restore(path)
    assert merged.state_dict()["state"] == {}


# Parameters that come after the restore.


def test_a_parameter_of_an_equal_group_that_comes_later_joins_and_changes_nothing_else(prefix: str) -> None:
    """C107, C122: what the program has set since the restore stays."""
    model, optimizer = trained([(f"{A} {B}", STORED), (f"{C} {D}", STORED)])
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = two_layers(1)
    other_optimizer = grouped(other, [(f"{A} {B}", {})])
    checkpoint = Checkpoint(model=other, optimizer=other_optimizer)
    status = checkpoint.restore(path)
    other_optimizer.param_groups[0]["lr"] = 0.0625

    other_optimizer.param_groups[0]["params"] += other[1].parameters()
    other_optimizer.step()

    status.assert_consumed()
    assert other_optimizer.param_groups[0]["lr"] == 0.0625
    for mine, its in zip(other[1].parameters(), model[1].parameters(), strict=True):
        assert is_same(other_optimizer.state[mine], optimizer.state[its])


def test_a_group_that_comes_later_for_a_part_of_a_stored_one_keeps_its_own_hyper_parameters(prefix: str) -> None:
    """C107, C122"""
    model, optimizer = trained([(ALL, STORED)])
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = two_layers(1)
    other_optimizer = grouped(other, [(f"{A} {B}", {})])
    status = Checkpoint(model=other, optimizer=other_optimizer).restore(path)

    other_optimizer.add_param_group({"params": list(other[1].parameters()), "lr": 9.0})
    other_optimizer.step()

    status.assert_consumed()
    assert [group["lr"] for group in other_optimizer.param_groups] == [0.5, 9.0]
    assert is_same(other_optimizer.state[other[1].bias], optimizer.state[model[1].bias])
