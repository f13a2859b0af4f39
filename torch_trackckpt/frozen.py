"""Saves the same objects again and again: the graph is walked once, then only values are written."""

from __future__ import annotations

import os
from typing import Any

from torch_trackckpt import _native
from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.checkpoint import Checkpoint
from torch_trackckpt.errors import MismatchError, StructureChangedError
from torch_trackckpt.graph.frozen import FrozenGraph
from torch_trackckpt.graph.keys import by_rank_key
from torch_trackckpt.graph.walk import Snapshot
from torch_trackckpt.options import CheckpointOptions
from torch_trackckpt.restore.status import LoadStatus
from torch_trackckpt.save.turns import saving

__all__ = ["FrozenSaver", "frozen_saver"]


def frozen_saver(root_trackable: Any) -> FrozenSaver:
    """A saver for objects that stay the same ones while their values change. TensorFlow's ``frozen_saver``.

    Args:
        root_trackable: a `Checkpoint`, or what one could have as its root.

    Raises:
        ValueError: the root is not trackable.
        UnsupportedValueError: something below it cannot be saved; the text names it.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint, frozen_saver
        >>> model = torch.nn.Linear(2, 1)
        >>> saver = frozen_saver(Checkpoint(model=model))
        >>> path = saver.save(tempfile.mkdtemp() + "/ckpt")
        >>> model.weight2 = torch.nn.Parameter(torch.ones(2))
        >>> saver.save(path)  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        StructureChangedError: ...: (root).model.weight2, a Parameter, was added. ...
    """
    is_checkpoint = isinstance(root_trackable, Checkpoint)
    return FrozenSaver(root_trackable if is_checkpoint else Checkpoint(root_trackable))


class FrozenSaver:
    """Saves the objects below a checkpoint that were there when this was made; made by `frozen_saver`.

    It keeps all of them alive. What a save writes is, byte for byte, what `Checkpoint.write` would write at that
    moment. Parameters, buffers, submodules, elements of containers, optimizer slots and parameter groups must be the
    ones they were; the contents of tensors, hyper-parameters, counters and other python states are values and may be
    new ones at each save.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._frozen = self._freeze()

    def save(self, file_prefix: str | os.PathLike[str], options: CheckpointOptions | None = None) -> str:
        """Saves under exactly this path, as `Checkpoint.write` does: no number, no state file.

        Args:
            file_prefix: the path that the files begin with.
            options: see `CheckpointOptions`.

        Returns:
            The path.

        Raises:
            StructureChangedError: an object was added, removed or replaced since this saver was made; the text names
                it. Nothing was written. If the old objects come back, the saver can go on.
            UnsupportedValueError, ValueChangedError, OSError: as `Checkpoint.write`.
        """
        path = os.fsdecode(file_prefix)
        checkpoint = self._checkpoint
        options = options or CheckpointOptions()
        with checkpoint._own.turn(options, saving(path)):
            checkpoint._write(path, options, updates_state=False, walk=self._snapshot)
        return path

    def restore(self, save_path: str | os.PathLike[str], options: CheckpointOptions | None = None) -> LoadStatus:
        """Restores what `save` wrote, or any checkpoint that has every value that this saver saves.

        Args:
            save_path: what `save` returned.
            options: see `CheckpointOptions`.

        Returns:
            The status, as `Checkpoint.read`.

        Raises:
            MismatchError: a value is missing in the checkpoint; the text names it. Or as `Checkpoint.read`.
            CheckpointNotFoundError, RestoreError, DataLossError, UnsupportedFormatError: as `Checkpoint.read`.
        """
        self._checkpoint.sync()
        reader = CheckpointReader(save_path)
        # A state may be kept by rank.
        missing = [
            key
            for key in self._frozen.snapshot.keys
            if not (reader.has_tensor(key) or reader.has_tensor(by_rank_key(key)))
        ]
        if missing:
            raise MismatchError(
                f"The checkpoint {reader.file_prefix!r} is not one of the objects of this frozen saver: it lacks "
                f"{len(missing)} of their values, the first is {missing[0]}. Nothing has changed. "
                "`Checkpoint.restore` takes what there is."
            )
        return self._checkpoint.read(save_path, options)

    def _freeze(self, known: _native.GraphRecord | None = None) -> FrozenGraph:
        frozen = FrozenGraph(self._checkpoint._graph_root(), self._checkpoint._attached(), known)
        self._checkpoint._warn_of_unreachable(frozen.snapshot)
        return frozen

    def _snapshot(self, options: CheckpointOptions) -> Snapshot:
        self._checkpoint._warn_of_lost(self._frozen.live, options)
        now = self._freeze(self._frozen.snapshot.graph)
        if not now.has_structure_of(self._frozen) and (changes := self._frozen.changes(now)):
            shown = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more changes" if len(changes) > 5 else "")
            raise StructureChangedError(
                f"The objects are not those that this saver was made for: {shown}. Nothing was written; make another "
                "saver with frozen_saver."
            )
        self._frozen = now
        return now.snapshot
