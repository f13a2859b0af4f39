"""What Keras's optimizers keep goes on in torch's, and back: every algorithm, in every layout, against Keras itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from keras_oracle import Keras, Program, Run, inputs, layer, optimizer, schedule, sequential
from torch import nn, optim

from torch_trackckpt import Checkpoint, load_checkpoint
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.interop.keras import KerasEpsilon, KerasRMSprop, keras_view, load_keras

NUM_STEPS, NUM_FURTHER = 4, 6


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """One optimizer on both sides."""

    keras: str
    config: Mapping[str, Any]
    torch: Callable[..., optim.Optimizer]
    settings: Mapping[str, Any]
    has_epsilon: bool = False
    """Whether the steps are Keras's with `KerasEpsilon` only."""
    tolerance: float = 5e-6
    layouts: tuple[str, ...] = ("keras3", "tf_keras", "legacy")
    inexact: tuple[str, ...] = ()
    """What the status names."""

    def described(self, layout: str) -> Any:
        return optimizer(self.keras, legacy=layout == "legacy", **self.config)

    def made(self, net: nn.Module) -> optim.Optimizer:
        made = self.torch(net.parameters(), **self.settings)
        if self.has_epsilon:
            KerasEpsilon(made)
        return made


ALGORITHMS = {
    "sgd": Algorithm("SGD", {"learning_rate": 0.05}, optim.SGD, {"lr": 0.5}),
    "momentum": Algorithm("SGD", {"learning_rate": 0.05, "momentum": 0.9}, optim.SGD, {"lr": 0.5, "momentum": 0.9}),
    "nesterov": Algorithm(
        "SGD",
        {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True},
        optim.SGD,
        {"lr": 0.5, "momentum": 0.9, "nesterov": True},
    ),
    "adam": Algorithm("Adam", {"learning_rate": 0.01}, optim.Adam, {"eps": 1e-7}, has_epsilon=True),
    "adam with a large epsilon": Algorithm(
        "Adam", {"learning_rate": 0.01, "epsilon": 1e-3}, optim.Adam, {"eps": 1e-3}, has_epsilon=True
    ),
    "adam without the rule": Algorithm(
        "Adam",
        {"learning_rate": 0.01, "epsilon": 1e-3},
        optim.Adam,
        {"eps": 1e-3},
        tolerance=2e-2,
        inexact=("eps",),
    ),
    "amsgrad": Algorithm(
        "Adam",
        {"learning_rate": 0.01, "amsgrad": True},
        optim.Adam,
        {"eps": 1e-7, "amsgrad": True},
        has_epsilon=True,
    ),
    "adamw": Algorithm(
        "AdamW",
        {"learning_rate": 0.01, "weight_decay": 0.1},
        optim.AdamW,
        {"eps": 1e-7, "weight_decay": 0.1},
        has_epsilon=True,
        layouts=("keras3", "tf_keras"),
    ),
    "adamax": Algorithm(
        "Adamax", {"learning_rate": 0.01}, optim.Adamax, {"eps": 1e-7}, inexact=("eps",), tolerance=1e-5
    ),
    "nadam": Algorithm(
        "Nadam",
        {"learning_rate": 0.01},
        optim.NAdam,
        {"eps": 1e-7, "momentum_decay": 1.0},
        layouts=("keras3", "tf_keras"),
    ),
    "legacy nadam": Algorithm(
        "Nadam",
        {"learning_rate": 0.01},
        optim.NAdam,
        {"eps": 1e-7, "momentum_decay": 0.004},
        layouts=("legacy",),
    ),
    "rmsprop": Algorithm("RMSprop", {"learning_rate": 0.01}, KerasRMSprop, {}, layouts=("keras3", "tf_keras")),
    "torch's rmsprop": Algorithm(
        "RMSprop", {"learning_rate": 0.01}, optim.RMSprop, {"alpha": 0.9, "eps": 1e-7}, layouts=("legacy",)
    ),
    "centered rmsprop with momentum": Algorithm(
        "RMSprop",
        {"learning_rate": 0.01, "momentum": 0.8, "centered": True},
        KerasRMSprop,
        {"momentum": 0.8, "centered": True},
    ),
    "adagrad": Algorithm(
        "Adagrad",
        {"learning_rate": 0.05},
        optim.Adagrad,
        {"eps": 1e-7, "initial_accumulator_value": 0.1},
        inexact=("eps",),
        layouts=("keras3", "tf_keras"),
    ),
    "legacy adagrad": Algorithm(
        "Adagrad",
        {"learning_rate": 0.05},
        optim.Adagrad,
        {"eps": 1e-7, "initial_accumulator_value": 0.1},
        layouts=("legacy",),
    ),
    "adadelta": Algorithm("Adadelta", {"learning_rate": 0.5}, optim.Adadelta, {"rho": 0.95, "eps": 1e-7}),
}

FORGETFUL = ("nadam", "tf_keras")
"""This Nadam counts in an attribute that no checkpoint of Keras has, and goes on in another way after any restore."""

CASES = [(name, layout) for name, algorithm in ALGORITHMS.items() for layout in algorithm.layouts]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def program(algorithm: Algorithm, layout: str, **settings: Any) -> Program:
    layers = [layer("Dense", units=4, activation="relu"), layer("Dense", units=3)]
    return Program(
        "k3" if layout == "keras3" else "k2",
        sequential(*layers, inputs=inputs(5)),
        [inputs(5)],
        optimizer=algorithm.described(layout),
        trains_on="gradients",
        **settings,
    )


def as_keras(module: nn.Sequential) -> list[np.ndarray[Any, Any]]:
    return [
        (tensor.detach().t() if tensor.ndim == 2 else tensor.detach()).contiguous().numpy()
        for tensor in module.parameters()
    ]


def step(module: nn.Module, trained: optim.Optimizer, run: Run, number: int) -> None:
    """One step on the gradients that Keras has taken."""
    for parameter, gradients in zip(module.parameters(), run.gradients, strict=True):
        gradient = torch.from_numpy(gradients[number].copy())
        parameter.grad = gradient.t().contiguous() if gradient.ndim == 2 else gradient
    trained.step()


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_a_training_of_keras_goes_on_in_torch(keras: Keras, tmp_path: Path, name: str, layout: str) -> None:
    algorithm = ALGORITHMS[name]
    written = keras.write(program(algorithm, layout), tmp_path / "theirs", num_steps=NUM_STEPS, num_further=NUM_FURTHER)
    mine = net()
    trained = algorithm.made(mine)

    status = load_keras(mine, written.prefix, optimizer=trained)

    status.assert_consumed()
    assert {item.name for item in status.inexact} == set(algorithm.inexact)
    for number in range(NUM_STEPS, NUM_STEPS + NUM_FURTHER):
        step(mine, trained, written, number)
    for value, theirs in zip(as_keras(mine), written.variables, strict=True):
        np.testing.assert_allclose(value, theirs.after, rtol=0, atol=algorithm.tolerance, err_msg=theirs.path)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_a_training_of_torch_goes_on_in_keras(keras: Keras, tmp_path: Path, name: str, layout: str) -> None:
    """The checkpoint of Keras is taken as a template; what is written is of the steps that torch has taken since."""
    algorithm = ALGORITHMS[name]
    described = program(algorithm, layout)
    written = keras.write(described, tmp_path / "theirs", num_steps=NUM_STEPS - 2, num_further=NUM_FURTHER + 2)
    longer = keras.write(described, tmp_path / "longer", num_steps=NUM_STEPS, num_further=NUM_FURTHER)
    mine = net()
    trained = algorithm.made(mine)
    load_keras(mine, written.prefix, optimizer=trained)
    for number in range(NUM_STEPS - 2, NUM_STEPS):
        step(mine, trained, longer, number)

    checkpoint = Checkpoint(model=keras_view(mine, like=written.prefix), optimizer=keras_view(trained))
    prefix = checkpoint.save(str(tmp_path / "mine" / "ckpt"))

    restored = keras.restore(described, prefix, longer, num_further=NUM_FURTHER)
    restored.assert_used()
    for value, variable, theirs in zip(as_keras(mine), restored.variables, longer.variables, strict=True):
        np.testing.assert_array_equal(variable.value, value, err_msg=theirs.path)
        assert variable.after is not None
        if (name, layout) != FORGETFUL:
            np.testing.assert_allclose(
                variable.after, theirs.after, rtol=0, atol=2 * algorithm.tolerance, err_msg=theirs.path
            )


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_there_and_back_every_value_of_keras_is_the_same(keras: Keras, tmp_path: Path, name: str, layout: str) -> None:
    algorithm = ALGORITHMS[name]
    written = keras.write(program(algorithm, layout), tmp_path / "theirs", num_steps=NUM_STEPS)
    mine = net()
    trained = algorithm.made(mine)
    load_keras(mine, written.prefix, optimizer=trained)

    prefix = Checkpoint(model=keras_view(mine, like=written.prefix), optimizer=keras_view(trained)).save(
        str(tmp_path / "mine" / "ckpt")
    )

    theirs = load_checkpoint(written.prefix)
    restored = keras.restore(program(algorithm, layout), prefix, written)
    restored.assert_used()
    restored.assert_same(dataclasses.replace(written, outputs=restored.outputs), steps=None)
    assert theirs.get_tensor("save_counter/.ATTRIBUTES/VARIABLE_VALUE") == 1


@pytest.mark.parametrize("layout", ["keras3", "tf_keras", "legacy"])
def test_an_optimizer_that_begins_in_torch_is_taken_by_keras(keras: Keras, tmp_path: Path, layout: str) -> None:
    algorithm = ALGORITHMS["adam"]
    described = program(algorithm, layout)
    weights = keras.write(program(algorithm, layout), tmp_path / "weights", num_steps=0, num_further=1)
    mine = net()
    trained = optim.Adam(mine.parameters(), lr=0.01, eps=1e-7)
    KerasEpsilon(trained)
    flavor = {"keras3": "keras3", "tf_keras": "tf_keras", "legacy": "tf_keras_legacy_optimizer"}[layout]
    load_keras(mine, weights.prefix)
    for number in range(1):
        step(mine, trained, weights, number)

    view = keras_view(mine, flavor=flavor, layers=["0", "2"])
    prefix = Checkpoint(model=view, optimizer=keras_view(trained)).save(str(tmp_path / "mine" / "ckpt"))

    first = keras.write(described, tmp_path / "first", num_steps=1)
    restored = keras.restore(described, prefix, first)
    restored.assert_used()
    for theirs, variable in zip(first.variables, restored.variables, strict=True):
        np.testing.assert_allclose(variable.value, theirs.value, rtol=0, atol=1e-6)


def test_the_rate_that_comes_after_the_momenta_counts(keras: Keras, tmp_path: Path) -> None:
    algorithm = ALGORITHMS["momentum"]
    written = keras.write(program(algorithm, "keras3"), tmp_path / "theirs", num_steps=2)
    mine = net()
    trained = algorithm.made(mine)

    load_keras(mine, written.prefix, optimizer=trained)

    rate = trained.param_groups[0]["lr"]
    assert rate == pytest.approx(0.05)
    velocity = written.slots["momentums"][1]
    torch.testing.assert_close(
        trained.state[mine[0].bias]["momentum_buffer"], -torch.from_numpy(velocity) / rate, rtol=0, atol=0
    )


def test_another_kind_of_optimizer_is_refused_and_nothing_changes(keras: Keras, tmp_path: Path) -> None:
    written = keras.write(program(ALGORITHMS["adam"], "keras3"), tmp_path / "theirs", num_steps=1)
    mine = net()
    before = [parameter.clone() for parameter in mine.parameters()]

    with pytest.raises(ValueError, match=r"no optimizer of the kind of SGD: it keeps \['_momentums', '_velocities'\]"):
        load_keras(mine, written.prefix, optimizer=optim.SGD(mine.parameters(), lr=0.1, momentum=0.9))
    with pytest.raises(ValueError, match="in the order of another one"):
        load_keras(mine, written.prefix, optimizer=optim.RMSprop(mine.parameters(), momentum=0.9))

    assert all(torch.equal(old, new) for old, new in zip(before, mine.parameters(), strict=True))


def test_a_schedule_leaves_the_rate_alone_and_says_so(keras: Keras, tmp_path: Path) -> None:
    rate = schedule("ExponentialDecay", initial_learning_rate=0.01, decay_steps=10, decay_rate=0.5)
    algorithm = dataclasses.replace(ALGORITHMS["adam"], config={"learning_rate": rate})
    for layout in ("keras3", "tf_keras", "legacy"):
        written = keras.write(program(algorithm, layout), tmp_path / layout, num_steps=2)
        mine = net()
        trained = algorithm.made(mine)

        status = load_keras(mine, written.prefix, optimizer=trained)

        assert "lr" in {item.name for item in status.inexact}
        assert trained.param_groups[0]["lr"] == 0.001
        assert trained.state[mine[0].bias]["step"] == 2


def test_parameters_that_took_different_numbers_of_steps_have_no_counterpart(keras: Keras, tmp_path: Path) -> None:
    written = keras.write(program(ALGORITHMS["adam"], "keras3"), tmp_path / "theirs", num_steps=1)
    mine = net()
    trained = optim.Adam(mine.parameters())
    load_keras(mine, written.prefix, optimizer=trained)
    mine[0].weight.grad = torch.ones_like(mine[0].weight)
    trained.step()

    checkpoint = Checkpoint(model=keras_view(mine, like=written.prefix), optimizer=keras_view(trained))
    with pytest.raises(UnsupportedValueError, match=r"several values of 'step', \[1\.0, 2\.0\]"):
        checkpoint.save(str(tmp_path / "ckpt"))


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        ("keras3", "momentum=0.9, nesterov=False, weight_decay=0"),
        ("legacy", "nesterov=False, weight_decay=0"),
    ],
)
def test_the_status_says_which_settings_no_checkpoint_can_tell(
    keras: Keras, tmp_path: Path, layout: str, told: str
) -> None:
    written = keras.write(program(ALGORITHMS["momentum"], layout), tmp_path / "theirs", num_steps=1)
    mine = net()
    status = load_keras(mine, written.prefix, optimizer=ALGORITHMS["momentum"].made(mine))
    assert str(status).endswith(f"yours, since the checkpoint does not tell:\n  {told}")
