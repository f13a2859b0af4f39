"""Keras as other tests ask it: it takes back what it wrote, and tells where something does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from keras_oracle import (
    Keras,
    Program,
    WorkerError,
    functional,
    inputs,
    layer,
    optimizer,
    schedule,
    sequential,
    subclassed,
)

from torch_trackckpt import list_variables, load_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "keras"
ADAM = optimizer("Adam", learning_rate=0.01)
CASES = {path.parent.name: path.parent / "ckpt-1" for path in sorted(GOLDEN.glob("k[23]_*/ckpt-1.index"))}
SAVED_MODELS = {path.parent.name: path / "variables" / "variables" for path in sorted(GOLDEN.glob("*/saved_model"))}
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def mlp(generation: str, **settings: object) -> Program:
    layers = [layer("Dense", units=4, activation="relu"), layer("BatchNormalization"), layer("Dense", units=2)]
    return Program(generation, sequential(*layers, inputs=inputs(5)), [inputs(5)], **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES | SAVED_MODELS)
def test_keras_takes_a_golden_checkpoint_for_its_own(keras: Keras, case: str) -> None:
    outputs, after = keras.restore_case(case, (CASES | SAVED_MODELS)[case])
    # What was trained in one call of TensorFlow is not always the same in another.
    for number, output in enumerate(outputs):
        stored = np.load(GOLDEN / case / f"output_{number}.npy")
        np.testing.assert_allclose(output, stored, rtol=0, atol=1e-6, strict=True)
    assert bool(after) == (GOLDEN / case / "after.npz").exists()
    for name, value in after.items():
        stored = np.load(GOLDEN / case / "after.npz")[name]
        np.testing.assert_allclose(value, stored, rtol=0, atol=1e-6, strict=True, err_msg=name)


def test_keras_refuses_a_checkpoint_of_another_case(keras: Keras) -> None:
    with pytest.raises(WorkerError, match="restore_case: AssertionError"):
        keras.restore_case("k2_subclassed", GOLDEN / "k3_sequential_mlp_adam" / "ckpt-1")


@pytest.mark.parametrize("generation", ["k3", "k2"])
def test_a_program_restores_what_it_wrote_and_trains_on_as_before(
    keras: Keras, generation: str, tmp_path: Path
) -> None:
    program = mlp(generation, optimizer=ADAM)
    written = keras.write(program, tmp_path / "written", num_steps=3, num_further=2)
    restored = keras.restore(program, written.prefix, written, num_further=2)
    restored.assert_used()
    restored.assert_same(written, steps=1e-6)
    assert len(written.losses) == 2
    for variable in written.trainable:
        assert variable.after is not None
        assert not np.array_equal(variable.after, variable.value), variable.path


OPTIMIZERS = {
    "SGD": {"momentum": 0.9},
    "Adam": {"amsgrad": True},
    "Adagrad": {},
    "Adadelta": {},
    "Adamax": {},
    "Nadam": {},
    "RMSprop": {"momentum": 0.8, "centered": True},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("generation", "legacy"), [("k3", False), ("k2", False), ("k2", True)])
def test_every_optimizer_is_saved_with_its_state(
    keras: Keras, generation: str, legacy: bool, name: str, tmp_path: Path
) -> None:
    described = optimizer(name, legacy=legacy, learning_rate=0.01, **OPTIMIZERS[name])
    program = mlp(generation, optimizer=described, trains_on="gradients")
    written = keras.write(program, tmp_path / "written", num_steps=2, num_further=1)
    restored = keras.restore(program, written.prefix, written, num_further=1)
    restored.assert_used()
    # The Nadam of tf_keras counts in Python the steps for which it has a product, which no checkpoint has.
    goes_on = (name, generation, legacy) != ("Nadam", "k2", False)
    restored.assert_same(written, steps=1e-6 if goes_on else None)
    assert written.slots
    assert all(len(slots) == len(written.trainable) == 6 for slots in written.slots.values())
    reader = load_checkpoint(written.prefix)
    for variable in written.variables:
        assert variable.key is not None
        np.testing.assert_array_equal(reader.get_tensor(variable.key), variable.value, strict=True)


@pytest.mark.parametrize(
    ("program", "is_in"),
    [
        (Program("k3", sequential(layer("Dense", units=2)), [inputs(5)]), "model/_functional/_operations/1/_kernel"),
        (Program("k2", sequential(layer("Dense", units=2)), [inputs(5)]), "model/layer_with_weights-0/kernel"),
        (
            Program("k3", sequential(layer("Bidirectional", layer=layer("LSTM", units=3))), [inputs(4, 5)]),
            "model/_functional/_operations/1/forward_layer/cell/kernel",
        ),
        (
            Program("k2", sequential(layer("RNN", cell=[layer("GRUCell", units=3)] * 2)), [inputs(4, 5)]),
            "model/layer_with_weights-0/cell/cells/1/kernel",
        ),
        (
            Program("k3", sequential(layer("Embedding", input_dim=9, output_dim=2)), [inputs(7, high=9, padded=True)]),
            "model/_functional/_operations/1/_embeddings",
        ),
        (
            Program("k3", sequential(layer("Normalization"), layer("Dense", units=2), inputs=inputs(5)), [inputs(5)]),
            "model/_functional/_operations/1/adapt_mean",
        ),
        (
            Program(
                "k2",
                subclassed(
                    {
                        "first": layer("Dense", units=5),
                        "blocks": [layer("Dense", units=5), {"same": "first"}],
                        "heads": {"a": sequential(layer("Dense", units=5))},
                        "pair": {"tuple": [layer("Dense", units=5)]},
                        "offset": {"weight": [5]},
                    },
                    ["first", "blocks/0", "heads/a", "pair/0", ("add", "offset")],
                ),
                [inputs(5)],
            ),
            "model/heads/a/layer_with_weights-0/kernel",
        ),
        (
            Program(
                "k3",
                functional(
                    [inputs(5, name="a"), inputs(5, name="b")],
                    {"shared": layer("Dense", units=5), "inner": sequential(layer("Dense", units=2), inputs=inputs(5))},
                    [
                        ("x", "shared", ["a"]),
                        ("y", "shared", ["b"]),
                        ("z", "add", ["x", "y"]),
                        ("out", "inner", ["z"], {"training": False}),
                    ],
                    ["out", "x"],
                ),
                [inputs(5), inputs(5)],
            ),
            "model/_operations/4/_functional/_operations/1/_kernel",
        ),
        (
            Program(
                "k3",
                subclassed(
                    {"block": subclassed({"inner": layer("Dense", units=5)}, ["inner"], base="Layer")}, ["block"]
                ),
                [inputs(5)],
            ),
            "model/block/inner/_kernel",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_models_of_all_kinds_are_described(keras: Keras, program: Program, is_in: str, tmp_path: Path) -> None:
    written = keras.write(program, tmp_path / "written")
    restored = keras.restore(program, written.prefix, written)
    restored.assert_used()
    restored.assert_same(written)
    assert f"{is_in}{VALUE}" in [key for key, _ in list_variables(written.prefix)]


def test_layers_in_a_list_are_lost_by_keras_3_which_the_outputs_show(keras: Keras, tmp_path: Path) -> None:
    model = subclassed({"first": layer("Dense", units=5), "more": [layer("Dense", units=5)]}, ["first", "more/0"])
    program = Program("k3", model, [inputs(5)])
    written = keras.write(program, tmp_path / "written")
    restored = keras.restore(program, written.prefix, written)
    restored.assert_used()
    assert [variable.key is None for variable in written.variables] == [False, False, True, True]
    assert not np.allclose(restored.outputs[0], written.outputs[0])


def test_a_checkpoint_of_another_model_fails_the_assertions(keras: Keras, tmp_path: Path) -> None:
    written = keras.write(mlp("k2"), tmp_path / "written")
    restored = keras.restore(mlp("k3"), written.prefix, written)
    assert all(restored.assertions.values())
    assert not np.array_equal(restored.outputs[0], written.outputs[0])


@pytest.mark.parametrize(
    ("generation", "how", "key"),
    [
        ("k3", "write", "model/_functional/_operations/1/_kernel"),
        ("k3", "root", "_functional/_operations/1/_kernel"),
        ("k2", "root", "layer_with_weights-0/kernel"),
        ("k2", "save_weights", "layer_with_weights-0/kernel"),
        ("k3", "export", "variables/0"),
        ("k3", "saved_model", "_layers/1/_kernel"),
        ("k2", "export", "variables/0"),
        ("k2", "saved_model", "layer_with_weights-0/kernel"),
        ("k2", "model.save", "layer_with_weights-0/kernel"),
    ],
)
def test_every_way_of_saving_gives_its_keys(keras: Keras, generation: str, how: str, key: str, tmp_path: Path) -> None:
    written = keras.write(mlp(generation), tmp_path / "written", how=how)
    stored = load_checkpoint(written.prefix).get_tensor(f"{key}{VALUE}")
    np.testing.assert_array_equal(stored, written.variables[0].value, strict=True)


def test_weights_of_tf_keras_come_back_by_its_own_method(keras: Keras, tmp_path: Path) -> None:
    written = keras.write(mlp("k2"), tmp_path / "written", how="save_weights")
    restored = keras.restore(mlp("k2"), written.prefix, written, how="load_weights")
    restored.assert_used()
    restored.assert_same(written)


def test_the_optimizer_of_a_compiled_model_is_saved_below_it(keras: Keras, tmp_path: Path) -> None:
    program = mlp("k3", optimizer=ADAM, is_compiled=True)
    written = keras.write(program, tmp_path / "written", num_steps=1)
    restored = keras.restore(program, written.prefix, written)
    restored.assert_used()
    restored.assert_same(written)
    assert f"model/optimizer/_iterations{VALUE}" in [key for key, _ in list_variables(written.prefix)]


def test_slots_of_a_compiled_model_are_named_by_the_way_to_its_optimizer(keras: Keras, tmp_path: Path) -> None:
    program = mlp("k2", optimizer=optimizer("Adam", legacy=True), is_compiled=True)
    written = keras.write(program, tmp_path / "written", num_steps=1, num_further=1)
    restored = keras.restore(program, written.prefix, written, num_further=1)
    restored.assert_used()
    restored.assert_same(written, steps=1e-6)
    key = f"model/layer_with_weights-0/kernel/.OPTIMIZER_SLOT/model/optimizer/m{VALUE}"
    np.testing.assert_array_equal(load_checkpoint(written.prefix).get_tensor(key), written.slots["m"][0], strict=True)


@pytest.mark.parametrize("generation", ["k3", "k2"])
def test_a_model_may_be_the_root(keras: Keras, generation: str, tmp_path: Path) -> None:
    written = keras.write(mlp(generation), tmp_path / "written", how="root")
    restored = keras.restore(mlp(generation), written.prefix, written, how="root")
    restored.assert_used()
    restored.assert_same(written)


def test_an_optimizer_may_be_built_after_the_restore(keras: Keras, tmp_path: Path) -> None:
    program = mlp("k3", optimizer=ADAM, loss="ce")
    written = keras.write(program, tmp_path / "written", num_steps=2, num_further=1)
    restored = keras.restore(program, written.prefix, written, num_further=1, is_late=True)
    restored.assert_used()
    restored.assert_same(written, steps=1e-6)


def test_a_schedule_takes_the_place_of_the_learning_rate(keras: Keras, tmp_path: Path) -> None:
    decay = schedule("ExponentialDecay", initial_learning_rate=0.1, decay_steps=2, decay_rate=0.5)
    program = mlp("k3", optimizer=optimizer("SGD", learning_rate=decay))
    written = keras.write(program, tmp_path / "written", num_steps=2)
    assert f"optimizer/_learning_rate{VALUE}" not in [key for key, _ in list_variables(written.prefix)]


@pytest.mark.parametrize("generation", ["k3", "k2"])
def test_training_goes_on_in_keras_from_a_checkpoint_and_is_saved_again(
    keras: Keras, generation: str, tmp_path: Path
) -> None:
    program = mlp(generation, optimizer=ADAM, trains_on="gradients")
    written = keras.write(program, tmp_path / "written", num_steps=2, num_further=3)
    shutil.copytree(tmp_path / "written", tmp_path / "elsewhere")
    prefix = tmp_path / "elsewhere" / Path(written.prefix).name
    continued = keras.continue_training(program, prefix, written, tmp_path / "continued", num_steps=2, num_further=1)
    assert continued.num_steps == 4
    for mine, theirs in zip(continued.variables, written.variables, strict=True):
        assert mine.after is not None
        assert theirs.after is not None
        np.testing.assert_allclose(mine.after, theirs.after, rtol=0, atol=1e-6)
        assert mine.key is not None
        np.testing.assert_array_equal(load_checkpoint(continued.prefix).get_tensor(mine.key), mine.value, strict=True)


@pytest.mark.parametrize(
    ("name", "settings"), [("SGD", {}), ("Momentum", {"momentum": 0.9}), ("Adam", {}), ("RMSProp", {"momentum": 0.5})]
)
def test_sonnet_restores_what_it_wrote_and_trains_on_as_before(
    keras: Keras, name: str, settings: dict[str, float], tmp_path: Path
) -> None:
    attributes = {
        "first": layer("Linear", output_size=4),
        "layers": [layer("BatchNorm", create_scale=True, create_offset=True), layer("LSTM", hidden_size=3)],
    }
    model = subclassed(attributes, ["first", "layers/0", "layers/1"])
    program = Program("sonnet", model, [inputs(6, 5)], optimizer=optimizer(name, learning_rate=0.01, **settings))
    written = keras.write(program, tmp_path / "written", num_steps=2, num_further=1)
    restored = keras.restore(program, written.prefix, written, num_further=1)
    restored.assert_used()
    restored.assert_same(written, steps=1e-6)
    assert f"model/layers/1/_w_i{VALUE}" in [variable.key for variable in written.variables]
    assert bool(written.slots) == (name != "SGD")
