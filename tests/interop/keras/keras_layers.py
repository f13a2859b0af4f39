"""Keras's and Sonnet's own layers, in a process without torch.

Reads a request for each line of its input, a JSON object, and answers each with a line:

    {"cases": {id: {"generation", "layer", "call", "inputs"}}, "into": file}   makes layers with random variables
    {"values": file, "into": file}                                             gives them other variables

Both write, for each case, every variable by the path at which a checkpoint has it, and what the layer computes then;
where it is called in training, also the variables after that. Layers and calls are expressions.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np
import tensorflow as tf

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


class Pair(tf.Module):
    """Two layers, one after the other."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.first, self.second = first, second

    def __call__(self, inputs: Any) -> Any:
        return self.second(self.first(inputs))


def names_of(generation: str) -> dict[str, Any]:
    if generation == "sonnet":
        import sonnet

        return {"snt": sonnet}
    if generation == "keras3":
        import keras
    else:
        import tf_keras as keras
    return {"layers": keras.layers, "Pair": Pair}


class Case:
    def __init__(self, generation: str, layer: str, call: str, inputs: list[np.ndarray], directory: Path) -> None:
        self.names = names_of(generation) | {"inputs": [tf.constant(array) for array in inputs]}
        self.names["layer"] = self.layer = eval(layer, self.names)
        self.call = call
        self.directory = directory
        self.output()
        self.variables = dict(self._found())

    def output(self) -> np.ndarray:
        if hasattr(self.layer, "finalize_state"):
            self.layer.finalize_state()
        return np.asarray(eval(self.call, self.names))

    def _found(self) -> Iterator[tuple[str, Any]]:
        """As in a checkpoint of the layer, whose paths are walked through the live objects."""
        root = tf.train.Checkpoint(layer=self.layer)
        prefix = root.write(str(self.directory / "ckpt"))
        for key, _ in tf.train.list_variables(prefix):
            if not key.endswith(VALUE):
                continue
            path = key.removesuffix(VALUE)
            node = root
            for edge in path.split("/"):
                node = tf.train.TrackableView(node).children(node)[edge]
            yield path.removeprefix("layer/"), node

    def results(self) -> dict[str, np.ndarray]:
        before = {path: np.asarray(variable) for path, variable in self.variables.items()}
        result = before | {"output": self.output()}
        if "training=True" in self.call:
            result |= {f"after/{path}": np.asarray(variable) for path, variable in self.variables.items()}
        return result


def randomize(case: Case, random: np.random.Generator) -> None:
    for path, variable in case.variables.items():
        shape, dtype = tuple(variable.shape), np.asarray(variable).dtype
        if np.issubdtype(dtype, np.integer):
            variable.assign(np.full(shape, 7, dtype))
        elif "variance" in path:
            variable.assign(random.uniform(0.5, 1.5, shape).astype(dtype))
        else:
            variable.assign(random.normal(0, 0.5, shape).astype(dtype))


def answer(request: dict[str, Any], cases: dict[str, Case]) -> None:
    arrays: dict[str, np.ndarray] = {}
    if "cases" in request:
        given = np.load(request["inputs"])
        for number, (name, case) in enumerate(request["cases"].items()):
            inputs = [given[f"{name}|{index}"] for index in range(case["inputs"])]
            directory = Path(request["into"]).parent
            cases[name] = Case(case["generation"], case["layer"], case["call"], inputs, directory)
            randomize(cases[name], np.random.default_rng(number))
    else:
        given = np.load(request["values"])
        for name, case in cases.items():
            for path, variable in case.variables.items():
                if f"{name}|{path}" in given:
                    variable.assign(given[f"{name}|{path}"])
    for name, case in cases.items():
        arrays |= {f"{name}|{path}": array for path, array in case.results().items()}
    np.savez(request["into"], **arrays)


def main() -> None:
    cases: dict[str, Case] = {}
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer(json.loads(line), cases)
            print(json.dumps({"error": None}), file=answers, flush=True)
        except Exception:
            print(json.dumps({"error": traceback.format_exc()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
