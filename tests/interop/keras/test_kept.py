"""What a Keras view keeps with a torch optimizer is written while it is true, and not after that."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from torch_trackckpt import Checkpoint, load_checkpoint
from torch_trackckpt.errors import MismatchError, UnsupportedValueError
from torch_trackckpt.graph.messages import read_object_graph
from torch_trackckpt.interop.keras import KerasEpsilon, keras_view
from torch_trackckpt.interop.keras.inexact_steps import inexact_formulas
from torch_trackckpt.interop.keras.kept import Kept
from torch_trackckpt.interop.keras.layout import Flavor
from torch_trackckpt.interop.keras.optimizer_state import OptimizerState
from torch_trackckpt.interop.keras.optimizers import kind_of

UNKNOWN = "how many steps SGD has taken is not known"


class Training:
    """A net, its optimizer, and the checkpoint of their Keras views."""

    def __init__(self, kind: Any = optim.SGD, dtype: torch.dtype = torch.float32, **settings: Any) -> None:
        self.net = nn.Sequential(nn.Linear(3, 2)).to(dtype)
        self.optimizer = kind(self.net.parameters(), **({"lr": 0.1} | settings))
        self.view = keras_view(self.net, flavor="keras3")
        self.optimizer_view = keras_view(self.optimizer, model=self.view)
        self.checkpoint = Checkpoint(model=self.view, optimizer=self.optimizer_view)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.net(torch.randn(4, 3).to(self.net[0].weight.dtype)).square().sum().backward()
        self.optimizer.step()

    def trained(self) -> Training:
        self.step()
        self.step()
        return self

    @property
    def buffer(self) -> torch.Tensor:
        found = self.optimizer.state[self.net[0].bias]["momentum_buffer"]
        assert isinstance(found, torch.Tensor)
        return found


def stored(path: str, place: str) -> torch.Tensor:
    reader = load_checkpoint(path)
    graph = read_object_graph(reader)
    node_id = graph.find(f"optimizer/{place}")
    assert node_id is not None
    value = reader.get_tensor(graph.nodes[node_id].attributes[0].checkpoint_key)
    assert isinstance(value, torch.Tensor)
    return value


@pytest.fixture
def written(tmp_path: Path) -> str:
    return Training(momentum=0.9).trained().checkpoint.write(str(tmp_path / "written"))


@pytest.fixture
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def restored(path: str, **settings: Any) -> Training:
    found = Training(**({"momentum": 0.9} | settings))
    found.checkpoint.read(path).assert_consumed()
    return found


def test_what_was_read_is_written_bit_for_bit_until_a_step(written: str, tmp_path: Path) -> None:
    training = restored(written)
    parameter, moment = training.net[0].bias, kind_of(training.optimizer).moments[0]
    again = training.checkpoint.write(str(tmp_path / "again"))
    assert torch.equal(stored(again, "momentums/1"), stored(written, "momentums/1"))
    assert stored(again, "_iterations") == 2

    training.step()

    assert Kept.of(training.optimizer).raw(parameter, moment) is None
    later = training.checkpoint.write(str(tmp_path / "later"))
    torch.testing.assert_close(stored(later, "momentums/1"), -0.1 * training.buffer)
    assert stored(later, "_iterations") == 3


def test_a_state_that_was_cleared_leaves_no_momentum(written: str, tmp_path: Path) -> None:
    training = restored(written)
    training.optimizer.state.clear()
    again = training.checkpoint.write(str(tmp_path / "again"))
    assert not stored(again, "momentums/0").any()


def test_after_load_state_dict_the_momenta_are_its_own_and_the_count_has_to_be_said(
    written: str, tmp_path: Path
) -> None:
    training = restored(written)
    training.optimizer.load_state_dict(Training(momentum=0.9).optimizer.state_dict())
    with pytest.raises(UnsupportedValueError, match=UNKNOWN):
        training.checkpoint.write(str(tmp_path / "unknown"))

    keras_view(training.optimizer).iterations = 7

    again = training.checkpoint.write(str(tmp_path / "again"))
    assert not stored(again, "momentums/0").any()
    assert stored(again, "_iterations") == 7


@pytest.mark.parametrize("steps_after", [0, 1])
def test_after_a_plain_restore_the_count_is_unknown_until_a_keras_view_brings_it(
    written: str, tmp_path: Path, steps_after: int
) -> None:
    training = Training(momentum=0.9).trained()
    plain = Checkpoint(net=training.net, optimizer=training.optimizer)
    path = plain.write(str(tmp_path / "plain"))
    for new in (training, Training(momentum=0.9)):
        new.optimizer.zero_grad()
        Checkpoint(net=new.net, optimizer=new.optimizer).read(path).assert_consumed()
        for _ in range(steps_after):
            new.step()
        with pytest.raises(UnsupportedValueError, match=UNKNOWN):
            new.checkpoint.write(str(tmp_path / "unknown"))
        new.checkpoint.read(written)
        new.step()
        assert stored(new.checkpoint.write(str(tmp_path / "known")), "_iterations") == 3


def test_a_rate_of_0_does_not_lose_the_momentum_in_silence(tmp_path: Path) -> None:
    training = Training(momentum=0.9).trained()
    training.optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(UnsupportedValueError, match="is 0 now, so that the momentum would be lost"):
        training.checkpoint.write(str(tmp_path / "zero"))


def test_a_state_of_another_dtype_than_the_parameter_is_not_rounded(tmp_path: Path) -> None:
    def halves() -> Training:
        training = Training(optim.Adam, dtype=torch.bfloat16).trained()
        for state in training.optimizer.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.rand(state[name].shape)
        return training

    first, second = halves(), halves()
    path = first.checkpoint.write(str(tmp_path / "first"))
    second.checkpoint.read(path).assert_consumed()
    for mine, theirs in zip(second.net.parameters(), first.net.parameters(), strict=True):
        assert torch.equal(second.optimizer.state[mine]["exp_avg"], first.optimizer.state[theirs]["exp_avg"])
    with pytest.raises(MismatchError, match=r"exp_avg\w* of .* is torch\.bfloat16 .* torch\.float32 .* is stored"):
        Training(optim.Adam, dtype=torch.bfloat16).checkpoint.read(path)


def test_momenta_as_read_have_the_dtype_that_torch_has_now(written: str) -> None:
    training = restored(written)
    parameter, moment = training.net[0].bias, kind_of(training.optimizer).moments[0]
    kept = Kept.of(training.optimizer)
    old = kept.raw(parameter, moment)
    assert kept.keep(parameter, moment, parameter) is old
    assert kept.keep(parameter, moment, parameter.double()).dtype is torch.float64


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("kind", [optim.SGD, optim.NAdam])
def test_scalars_have_the_dtype_of_keras_whatever_the_default_is(tmp_path: Path, kind: Any) -> None:
    training = Training(kind).trained()
    path = training.checkpoint.write(str(tmp_path / "ckpt"))
    assert stored(path, "_learning_rate").dtype is torch.float32
    assert stored(path, "_iterations").dtype is torch.int64
    training.checkpoint.read(path).assert_consumed()


class Owner:
    """Has the state of an optimizer, as a view has."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.state = OptimizerState(training.optimizer, self.variables)

    def variables(self) -> list[Any]:
        return list(self.training.view.bound().trainable())


def test_the_state_does_not_keep_its_view_alive(written: str) -> None:
    owner = Owner(Training(optim.Adam))
    state, gone = owner.state, weakref.ref(owner)
    assert len(state.optimised()) == 2
    gc.disable()
    try:
        del owner
        assert gone() is None
    finally:
        gc.enable()
    with pytest.raises(UnsupportedValueError, match="view of Adam is gone"):
        state.optimised()


def test_a_copy_of_a_training_has_a_view_of_its_own_optimizer() -> None:
    training = Training(momentum=0.9).trained()
    other = copy.deepcopy(Owner(training))
    assert other.state.optimizer is other.training.optimizer is not training.optimizer
    assert [id(p) for p in other.state.optimised()] == [id(p) for p in other.training.net.parameters()]
    assert Kept.of(other.state.optimizer) is other.state.kept is not Kept.of(training.optimizer)


def test_there_is_one_leaf_for_each_variable_until_they_are_forgotten() -> None:
    owner = Owner(Training(optim.Adam))
    moment, variable = owner.state.kind.moments[0], owner.variables()[0]
    leaf = owner.state.moment(moment, variable)
    assert owner.state.moment(moment, variable) is leaf
    owner.state.forget_leaves()
    assert owner.state.moment(moment, variable) is not leaf


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [
        (optim.SGD, {"momentum": 0.9, "dampening": 0.1}, "dampening"),
        (optim.Adagrad, {"lr_decay": 0.1, "eps": 0.0}, "lr_decay"),
    ],
)
def test_settings_that_keras_has_not_are_told(kind: Any, settings: dict[str, float], name: str) -> None:
    optimizer = Training(kind, **settings).optimizer
    assert [item.name for item in inexact_formulas(optimizer, kind_of(optimizer), Flavor.KERAS3)] == [name]


def test_a_step_that_is_refused_leaves_epsilon_alone() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = optim.Adam([{"params": first.parameters()}, {"params": second.parameters()}], eps=1e-7)
    KerasEpsilon(optimizer)
    for module in (first, second):
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
    second.bias.grad = None
    optimizer.step()
    second.bias.grad = torch.ones(2)
    with pytest.raises(UnsupportedValueError, match=r"taken \[0, 1\] steps"):
        optimizer.step()
    assert [group["eps"] for group in optimizer.param_groups] == [1e-7, 1e-7]


def test_a_step_that_ends_in_an_error_leaves_no_other_epsilon_in_a_state_dict() -> None:
    layer = nn.Linear(2, 2)
    optimizer = optim.Adam(layer.parameters(), eps=1e-7)
    epsilon = KerasEpsilon(optimizer)
    layer(torch.ones(2)).sum().backward()

    def fail() -> float:
        raise ValueError("no loss")

    with pytest.raises(ValueError, match="no loss"):
        optimizer.step(fail)
    assert optimizer.state_dict()["param_groups"][0]["eps"] == 1e-7
    assert optimizer.param_groups[0]["eps"] != 1e-7
    epsilon.remove()
    assert optimizer.param_groups[0]["eps"] == 1e-7


def test_copies_of_an_optimizer_have_nothing_that_is_kept(written: str) -> None:
    optimizer = restored(written).optimizer
    attributes = {name for name, value in vars(optimizer).items() if isinstance(value, Kept)}
    assert attributes
    for other in (copy.deepcopy(optimizer), copy.copy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert not attributes & vars(other).keys()
