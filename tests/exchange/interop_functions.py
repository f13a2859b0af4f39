"""What the worker of the tests of loading by rules does with TensorFlow. Values are those of `functions.py`."""

from typing import Any

import tensorflow as tf
from functions import decode_value, encode_value

Json = Any
v1 = tf.compat.v1


def content(array: Any) -> Json:
    return encode_value(tf.dtypes.as_dtype(array.dtype), array)


def train(
    prefix: str, kind: str, options: Json, weights: Json, gradients: list[Json], steps: int, version: int
) -> Json:
    """Steps with given gradients, the first of them before a checkpoint is saved; the path, and the weights after."""
    with tf.Graph().as_default(), v1.Session() as session:
        variables = {name: v1.get_variable(name, initializer=decode_value(value)) for name, value in weights.items()}
        fed = {name: v1.placeholder(variable.dtype, variable.shape) for name, variable in variables.items()}
        optimizer = getattr(v1.train, kind)(**options)
        step = optimizer.apply_gradients(
            [(fed[name], variables[name]) for name in variables], v1.train.get_or_create_global_step()
        )
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver(write_version=version)
        path = ""
        for number, values in enumerate(gradients):
            if number == steps:
                path = saver.save(session, prefix, write_meta_graph=False)
            session.run(step, {fed[name]: decode_value(value) for name, value in values.items()})
        return {"path": path, "weights": {name: content(value) for name, value in session.run(variables).items()}}


def save_mobilenet(prefix: str, values: Json, images: Json, blocks: int, version: int) -> Json:
    """Saves variables with slim's names, and what a small MobileNet v1 of them makes of images."""
    with tf.Graph().as_default(), v1.Session() as session:
        variables = _variables(values)

        def norm(x: Any, scope: str) -> Any:
            gamma, beta, mean, variance = (
                variables[f"{scope}/BatchNorm/{name}"] for name in ("gamma", "beta", "moving_mean", "moving_variance")
            )
            return tf.nn.relu6(tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3))

        x = norm(
            tf.nn.conv2d(decode_value(images), variables["MobilenetV1/Conv2d_0/weights"], 1, "SAME"),
            "MobilenetV1/Conv2d_0",
        )
        for number in range(1, blocks + 1):
            scope = f"MobilenetV1/Conv2d_{number}"
            kernel = variables[f"{scope}_depthwise/depthwise_weights"]
            x = norm(tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME"), f"{scope}_depthwise")
            x = norm(tf.nn.conv2d(x, variables[f"{scope}_pointwise/weights"], 1, "SAME"), f"{scope}_pointwise")
        scope = "MobilenetV1/Logits/Conv2d_1c_1x1"
        x = tf.reduce_mean(x, [1, 2], keepdims=True)
        x = tf.nn.conv2d(x, variables[f"{scope}/weights"], 1, "SAME") + variables[f"{scope}/biases"]
        return _saved(session, prefix, version, x[:, 0, 0])


def save_unit_of_resnet_v2(prefix: str, values: Json, images: Json, version: int) -> Json:
    """The same for the first unit of a ResNet v2."""
    scope = "resnet_v2_50/block1/unit_1/bottleneck_v2"
    with tf.Graph().as_default(), v1.Session() as session:
        variables = _variables(values)

        def norm(x: Any, name: str) -> Any:
            gamma, beta, mean, variance = (
                variables[f"{scope}/{name}/{each}"] for each in ("gamma", "beta", "moving_mean", "moving_variance")
            )
            return tf.nn.relu(tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-5))

        x = norm(decode_value(images), "preact")
        shortcut = tf.nn.conv2d(x, variables[f"{scope}/shortcut/weights"], 1, "SAME")
        shortcut += variables[f"{scope}/shortcut/biases"]
        x = norm(tf.nn.conv2d(x, variables[f"{scope}/conv1/weights"], 1, "SAME"), "conv1/BatchNorm")
        x = norm(tf.nn.conv2d(x, variables[f"{scope}/conv2/weights"], 1, "SAME"), "conv2/BatchNorm")
        x = tf.nn.conv2d(x, variables[f"{scope}/conv3/weights"], 1, "SAME") + variables[f"{scope}/conv3/biases"]
        return _saved(session, prefix, version, shortcut + x)


def _variables(values: Json) -> dict[str, Any]:
    return {name: v1.get_variable(name, initializer=decode_value(value)) for name, value in values.items()}


def _saved(session: Any, prefix: str, version: int, output: Any) -> Json:
    session.run(v1.global_variables_initializer())
    path = v1.train.Saver(write_version=version).save(session, prefix, write_meta_graph=False)
    return {"path": path, "output": content(session.run(output))}


def moving_averages(prefix: str, values: list[Json]) -> Json:
    """A variable that is assigned values, and its moving average; the path, and the average."""
    with tf.Graph().as_default(), v1.Session() as session:
        variable = v1.get_variable("w", initializer=decode_value(values[0]))
        averages = tf.train.ExponentialMovingAverage(0.5)
        update = averages.apply([variable])
        session.run(v1.global_variables_initializer())
        for value in values[1:]:
            variable.load(decode_value(value), session)
            session.run(update)
        path = v1.train.Saver().save(session, prefix, write_meta_graph=False)
        restored = {name: each.name for name, each in averages.variables_to_restore().items()}
        return {"path": path, "average": content(session.run(averages.average(variable))), "restored": restored}
