"""What the worker of `test_manager.py` does with TensorFlow's manager, by a clock of its own.

events    a list of ["save", number or null] | ["clock", seconds to add] | ["restart", [max_to_keep, hours]]
          | ["restore", null] | ["remove", number]
"""

import glob
import os
from types import SimpleNamespace
from typing import Any
from unittest import mock

import tensorflow as tf
from tensorflow.python.checkpoint import checkpoint_management

Json = Any


def run_manager(directory: str, now: float, keep: int | None, hours: float | None, events: Json) -> Json:
    """What a manager tells after its start and after each event."""
    clock = SimpleNamespace(now=now)
    value = tf.Variable(0, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(value=value)

    def start(keep: int | None, hours: float | None) -> tf.train.CheckpointManager:
        return tf.train.CheckpointManager(checkpoint, directory, keep, hours)

    with mock.patch.object(checkpoint_management, "time", SimpleNamespace(time=lambda: clock.now)):
        manager = start(keep, hours)
        told = [_told(manager, None)]
        for event, argument in events:
            result = None
            if event == "save":
                value.assign_add(1)
                result = manager.save(checkpoint_number=argument)
            elif event == "clock":
                clock.now += argument
            elif event == "restart":
                manager = start(*argument)
            elif event == "restore":
                result = manager.restore_or_initialize()
            elif event == "remove":
                for path in glob.glob(os.path.join(directory, f"ckpt-{argument}.*")):
                    os.remove(path)
            told.append(_told(manager, result))
    return told


def _told(manager: tf.train.CheckpointManager, result: str | None) -> Json:
    directory = manager.directory
    state = os.path.join(directory, "checkpoint")
    return {
        "result": result,
        "checkpoints": manager.checkpoints,
        "latest": manager.latest_checkpoint,
        "files": sorted(name for name in os.listdir(directory) if name != "checkpoint_records.json"),
        "state": open(state).read() if os.path.exists(state) else None,
        "counter": int(manager.checkpoint.save_counter),
    }


def latest_checkpoint(directory: str) -> str | None:
    return tf.train.latest_checkpoint(directory)


def update_state(
    directory: str, path: str, paths: list[str] | None, times: list[float] | None, preserved: float | None
) -> None:
    tf.compat.v1.train.update_checkpoint_state(
        directory, path, paths, all_model_checkpoint_timestamps=times, last_preserved_timestamp=preserved
    )


def iterate(directory: str, timeout: float) -> list[str]:
    return list(tf.train.checkpoints_iterator(directory, timeout=timeout))
