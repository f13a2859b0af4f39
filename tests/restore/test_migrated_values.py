"""Modules that compute values of today from what older versions of them saved."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from torch_trackckpt import Checkpoint, streaming_restore
from torch_trackckpt.errors import MismatchError, RestoreError
from torch_trackckpt.update_uid import update_uid

State = dict[str, Any]
Change = Callable[[nn.Module, State, str], None]


class Old(nn.Module):
    """What an older version was."""

    def __init__(self, **values: torch.Tensor) -> None:
        super().__init__()
        for name, value in values.items():
            setattr(self, name, nn.Parameter(value))


class New(Old):
    """Takes over version 1 by a function; it may have another one for after the loading."""

    _version = 2

    def __init__(self, change: Change, after: Change | None = None, **values: torch.Tensor) -> None:
        super().__init__(**values)
        self.change, self.after = change, after

    def _load_from_state_dict(self, state_dict: State, prefix: str, local_metadata: State, *rest: Any) -> None:
        is_old = local_metadata.get("version", 1) < 2
        if is_old:
            self.change(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        if is_old and self.after is not None:
            self.after(self, state_dict, prefix)


def nothing(module: nn.Module, state: State, prefix: str) -> None:
    pass


def as_torch_loads(saved: nn.Module, model: nn.Module) -> dict[str, torch.Tensor]:
    """What ``load_state_dict`` makes of it; the model has other values then."""
    # A module that changes values in place would change those of the saved one.
    model.load_state_dict(copy.deepcopy(saved.state_dict()))
    loaded = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            value.fill_(7)
    return loaded


def check(prefix: str, saved: nn.Module, model: nn.Module) -> None:
    """The restore is what ``load_state_dict`` is, bit for bit, in place."""
    expected, tensors = as_torch_loads(saved, model), dict(model.named_parameters())
    path = Checkpoint(model=saved).write(prefix)

    Checkpoint(model=model).read(path).assert_consumed()

    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert all(tensors[name] is tensor for name, tensor in model.named_parameters())


def split(module: nn.Module, state: State, prefix: str) -> None:
    for part in ("weight", "bias"):
        for name, value in zip("qkv", state.pop(f"{prefix}qkv_{part}").chunk(3), strict=True):
            state[f"{prefix}{name}_{part}"] = value


def test_a_fused_parameter_is_split(prefix: str) -> None:
    saved = Old(qkv_weight=torch.randn(6, 2), qkv_bias=torch.randn(6), rest=torch.randn(3))
    zeros = {f"{n}_{part}": torch.zeros(2, 2) if part == "weight" else torch.zeros(2) for n in "qkv" for part in PARTS}
    check(prefix, saved, New(split, **zeros, rest=torch.zeros(3)))


PARTS = ("weight", "bias")


def fuse(module: nn.Module, state: State, prefix: str) -> None:
    state[prefix + "all"] = torch.cat([state.pop(prefix + "a"), state.pop(prefix + "b")])


def transpose(module: nn.Module, state: State, prefix: str) -> None:
    state[prefix + "w"] = state[prefix + "w"].t()


def scale(module: nn.Module, state: State, prefix: str) -> None:
    state[prefix + "w"] = state[prefix + "w"] * 3


def scale_if_there(module: nn.Module, state: State, prefix: str) -> None:
    if prefix + "w" in state:
        scale(module, state, prefix)


def scale_in_place(module: nn.Module, state: State, prefix: str) -> None:
    state[prefix + "w"].mul_(3)


def scale_data_in_place(module: nn.Module, state: State, prefix: str) -> None:
    state[prefix + "w"].data[1:].mul_(3)


def scale_what_was_loaded(module: nn.Module, state: State, prefix: str) -> None:
    module.w.data.mul_(3)


def copy_by_hand(module: nn.Module, state: State, prefix: str) -> None:
    with torch.no_grad():
        module.w.copy_(state.pop(prefix + "w").flip(0))
    state[prefix + "w"] = module.w


def depend_on_the_values(module: nn.Module, state: State, prefix: str) -> None:
    if state[prefix + "w"].sum() > 0:
        state[prefix + "w"] = -state[prefix + "w"]


def go_by_numpy(module: nn.Module, state: State, prefix: str) -> None:
    state[prefix + "w"] = torch.from_numpy(state[prefix + "w"].numpy() + 1)


def mix_with_the_live_values(module: nn.Module, state: State, prefix: str) -> None:
    state[prefix + "w"] = torch.zeros_like(module.w) + state[prefix + "w"].mean()


@pytest.mark.parametrize(
    "change",
    [
        transpose,
        scale,
        scale_in_place,
        scale_data_in_place,
        copy_by_hand,
        depend_on_the_values,
        go_by_numpy,
        mix_with_the_live_values,
    ],
)
def test_a_value_is_changed_under_its_own_name(prefix: str, change: Change) -> None:
    check(prefix, Old(w=torch.rand(2, 2)), New(change, w=torch.zeros(2, 2)))


def test_two_values_become_one(prefix: str) -> None:
    check(prefix, Old(a=torch.randn(2), b=torch.randn(3)), New(fuse, all=torch.zeros(5)))


def test_a_value_is_changed_after_it_was_loaded(prefix: str) -> None:
    check(prefix, Old(w=torch.randn(2, 2)), New(nothing, scale_what_was_loaded, w=torch.zeros(2, 2)))


def test_a_whole_changes_values_of_its_parts(prefix: str) -> None:
    def change(module: nn.Module, state: State, prefix: str) -> None:
        state[prefix + "part.w"] = 2 * state.pop(prefix + "old.w")

    saved, model = Old(), New(change)
    saved.old, model.part = Old(w=torch.randn(2)), New(scale, w=torch.zeros(2))
    saved.plain, model.plain = nn.Linear(2, 1), nn.Linear(2, 1)
    check(prefix, saved, model)


def test_a_part_computes_while_the_whole_renames(prefix: str) -> None:
    def change(module: nn.Module, state: State, prefix: str) -> None:
        state[prefix + "part.w"] = state.pop(prefix + "old.w")

    saved, model = Old(), New(change)
    saved.old, model.part = Old(w=torch.randn(2)), New(scale, w=torch.zeros(2))
    check(prefix, saved, model)


def test_a_value_that_only_changes_its_wrapping_is_read_in_place(prefix: str) -> None:
    """Detached, or made a parameter, it is still the stored one."""

    def change(module: nn.Module, state: State, prefix: str) -> None:
        state[prefix + "new"] = nn.Parameter(state.pop(prefix + "w").detach().contiguous())
        assert state[prefix + "new"].is_meta

    path = Checkpoint(model=Old(w=torch.ones(2))).write(prefix)
    model = New(change, new=torch.zeros(2))

    Checkpoint(model=model).read(path).assert_consumed()

    assert torch.equal(model.new, torch.ones(2))


def test_only_what_a_module_computes_with_is_read_beforehand(prefix: str) -> None:
    seen: list[dict[str, bool]] = []

    def change(module: nn.Module, state: State, prefix: str) -> None:
        seen.append({name: value.is_meta for name, value in state.items()})
        state[prefix + "w"] = state[prefix + "w"] * 2

    path = Checkpoint(model=Old(w=torch.ones(2), large=torch.ones(2))).write(prefix)

    Checkpoint(model=New(change, w=torch.zeros(2), large=torch.zeros(2))).read(path).assert_consumed()

    assert seen == [{"w": True, "large": True}, {"w": False, "large": True}]


def test_the_live_module_is_not_changed_by_being_asked(prefix: str) -> None:
    asked: list[nn.Module] = []

    def change(module: nn.Module, state: State, prefix: str) -> None:
        asked.append(module)
        module.w.data.fill_(5)
        module.child.weight.data.fill_(5)
        module.some.append(1)
        module.w = nn.Parameter(torch.zeros(9))
        raise ValueError("no")

    path = Checkpoint(model=Old(w=torch.ones(2))).write(prefix)
    model = New(change, w=torch.zeros(2))
    model.child, model.some = nn.Linear(2, 2), []
    before = {name: (id(value), value._version, value.clone()) for name, value in model.named_parameters()}

    with pytest.raises(RestoreError, match="ValueError: no"):
        Checkpoint(model=model).read(path)

    assert all(type(module) is New and module is not model for module in asked)
    for name, value in model.named_parameters():
        address, version, values = before[name]
        assert (id(value), value._version) == (address, version)
        assert torch.equal(value, values)
    assert model.some == []


def test_what_a_module_keeps_as_an_attribute_is_set_with_the_values(prefix: str) -> None:
    def change(module: nn.Module, state: State, prefix: str) -> None:
        module.scale = float(state.pop(prefix + "scale"))

    path = Checkpoint(model=Old(w=torch.ones(2), scale=torch.tensor(0.5))).write(prefix)
    model = New(change, w=torch.zeros(3))
    with pytest.raises(MismatchError):
        Checkpoint(model=model).read(path)
    assert not hasattr(model, "scale")

    model = New(change, w=torch.zeros(2))
    Checkpoint(model=model).read(path).assert_consumed()

    assert model.scale == 0.5


# ------------------------------------------------------------------------------------------ conflicts


def test_computed_values_are_checked_with_all_others_before_anything_changes(prefix: str) -> None:
    def change(module: nn.Module, state: State, prefix: str) -> None:
        state[prefix + "w"] = state[prefix + "w"].double()
        state[prefix + "v"] = state[prefix + "v"][:1]

    path = Checkpoint(a=torch.ones(2), model=Old(w=torch.ones(2), v=torch.ones(2))).write(prefix)
    a, model = torch.zeros(2), New(change, w=torch.zeros(2), v=torch.zeros(2))

    with pytest.raises(MismatchError) as raised:
        Checkpoint(a=a, model=model).read(path)

    assert "2 values" in str(raised.value)
    assert "(root).model.w: tensor_name = none: its module has computed" in str(raised.value)
    assert "(root).model.v: received incompatible tensor with shape [1]" in str(raised.value)
    assert torch.equal(a, torch.zeros(2))
    assert torch.equal(model.w, torch.zeros(2))


def test_what_is_no_tensor_is_an_error(prefix: str) -> None:
    def change(module: nn.Module, state: State, prefix: str) -> None:
        state[prefix + "w"] = 3

    path = Checkpoint(model=Old(w=torch.ones(2))).write(prefix)

    with pytest.raises(RestoreError, match=r"^\(root\)\.model: the value for w that .* is a int, not a tensor"):
        Checkpoint(model=New(change, w=torch.zeros(2))).read(path)


def test_a_dtype_that_no_file_has_is_an_error(prefix: str) -> None:
    def change(module: nn.Module, state: State, prefix: str) -> None:
        state[prefix + "w"] = torch.empty(2, dtype=torch.complex32)

    path = Checkpoint(model=Old(w=torch.ones(2))).write(prefix)

    with pytest.raises(MismatchError, match="complex32"):
        Checkpoint(model=New(change, w=torch.zeros(2))).read(path)


# ------------------------------------------------------------------------------------------ optimizers, restores


def stepped(model: nn.Module) -> torch.optim.Adam:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_slots_stay_with_a_value_that_keeps_name_and_shape(prefix: str) -> None:
    saved = Old(w=torch.randn(2))
    old = stepped(saved)
    path = Checkpoint(model=saved, optimizer=old).write(prefix)
    model = New(scale, w=torch.zeros(2))
    optimizer = torch.optim.Adam(model.parameters())

    Checkpoint(model=model, optimizer=optimizer).read(path).assert_consumed()

    assert torch.equal(optimizer.state[model.w]["exp_avg"], old.state[saved.w]["exp_avg"])
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("is_late", [False, True])
def test_slots_of_another_shape_are_not_used(prefix: str, is_late: bool) -> None:
    saved = Old(w=torch.randn(2, 3))
    path = Checkpoint(model=saved, optimizer=stepped(saved)).write(prefix)
    model = New(transpose, w=torch.zeros(3, 2))
    optimizer = torch.optim.Adam(model.parameters())
    checkpoint = Checkpoint(model=model) if is_late else Checkpoint(model=model, optimizer=optimizer)

    status = checkpoint.read(path).expect_partial()
    checkpoint.optimizer = optimizer

    assert torch.equal(model.w, saved.w.t())
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.state == {}
    with pytest.raises(AssertionError, match=r"optimizer's state 'exp_avg' for \(root\)\.model\.w"):
        status.assert_consumed()


def test_slots_of_what_was_split_are_not_used(prefix: str) -> None:
    saved = Old(qkv_weight=torch.randn(6, 2), qkv_bias=torch.randn(6), rest=torch.randn(3))
    path = Checkpoint(model=saved, optimizer=stepped(saved)).write(prefix)
    zeros = {f"{n}_{part}": torch.zeros(2, 2) if part == "weight" else torch.zeros(2) for n in "qkv" for part in PARTS}
    model = New(split, **zeros, rest=torch.zeros(3))
    optimizer = torch.optim.Adam(model.parameters())

    status = Checkpoint(model=model, optimizer=optimizer).read(path).expect_partial()

    assert optimizer.state.keys() == {model.rest}
    assert optimizer.param_groups[0]["lr"] == 0.5
    status.assert_existing_objects_matched()
    with pytest.raises(AssertionError, match=r"optimizer's state 'exp_avg' for \(root\)\.model\.qkv_weight"):
        status.assert_consumed()


def test_restores_may_be_repeated_and_the_later_one_wins(prefix: str) -> None:
    path = Checkpoint(model=Old(w=torch.ones(2))).write(prefix)
    model = New(scale, w=torch.zeros(2))
    checkpoint = Checkpoint(model=model)
    checkpoint.read(path).assert_consumed()
    uid = update_uid(model.w)
    with torch.no_grad():
        model.w.zero_()

    checkpoint.read(path).assert_consumed()

    assert torch.equal(model.w, torch.full((2,), 3.0))
    assert update_uid(model.w) > uid


# ------------------------------------------------------------------------------------------ late, meta


def test_a_value_may_be_computed_for_a_tensor_that_comes_late(prefix: str) -> None:
    def change(module: nn.Module, state: State, prefix: str) -> None:
        state[prefix + "part.w"] = state.pop(prefix + "w") * 2
        state[prefix + "part.v"] = state[prefix + "part.w"] * 2

    path = Checkpoint(model=Old(w=torch.ones(2))).write(prefix)
    model = New(change)
    status = Checkpoint(model=model).read(path)
    model.part = nn.Module()
    model.part.w = nn.Parameter(torch.zeros(2))
    late = nn.Module()
    late.v = nn.Parameter(torch.zeros(2))

    assert torch.equal(model.part.w, torch.full((2,), 2.0))
    model.part.v = late.v
    assert torch.equal(late.v, torch.full((2,), 4.0))
    status.assert_consumed()


def test_a_computed_value_is_offered_to_a_load_state_dict_that_has_none(prefix: str) -> None:
    path = Checkpoint(model=Old(w=torch.ones(2))).write(prefix)
    with torch.device("meta"):
        model = New(scale_if_there, w=torch.zeros(2))
    status = Checkpoint(model=model).read(path)

    model.load_state_dict({}, assign=True)

    assert torch.equal(model.w, torch.full((2,), 3.0))
    status.assert_consumed()


@pytest.mark.parametrize("is_streaming", [False, True])
def test_a_tensor_on_the_meta_device_gets_a_computed_value_with_its_memory(prefix: str, is_streaming: bool) -> None:
    path = Checkpoint(model=Old(w=torch.ones(2))).write(prefix)
    with torch.device("meta"):
        model = New(scale, w=torch.zeros(2))
    parameter = model.w

    status = Checkpoint(model=model).read(path)
    with pytest.raises(AssertionError, match="run_restore_ops"):
        status.assert_consumed()
    if is_streaming:
        streaming_restore(status, "cpu")
    else:
        status.run_restore_ops("cpu")

    assert model.w is parameter
    assert torch.equal(model.w, torch.full((2,), 3.0))
    status.assert_consumed()


def test_a_computed_value_of_another_shape_is_found_before_there_is_memory(prefix: str) -> None:
    path = Checkpoint(model=Old(w=torch.ones(2, 3))).write(prefix)
    with torch.device("meta"):
        model = New(transpose, w=torch.zeros(2, 3))

    with pytest.raises(MismatchError, match=r"\(root\)\.model\.w: received incompatible tensor with shape \[3, 2\]"):
        Checkpoint(model=model).read(path)


def test_a_value_from_live_ones_on_the_meta_device_is_an_error(prefix: str) -> None:
    def change(module: nn.Module, state: State, prefix: str) -> None:
        state[prefix + "w"] = module.w + state[prefix + "w"].mean().item()

    path = Checkpoint(model=Old(w=torch.ones(2))).write(prefix)
    with torch.device("meta"):
        model = New(change, w=torch.zeros(2))

    with pytest.raises(RestoreError, match="are on the meta device and have no values; give the module its memory"):
        Checkpoint(model=model).read(path)


def test_nothing_of_a_finished_restore_stays_in_memory(prefix: str) -> None:
    path = Checkpoint(model=Old(w=torch.ones(2))).write(prefix)
    seen = []

    def change(module: nn.Module, state: State, prefix: str) -> None:
        state[prefix + "w"] = state[prefix + "w"] * 3
        seen.append(state[prefix + "w"].untyped_storage())

    model = New(change, w=torch.zeros(2))
    status = Checkpoint(model=model).read(path)
    gc.collect()

    assert status._restoration._computed == {}
    status.assert_consumed()
