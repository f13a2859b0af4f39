"""Modules, parameters and buffers as nodes."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import walk
from torch import nn

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import MismatchError, UnsupportedValueError


def saved_paths(root: object) -> list[str]:
    return [value.key.split("/.ATTRIBUTES")[0] for value in walk(root).values[:-1]]


def same_values(module: nn.Module, other: nn.Module) -> bool:
    state, other_state = module.state_dict(), other.state_dict()
    return state.keys() == other_state.keys() and all(torch.equal(value, other_state[k]) for k, value in state.items())


def test_children_are_parameters_then_persistent_buffers_then_submodules() -> None:
    """C013, C020"""
    module = nn.Module()
    module.sub = nn.Linear(1, 1, bias=False)
    module.register_buffer("seen", torch.zeros(1))
    module.register_buffer("scratch", torch.zeros(1), persistent=False)
    module.p2 = nn.Parameter(torch.zeros(1))
    module.p1 = nn.Parameter(torch.zeros(1))
    assert saved_paths(module) == ["p2", "p1", "seen", "sub/weight"]


def test_a_non_persistent_buffer_is_left_alone_by_restore(prefix: str) -> None:
    """C020"""

    def made(value: float, *, persistent: bool) -> nn.Module:
        module = nn.Module()
        module.register_buffer("b", torch.tensor(value), persistent=persistent)
        return module

    Checkpoint(m=made(1.0, persistent=True)).write(prefix)
    module = made(2.0, persistent=False)
    Checkpoint(m=module).read(prefix).assert_existing_objects_matched()
    assert torch.equal(module.b, torch.tensor(2.0))


def test_running_statistics_are_saved_under_their_buffer_names(prefix: str) -> None:
    """C021"""
    norm = nn.BatchNorm1d(2)
    norm(torch.arange(8.0).reshape(4, 2))
    assert saved_paths(norm) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    Checkpoint(norm=norm).write(prefix)
    fresh = nn.BatchNorm1d(2)
    Checkpoint(norm=fresh).read(prefix).assert_consumed()
    assert same_values(norm, fresh)
    assert fresh.num_batches_tracked.item() == 1


def test_parameters_and_buffers_that_are_none_have_no_node() -> None:
    """C022"""
    module = nn.Linear(1, 1, bias=False)
    module.register_parameter("extra", None)
    module.register_buffer("cache", None)
    module.register_module("tail", None)
    snapshot = walk(module)
    assert [child.local_name for child in snapshot.graph.nodes[0].children] == ["weight"]


def test_plain_attributes_of_a_module_are_no_children() -> None:
    """C025"""
    module = nn.Linear(1, 1, bias=False)
    module.number, module.function, module.plain_tensor = 3, len, torch.zeros(1)
    assert saved_paths(module) == ["weight"]


def test_tied_weights_are_one_value_and_stay_tied_after_restore(prefix: str) -> None:
    """C023"""

    def tied() -> nn.Module:
        model = nn.Module()
        model.embed, model.head = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
        model.head.weight = model.embed.weight
        return model

    written, fresh = tied(), tied()
    assert saved_paths(written) == ["embed/weight"]
    Checkpoint(m=written).write(prefix)
    Checkpoint(m=fresh).read(prefix).assert_consumed()
    assert fresh.head.weight is fresh.embed.weight
    assert same_values(written, fresh)


def test_a_shared_submodule_is_one_node() -> None:
    """C023"""
    shared = nn.Linear(1, 1, bias=False)
    assert saved_paths(nn.ModuleList([shared, nn.Sequential(shared)])) == ["0/weight"]


def test_a_parametrized_module_saves_its_original_tensor(prefix: str) -> None:
    def made() -> nn.Module:
        return nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))

    written, fresh = made(), made()
    Checkpoint(m=written).write(prefix)
    Checkpoint(m=fresh).read(prefix).assert_consumed()
    assert same_values(written, fresh)
    assert torch.equal(written.weight, fresh.weight)


def test_a_parameter_without_a_value_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedValueError, match=r"^\(root\)\.m\.weight cannot be saved: .*not initialised yet"):
        walk({"m": nn.LazyLinear(1)})


def test_a_module_on_the_meta_device_is_refused_by_key(prefix: str) -> None:
    """C369"""
    with pytest.raises(UnsupportedValueError, match=r"^m/weight/\.ATTRIBUTES/VARIABLE_VALUE: .*meta device"):
        Checkpoint(m=nn.Linear(1, 1, device="meta")).write(prefix)
    assert list(Path(prefix).parent.iterdir()) == []


# ------------------------------------------------------------------------------------------ extra state


class Tuned(nn.Module):
    """A module with state beyond its tensors."""

    def __init__(self, state: object) -> None:
        super().__init__()
        self.state = state

    def get_extra_state(self) -> object:
        return self.state

    def set_extra_state(self, state: object) -> None:
        self.state = state


def test_extra_state_travels_as_json_with_its_tensors_as_children(prefix: str) -> None:
    Checkpoint(m=Tuned({"steps": 3, "history": [torch.tensor([1.0]), (2, None)]})).write(prefix)
    fresh = Tuned(None)
    Checkpoint(m=fresh).read(prefix).assert_consumed()
    assert fresh.state == {"steps": 3, "history": [torch.tensor([1.0]), (2, None)]}


def test_extra_state_that_cannot_be_encoded_is_refused_by_path() -> None:
    """C168"""
    with pytest.raises(UnsupportedValueError, match=r"^\(root\)\.m\._extra_state cannot be saved: "):
        walk({"m": Tuned(object())})


# ----------------------------------------------------------------- modules that interfere with state_dict


class Metric(nn.Module):
    """Keeps a value outside of parameters and buffers, as quantised modules and some metrics do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.total = 5

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "total"] = self.total


def test_a_value_that_only_the_modules_own_state_dict_knows_is_refused_by_name(prefix: str) -> None:
    """C168: it would be lost without a word."""
    with pytest.raises(UnsupportedValueError, match=r"\(root\)\.m\.0 cannot be saved: Metric.state_dict\(\).* total"):
        Checkpoint(m=nn.Sequential(Metric())).write(prefix)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {f"renamed.{key}": value for key, value in state.items()},
        lambda state: {f"renamed.{key}": value.detach() for key, value in state.items()},
        lambda state: {key: value.detach().clone().cpu() for key, value in state.items()},
        lambda state: {key: value for key, value in state.items() if "weight" in key},
    ],
    ids=["renames", "renames and detaches", "copies", "leaves out"],
)
def test_a_module_whose_state_dict_shows_the_known_in_another_way_is_saved_whole(
    change: Callable[[dict[str, Any]], dict[str, Any]], prefix: str
) -> None:
    written, fresh = nn.Linear(2, 1), nn.Linear(2, 1)
    for module in (written, fresh):
        module._register_state_dict_hook(lambda module, state, prefix, metadata: change(state))
    Checkpoint(m=written).write(prefix)
    Checkpoint(m=fresh).read(prefix).assert_consumed()

    assert torch.equal(fresh.weight, written.weight)
    assert torch.equal(fresh.bias, written.bias)


def test_a_hook_on_state_dict_that_adds_nothing_is_no_obstacle(prefix: str) -> None:
    module = nn.Linear(1, 1)
    module._register_state_dict_hook(lambda module, state, prefix, metadata: None)
    Checkpoint(m=module).write(prefix)
    Checkpoint(m=nn.Linear(1, 1)).read(prefix).assert_consumed()


def test_a_scripted_module_is_saved_and_restored(prefix: str) -> None:
    """C072"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        written, fresh = (torch.jit.trace(nn.Linear(2, 1), torch.ones(1, 2)) for _ in range(2))

    Checkpoint(m=written).write(prefix)
    Checkpoint(m=fresh).read(prefix).assert_consumed()

    assert torch.equal(fresh.weight, written.weight)


def test_an_extra_state_that_cannot_be_set_is_found_before_anything_changes(prefix: str) -> None:
    class OneWay(nn.Linear):
        def get_extra_state(self) -> int:
            return 3

    Checkpoint(m=OneWay(1, 1)).write(prefix)
    fresh = OneWay(1, 1)
    before = fresh.weight.detach().clone()

    with pytest.raises(MismatchError, match=r"nothing has been assigned: OneWay has get_extra_state\(\) but no set"):
        Checkpoint(m=fresh).read(prefix)

    assert torch.equal(fresh.weight, before)


def test_a_buffer_that_only_the_modules_own_state_dict_keeps_is_refused_by_name(prefix: str) -> None:
    """C020, C168: not persistent, but put into the state_dict by a hook."""

    def keep(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
        state[prefix + "cache"] = module.cache
        state[prefix + "my_extra_state"] = 5

    module = nn.Linear(1, 1)
    module.register_buffer("cache", torch.zeros(1), persistent=False)
    module._register_state_dict_hook(keep)

    with pytest.raises(UnsupportedValueError, match="no parameters or buffers: cache, my_extra_state"):
        Checkpoint(m=module).write(prefix)
