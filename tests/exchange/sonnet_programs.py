"""Programs of Sonnet 2, described as those of Keras: `Subclassed` modules that call one attribute after the other.

A recurrent core takes a sequence, the batch first, from its initial state on and gives all outputs.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import sonnet
import tensorflow as tf
from keras_programs import Json, Program, attribute_at, built, fed, vectors

# Descriptions look for layers and optimizers in these places.
NAMESPACE = SimpleNamespace(layers=sonnet, optimizers=sonnet.optimizers, nets=sonnet.nets)

# The lists of state that an optimizer may have.
SLOTS = ("m", "v", "accumulated_momentum", "mom", "ms", "mg")


class Described(sonnet.Module):
    def __init__(self, description: Json) -> None:
        super().__init__(name=description.get("name"))
        self._calls = tuple(description["calls"])
        for name, attribute in description["attributes"].items():
            setattr(self, name, built(NAMESPACE, attribute))

    def __call__(self, x: tf.Tensor, is_training: bool) -> tf.Tensor:
        for path in self._calls:
            called = attribute_at(self, path)
            if isinstance(called, sonnet.RNNCore):
                start = called.initial_state(x.shape[0])
                outputs, _ = sonnet.dynamic_unroll(called, tf.transpose(x, [1, 0, 2]), start)
                x = tf.transpose(outputs, [1, 0, 2])
            else:
                normalizes = isinstance(called, sonnet.BatchNorm)
                x = called(x, is_training=is_training) if normalizes else called(x)
        return x


class SonnetProgram(Program):
    """A program whose model is a `Described` and whose optimizer is Sonnet's."""

    def __init__(self, description: Json, inputs: list[np.ndarray]) -> None:
        self.keras = NAMESPACE
        self.model = Described(description["model"])
        self.loss = description["loss"]
        self.trains_on = description["trains_on"]
        self.is_compiled = False
        self.outputs_for(inputs)
        self.optimizer = built(NAMESPACE, description["optimizer"]) if description["optimizer"] else None

    def outputs_for(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return [self.model(fed([tf.constant(array) for array in inputs]), is_training=False).numpy()]

    def variables(self) -> list[Any]:
        return list(self.model.variables)

    def build_optimizer(self) -> None:
        if hasattr(self.optimizer, "_initialize"):
            self.optimizer._initialize(self.model.trainable_variables)

    def adapted_layers(self) -> list[Any]:
        return []

    def apply_gradients(self, gradients: list[Any]) -> None:
        self.optimizer.apply(gradients, self.model.trainable_variables)

    def train_step(self, x: Any, y: Any) -> float:
        with tf.GradientTape() as tape:
            loss = vectors.losses(self.loss, y, self.model(x, is_training=True))
        self.apply_gradients(tape.gradient(loss, self.model.trainable_variables))
        return float(loss)

    def slots(self) -> dict[str, list[Any]]:
        return {name: list(found) for name in SLOTS if (found := getattr(self.optimizer, name, None))}

    def optimizer_variables(self) -> list[Any]:
        # One without any would be taken for one that was asked too early.
        return list(sonnet.allow_empty_variables(self.optimizer).variables)
