"""Models of several kinds, saved in each of Keras's ways, whose files torch loads, and gives back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from keras_models import Case, close, dense, loaded, outputs_of, scramble
from keras_oracle import Keras, Program, Run, functional, inputs, layer, optimizer, sequential, subclassed
from torch import nn

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.interop import keras_view, load_keras


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4))
        self.norm = nn.BatchNorm1d(4, eps=1e-3)
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(x)))


BODY = sequential(dense(4, activation="relu"), layer("Dropout", rate=0.5), dense(4), inputs=inputs(5))

CASES: Mapping[str, Case] = {
    "sequential": Case(
        sequential(
            dense(4, activation="relu"),
            dense(4),
            layer("BatchNormalization"),
            layer("Dropout", rate=0.5),
            dense(4),
            inputs=inputs(5),
        ),
        [inputs(5)],
        Net,
        inexact=["norm.running_var"],
    ),
    "functional": Case(
        functional(
            [inputs(5, name="x")],
            {"body": BODY, "norm": layer("BatchNormalization"), "head": dense(4)},
            [("a", "body", ["x"]), ("b", "norm", ["a"]), ("c", "head", ["b"])],
            ["c"],
        ),
        [inputs(5)],
        Net,
        inexact=["norm.running_var"],
    ),
    "subclassed": Case(
        subclassed({"body": BODY, "norm": layer("BatchNormalization"), "head": dense(4)}, ["body", "norm", "head"]),
        [inputs(5)],
        Net,
        inexact=["norm.running_var"],
    ),
}
WAYS = {
    "k3": ["save", "write", "root", "others", "export", "saved_model"],
    "k2": ["save", "write", "root", "others", "save_weights", "export", "saved_model", "model.save"],
}
SAVED_MODELS = ("export", "saved_model", "model.save")
# Of a subclassed model, edges and names of weights tell the least.
EACH = [("subclassed", generation, how) for generation, ways in WAYS.items() for how in ways]
EACH += [("sequential", generation, how) for generation, ways in WAYS.items() for how in ways if how in SAVED_MODELS]
EACH += [("functional", generation, how) for generation in WAYS for how in ("root", "export")]


def given_back(net: nn.Module, written: Run, how: str, directory: Path) -> str:
    """Saved as a program does that saves so."""
    if how == "others":
        return Checkpoint(net=keras_view(net, like=written.prefix), step=torch.tensor(7)).save(str(directory / "ckpt"))
    view = keras_view(net, like=written.prefix)
    if how == "root":
        return Checkpoint(view).save(str(directory / "ckpt"))
    if how in ("save_weights", *SAVED_MODELS):
        return Checkpoint(view).write(str(directory / "ckpt"))
    return getattr(Checkpoint(model=view), how)(str(directory / "ckpt"))


@pytest.mark.parametrize(("name", "generation", "how"), EACH)
def test_each_way_of_saving(keras: Keras, name: str, generation: str, how: str, tmp_path: Path) -> None:
    case = CASES[name]
    written = keras.write(case.of(generation), tmp_path / "theirs", how=how)
    path = Path(written.prefix).parents[1] if how in SAVED_MODELS else written.prefix
    net, _ = loaded(case, written, path)
    if how == "export":
        with pytest.raises(UnsupportedValueError, match="flavor="):
            given_back(net, written, how, tmp_path)
        return
    scramble(net)
    ours = given_back(net, written, how, tmp_path)
    restored_how = {"save_weights": "load_weights", "others": "others", "save": "save", "write": "save"}.get(
        how, "root"
    )
    restored = keras.restore(case.of(generation), ours, written, how=restored_how)
    restored.assert_used()
    close(restored.outputs, outputs_of(case, net, written.inputs))


def trained(case: Case, generation: str, *, is_compiled: bool = True, legacy: bool = False) -> Program:
    adam = optimizer("Adam", learning_rate=0.01, legacy=legacy)
    return Program(generation, case.model, case.inputs, optimizer=adam, is_compiled=is_compiled)


@pytest.mark.parametrize(
    ("name", "generation", "legacy", "how", "is_compiled"),
    [
        ("subclassed", "k3", False, "save", True),
        ("subclassed", "k3", False, "root", True),
        ("subclassed", "k3", False, "others", False),
        ("sequential", "k3", False, "saved_model", True),
        ("subclassed", "k3", False, "saved_model", True),
        ("functional", "k2", False, "save", True),
        ("subclassed", "k2", False, "save_weights", True),
        ("subclassed", "k2", False, "model.save", True),
        ("subclassed", "k2", True, "root", True),
        ("functional", "k2", True, "others", False),
        ("subclassed", "k2", True, "model.save", True),
    ],
)
def test_the_optimizer_is_found_wherever_it_is(
    keras: Keras, name: str, generation: str, legacy: bool, how: str, is_compiled: bool, tmp_path: Path
) -> None:
    case = CASES[name]
    program = trained(case, generation, is_compiled=is_compiled, legacy=legacy)
    written = keras.write(program, tmp_path / "theirs", how=how, num_steps=2)
    net = case.net()
    adam = torch.optim.Adam(net.parameters(), eps=1e-7)
    path = Path(written.prefix).parents[1] if how in SAVED_MODELS else written.prefix
    status = load_keras(net, path, adam)
    status.assert_consumed().assert_existing_objects_matched()
    close(outputs_of(case, net, written.inputs), written.outputs)
    assert {each.name for each in status.inexact} == {"norm.running_var", "eps"}
    assert adam.param_groups[0]["lr"] == pytest.approx(0.01)
    assert all(adam.state[parameter]["step"] == 2 for parameter in net.parameters())
    momentum = written.slots["m" if legacy else "momentums"]
    assert torch.equal(adam.state[net.body[0].weight]["exp_avg"], torch.from_numpy(momentum[0]).T)
    assert torch.equal(adam.state[net.head.bias]["exp_avg"], torch.from_numpy(momentum[-1]))
