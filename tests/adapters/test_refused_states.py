"""State that is not JSON is refused at the save: by object, position and type, with what to do, before any file."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.optimizers import Odd, linear, momentum
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, StepLR

from torch_trackckpt import AutoTrackable, Checkpoint
from torch_trackckpt.errors import UnsupportedValueError


class Opaque:
    """Something that only a pickle could hold."""


def in_a_group() -> dict[str, Any]:
    model = linear()
    optimizer = torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias], "hooks": {"a": (1, Opaque())}}])
    return {"model": model, "optimizer": optimizer}


def in_extra_state() -> dict[str, Any]:
    model = linear()
    optimizer = Odd(model.parameters())
    optimizer.fill(model.bias, {"history": [1, {2: Opaque()}]})
    return {"model": model, "optimizer": optimizer}


def in_global_state() -> dict[str, Any]:
    model = linear()
    optimizer = Odd(model.parameters())
    optimizer.state["clock"] = Opaque()  # type: ignore[index, assignment]
    return {"model": model, "optimizer": optimizer}


def in_a_key_of_global_state() -> dict[str, Any]:
    model = linear()
    optimizer = Odd(model.parameters())
    optimizer.state[Opaque] = {}  # type: ignore[index]
    return {"model": model, "optimizer": optimizer}


def in_a_scheduler() -> dict[str, Any]:
    scheduler = StepLR(momentum(linear()), 3)
    scheduler.on_step = Opaque()  # type: ignore[attr-defined]
    return {"scheduler": scheduler}


def in_a_nested_scheduler() -> dict[str, Any]:
    optimizer = momentum(linear())
    inner = StepLR(optimizer, 3)
    inner.limits = {0: [Opaque()]}  # type: ignore[attr-defined]
    return {"scheduler": ChainedScheduler([StepLR(optimizer, 2), inner], optimizer)}


def in_a_schedule() -> dict[str, Any]:
    class Warmup:
        def __init__(self) -> None:
            self.source = Opaque()

        def __call__(self, epoch: int) -> float:
            return 1.0

    return {"scheduler": LambdaLR(momentum(linear()), Warmup())}


def in_a_modules_extra_state() -> dict[str, Any]:
    class Extra(nn.Module):
        def get_extra_state(self) -> Any:
            return {"lock": Opaque()}

        def set_extra_state(self, state: Any) -> None: ...

    return {"model": nn.Sequential(Extra())}


def in_a_loader() -> dict[str, Any]:
    class Loader:
        def state_dict(self) -> Any:
            return [Opaque()]

        def load_state_dict(self, state: Any) -> None: ...

    trainer = AutoTrackable()
    trainer.loader = Loader()
    return {"trainer": trainer}


REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str, str]] = {
    "parameter group": (in_a_group, "(root).optimizer.param_groups", "['groups'][1]['hooks']['a'][1]"),
    "extra state": (in_extra_state, "(root).optimizer.extra_state", "['model/bias']['history'][1][2]"),
    "global state": (in_global_state, "(root).optimizer.global_state", "['clock']"),
    "scheduler": (in_a_scheduler, "(root).scheduler", "['state']['on_step']"),
    "nested scheduler": (in_a_nested_scheduler, "(root).scheduler", "['state']['_schedulers'][1]['limits'][0][0]"),
    "schedule": (in_a_schedule, "(root).scheduler", "['state']['lr_lambdas'][0]['source']"),
    "module": (in_a_modules_extra_state, "(root).model.0._extra_state", "['lock']"),
    "loader": (in_a_loader, "(root).trainer.loader", "[0]"),
}


@pytest.mark.parametrize(("make", "path", "position"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_names_object_position_type_and_what_to_do_and_nothing_is_written(
    make: Callable[[], dict[str, Any]], path: str, position: str, tmp_path: Path
) -> None:
    """C168"""
    with pytest.raises(UnsupportedValueError) as error:
        Checkpoint(**make()).save(tmp_path / "new" / "ckpt")

    assert str(error.value).startswith(
        f"{path} cannot be saved: the value at {position} is a {Opaque.__module__}.Opaque, which is neither"
    )
    assert "torch_trackckpt.register_adapter" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_cannot_be_stored_is_named_as_such(tmp_path: Path) -> None:
    """C168"""
    complaint = re.escape("(root).optimizer.global_state cannot be saved: the value at  key <class")

    with pytest.raises(UnsupportedValueError, match=complaint):
        Checkpoint(**in_a_key_of_global_state()).save(tmp_path / "ckpt")
