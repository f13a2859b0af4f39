"""Programs of Keras 3 and of tf_keras, which continues Keras 2, as descriptions and as live objects.

A description is a dict with the name of a class and its settings, which may be or contain descriptions again:

    {"class": "Dense", "of": "layers", "config": {...}}

`of` is where the generation of Keras has the class: `layers` where it is absent, `optimizers`, `optimizers.legacy`,
`optimizers.schedules`. Three classes are models, with what they hold in place of a `config`:

    {"class": "Sequential", "layers": [...], "inputs": [input]}                        `inputs` may be absent
    {"class": "Functional", "inputs": [input, ...], "layers": {name: description},
     "calls": [[result, name of a layer, or `add` or `multiply`, [arguments], {keywords}], ...], "outputs": [...]}
    {"class": "Subclassed", "base": "Model" or "Layer", "attributes": {name: attribute}, "calls": [path, ...]}

input      {"name": ..., "shape": [...], "dtype": ..., "high": numbers are below it, "padded": ends are zeros}
attribute  a description, a list or dict of attributes, {"tuple": [...]}, {"same": path of another one},
           {"weight": shape}
path       attribute names and positions, as "blocks/0"; ["add", path] and ["multiply", path] apply a weight

A program is what is saved and restored:

    {"generation": "k3", "k2" or "sonnet", "model": description, "inputs": [input], "optimizer": description or null,
     "is_compiled": bool, "loss": "mse" or "ce", "trains_on": "batches" or "gradients"}
"""

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.checkpoint.graph_view import ObjectGraphView

GOLDEN = Path(__file__).parents[1] / "golden" / "keras"
sys.path.insert(0, str(GOLDEN))
import make_keras_vectors as vectors  # noqa: E402  the folder of goldens is no package

Json = Any
Arrays = dict[str, np.ndarray]

GENERATIONS = {"k3": vectors.k3, "k2": vectors.k2}


# From descriptions to objects.


def built(keras: Any, value: Json) -> Any:
    """The object of a description, and whatever is not one with the descriptions in it replaced by objects."""
    if isinstance(value, list):
        return [built(keras, element) for element in value]
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(built(keras, value["tuple"]))
    if "class" not in value:
        return {name: built(keras, element) for name, element in value.items()}
    if value["class"] in MODELS:
        return MODELS[value["class"]](keras, value)
    namespace = functools.reduce(getattr, value.get("of", "layers").split("."), keras)
    return getattr(namespace, value["class"])(**built(keras, value.get("config", {})))


def input_of(keras: Any, description: Json) -> Any:
    dtype = description.get("dtype", "float32")
    return keras.Input(tuple(description["shape"]), dtype=dtype, name=description.get("name"))


def sequential(keras: Any, description: Json) -> Any:
    inputs = [input_of(keras, each) for each in description.get("inputs", [])]
    return keras.Sequential([*inputs, *built(keras, description["layers"])], name=description.get("name"))


def functional(keras: Any, description: Json) -> Any:
    inputs = [input_of(keras, each) for each in description["inputs"]]
    known = {each["name"]: tensor for each, tensor in zip(description["inputs"], inputs, strict=True)}
    layers = built(keras, description["layers"])
    for result, called, arguments, keywords in description["calls"]:
        tensors = [known[name] for name in arguments]
        if called in ("add", "multiply"):
            known[result] = tensors[0] + tensors[1] if called == "add" else tensors[0] * tensors[1]
        else:
            known[result] = layers[called](*tensors, **keywords)
    outputs = [known[name] for name in description["outputs"]]
    return keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0], name=description.get("name"))


def subclassed(keras: Any, description: Json) -> Any:
    class Described(getattr(keras if description["base"] == "Model" else keras.layers, description["base"])):
        def __init__(self) -> None:
            super().__init__(name=description.get("name"))
            for name, attribute in description["attributes"].items():
                setattr(self, name, self._attribute(attribute))

        def call(self, x: Any, training: Any = None) -> Any:
            for step in description["calls"]:
                if isinstance(step, str):
                    x = attribute_at(self, step)(x)
                else:
                    x = x + attribute_at(self, step[1]) if step[0] == "add" else x * attribute_at(self, step[1])
            return x

        def _attribute(self, value: Json) -> Any:
            if isinstance(value, dict) and "same" in value:
                return attribute_at(self, value["same"])
            if isinstance(value, dict) and "weight" in value:
                return self.add_weight(shape=tuple(value["weight"]), initializer="random_normal", name="own")
            return built(keras, value)

    return Described()


def attribute_at(owner: Any, path: str) -> Any:
    """What a path of attribute names, keys and positions leads to."""
    found = owner
    for part in path.split("/"):
        if isinstance(found, list | tuple):
            found = found[int(part)]
        else:
            # TensorFlow's own wrappers of dicts are dicts as well.
            found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found


MODELS = {"Sequential": sequential, "Functional": functional, "Subclassed": subclassed}


# Programs.


class Program:
    """The live objects of a program, its model built on inputs."""

    def __init__(self, description: Json, inputs: list[np.ndarray]) -> None:
        self.keras = GENERATIONS[description["generation"]]
        self.model = built(self.keras, description["model"])
        self.loss = description["loss"]
        self.trains_on = description["trains_on"]
        self.outputs_for(inputs)
        optimizer = description["optimizer"]
        self.optimizer = built(self.keras, optimizer) if optimizer else None
        self.is_legacy = optimizer is not None and optimizer.get("of") == "optimizers.legacy"
        self.is_compiled = description["is_compiled"]
        if self.is_compiled:
            self.model.compile(optimizer=self.optimizer)

    def outputs_for(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        outputs = self.model(fed([tf.constant(array) for array in inputs]), training=False)
        return [np.array(each) for each in (outputs if isinstance(outputs, list | tuple) else [outputs])]

    def variables(self) -> list[Any]:
        """All but the state of random generators, which a checkpoint does not have."""
        return [v for v in self.model.weights if vectors.short(v) != "seed_generator_state"]

    def build_optimizer(self) -> None:
        if self.is_legacy:
            self.optimizer._create_all_weights(self.model.trainable_variables)
        else:
            self.optimizer.build(self.model.trainable_variables)

    def adapted_layers(self) -> list[Any]:
        """Layers that learn from data before training; what they compute with is made of what a checkpoint has."""
        return [each for each in self.model._flatten_layers() if hasattr(each, "adapt_mean")]

    def train(self, arrays: Arrays, first: int, num_steps: int) -> list[float]:
        """Takes the steps from ``first`` on; the losses, which a step on gradients does not have."""
        losses = []
        for step in range(first, first + num_steps):
            if self.trains_on == "gradients":
                given = [tf.constant(arrays[f"gradient/{i}"][step]) for i in range(len(self.model.trainable_variables))]
                self.apply_gradients(given)
            else:
                x = fed([tf.constant(each[step]) for each in numbered(arrays, "batch/x")])
                y = tf.constant(arrays["batch/y"][step])
                losses.append(self.train_step(x, y))
        return losses

    def apply_gradients(self, gradients: list[Any]) -> None:
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))

    def train_step(self, x: Any, y: Any) -> float:
        return vectors.train_step(self.model, self.optimizer, self.loss, x, y)

    def tracked(self, how: str) -> tf.train.Checkpoint:
        if how == "root":
            return tf.train.Checkpoint(self.model)
        names = ("net", "trainer") if how == "others" else ("model", "optimizer")
        children = {names[0]: self.model}
        if how == "others":
            children["step"] = tf.Variable(3, dtype=tf.int64)
        if self.optimizer is not None and not self.is_compiled:
            children[names[1]] = self.optimizer
        return tf.train.Checkpoint(**children)

    def save(self, how: str, directory: Path) -> tuple[str, Any]:
        """The prefix, and TensorFlow's view of the objects that were saved where it is known."""
        if how in ("save", "root", "write", "others"):
            checkpoint = self.tracked(how)
            # The view does not keep its root.
            self.kept = checkpoint
            write = checkpoint.write if how == "write" else checkpoint.save
            return write(str(directory / "ckpt")), checkpoint._saver._graph_view
        if how == "save_weights":
            self.model.save_weights(str(directory / "ckpt"))
            return str(directory / "ckpt"), ObjectGraphView(self.model)
        folder = str(directory / "saved_model")
        if how == "export":
            self.model.export(folder, **({"verbose": False} if self.keras is vectors.k3 else {}))
        elif how == "model.save":
            self.model.save(folder, save_format="tf")
        else:
            tf.saved_model.save(self.model, folder)
        return f"{folder}/variables/variables", None

    def slots(self) -> dict[str, list[Any]]:
        """By name without underscores in front, the optimizer's state for each trainable variable."""
        trainable = self.model.trainable_variables
        if self.is_legacy:
            names = self.optimizer.get_slot_names()
            return {name: [self.optimizer.get_slot(v, name) for v in trainable] for name in names}
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        found = {}
        for name, value in vars(inner).items():
            if name in ("_variables", "_trainable_variables") or not isinstance(value, list):
                continue
            if len(value) == len(trainable) and all(hasattr(v, "shape") for v in value):
                found[name.lstrip("_")] = value
        return found

    def optimizer_variables(self) -> list[Any]:
        found = self.optimizer.variables
        return list(found() if callable(found) else found)


def fed(arrays: list[Any]) -> Any:
    """What a model is called with."""
    return arrays if len(arrays) > 1 else arrays[0]


def numbered(arrays: Arrays, name: str) -> list[np.ndarray]:
    return [arrays[f"{name}/{i}"] for i in range(sum(key.startswith(f"{name}/") for key in arrays))]


def path_of(variable: Any) -> str:
    return getattr(variable, "path", None) or variable.name.split(":")[0]


# Random numbers: all values differ, and none is what a layer begins with.


def random_input(description: Json, num: int, rng: np.random.Generator) -> np.ndarray:
    shape = (num, *description["shape"])
    if description.get("dtype", "float32") == "float32":
        return rng.standard_normal(shape).astype("float32")
    numbers = rng.integers(1, description["high"], shape).astype(description["dtype"])
    if description.get("padded"):
        for row in range(num):
            numbers[row, shape[1] - row % (shape[1] - 1) :] = 0
    return numbers


def randomize(variables: list[Any], rng: np.random.Generator) -> None:
    """Gives new values to what begins as zeros or ones, and moves the rest, so that a model is not like another."""
    for variable in variables:
        value, name = np.array(variable), vectors.short(variable)
        if value.dtype != np.float32 or name.startswith("adapt_") or name in ("vector_u", "sn_u"):
            continue
        # Sonnet has the last part below `moving_variance`.
        if "moving_variance" in path_of(variable).split("/")[-2:]:
            value = rng.uniform(0.5, 1.5, value.shape)
        elif name in ("gamma", "scale"):
            value = 1 + 0.2 * rng.standard_normal(value.shape)
        else:
            value = value + 0.1 * rng.standard_normal(value.shape)
        variable.assign(value.astype("float32"))


def random_training(program: Program, description: Json, num_steps: int, rng: np.random.Generator) -> Arrays:
    if program.trains_on == "gradients":
        # Over four decades, which shows where an epsilon stands.
        return {
            f"gradient/{i}": (
                rng.standard_normal((num_steps, *v.shape)) * 10 ** rng.uniform(-3, 1, (num_steps, *v.shape))
            ).astype("float32")
            for i, v in enumerate(program.model.trainable_variables)
        }
    batches = [[random_input(each, 6, rng) for each in description["inputs"]] for _ in range(num_steps)]
    arrays = {f"batch/x/{i}": np.stack(of_input) for i, of_input in enumerate(zip(*batches, strict=True))}
    (output,) = program.outputs_for(batches[0])
    if program.loss == "mse":
        arrays["batch/y"] = rng.standard_normal((num_steps, *output.shape)).astype("float32")
    else:
        arrays["batch/y"] = rng.integers(0, output.shape[-1], (num_steps, *output.shape[:-1])).astype("int32")
    return arrays
