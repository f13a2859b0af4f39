"""What the worker of `test_reading.py` does with TensorFlow's reader."""

from typing import Any

import tensorflow as tf


def describe(path: str, keys: list[str]) -> dict[str, Any]:
    reader = tf.train.load_checkpoint(path)
    return {
        "shapes": reader.get_variable_to_shape_map(),
        "dtypes": {key: dtype.name for key, dtype in reader.get_variable_to_dtype_map().items()},
        "has": [reader.has_tensor(key) for key in keys],
        "debug": sorted(reader.debug_string().decode(errors="surrogateescape").splitlines()),
    }
