"""A value that each process of a job has for itself, when there are not as many processes as there were."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch_trackckpt.errors import MismatchError
from torch_trackckpt.options import Resplit
from torch_trackckpt.trackable import Value

__all__ = ["ByRank", "Resplits"]


@dataclasses.dataclass(frozen=True)
class Resplits:
    """Who makes states for other numbers of processes.

    Args:
        functions: by the class of the object.
        rank, size: which process of how many this is.
    """

    functions: Mapping[type, Resplit]
    rank: int
    size: int

    def state_for(self, owner: object, states: Sequence[Any]) -> Any:
        """The state of an object in this process.

        Raises:
            MismatchError: nobody can make one.
        """
        for cls in type(owner).__mro__:
            if cls in self.functions:
                return self.functions[cls](states, self.rank, self.size)
        raise self.mismatch(len(states), f" or say by CheckpointOptions(resplit={{{type(owner).__name__}: ...}}) how")

    def mismatch(self, num_saved: int, remedy: str = "") -> MismatchError:
        """What is wrong where nobody can."""
        return MismatchError(
            f"each of the {num_saved} processes that saved it has a state of its own in the checkpoint, and this job "
            f"has {self.size}. States are not dealt out anew by themselves: restore with {num_saved} processes, leave "
            f"the object out{remedy}."
        )


@dataclasses.dataclass(frozen=True)
class ByRank:
    """The values of the ranks of the job that saved, as far as they had some."""

    values: Mapping[int, Value]
    resplits: Resplits
