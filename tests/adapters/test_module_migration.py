"""Loading that is rehearsed: where the entries of an old ``state_dict`` go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from torch_trackckpt import Checkpoint
from torch_trackckpt.adapters.module_migration import Rehearsal, can_migrate, rehearse_loading
from torch_trackckpt.adapters.stand_ins import live_parts, live_tensors
from torch_trackckpt.errors import RestoreError

State = dict[str, Any]


def hooked(hook: Callable[..., None], *names: str) -> nn.Module:
    """A module with parameters of two elements, and a hook."""
    module = nn.Module()
    for name in names:
        module.register_parameter(name, nn.Parameter(torch.zeros(2)))
    module._register_load_state_dict_pre_hook(hook)
    return module


def rehearsed(module: nn.Module, values: dict[str, torch.Tensor], read: list[str] | None = None) -> Rehearsal:
    def give(name: str) -> torch.Tensor:
        if read is not None:
            read.append(name)
        return values[name].clone()

    stored = {name: torch.empty_like(value, device="meta") for name, value in values.items()}
    return rehearse_loading(module, stored, {"": 1}, give, lambda prefix: f"net.{prefix}"[:-1])


class Saver(nn.Linear):
    """Has a form of its own to be stored in."""

    def _save_to_state_dict(self, destination: State, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "all"] = torch.zeros(1)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        raise AssertionError("not asked")


class Viewer(nn.Linear):
    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        return {}

    def _load_from_state_dict(self, *arguments: Any) -> None:
        raise AssertionError("not asked")


def ignore(*arguments: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("module", "can"),
    [
        (nn.Linear(2, 2), False),
        (nn.LazyLinear(2), False),
        (Saver(2, 2), False),
        (Viewer(2, 2), False),
        (nn.BatchNorm1d(2), True),
        (nn.LazyBatchNorm1d(), True),
        (hooked(ignore), True),
        (parametrizations.weight_norm(nn.Linear(2, 2)), True),
    ],
)
def test_modules_with_something_to_say_are_known(module: nn.Module, can: bool) -> None:
    assert can_migrate(module) == can


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_a_scripted_module_has_nothing_to_say() -> None:
    assert not can_migrate(torch.jit.script(nn.BatchNorm1d(2)))


def test_what_waits_for_a_module_is_nothing_that_the_module_says(prefix: str) -> None:
    saved, module = nn.Linear(2, 2), nn.Module()
    path = Checkpoint(module=saved).write(prefix)
    status = Checkpoint(module=module).read(path).expect_partial()

    assert module._load_state_dict_pre_hooks
    assert not can_migrate(module)
    assert status.report().waiting


def test_parts_and_tensors_have_the_names_of_state_dict() -> None:
    shared = nn.Linear(2, 2)
    module = nn.ModuleDict({"a": shared, "b": nn.DataParallel(nn.Sequential(nn.BatchNorm1d(2))), "c": shared})
    module.register_buffer("here", torch.zeros(1))
    module.register_buffer("not_saved", torch.zeros(1), persistent=False)
    module.a.back = module

    assert [prefix for prefix, _ in live_parts(module)] == ["", "a.", "b.", "b.0.", "c."]
    del module.a.back
    assert list(live_tensors(module)) == [name.replace("b.module.", "b.") for name in module.state_dict()]


def test_a_renamed_entry_is_told_by_its_old_name_without_being_read() -> None:
    def rename(state: State, prefix: str, *rest: Any) -> None:
        state[prefix + "new"] = state.pop(prefix + "old")

    read: list[str] = []
    found = rehearsed(hooked(rename, "new", "same"), {"old": torch.ones(2), "same": torch.ones(2)}, read)

    assert found == Rehearsal({"new": "old", "same": "same"})
    assert read == []


def test_a_computed_value_is_read_and_what_is_beside_it_is_not() -> None:
    def double(state: State, prefix: str, *rest: Any) -> None:
        state["a"] = state["a"] * 2

    read: list[str] = []
    found = rehearsed(hooked(double, "a", "b"), {"a": torch.ones(2), "b": torch.ones(2)}, read)

    assert found.renamed == {"b": "b"}
    assert found.computed["a"].tolist() == [2, 2]
    assert read == ["a"]


def test_a_value_that_was_read_and_renamed_all_the_same_is_a_renamed_one() -> None:
    def look(state: State, prefix: str, *rest: Any) -> None:
        if float(state["a"].sum()) == 2:
            state["b"] = state.pop("a")

    assert rehearsed(hooked(look, "b"), {"a": torch.ones(2)}) == Rehearsal({"b": "a"})


def test_what_a_module_has_already_is_kept() -> None:
    def default(module: nn.Module, state: State, prefix: str, *rest: Any) -> None:
        state.setdefault("a", module.a)

    module = hooked(ignore, "a")
    module.register_load_state_dict_pre_hook(default)

    assert rehearsed(module, {}).computed == {"a": None}


def test_what_depends_on_another_tensor_of_the_module_is_computed_from_its_live_value() -> None:
    def default(module: nn.Module, state: State, prefix: str, *rest: Any) -> None:
        state["b"] = module.a

    module = hooked(ignore, "a", "b")
    module.register_load_state_dict_pre_hook(default)
    nn.init.constant_(module.a, 4)

    found = rehearsed(module, {})

    assert found.computed["b"].tolist() == [4, 4]
    assert found.computed["b"].data_ptr() != module.a.data_ptr()


def test_a_module_that_needs_several_values_one_after_the_other_gets_them() -> None:
    def go_on(state: State, prefix: str, *rest: Any) -> None:
        if state["a"].sum().item() and state["b"].sum().item():
            state["c"] = state["c"] + state.pop("a") + state.pop("b")

    values = {name: torch.ones(2) for name in "abcd"}
    found = rehearsed(hooked(go_on, "c", "d"), values)

    assert found.renamed == {"d": "d"}
    assert found.computed["c"].tolist() == [3, 3]


def test_a_part_that_fails_for_the_sake_of_the_whole_is_asked_again() -> None:
    def whole(state: State, prefix: str, *rest: Any) -> None:
        for name in ("a", "b"):
            if state[name].sum().item():
                state[f"part.{name}"] = state.pop(name)

    def part(state: State, prefix: str, *rest: Any) -> None:
        state[prefix + "c"] = state.pop(prefix + "a") + state.pop(prefix + "b")

    module = hooked(whole)
    module.part = hooked(part, "c")

    assert rehearsed(module, {"a": torch.ones(2), "b": torch.ones(2)}).computed["part.c"].tolist() == [2, 2]


def test_an_error_names_the_module_by_its_path() -> None:
    def fail(state: State, prefix: str, *rest: Any) -> None:
        raise IndexError("none left")

    module = nn.Sequential(nn.ReLU(), hooked(fail, "a"))

    with pytest.raises(RestoreError, match=r"^net\.1, a Module, does not take .*: IndexError: none left") as raised:
        rehearsed(module, {"1.a": torch.ones(2)})

    assert isinstance(raised.value.__cause__, IndexError)


def test_a_shape_that_does_not_fit_is_left_for_others_to_tell() -> None:
    found = rehearsed(hooked(ignore, "a"), {"a": torch.ones(3)})

    assert found == Rehearsal({"a": "a"})


def test_a_parameter_that_a_module_makes_anew_is_a_computed_one() -> None:
    def enlarge(module: nn.Module, state: State, prefix: str, *rest: Any) -> None:
        module.a = nn.Parameter(torch.empty_like(state["a"]))

    module = hooked(ignore, "a")
    module.register_load_state_dict_pre_hook(enlarge)
    before = module.a

    found = rehearsed(module, {"a": torch.ones(3)})

    assert found.computed["a"].tolist() == [1, 1, 1]
    assert module.a is before


def test_swapping_parameters_makes_no_difference() -> None:
    def rename(state: State, prefix: str, *rest: Any) -> None:
        state["new"] = state.pop("old")

    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        found = rehearsed(hooked(rename, "new"), {"old": torch.ones(2)})
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)

    assert found == Rehearsal({"new": "old"})


def test_only_tensors_that_a_module_uses_are_copied() -> None:
    seen: list[dict[str, bool]] = []

    def mean(module: nn.Module, state: State, prefix: str, *rest: Any) -> None:
        seen.append({name: value.is_meta for name, value in module.named_parameters()})
        state["a"] = state["a"] + module.used.a

    module = hooked(ignore, "a")
    module.register_load_state_dict_pre_hook(mean)
    module.used, module.unused = hooked(ignore, "a"), hooked(ignore, "a")
    nn.init.ones_(module.used.a)

    assert rehearsed(module, {"a": torch.ones(2)}).computed["a"].tolist() == [2, 2]
    assert seen[-1] == {"a": False, "used.a": False, "unused.a": True}


def test_an_attribute_that_is_a_part_of_the_module_is_the_live_part() -> None:
    def keep(module: nn.Module, state: State, prefix: str, *rest: Any) -> None:
        vars(module).update(same=module.a, part=module.child, number=state.pop("number").item())

    module = hooked(ignore, "a")
    module.register_load_state_dict_pre_hook(keep)
    module.child = nn.ReLU()

    found = rehearsed(module, {"number": torch.tensor(3)})

    assert [(where is module, name) for where, name, _ in found.attributes] == [
        (True, "same"),
        (True, "part"),
        (True, "number"),
    ]
    assert found.attributes[0][2] is module.a
    assert found.attributes[1][2] is module.child
    assert found.attributes[2][2] == 3
    assert not hasattr(module, "number")


def test_an_entry_outside_of_the_prefix_reaches_nobody_as_in_torch() -> None:
    def forget_the_prefix(state: State, prefix: str, *rest: Any) -> None:
        state["a"] = state.pop(prefix + "old")

    module = hooked(ignore, "a")
    module.part = hooked(forget_the_prefix, "a")
    values = {"part.old": torch.ones(2)}

    assert rehearsed(module, values) == Rehearsal()
    with pytest.raises(RuntimeError, match=r'Missing key.*"a", "part\.a"'):
        module.load_state_dict(values)


def test_an_entry_under_a_number_is_an_error() -> None:
    def number(state: dict[Any, Any], prefix: str, *rest: Any) -> None:
        state[3] = state["a"]

    with pytest.raises(RestoreError, match="AttributeError: 'int' object has no attribute 'startswith'"):
        rehearsed(hooked(number, "a"), {"a": torch.ones(2)})
