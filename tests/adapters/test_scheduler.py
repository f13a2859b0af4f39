"""Learning rate schedules take the state of their own kind only."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler, StepLR

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import DataLossError, MismatchError
from torch_trackckpt.trackable import PYTHON_STATE, Trackable, Value


class MyStepLR(StepLR):
    """A user's own, which keeps what it derives from."""


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)


@pytest.mark.parametrize("other", [CosineAnnealingLR(optimizer(), 5), ExponentialLR(optimizer(), 0.5)])
def test_the_state_of_another_kind_of_scheduler_is_a_mismatch_and_nothing_changes(
    other: LRScheduler, prefix: str
) -> None:
    """C165"""
    Checkpoint(schedule=StepLR(optimizer(), 3)).write(prefix)
    before = other.state_dict()

    with pytest.raises(MismatchError, match=r"\(root\)\.schedule .* nothing has been assigned.* StepLR"):
        Checkpoint(schedule=other).read(prefix)

    assert other.state_dict() == before


def test_a_users_own_kind_takes_the_state_of_what_it_derives_from(prefix: str) -> None:
    written = StepLR(optimizer(), 3)
    written.last_epoch = 7
    Checkpoint(schedule=written).write(prefix)
    fresh = MyStepLR(optimizer(), 3)

    Checkpoint(schedule=fresh).read(prefix).assert_consumed()

    assert fresh.last_epoch == 7


def test_a_state_that_no_scheduler_wrote_is_damage(prefix: str) -> None:
    class Stored(Trackable):
        def _serialize_to_tensors(self) -> dict[str, Value]:
            return {PYTHON_STATE: b'{"step_size":3}'}

    Checkpoint(schedule=Stored()).write(prefix)

    with pytest.raises(DataLossError, match=r"\(root\)\.schedule .* expected form"):
        Checkpoint(schedule=StepLR(optimizer(), 3)).read(prefix)
