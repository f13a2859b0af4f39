"""What the worker of the tests of sharding does with TensorFlow; trees are those of `functions.py`."""

from typing import Any

import tensorflow as tf
from functions import *  # noqa: F403  the worker serves them as well
from functions import build_checkpoint

Json = Any


def write_sharded(prefix: str, tree: Json, max_shard_size: int) -> str:
    """`tf.train.Checkpoint(...).write(prefix)` under `MaxShardSizePolicy`."""
    checkpoint, _ = build_checkpoint(tree)
    policy = tf.train.experimental.MaxShardSizePolicy(max_shard_size)
    return checkpoint.write(prefix, tf.train.CheckpointOptions(experimental_sharding_callback=policy))
