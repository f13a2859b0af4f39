"""What a manager knows of the checkpoints in its directory: a plain value, and the two files that it is kept in.

The state file, which is TensorFlow's, has the newest path, all paths, and times. What it has no place for lies beside
it in ``checkpoint_records.json``: the step and the metrics of each checkpoint.

    {"checkpoints": [{"path": "ckpt-7", "timestamp": 1700000000.125, "step": 700, "metrics": {"loss": 0.25}}, ...]}

TensorFlow ignores that file. Should one of its managers go on in the directory, the records of what it removes or
replaces are left behind; a record therefore counts only for a checkpoint that has exactly this path and time in the
state file. Numbers that JSON lacks are texts: ``"nan"``, ``"inf"``, ``"-inf"``. The file exists where a manager has
been given a retention policy or metrics. It is written before the state file, so that a checkpoint that is listed has
its record.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from typing import Any

from torch_trackckpt.errors import DataLossError
from torch_trackckpt.retention import SavedCheckpoint
from torch_trackckpt.state_file import CheckpointState, get_checkpoint_state, write_checkpoint_state
from torch_trackckpt.storage import paths
from torch_trackckpt.storage.base import Storage
from torch_trackckpt.storage.choice import storage_for

__all__ = ["RECORDS_FILE", "Ledger", "read_ledger", "write_ledger"]

RECORDS_FILE = "checkpoint_records.json"

_CLOCK_MARGIN_SECONDS = 1.0
"""How much before its beginning a manager's history begins, so that its first checkpoint is later even by a coarse
clock. TensorFlow's number."""

_NUMBER_AT_END = re.compile(r"-(-?\d+)\Z")


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The checkpoints of a directory."""

    latest: str | None
    """The newest."""
    active: tuple[SavedCheckpoint, ...]
    """Those that may be deleted one day, in the order in which they were saved."""
    last_preserved: float
    """When the last one that left `active` for good was made, or when there was none yet; seconds since 1970."""
    listed: tuple[str, ...]
    """Every path that the state file lists, newest first."""

    def with_newest(self, saved: SavedCheckpoint) -> Ledger:
        """The ledger with one more checkpoint; one of the same path has been replaced by it."""
        path = paths.absolute(saved.path)
        others = (other for other in self.active if paths.absolute(other.path) != path)
        return self._listing(saved.path, (*others, saved), self.last_preserved)

    def without(self, leaving: Iterable[SavedCheckpoint], last_preserved: float) -> Ledger:
        """The ledger after checkpoints have been deleted, or preserved."""
        paths = {saved.path for saved in leaving}
        return self._listing(
            self.latest, tuple(saved for saved in self.active if saved.path not in paths), last_preserved
        )

    def seen_from(self, here: str) -> Ledger:
        """The ledger with paths that are no longer relative to the program's directory, but begin with that."""
        active = (dataclasses.replace(saved, path=paths.joined(here, saved.path)) for saved in self.active)
        latest = None if self.latest is None else paths.joined(here, self.latest)
        return self._listing(latest, tuple(active), self.last_preserved)

    def message(self) -> Any:
        """What can be JSON, of which `heard` makes the same ledger."""
        return dataclasses.asdict(self)

    @classmethod
    def heard(cls, message: Any) -> Ledger:
        """The ledger that another process has."""
        active = tuple(SavedCheckpoint(**saved) for saved in message["active"])
        return cls(message["latest"], active, message["last_preserved"], tuple(message["listed"]))

    def _listing(self, latest: str | None, active: tuple[SavedCheckpoint, ...], last_preserved: float) -> Ledger:
        return Ledger(latest, active, last_preserved, tuple(saved.path for saved in reversed(active)))


def read_ledger(directory: str, now: float) -> Ledger:
    """What the files of a directory say; every checkpoint that is listed with its time is in `active`.

    Args:
        directory: where the files are.
        now: seconds since 1970; what begins in an empty directory begins now.

    Raises:
        ValueError: the state file names no checkpoint.
        DataLossError: the records cannot be understood.
    """
    state = get_checkpoint_state(directory)
    if state is None:
        return Ledger(None, (), now - _CLOCK_MARGIN_SECONDS, ())
    records = _read_records(directory)
    active: dict[str, SavedCheckpoint] = {}
    # As in TensorFlow, what has no time was not saved by a manager, and none deletes it.
    for path, timestamp in zip(state.all_model_checkpoint_paths, state.all_model_checkpoint_timestamps, strict=False):
        record = records.get((paths.absolute(path), timestamp))
        step, metrics = (_number_of(path), {}) if record is None else (record.step, record.metrics)
        active[path] = SavedCheckpoint(path, timestamp, step, metrics)
    return Ledger(
        state.model_checkpoint_path,
        tuple(active.values()),
        state.last_preserved_timestamp,
        tuple(state.newest_first()),
    )


def write_ledger(ledger: Ledger, directory: str, storage: Storage, *, with_records: bool) -> None:
    """Replaces the files.

    Args:
        ledger: what to write; it has a latest checkpoint.
        directory: where.
        storage: how.
        with_records: whether to write records even if none has a metric.

    Raises:
        RuntimeError: a checkpoint has the path of the state file.
        OSError: the system refuses.
    """
    assert ledger.latest is not None
    storage.make_directory(directory)
    if with_records or any(saved.metrics for saved in ledger.active):
        _write_records(ledger.active, directory, storage)
    state = CheckpointState(
        ledger.latest,
        tuple(saved.path for saved in ledger.active),
        tuple(saved.timestamp for saved in ledger.active),
        ledger.last_preserved,
    )
    write_checkpoint_state(directory, state, storage)


def _write_records(checkpoints: Iterable[SavedCheckpoint], directory: str, storage: Storage) -> None:
    records = [
        {
            "path": paths.relative(saved.path, directory),
            "timestamp": saved.timestamp,
            "step": saved.step,
            "metrics": {name: value if math.isfinite(value) else str(value) for name, value in saved.metrics.items()},
        }
        for saved in checkpoints
    ]
    text = json.dumps({"checkpoints": records}, indent=1, allow_nan=False) + "\n"
    storage.put(paths.joined(directory, RECORDS_FILE), text.encode())


def _read_records(directory: str) -> dict[tuple[str, float], SavedCheckpoint]:
    """The records by what they hold for: an absolute path and a time."""
    path = paths.joined(directory, RECORDS_FILE)
    try:
        content = storage_for(path).get(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    try:
        records = [_decoded(record, directory) for record in json.loads(content)["checkpoints"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataLossError(
            f"The steps and metrics of the checkpoints, {path!r}, cannot be understood ({error!r}). Without them "
            "a manager might delete the best checkpoints; restore the file, or delete it to go on without it."
        ) from error
    return {(paths.absolute(record.path), record.timestamp): record for record in records}


def _decoded(record: Any, directory: str) -> SavedCheckpoint:
    step = record["step"]
    return SavedCheckpoint(
        paths.joined(directory, record["path"]),
        float(record["timestamp"]),
        None if step is None else int(step),
        {name: float(value) for name, value in record["metrics"].items()},
    )


def _number_of(path: str) -> int | None:
    match = _NUMBER_AT_END.search(path)
    return None if match is None else int(match[1])
