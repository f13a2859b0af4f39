"""Modules whose parameters had other names once, and which say so by torch's own means."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import thing
from named_values import is_restored, ones, zeros
from torch import nn

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import DataLossError, MismatchError, RestoreError

State = dict[str, Any]


def module(**tensors: torch.Tensor | nn.Module) -> nn.Module:
    """What an older version was: it has these parameters and modules."""
    made = nn.Module()
    for name, value in tensors.items():
        setattr(made, name, value if isinstance(value, (nn.Module, nn.Parameter)) else nn.Parameter(value))
    return made


def renamed(state: State, prefix: str, old: str, new: str) -> None:
    """Gives everything whose name begins with an old one the new one instead."""
    for key in [key for key in state if key.startswith(prefix + old)]:
        state[prefix + new + key.removeprefix(prefix + old)] = state.pop(key)


class Second(nn.Module):
    """Its `weight` was called `w` in version 1."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(zeros())

    def _load_from_state_dict(self, state_dict: State, prefix: str, local_metadata: State, *rest: Any) -> None:
        if local_metadata.get("version", 1) < 2:
            renamed(state_dict, prefix, "w", "weight")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class Whole(nn.Module):
    """Its names of today, by the old ones."""

    _version = 2

    def __init__(self, names: dict[str, str], **parts: torch.Tensor | nn.Module) -> None:
        super().__init__()
        self.names = names
        for name, value in parts.items():
            setattr(self, name, value if isinstance(value, (nn.Module, nn.Parameter)) else nn.Parameter(value))

    def _load_from_state_dict(self, state_dict: State, prefix: str, local_metadata: State, *rest: Any) -> None:
        if local_metadata.get("version", 1) < 2:
            values = dict(state_dict)
            for old in self.names:
                for key in [key for key in values if key.startswith(prefix + old)]:
                    state_dict.pop(key, None)
            for old, new in self.names.items():
                for key in [key for key in values if key.startswith(prefix + old)]:
                    state_dict[prefix + new + key.removeprefix(prefix + old)] = values[key]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def test_a_parameter_is_restored_that_had_another_name_in_an_older_version(prefix: str) -> None:
    path = Checkpoint(model=module(w=ones())).write(prefix)
    model = Second()

    status = Checkpoint(model=model).read(path)

    assert is_restored(model.weight)
    status.assert_consumed()


def test_a_module_of_the_same_version_is_restored_by_its_names(prefix: str) -> None:
    saved, model = Second(), Second()
    nn.init.ones_(saved.weight)
    path = Checkpoint(model=saved).write(prefix)

    def fail(*arguments: object) -> None:
        raise AssertionError("nothing is old")

    model._register_load_state_dict_pre_hook(fail)
    Checkpoint(model=model).read(path).assert_consumed()

    assert is_restored(model.weight)


def test_the_version_that_was_saved_is_what_the_module_sees(prefix: str) -> None:
    seen = []

    class Third(Second):
        _version = 3

        def _load_from_state_dict(self, state_dict: State, prefix: str, local_metadata: State, *rest: Any) -> None:
            seen.append((list(state_dict), prefix, local_metadata))
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    path = Checkpoint(model=Second()).write(prefix)

    Checkpoint(model=nn.ModuleDict({"inner": Third()})).read(path).expect_partial()
    assert seen == []
    Checkpoint(model=Third()).read(path).assert_consumed()
    assert seen == [(["weight"], "", {"version": 2})]


@pytest.mark.parametrize("version", [0, -1, (1 << 63) - 1])
def test_any_number_may_be_a_version(prefix: str, version: int) -> None:
    seen = []

    class Other(nn.Linear):
        def _load_from_state_dict(self, state_dict: State, prefix: str, local_metadata: State, *rest: Any) -> None:
            seen.append(local_metadata)
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    saved = nn.Linear(2, 2)
    saved._version = version
    path = Checkpoint(model=saved).write(prefix)

    Checkpoint(model=Other(2, 2)).read(path).assert_consumed()

    assert seen == [{"version": version}]


@pytest.mark.parametrize("version", ["2.0", None, 2.5, True, 1 << 63])
def test_a_version_that_is_no_number_of_64_bits_is_not_stored(prefix: str, version: Any) -> None:
    saved = nn.Linear(2, 2)
    saved._version = version
    without = Path(Checkpoint(model=saved).write(f"{prefix}-1") + ".index").read_bytes()

    saved._version = 1

    assert Path(Checkpoint(model=saved).write(f"{prefix}-2") + ".index").read_bytes() == without


def test_names_move_from_one_submodule_to_another(prefix: str) -> None:
    saved = module(stem=module(weight=ones(), scale=ones()), head=module(bias=ones()))
    path = Checkpoint(model=saved).write(prefix)
    names = {"stem.weight": "body.first.weight", "stem.scale": "head.scale", "head.bias": "bias"}
    body = module(first=module(weight=zeros()))
    model = Whole(names, body=body, head=module(scale=zeros()), bias=zeros())

    status = Checkpoint(model=model).read(path)

    assert is_restored(*model.parameters())
    status.assert_consumed()


def test_two_parameters_that_have_changed_their_names_get_each_others_values(prefix: str) -> None:
    saved = module(a=ones(), b=2 * ones(), inner=module(c=3 * ones()), other=module(c=4 * ones()))
    path = Checkpoint(model=saved).write(prefix)
    names = {"a": "b", "b": "a", "inner": "other", "other": "inner"}
    model = Whole(names, a=zeros(), b=zeros(), inner=module(c=zeros()), other=module(c=zeros()))

    Checkpoint(model=model).read(path).assert_consumed()

    assert [tensor[0].item() for tensor in model.parameters()] == [2, 1, 4, 3]


def test_modules_below_one_that_renames_see_the_names_that_it_gives(prefix: str) -> None:
    """Both rename; the outer one is first, as in ``load_state_dict``."""
    path = Checkpoint(model=module(old=module(w=ones()), more=module(w=ones()))).write(prefix)
    model = Whole({"old": "inner"}, inner=Second(), more=Second())

    Checkpoint(model=model).read(path).assert_consumed()

    assert is_restored(*model.parameters())


def test_a_module_somewhere_below_plain_ones_renames_on_its_own(prefix: str) -> None:
    path = Checkpoint(parts=[{"net": nn.Sequential(nn.ReLU(), module(w=ones()))}]).write(prefix)
    model = Second()

    Checkpoint(parts=[{"net": nn.Sequential(nn.ReLU(), model)}]).read(path).assert_consumed()

    assert is_restored(model.weight)


def plain_hook(state_dict: State, prefix: str, *rest: Any) -> None:
    renamed(state_dict, prefix, "w", "weight")


def hook_with_module(module: nn.Module, state_dict: State, prefix: str, *rest: Any) -> None:
    module.called = True  # type: ignore[assignment]
    renamed(state_dict, prefix, "w", "weight")


class WithMethod(nn.Module):
    def rename(self, state_dict: State, prefix: str, *rest: Any) -> None:
        assert self.weight.is_meta
        renamed(state_dict, prefix, "w", "weight")


def register_plain(model: nn.Module) -> None:
    model._register_load_state_dict_pre_hook(plain_hook)


def register_with_module(model: nn.Module) -> None:
    model.register_load_state_dict_pre_hook(hook_with_module)


def register_method(model: Any) -> None:
    model._register_load_state_dict_pre_hook(model.rename)


def register_partial(model: Any) -> None:
    model._register_load_state_dict_pre_hook(partial(WithMethod.rename, model))


@pytest.mark.parametrize("register", [register_plain, register_with_module, register_method, register_partial])
def test_a_hook_may_rename_in_place_of_a_class(prefix: str, register: Callable[[nn.Module], None]) -> None:
    path = Checkpoint(model=module(w=ones())).write(prefix)
    model = WithMethod()
    model.weight = nn.Parameter(zeros())
    register(model)

    Checkpoint(model=model).read(path).assert_consumed()

    assert is_restored(model.weight)


def test_an_object_below_two_modules_has_its_new_names_whichever_is_found_first(prefix: str) -> None:
    inner = module(a=ones(), b=2 * ones())
    path = Checkpoint(inner=inner, model=module(inner=inner)).write(prefix)
    inner = module(a=zeros(), b=zeros())
    model = Whole({"inner.a": "inner.b", "inner.b": "inner.a"}, inner=inner)

    Checkpoint(inner=inner, model=model).read(path).assert_consumed()

    assert [tensor[0].item() for tensor in inner.parameters()] == [2, 1]


def test_tied_parameters_stay_tied(prefix: str) -> None:
    tied = nn.Parameter(ones())
    path = Checkpoint(model=module(embed=tied, head=module(w=tied))).write(prefix)
    weight = nn.Parameter(zeros())
    head = Second()
    head.weight = weight
    model = Whole({"embed": "embedding"}, embedding=weight, head=head)

    Checkpoint(model=model).read(path).assert_consumed()

    assert is_restored(weight)
    assert head.weight is model.embedding


def test_one_stored_value_may_go_to_two_parameters(prefix: str) -> None:
    class Untied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Parameter(zeros()), nn.Parameter(zeros())

        def _load_from_state_dict(self, state_dict: State, prefix: str, *rest: Any) -> None:
            state_dict[prefix + "left"] = state_dict[prefix + "right"] = state_dict.pop(prefix + "both")
            super()._load_from_state_dict(state_dict, prefix, *rest)

    path = Checkpoint(model=module(both=ones())).write(prefix)
    model = Untied()

    Checkpoint(model=model).read(path).assert_consumed()

    assert is_restored(model.left, model.right)


def test_what_a_module_drops_has_been_used_and_what_it_leaves_has_not(prefix: str) -> None:
    class Smaller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(zeros())

        def _load_from_state_dict(self, state_dict: State, prefix: str, *rest: Any) -> None:
            state_dict.pop(prefix + "mask", None)
            super()._load_from_state_dict(state_dict, prefix, *rest)

    path = Checkpoint(model=module(weight=ones(), mask=ones())).write(f"{prefix}-1")
    status = Checkpoint(model=Smaller()).read(path).assert_consumed()
    notes = {value.name: value.note for value in status.report().restored}
    assert notes["(root).model.weight"] == ""
    assert notes["(root).model.mask"] == "its module has made values of today from it, or has dropped it"
    assert status.report().is_complete

    path = Checkpoint(model=module(weight=ones(), mask=ones(), more=ones())).write(f"{prefix}-2")
    status = Checkpoint(model=Smaller()).read(path).expect_partial()
    with pytest.raises(AssertionError, match=r"Unresolved object in checkpoint .*: \(root\)\.model\.more\."):
        status.assert_consumed()


def test_the_report_tells_the_new_name_and_the_old_key(prefix: str) -> None:
    path = Checkpoint(model=module(w=ones())).write(prefix)

    (value,) = Checkpoint(model=Second()).read(path).report().restored

    assert (value.name, value.key) == ("(root).model.weight", "model/w/.ATTRIBUTES/VARIABLE_VALUE")


def test_optimizer_slots_and_groups_follow_the_renamed_parameters(prefix: str) -> None:
    saved = module(w=ones(), inner=module(b=ones()))
    old = torch.optim.Adam([{"params": [saved.w], "lr": 0.5}, {"params": [saved.inner.b], "lr": 0.25}])
    for parameter in saved.parameters():
        parameter.grad = torch.full((2,), float(parameter is saved.w) + 1)
    old.step()
    path = Checkpoint(model=saved, optimizer=old).write(prefix)
    model = Whole({"w": "weight", "inner.b": "bias"}, weight=zeros(), bias=zeros())
    optimizer = torch.optim.Adam([{"params": [model.weight]}, {"params": [model.bias]}])

    Checkpoint(optimizer=optimizer, model=model).read(path).assert_consumed()

    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]
    for before, now in ((saved.w, model.weight), (saved.inner.b, model.bias)):
        assert torch.equal(before, now)
        assert all(torch.equal(old.state[before][name], optimizer.state[now][name]) for name in old.state[before])


# ------------------------------------------------------------------------------------------ late objects


def test_a_module_that_comes_late_is_asked_when_it_comes(prefix: str) -> None:
    path = Checkpoint(model=module(w=ones()), net=nn.Sequential(module(w=ones()))).write(prefix)
    checkpoint = Checkpoint(net=nn.Sequential())
    status = checkpoint.read(path)

    checkpoint.model = Second()
    checkpoint.net.append(Second())

    assert is_restored(checkpoint.model.weight, checkpoint.net[0].weight)
    status.assert_consumed()


def test_a_part_that_comes_late_has_the_name_that_the_whole_gave_it(prefix: str) -> None:
    path = Checkpoint(model=module(old=module(w=ones()), bias=ones())).write(prefix)
    model = Whole({"old": "inner", "bias": "late"})
    status = Checkpoint(model=model).read(path)

    model.inner = Second()
    model.late = nn.Parameter(zeros())

    assert is_restored(model.inner.weight, model.late)
    status.assert_consumed()


def test_every_restore_asks_anew(prefix: str) -> None:
    old = Checkpoint(model=module(w=ones())).write(f"{prefix}-1")
    model = Second()
    checkpoint = Checkpoint(model=model)
    checkpoint.read(old).assert_consumed()
    with torch.no_grad():
        model.weight.fill_(3)
    new = checkpoint.write(f"{prefix}-2")

    checkpoint.read(old).assert_consumed()
    assert is_restored(model.weight)
    checkpoint.read(new).assert_consumed()
    assert model.weight.tolist() == [3, 3]


def test_tensors_on_the_meta_device_have_their_new_names(prefix: str) -> None:
    path = Checkpoint(model=module(w=ones())).write(prefix)
    with torch.device("meta"):
        model = Second()
    status = Checkpoint(model=model).read(path)

    assert model.weight.is_meta
    status.run_restore_ops("cpu")

    assert is_restored(model.weight)
    status.assert_consumed()


def test_a_lazy_module_may_have_renamed(prefix: str) -> None:
    path = Checkpoint(model=module(w=torch.ones(3, 2), bias=torch.ones(3))).write(prefix)
    model = nn.LazyLinear(3)
    model._register_load_state_dict_pre_hook(plain_hook)

    Checkpoint(model=model).read(path).assert_consumed()

    assert is_restored(model.weight, model.bias)


# ------------------------------------------------------------------------------------------ errors


def test_a_module_that_raises_is_named_and_nothing_has_changed(prefix: str) -> None:
    class Refusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(zeros())

        def _load_from_state_dict(self, *arguments: Any) -> None:
            raise KeyError("gone")

    path = Checkpoint(a=ones(), model=nn.Sequential(module(w=ones()))).write(prefix)
    a, model = zeros(), nn.Sequential(Refusing())

    with pytest.raises(RestoreError, match=r"^\(root\)\.model\.0, a Refusing, does not take .*: KeyError: 'gone'\n"):
        Checkpoint(a=a, model=model).read(path)

    assert torch.equal(a, zeros())


def test_a_module_may_refuse_what_is_too_old(prefix: str) -> None:
    def refuse(state_dict: State, prefix: str, metadata: State, strict: bool, *lists: list[str]) -> None:
        lists[-1].append("this is too old")

    path = Checkpoint(model=module(w=ones())).write(prefix)
    model = nn.Linear(2, 1)
    model._register_load_state_dict_pre_hook(refuse)

    with pytest.raises(RestoreError, match=r"\(root\)\.model, a Linear, does not take .*: this is too old"):
        Checkpoint(model=model).read(path)


def test_shapes_are_compared_under_the_new_names_before_anything_changes(prefix: str) -> None:
    path = Checkpoint(a=ones(), model=module(w=torch.ones(3))).write(prefix)
    a, model = zeros(), Second()

    with pytest.raises(MismatchError, match=r"\(root\)\.model\.weight: received incompatible tensor with shape \[3\]"):
        Checkpoint(a=a, model=model).read(path)

    assert torch.equal(a, zeros())
    assert torch.equal(model.weight, zeros())


def test_a_module_that_stores_in_a_form_of_its_own_is_left_alone(prefix: str) -> None:
    """A pair of hooks, such as those of wrappers, which give ``state_dict`` other names and take them back."""

    def add(module: nn.Module, state_dict: State, prefix: str, metadata: State) -> None:
        renamed(state_dict, prefix, "", "wrapped.")

    def take_away(state_dict: State, prefix: str, *rest: Any) -> None:
        renamed(state_dict, prefix, "wrapped.", "")
        if prefix + "weight" in state_dict:
            state_dict[prefix + "lost"] = state_dict.pop(prefix + "weight")

    saved, model = nn.Linear(2, 1, bias=False), nn.Linear(2, 1)
    path = Checkpoint(model=saved).write(prefix)
    model._register_state_dict_hook(add)
    model._register_load_state_dict_pre_hook(take_away)

    status = Checkpoint(model=model).read(path)

    assert torch.equal(model.weight, saved.weight)
    assert [value.name for value in status.report().only_in_program] == ["(root).model.bias"]


@pytest.mark.parametrize("name", ["a.b", "", ".", "w."])
def test_stored_names_that_no_module_could_have_stay_what_they_are(prefix: str, name: str) -> None:
    path = Checkpoint(model={name: ones(), "w": ones(), "text": thing(x={})}).write(prefix)
    model = Second()

    status = Checkpoint(model=model).read(path).expect_partial()

    assert is_restored(model.weight)
    assert [value.key.split("/")[1] for value in (*status.report().waiting, *status.report().only_in_checkpoint)]


def test_a_graph_that_leads_back_to_itself_ends(prefix: str) -> None:
    saved = thing(w=ones())
    saved.again = saved
    path = Checkpoint(model=saved).write(prefix)
    model = Second()

    Checkpoint(model=model).read(path).expect_partial()

    assert is_restored(model.weight)


def test_names_may_be_as_deep_as_files_have_them(prefix: str) -> None:
    saved = thing(x=ones())
    for _ in range(1500):
        saved = thing(below=saved)
    saved.w = ones()
    path = Checkpoint(model=saved).write(prefix)
    model = Second()

    Checkpoint(model=model).read(path).expect_partial()

    assert is_restored(model.weight)


def test_shared_nodes_without_measure_are_an_error(prefix: str) -> None:
    saved = thing(w=ones())
    for _ in range(40):
        saved = thing(left=saved, right=saved)
    path = Checkpoint(model=saved).write(prefix)

    with pytest.raises(DataLossError, match=r"shares nodes without measure: the names below \(root\)\.model"):
        Checkpoint(model=Second()).read(path)
