"""Views of optimizers that do not fit what Keras has: nothing is written or read in the place of something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from keras_oracle import Keras, Program, Run, inputs, layer, optimizer, sequential
from torch import nn, optim

from torch_trackckpt import Checkpoint, frozen_saver
from torch_trackckpt.errors import MismatchError, UnsupportedValueError
from torch_trackckpt.interop.keras import keras_view, load_keras


def net() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))


def program(**settings: Any) -> Program:
    layers = [layer("Dense", units=4, name=name) for name in "abc"]
    described = settings.pop("optimizer", optimizer("Adam"))
    return Program("k3", sequential(*layers, inputs=inputs(4)), [inputs(4)], optimizer=described, **settings)


@pytest.fixture(scope="module")
def written(keras: Keras, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return keras.write(program(), tmp_path_factory.mktemp("adam"), num_steps=2)


def test_an_optimizer_of_some_parameters_takes_its_state_but_is_not_written_over_that_of_all(
    written: Run, tmp_path: Path
) -> None:
    mine = net()
    some = optim.Adam([*mine[1].parameters(), *mine[2].parameters()])

    status = load_keras(mine, written.prefix, optimizer=some)

    assert torch.equal(some.state[mine[1].bias]["exp_avg"], torch.from_numpy(written.slots["momentums"][3]))
    assert len(status.unused_keys) == 4
    view = keras_view(mine, like=written.prefix)
    with pytest.raises(UnsupportedValueError, match=r"keeps state for .*/a .*/bias, which Adam does not"):
        Checkpoint(model=view, optimizer=keras_view(some, model=view)).save(str(tmp_path / "ckpt"))
    assert not list(tmp_path.iterdir())


def test_what_keras_would_train_has_to_be_optimised_or_frozen(tmp_path: Path, keras: Keras, written: Run) -> None:
    mine = net()
    some = optim.Adam([*mine[1].parameters(), *mine[2].parameters()])
    view = keras_view(mine, flavor="keras3")
    checkpoint = Checkpoint(model=view, optimizer=keras_view(some))
    with pytest.raises(
        UnsupportedValueError, match=r"Keras would take as trained 0/kernel, 0/bias, which Adam does not"
    ):
        checkpoint.save(str(tmp_path / "ckpt"))
    mine[0].requires_grad_(False)
    checkpoint.save(str(tmp_path / "ckpt"))


def test_a_frozen_layer_keeps_its_place_where_the_template_trains_it(
    keras: Keras, written: Run, tmp_path: Path
) -> None:
    mine = net()
    whole = optim.Adam(mine.parameters())
    load_keras(mine, written.prefix, optimizer=whole)
    mine[0].requires_grad_(False)

    view = keras_view(mine, like=written.prefix)
    path = Checkpoint(model=view, optimizer=keras_view(whole, model=view)).save(str(tmp_path / "ckpt"))

    restored = keras.restore(program(), path, written)
    restored.assert_used()
    restored.assert_same(written, steps=None)


@pytest.mark.parametrize(
    "setting", [{"use_ema": True}, {"gradient_accumulation_steps": 2}], ids=lambda s: next(iter(s))
)
def test_what_keras_keeps_besides_is_not_pushed_aside(keras: Keras, tmp_path: Path, setting: dict[str, Any]) -> None:
    described = program(optimizer=optimizer("Adam", **setting))
    theirs = keras.write(described, tmp_path / "theirs", num_steps=2)
    mine = net()
    trained = optim.Adam(mine.parameters())
    status = load_keras(mine, theirs.prefix, optimizer=trained)
    assert any(item.name.startswith("_") for item in status.inexact)
    with pytest.raises(UnsupportedValueError, match=r"the optimizer of Keras keeps _.* besides"):
        Checkpoint(model=keras_view(mine, like=theirs.prefix), optimizer=keras_view(trained)).save(
            str(tmp_path / "mine" / "ckpt")
        )


def test_nodes_of_one_checkpoint_are_not_looked_up_in_another(keras: Keras, written: Run, tmp_path: Path) -> None:
    mine = net()
    view = keras_view(mine)
    Checkpoint(model=view).read(written.prefix)
    trained = optim.Adam(mine.parameters())
    other = keras.write(program(), tmp_path / "other", num_steps=1, seed=5)

    with pytest.raises(MismatchError, match="was not restored from this checkpoint"):
        Checkpoint(optimizer=keras_view(trained, model=view)).read(other.prefix)

    assert not trained.state


def test_momenta_that_the_program_of_keras_has_not_begin_as_torchs_do(keras: Keras, tmp_path: Path) -> None:
    plain = keras.write(program(optimizer=optimizer("SGD", learning_rate=0.1)), tmp_path / "sgd", num_steps=2)
    mine = net()
    status = load_keras(mine, plain.prefix, optimizer=optim.SGD(mine.parameters(), lr=0.1, momentum=0.9))
    assert "momentum_buffer" in {item.name for item in status.inexact}


def test_a_frozen_saver_finds_the_views_of_an_optimizer_unchanged(written: Run, tmp_path: Path) -> None:
    mine = net()
    trained = optim.Adam(mine.parameters())
    load_keras(mine, written.prefix, optimizer=trained)
    checkpoint = Checkpoint(model=keras_view(mine, like=written.prefix), optimizer=keras_view(trained))
    saver = frozen_saver(checkpoint)

    saver.save(str(tmp_path / "ckpt"))

    again = net()
    other = optim.Adam(again.parameters())
    load_keras(again, str(tmp_path / "ckpt"), optimizer=other).assert_consumed()
    assert torch.equal(other.state[again[2].weight]["exp_avg"], trained.state[mine[2].weight]["exp_avg"])
