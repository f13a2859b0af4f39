"""What the worker does with Keras 3, with tf_keras, which continues Keras 2, and with Sonnet, for `keras_oracle.py`.

Programs are described as in `keras_programs.py`. Arrays go through files of numpy: `input/0`, `output/0`,
`variable/0` as in the checkpoint, `after/0` after the further steps, `optimizer/0`, `slot/<name>/0` for each trainable
variable, and for all steps, on axis 0, `batch/x/0` and `batch/y`, or `gradient/0`.

`directory` is a folder for the checkpoint and for `arrays.npz`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from keras_programs import (
    GENERATIONS,
    GOLDEN,
    Arrays,
    Json,
    Program,
    numbered,
    path_of,
    random_input,
    random_training,
    randomize,
    vectors,
)

COUNTER = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"


def write_layers(
    program: Json, directory: str, how: str, seed: int, num_inputs: int, num_steps: int, num_further: int
) -> Json:
    """Saves a program with random weights after some steps, and takes further ones."""
    rng = np.random.default_rng(seed)
    inputs = [random_input(each, num_inputs, rng) for each in program["inputs"]]
    made = _seeded(program, inputs, seed)
    randomize(made.variables(), rng)
    for layer in made.adapted_layers():
        layer.adapt(inputs[0])
    arrays: Arrays = {}
    if made.optimizer is not None:
        arrays = random_training(made, program, num_steps + num_further, rng)
        if num_steps + num_further:
            made.build_optimizer()
        made.train(arrays, 0, num_steps)
    arrays |= {f"input/{i}": array for i, array in enumerate(inputs)}
    return _saved(made, Path(directory), how, arrays, num_steps, num_further)


def restore_layers(
    program: Json,
    prefix: str,
    data: str,
    directory: str,
    how: str,
    seed: int,
    first: int,
    num_further: int,
    builds_optimizer: bool,
    is_late: bool,
) -> Json:
    """Restores a checkpoint into a program that has other weights, and takes the steps from ``first`` on.

    ``data`` is the file of arrays of the program that knows inputs and steps. Where ``is_late``, the optimizer is
    built after the restore.
    """
    arrays = dict(np.load(data))
    inputs = numbered(arrays, "input")
    made = _seeded(program, inputs, seed)
    outcomes = _restored(made, prefix, how, seed, builds_optimizer, is_late)
    results = _state(made)
    results |= {f"output/{i}": array for i, array in enumerate(made.outputs_for(inputs))}
    summary = _summary(made, prefix, None)
    summary["losses"] = made.train(arrays, first, num_further)
    results |= {f"after/{i}": np.array(v) for i, v in enumerate(made.variables())}
    summary["assertions"] = outcomes()
    return summary | {"num_steps": first, "arrays": _stored(Path(directory), results)}


def continue_training(
    program: Json,
    prefix: str,
    data: str,
    directory: str,
    how: str,
    seed: int,
    first: int,
    num_steps: int,
    num_further: int,
    saves: str,
) -> Json:
    """Restores a checkpoint, asserts that it is used, takes steps from ``first`` on, saves, and takes further ones."""
    arrays = dict(np.load(data))
    made = _seeded(program, numbered(arrays, "input"), seed)
    outcomes = _restored(made, prefix, how, seed, builds_optimizer=True, is_late=False)
    made.train(arrays, first, num_steps)
    for name, outcome in outcomes().items():
        if outcome is not None:
            raise AssertionError(f"{name}: {outcome}")
    kept = {key: value for key, value in arrays.items() if key.split("/")[0] in ("input", "batch", "gradient")}
    return _saved(made, Path(directory), saves, kept, first + num_steps, num_further)


def restore_case(case: str, prefix: str) -> Json:
    """Restores a checkpoint into a golden case's model: its outputs, and every variable after one more step."""
    if (GOLDEN / case / "saved_model").exists():
        return _restored_saved_model(case, prefix)
    outcome: list[Json] = []

    def restored(*arguments: Any) -> None:
        outcome.append(_restored_case(*arguments))

    vectors.RESTORE, vectors.restore_check = prefix, restored
    try:
        # The layers' names count up in a process; those of a case are the first ones of theirs.
        vectors.k3.backend.clear_session()
        vectors.k2.backend.clear_session()
        vectors.CASES[case](str(GOLDEN))
    finally:
        vectors.RESTORE = None
    (result,) = outcome
    return result


# Their parts.


def _seeded(program: Json, inputs: list[np.ndarray], seed: int) -> Program:
    if program["generation"] == "sonnet":
        # Not all who use the worker have Sonnet.
        from sonnet_programs import SonnetProgram

        tf.random.set_seed(seed)
        return SonnetProgram(program, inputs)
    GENERATIONS[program["generation"]].utils.set_random_seed(seed)
    return Program(program, inputs)


def _state(made: Program) -> Arrays:
    results = {f"variable/{i}": np.array(v) for i, v in enumerate(made.variables())}
    if made.optimizer is not None:
        results |= {f"optimizer/{i}": np.array(v) for i, v in enumerate(made.optimizer_variables())}
        for name, values in made.slots().items():
            results |= {f"slot/{name}/{i}": np.array(v) for i, v in enumerate(values)}
    return results


def _stored(directory: Path, arrays: Arrays) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(directory / "arrays.npz", **arrays)
    return str(directory / "arrays.npz")


def _summary(made: Program, prefix: str, view: Any) -> Json:
    """Names of what the arrays hold, and keys where the view of the saved objects is known."""
    places = {} if view is None else _places(view, prefix)
    inner = {id(vectors.inner(v)): i for i, v in enumerate(made.variables())}
    return {
        "prefix": prefix,
        "variables": [_described(v, places) for v in made.variables()],
        "trainable": [inner[id(vectors.inner(v))] for v in made.model.trainable_variables],
        "optimizer": [] if made.optimizer is None else [_described(v, places) for v in made.optimizer_variables()],
    }


def _places(view: Any, prefix: str) -> dict[int, Json]:
    """By id of a variable, where a checkpoint just written has it."""
    _, graph = vectors.object_graph(prefix)
    paths = vectors.all_paths(graph)
    found = {}
    # The saved graph has the objects in the order of the walk.
    for node, trackable in enumerate(view.breadth_first_traversal()[0]):
        if graph.nodes[node].attributes:
            place = {"key": graph.nodes[node].attributes[0].checkpoint_key, "paths": paths[node]}
            found[id(vectors.inner(trackable))] = place
    return found


def _described(variable: Any, places: dict[int, Json]) -> Json:
    return {
        "name": vectors.short(variable),
        "path": path_of(variable),
        "trainable": bool(variable.trainable),
        **places.get(id(vectors.inner(variable)), {"key": None, "paths": []}),
    }


def _saved(made: Program, directory: Path, how: str, arrays: Arrays, num_steps: int, num_further: int) -> Json:
    directory.mkdir(parents=True, exist_ok=True)
    prefix, view = made.save(how, directory)
    summary = _summary(made, prefix, view)
    arrays |= _state(made)
    arrays |= {f"output/{i}": array for i, array in enumerate(made.outputs_for(numbered(arrays, "input")))}
    summary["losses"] = made.train(arrays, num_steps, num_further)
    arrays |= {f"after/{i}": np.array(v) for i, v in enumerate(made.variables())}
    return summary | {"num_steps": num_steps, "arrays": _stored(directory, arrays)}


def _restored(made: Program, prefix: str, how: str, seed: int, builds_optimizer: bool, is_late: bool) -> Any:
    """Restores, and returns what asks the assertions: by name, null or what was raised."""
    randomize(made.variables(), np.random.default_rng(seed))
    if made.optimizer is not None and builds_optimizer and not is_late:
        made.build_optimizer()
    if how == "load_weights":
        status = made.model.load_weights(prefix)
    else:
        root = made.tracked(how)
        status = root.restore(prefix) if tf.train.load_checkpoint(prefix).has_tensor(COUNTER) else root.read(prefix)
    early = _outcome(status.assert_existing_objects_matched)
    if made.optimizer is not None and builds_optimizer and is_late:
        made.build_optimizer()
    for layer in made.adapted_layers():
        layer.finalize_state()
    return lambda: {
        "assert_existing_objects_matched": early,
        "assert_consumed": _outcome(status.assert_consumed),
    }


def _outcome(assertion: Any) -> str | None:
    try:
        assertion()
    except AssertionError as error:
        return str(error)
    return None


def _restored_case(
    folder: str,
    prefix: str,
    model: Any,
    inputs: list[np.ndarray],
    feed: Any,
    loss: str | None,
    optimizer: Any,
    make_batch: Any,
    num_steps: int,
    is_legacy: bool,
) -> Json:
    """Takes the place of `make_keras_vectors.restore_check`, which prints."""
    stored = Path(folder)
    names = {f"{layer.name}/{name}": v for layer in model.layers for name, v in vectors.named_vars(layer)}
    lost = np.load(stored / "not_in_checkpoint.npz") if (stored / "not_in_checkpoint.npz").exists() else {}
    for name, variable in names.items():
        # The case would give them its own first values, which are the stored ones where nothing was trained.
        variable.assign(lost[name] if name in lost else np.full(variable.shape, 0.5, "float32"))
    children = {"model": model}
    if optimizer is not None:
        children["optimizer"] = optimizer
        if is_legacy:
            optimizer._create_all_weights(model.trainable_variables)
        else:
            optimizer.build(model.trainable_variables)
    root = tf.train.Checkpoint(**children)
    status = root.restore(prefix) if tf.train.load_checkpoint(prefix).has_tensor(COUNTER) else root.read(prefix)
    status.assert_existing_objects_matched().assert_consumed()
    outputs = model(feed([tf.constant(array) for array in inputs]), training=False)
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    result: Json = {"outputs": [np.array(output).tolist() for output in outputs], "after": {}}
    if optimizer is not None:
        x, y = make_batch(num_steps + 1)
        last = feed([tf.constant(array[num_steps]) for array in x])
        vectors.train_step(model, optimizer, loss, last, tf.constant(y[num_steps]))
        result["after"] = {name: np.array(names[name]).tolist() for name in np.load(stored / "after.npz").files}
    return result


def _restored_saved_model(case: str, prefix: str) -> Json:
    """As Keras's objects have the names in SavedModels: those of the model itself, or numbers of its variables."""
    keras = GENERATIONS[case[:2]]
    layers = keras.layers
    x = keras.Input((5,), name="x")
    dropped = layers.Dropout(0.2, name="drop")(layers.Dense(4, activation="relu", name="hidden")(x))
    model = keras.Model(x, layers.Dense(2, name="head")(layers.BatchNormalization(name="bn")(dropped)), name="small")
    checkpoint = tf.train.Checkpoint(model)
    if case.endswith("export"):
        numbered_ones = tf.Module()
        for number, variable in enumerate(model.variables):
            # Of a random generator, what PyTorch writes has nothing.
            if vectors.short(variable) != "seed_generator_state":
                setattr(numbered_ones, str(number), vectors.inner(variable))
        checkpoint = tf.train.Checkpoint(variables=numbered_ones)
    has_counter = tf.train.load_checkpoint(prefix).has_tensor(COUNTER)
    status = checkpoint.restore(prefix) if has_counter else checkpoint.read(prefix)
    status.assert_existing_objects_matched()
    output = model(tf.constant(np.load(GOLDEN / case / "input_0.npy")), training=False)
    return {"outputs": [np.array(output).tolist()], "after": {}}
