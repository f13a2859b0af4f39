"""Keras 3 and tf_keras, which continues Keras 2, in a process of their own: what they write, and what they restore.

A test describes a program, lets Keras write its checkpoint, and lets Keras restore another one into it:

    program = Program("k3", sequential(layer("Dense", units=3)), inputs=[inputs(5)], optimizer=optimizer("Adam"))
    written = keras.write(program, tmp_path / "theirs", num_steps=3)
    ...
    restored = keras.restore(program, prefix, written)
    restored.assert_used()

Everything random comes from a seed. Keras counts up the names of layers in a process: a test that needs a layer's name
gives it one.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange.conftest import HERE, Worker, WorkerError

__all__ = [
    "Keras",
    "Program",
    "Run",
    "Variable",
    "WorkerError",
    "functional",
    "inputs",
    "keras_oracle",
    "layer",
    "optimizer",
    "schedule",
    "sequential",
    "subclassed",
]

# Keras has two generations to import, on machines that may be busy.
TIMEOUT_SECONDS = 300.0

Description = dict[str, Any]
Array = np.ndarray[Any, np.dtype[Any]]


# Descriptions.


def layer(name_of_class: str, **config: Any) -> Description:
    """A layer of `keras.layers`, or a module of Sonnet, by its class and arguments; they may be descriptions again."""
    return {"class": name_of_class, "config": config}


def optimizer(name_of_class: str, *, legacy: bool = False, **config: Any) -> Description:
    """An optimizer of `keras.optimizers`, or one of tf_keras as it was before 2.11."""
    return {"class": name_of_class, "of": "optimizers.legacy" if legacy else "optimizers", "config": config}


def schedule(name_of_class: str, **config: Any) -> Description:
    """A schedule of the learning rate."""
    return {"class": name_of_class, "of": "optimizers.schedules", "config": config}


def inputs(*shape: int, name: str | None = None, high: int | None = None, padded: bool = False) -> Description:
    """An input of that shape for each example: of floats, or of integers from 1 to below ``high``.

    Where ``padded``, rows of integers end with zeros, each row with another number of them.
    """
    found: Description = {"shape": list(shape), "dtype": "float32" if high is None else "int32", "padded": padded}
    return found | ({} if name is None else {"name": name}) | ({} if high is None else {"high": high})


def sequential(*layers: Description, inputs: Description | None = None, name: str | None = None) -> Description:
    """A `Sequential`. Without ``inputs`` it is built by its first call, as Keras allows."""
    found: Description = {"class": "Sequential", "layers": list(layers), "name": name}
    return found | ({} if inputs is None else {"inputs": [inputs]})


def functional(
    inputs: Sequence[Description],
    layers: Mapping[str, Description],
    calls: Sequence[tuple[str, str, Sequence[str]] | tuple[str, str, Sequence[str], Mapping[str, Any]]],
    outputs: Sequence[str],
    name: str | None = None,
) -> Description:
    """A functional model; a layer may be called several times, and may be a model.

    Args:
        inputs: descriptions with names.
        layers: by the name that calls use, which is the layer's own unless its ``config`` says another.
        calls: result, layer or `add` or `multiply`, arguments, and keywords of the call if there are any.
        outputs: names of results.
        name: of the model.
    """
    named = {
        key: each if "config" not in each else each | {"config": {"name": key} | each["config"]}
        for key, each in layers.items()
    }
    return {
        "class": "Functional",
        "inputs": list(inputs),
        "layers": named,
        "calls": [[result, called, list(given), dict(*keywords)] for result, called, given, *keywords in calls],
        "outputs": list(outputs),
        "name": name,
    }


def subclassed(
    attributes: Mapping[str, Any], calls: Sequence[str | Sequence[str]], *, base: str = "Model", name: str | None = None
) -> Description:
    """A subclass of `Model` or `Layer` that calls one attribute after the other.

    Args:
        attributes: a description, a list or dict of attributes, ``{"tuple": [...]}``, ``{"same": path}`` for the object
            of another attribute, or ``{"weight": shape}`` for a weight of the model's own.
        calls: paths such as ``"blocks/0"``; ``("add", path)`` and ``("multiply", path)`` apply a weight.
        base: `Model` or `Layer`.
        name: of the model.
    """
    return {"class": "Subclassed", "base": base, "attributes": dict(attributes), "calls": list(calls), "name": name}


@dataclass(frozen=True)
class Program:
    """What Keras saves and restores."""

    generation: str
    """`k3` is Keras 3, `k2` is tf_keras, `sonnet` is Sonnet 2, whose models are `subclassed` ones of its own layers."""
    model: Description
    inputs: Sequence[Description]
    """Of the arrays that the model is called with; a `sequential` or `functional` model declares its own besides."""
    optimizer: Description | None = None
    is_compiled: bool = False
    """Whether the optimizer is the model's, by `compile`, and is saved with it."""
    loss: str = "mse"
    """`mse`, or `ce`: of logits and class numbers."""
    trains_on: str = "batches"
    """`batches`, or `gradients`: random ones, which do not come from a loss."""

    def described(self) -> Description:
        return asdict(self)


# What Keras did.


@dataclass(frozen=True)
class Variable:
    """One of Keras's variables."""

    name: str
    """The last part of its path."""
    path: str
    """As Keras names it, with that of its layer in front; not always unique."""
    value: Array
    """As in the checkpoint."""
    after: Array | None
    """After the further steps; of a variable of the model only."""
    trainable: bool
    key: str | None
    """Where the checkpoint has it: known of checkpoints that Keras has just written as such, not of SavedModels."""
    paths: list[str]
    """Several paths that lead to it from the root of the checkpoint."""


@dataclass(frozen=True)
class Run:
    """What Keras wrote or restored, and what it then computed."""

    prefix: str
    arrays_file: str
    num_steps: int
    """How many steps were taken before the checkpoint was written."""
    inputs: list[Array]
    outputs: list[Array]
    """At inference."""
    variables: list[Variable]
    """Of the model, in the order of Keras's `weights`."""
    trainable: list[Variable]
    """In the order of `trainable_variables`, which is that of optimizers."""
    optimizer_variables: list[Variable]
    slots: dict[str, list[Array]]
    """By the optimizer's name for them without an underscore in front, such as `momentums`; in the older ones the slot
    name, such as `m`. One array for each trainable variable."""
    batches: list[Array]
    """The inputs of all steps, on the first axis."""
    labels: Array | None
    gradients: list[Array]
    """For each trainable variable, those of all steps on the first axis."""
    losses: list[float]
    """Of the further steps."""
    assertions: dict[str, str | None]
    """What a restore's `assert_existing_objects_matched` and `assert_consumed` raised."""

    def variable(self, path: str) -> Variable:
        """The one variable whose path ends so."""
        (found,) = [v for v in self.variables if f"/{v.path}".endswith(f"/{path}")]
        return found

    def assert_used(self) -> None:
        """Keras found all it has in the checkpoint, and used all of it."""
        assert self.assertions == {"assert_existing_objects_matched": None, "assert_consumed": None}

    def assert_same(self, expected: Run, *, steps: float | None = 0.0) -> None:
        """Keras has what it had there, bit for bit; after further steps up to ``steps``, or anything if None."""
        for mine, theirs in zip(self.variables, expected.variables, strict=True):
            np.testing.assert_array_equal(mine.value, theirs.value, err_msg=theirs.path, strict=True)
            if steps is not None:
                assert mine.after is not None
                assert theirs.after is not None
                np.testing.assert_allclose(mine.after, theirs.after, rtol=0, atol=steps, err_msg=f"{theirs.path} after")
        assert self.slots.keys() == expected.slots.keys()
        for name, slots in expected.slots.items():
            for mine, theirs in zip(self.slots[name], slots, strict=True):
                np.testing.assert_array_equal(mine, theirs, err_msg=name, strict=True)
        for mine, theirs in zip(self.optimizer_variables, expected.optimizer_variables, strict=True):
            np.testing.assert_array_equal(mine.value, theirs.value, err_msg=theirs.path, strict=True)
        for mine, theirs in zip(self.outputs, expected.outputs, strict=True):
            np.testing.assert_array_equal(mine, theirs, strict=True)


class Keras:
    """Keras's functions, executed by a worker. Each raises `WorkerError` where Keras raises."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def write(
        self,
        program: Program,
        directory: Path,
        *,
        how: str = "save",
        num_steps: int = 0,
        num_further: int = 0,
        num_inputs: int = 3,
        seed: int = 1,
    ) -> Run:
        """Keras's own checkpoint of a program with random weights.

        Args:
            program: the program.
            directory: a folder to make, for the files.
            how: `save` or `write` of `Checkpoint(model=, optimizer=)`, `root` for that of `Checkpoint(model)`, `others`
                for other names, `Checkpoint(net=, trainer=, step=)`,
                `save_weights` and `model.save` of tf_keras, `export` of the model, `saved_model` for
                `tf.saved_model.save`.
            num_steps: how many training steps precede; with none and no further ones the optimizer is not built.
            num_further: how many follow, for `Variable.after`.
            num_inputs: how many examples the inputs have.
            seed: of everything random.
        """
        if program.generation == "sonnet" and importlib.util.find_spec("sonnet") is None:
            pytest.skip("sonnet is not installed (`make test` installs it)")
        answer = self._worker.call(
            "write_layers",
            program=program.described(),
            directory=str(directory),
            how=how,
            seed=seed,
            num_inputs=num_inputs,
            num_steps=num_steps,
            num_further=num_further,
        )
        return _run(answer)

    def restore(
        self,
        program: Program,
        prefix: str | Path,
        data: Run,
        directory: Path | None = None,
        *,
        how: str = "save",
        num_further: int = 0,
        is_late: bool = False,
        seed: int = 2,
    ) -> Run:
        """What Keras has after a restore of a checkpoint into a program with other random weights.

        Args:
            program: the program.
            prefix: of the checkpoint.
            data: gives inputs, and the steps of which the further ones are the next.
            directory: a folder for arrays; in that of ``data`` by default.
            how: `save` restores into `Checkpoint(model=, optimizer=)`, `root` into `Checkpoint(model)`, `others` into
                `Checkpoint(net=, trainer=, step=)`; `load_weights` is the method of tf_keras.
            num_further: how many training steps follow.
            is_late: whether the optimizer is built only after the restore. It is never built without further steps
                unless ``data`` took some.
            seed: of the weights before the restore.
        """
        answer = self._worker.call(
            "restore_layers",
            program=program.described(),
            prefix=str(prefix),
            data=data.arrays_file,
            directory=str(directory or Path(data.arrays_file).parent / "restored"),
            how=how,
            seed=seed,
            first=data.num_steps,
            num_further=num_further,
            builds_optimizer=data.num_steps + num_further > 0,
            is_late=is_late,
        )
        return _run(answer, data)

    def continue_training(
        self,
        program: Program,
        prefix: str | Path,
        data: Run,
        directory: Path,
        *,
        how: str = "save",
        saves: str = "save",
        num_steps: int = 1,
        num_further: int = 0,
        seed: int = 2,
    ) -> Run:
        """Restores as `restore` does, insists on the assertions, trains with the next steps of ``data``, and saves."""
        answer = self._worker.call(
            "continue_training",
            program=program.described(),
            prefix=str(prefix),
            data=data.arrays_file,
            directory=str(directory),
            how=how,
            seed=seed,
            first=data.num_steps,
            num_steps=num_steps,
            num_further=num_further,
            saves=saves,
        )
        return _run(answer)

    def restore_case(self, case: str, prefix: str | Path) -> tuple[list[Array], dict[str, Array]]:
        """Restores a checkpoint into the model of a golden case, where all must match and be used.

        Returns:
            The outputs for the case's inputs; and, if it is trained, every variable after one more step.
        """
        answer = self._worker.call("restore_case", case=case, prefix=str(prefix))
        after = {name: np.array(values, np.float32) for name, values in answer["after"].items()}
        return [np.array(values, np.float32) for values in answer["outputs"]], after


def _run(answer: Any, data: Run | None = None) -> Run:
    with np.load(answer["arrays"]) as file:
        arrays: dict[str, Array] = dict(file)

    def numbered(name: str) -> list[Array]:
        return [arrays[f"{name}/{i}"] for i in range(sum(key.startswith(f"{name}/") for key in arrays))]

    variables = [
        Variable(**each, value=value, after=after)
        for each, value, after in zip(answer["variables"], numbered("variable"), numbered("after"), strict=True)
    ]
    optimizer_variables = [
        Variable(**each, value=value, after=None)
        for each, value in zip(answer["optimizer"], numbered("optimizer"), strict=True)
    ]
    slot_names = sorted({key.split("/")[1] for key in arrays if key.startswith("slot/")})
    return Run(
        prefix=answer["prefix"],
        arrays_file=answer["arrays"],
        num_steps=answer["num_steps"],
        inputs=numbered("input") if data is None else data.inputs,
        outputs=numbered("output"),
        variables=variables,
        trainable=[variables[i] for i in answer["trainable"]],
        optimizer_variables=optimizer_variables,
        slots={name: numbered(f"slot/{name}") for name in slot_names},
        batches=numbered("batch/x") if data is None else data.batches,
        labels=arrays.get("batch/y") if data is None else data.labels,
        gradients=numbered("gradient") if data is None else data.gradients,
        losses=answer["losses"],
        assertions=answer.get("assertions", {}),
    )


@contextlib.contextmanager
def keras_oracle() -> Iterator[Keras]:
    """Keras in a worker; a skip where it or TensorFlow is not installed."""
    for module in ("tensorflow", "keras", "tf_keras"):
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            pytest.skip(f"{module} is not installed (`make test` installs it)")
    worker = Worker(HERE / "keras_functions.py", TIMEOUT_SECONDS)
    try:
        yield Keras(worker)
    finally:
        worker.close()
