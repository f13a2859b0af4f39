"""Parameter groups, and kinds of optimizers, that differ from the stored ones."""

from collections.abc import Callable

import pytest
import torch
from adapters.optimizers import FAST, Odd, everything, is_same, linear, momentum, train, trained
from torch import nn, optim
from torch.optim import Optimizer

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import (
    MismatchError,
)

# Groups and kinds that differ.


def two_layers(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))


def grouped(model: nn.Module, *groups: str) -> optim.SGD:
    """An optimizer with one group for each text, which names its parameters."""
    named = dict(model.named_parameters())
    return optim.SGD(
        [{"params": [named[name] for name in group.split()], "lr": 0.1 + i} for i, group in enumerate(groups)],
        lr=0.1,
        momentum=0.9,
    )


@pytest.mark.parametrize(
    ("saved", "live", "complaint"),
    [
        (
            ["0.weight 0.bias", "1.weight 1.bias"],
            ["0.weight 0.bias 1.weight 1.bias"],
            r"live group 0 has parameters of stored groups 0 \(model/0/weight, model/0/bias\) and 1 .*"
            r"'lr' differ \(0\.1 and 1\.1\); make the groups as they were",
        ),
        (
            ["0.weight 0.bias 1.weight 1.bias"],
            ["0.weight 0.bias", "1.weight 1.bias"],
            r"stored group 0 \(model/0/weight, model/0/bias, model/1/weight and 1 more\) has parameters in live groups "
            r"0 and 1, whose 'lr' differ \(0\.1 and 1\.1\).* set 'lr' after it",
        ),
        (["0.weight 0.bias", "1.weight 1.bias"], ["0.weight 1.weight", "0.bias 1.bias"], r"whose 'lr' differ"),
        (["0.weight", "0.bias 1.weight 1.bias"], ["0.weight 0.bias", "1.weight 1.bias"], r"whose 'lr' differ"),
    ],
    ids=["merged", "split", "crossed", "one moved"],
)
def test_groups_that_truly_differ_are_a_mismatch_and_nothing_changes(
    saved: list[str], live: list[str], complaint: str, prefix: str
) -> None:
    """C122"""
    model = two_layers()
    optimizer = grouped(model, *saved)
    train(model, optimizer)
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = two_layers(1)
    other_optimizer = grouped(other, *live)
    train(other, other_optimizer)
    before = everything(other, other_optimizer)
    checkpoint = Checkpoint(model=other, optimizer=other_optimizer)

    with pytest.raises(
        MismatchError, match=rf"\(root\)\.optimizer\.param_groups .*the parameter groups differ: .*{complaint}"
    ):
        checkpoint.restore(path)

    assert is_same(everything(other, other_optimizer), before)
    assert int(checkpoint.save_counter) == 0


def test_a_new_parameter_starts_without_state_and_the_others_get_theirs(prefix: str) -> None:
    """C122: the documented partial restore."""
    model = two_layers()
    optimizer = grouped(model, "0.weight 1.weight")
    train(model, optimizer)
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = two_layers(1)
    other_optimizer = grouped(other, "1.weight 1.bias 0.weight")
    order = [id(parameter) for parameter in other_optimizer.param_groups[0]["params"]]
    other_optimizer.param_groups[0]["lr"] = 9.0

    status = Checkpoint(model=other, optimizer=other_optimizer).restore(path)

    status.assert_consumed()
    assert [id(parameter) for parameter in other_optimizer.param_groups[0]["params"]] == order
    assert other_optimizer.param_groups[0]["lr"] == 0.1
    assert other[1].bias not in other_optimizer.state
    for layer in (0, 1):
        buffers = [
            m.state[n[layer].weight]["momentum_buffer"] for m, n in ((other_optimizer, other), (optimizer, model))
        ]
        assert torch.equal(*buffers)
    train(other, other_optimizer)
    with pytest.raises(AssertionError, match=r"optimizer's state 'momentum_buffer' for \(root\)\.model\.1\.bias"):
        status.assert_existing_objects_matched()


@pytest.mark.parametrize(
    "make", [momentum, lambda model: optim.SparseAdam(model.parameters())], ids=["SGD", "SparseAdam"]
)
def test_a_parameter_that_left_the_optimizer_gets_no_state(make: Callable[[nn.Module], Optimizer], prefix: str) -> None:
    """C122: the rest is restored, and the optimizer can still step and be pickled by PyTorch's own means."""
    model, optimizer = trained(make)
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = linear(1)
    other_optimizer = make(nn.ParameterList([other.weight]))

    status = Checkpoint(model=other, optimizer=other_optimizer).restore(path)

    assert [id(parameter) for parameter in other_optimizer.state] == [id(other.weight)]
    assert is_same(other_optimizer.state[other.weight], optimizer.state[model.weight])
    assert other_optimizer.state_dict()["state"].keys() == {0}
    status.assert_existing_objects_matched()
    with pytest.raises(AssertionError, match=r"optimizer's state '\w+' for \(root\)\.model\.bias"):
        status.assert_consumed()


def test_a_group_of_new_parameters_keeps_its_own_hyper_parameters(prefix: str) -> None:
    """C122"""
    model = two_layers()
    optimizer = grouped(model, "0.weight", "0.bias")
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other_optimizer = grouped(model, "1.weight", "0.bias", "0.weight")

    Checkpoint(model=model, optimizer=other_optimizer).restore(path).assert_consumed()

    assert [group["lr"] for group in other_optimizer.param_groups] == [0.1, 1.1, 0.1]


def test_state_goes_by_the_graph_where_parameters_have_equal_shapes_in_another_order(prefix: str) -> None:
    """C122: never a shuffle of state between parameters."""

    def make(names: str, seed: int) -> tuple[nn.ModuleDict, optim.SGD]:
        torch.manual_seed(seed)
        model = nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in names})
        return model, optim.SGD([model[name].weight for name in names], lr=0.1, momentum=0.9)

    model, optimizer = make("abc", 0)
    for scale, name in enumerate("abc"):
        model[name].weight.grad = torch.full((3, 3), float(scale))
    optimizer.step()
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)

    other, other_optimizer = make("cab", 1)
    Checkpoint(model=other, optimizer=other_optimizer).restore(path).assert_consumed()

    for scale, name in enumerate("abc"):
        assert torch.equal(other[name].weight, model[name].weight)
        buffer = other_optimizer.state[other[name].weight]["momentum_buffer"]
        assert torch.equal(buffer, torch.full((3, 3), float(scale)))


def test_names_of_parameters_stay_with_their_parameters(prefix: str) -> None:
    """C122"""
    model = linear()
    path = Checkpoint(model=model, optimizer=optim.SGD(model.named_parameters(), lr=0.5)).save(prefix)
    optimizer = optim.SGD([("my bias", model.bias), ("my weight", model.weight)], lr=0.1)

    Checkpoint(model=model, optimizer=optimizer).restore(path).assert_consumed()

    (group,) = optimizer.param_groups
    named = dict(zip(group["param_names"], group["params"], strict=True))
    assert named["my bias"] is model.bias
    assert named["my weight"] is model.weight


KINDS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    name: {"SGD": lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9)}.get(name, getattr(optim, name))
    for name in sorted(optim.__all__)
    if isinstance(getattr(optim, name, None), type)
    and issubclass(getattr(optim, name), Optimizer)
    and getattr(optim, name) is not Optimizer
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_another_kind_of_optimizer_is_a_mismatch_and_nothing_changes(kind: str, prefix: str) -> None:
    """C122: neither its hyper-parameters nor its slots would be what the live one needs at its next step."""
    model = linear(bias=False)
    optimizer = KINDS[kind](list(model.parameters()))
    train(model, optimizer)
    path = Checkpoint(model=model, optimizer=optimizer).write(prefix, FAST)
    refusals = {}

    for other_kind in sorted(KINDS.keys() - {kind}):
        other = linear(1, bias=False)
        other_optimizer = KINDS[other_kind](list(other.parameters()))
        before = everything(other, other_optimizer)
        refusals[other_kind] = refusal(Checkpoint(model=other, optimizer=other_optimizer), path)
        assert not refusals[other_kind] or is_same(everything(other, other_optimizer), before)

    assert [other_kind for other_kind, text in refusals.items() if not text] == []
    for other_kind, text in refusals.items():
        assert all(word in text for word in ("(root).optimizer.param_groups", kind, other_kind))


def refusal(checkpoint: Checkpoint, path: str) -> str:
    """What the error says; nothing where the restore went through."""
    try:
        checkpoint.read(path)
    except MismatchError as error:
        return str(error)
    return ""


def test_a_slot_of_another_dtype_is_a_mismatch_and_nothing_changes(prefix: str) -> None:
    """C067, C122"""
    model = linear()
    optimizer = Odd(model.parameters())
    optimizer.fill(model.weight, {"exp_avg": torch.ones(2, 3)})
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = linear(1)
    other_optimizer = Odd(other.parameters())
    other_optimizer.fill(other.weight, {"exp_avg": torch.zeros(2, 3, dtype=torch.float64)})
    before = everything(other, other_optimizer)

    with pytest.raises(MismatchError, match=r"optimizer's state 'exp_avg' for \(root\)\.model\.weight: .*float64"):
        Checkpoint(model=other, optimizer=other_optimizer).restore(path)

    assert is_same(everything(other, other_optimizer), before)
