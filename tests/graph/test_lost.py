"""Plain numbers and tensors on tracked objects that no checkpoint holds are named once."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from typing import Any
from unittest import mock

import lightning
import numpy as np
import pytest
import torch
from checkpoints import thing
from torch import nn
from torch.nn.utils import weight_norm

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointManager, CheckpointOptions, NoDependency, frozen_saver
from torch_trackckpt.graph.lost import lost_values
from torch_trackckpt.graph.walk import capture


def lost(**children: Any) -> list[str]:
    checkpoint = Checkpoint(**children)
    return lost_values(capture(checkpoint), checkpoint)


def records(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


class Net(nn.Module):
    """What programs keep on their modules."""

    def __init__(self, width: int, eps: float = 1e-3, **options: Any) -> None:
        super().__init__()
        self.width, self._eps = width, eps
        self.half = width // 2
        self.scale = width**-0.5
        self.depth = 12
        self.dropout = options.get("dropout", 0.0)
        self.name, self.flag = "net", True
        self.fc = nn.Linear(width, 1)
        self.register_buffer("cache", torch.zeros(1), persistent=False)
        self.shared = [self.fc.weight]

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(x)


class Counting(Net):
    __constants__ = ("rate",)

    def __init__(self, width: int = 2) -> None:
        super().__init__(width)
        self.step = 0
        self.best = float("inf")
        self.rate = 3
        self.average = torch.zeros(2)

    def forward(self, x: torch.Tensor) -> Any:
        self.step += 1
        return super().forward(x)


def test_configuration_of_a_module_is_not_named() -> None:
    assert (
        lost(model=nn.Sequential(Net(4), Net(6, dropout=0.5), nn.Dropout(0.1), nn.LSTM(2, 3), nn.BatchNorm1d(2))) == []
    )


def test_state_of_a_module_is_named_by_its_path() -> None:
    model = nn.Sequential(Counting())
    assert lost(model=model) == [
        "(root).model.0.step = 0 (int)",
        "(root).model.0.best = inf (float)",
        "(root).model.0.average = a tensor of shape (2,)",
    ]


def test_what_init_assigns_as_a_literal_is_state_once_it_is_another() -> None:
    class Best(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.best = 0.0
            self.patience = 5

    model = Best()
    assert lost(model=model) == ["(root).model.best = 0.0 (float)"]
    model.patience = 4
    assert lost(model=model) == ["(root).model.best = 0.0 (float)", "(root).model.patience = 4 (int)"]


@pytest.mark.parametrize("value", [3, 0.5, 1j, np.float32(2), np.int64(2)])
def test_a_number_that_is_assigned_from_outside_is_named(value: object) -> None:
    model = Net(2)
    model.epoch = value  # type: ignore[assignment]
    assert lost(model=model) == [f"(root).model.epoch = {value} ({type(value).__name__})"]


@pytest.mark.parametrize("value", [True, np.bool_(True), "text", None, [1, 2], len, np.ones(2)])
def test_what_is_neither_a_number_nor_a_tensor_is_not_named(value: object) -> None:
    model = Net(2)
    model.thing = value  # type: ignore[assignment]
    assert lost(model=model) == []


def test_tensors_in_lists_and_dicts_of_a_module_are_named() -> None:
    model = Net(2)
    model.history = [1, torch.zeros(1), torch.zeros(2)]  # type: ignore[assignment]
    model.by_name = {"a": torch.zeros(3)}  # type: ignore[assignment]
    assert lost(model=model) == [
        "(root).model.history[1] = a tensor of shape (1,)",
        "(root).model.by_name['a'] = a tensor of shape (3,)",
    ]


def test_a_tensor_that_is_saved_elsewhere_or_was_computed_is_not_named() -> None:
    model = Net(2)
    model.seen, model.last = torch.zeros(1), model.fc.weight * 2  # type: ignore[assignment]
    assert lost(model=model, seen=model.seen) == []


def test_torchs_own_modules_are_not_looked_at() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = weight_norm(nn.Linear(2, 2))
    layer.note = 3  # type: ignore[assignment]
    assert lost(layer=layer) == []


def test_what_decorated_and_inner_functions_assign_is_found() -> None:
    class Peculiar(nn.Module):
        call = mock.call

        def __init__(self) -> None:
            super().__init__()
            self.steps = self.epochs = 3

        @torch.no_grad()
        def forward(self) -> None:
            self.steps += 1

        @property
        def epoch(self) -> int:
            return self.epochs

        @epoch.setter
        def epoch(self, value: int) -> None:
            self.epochs = value

    assert lost(model=Peculiar()) == ["(root).model.steps = 3 (int)", "(root).model.epochs = 3 (int)"]


def test_what_init_has_its_methods_count_is_configuration() -> None:
    class Stages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.planes = 64
            self.layers = nn.ModuleList(self.stage(2 * number) for number in range(3))

        def stage(self, planes: int) -> nn.Module:
            self.planes = planes * 4
            return nn.Identity()

    assert lost(model=Stages()) == []


def test_a_class_that_torch_derived_from_the_programs_is_the_programs() -> None:
    model = Counting()
    model.__class__ = type("FSDPCounting", (Counting,), {"__module__": "torch.distributed.fsdp"})
    assert lost(model=model)[0] == "(root).model.step = 0 (int)"


def test_numbers_of_a_lightning_module_are_named_where_they_are_the_users() -> None:
    class Module(lightning.LightningModule):
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.lr = lr
            self.best = 0.0
            self.step = 0

        def on_validation_epoch_end(self) -> None:
            self.best = max(self.best, 1.0)

        def training_step(self, batch: Any) -> None:
            self.step += 1

    assert lost(module=Module()) == ["(root).module.best = 0.0 (float)", "(root).module.step = 0 (int)"]


def test_a_number_that_is_counted_is_state_even_if_init_takes_its_first_value() -> None:
    class Resumable(nn.Module):
        def __init__(self, step: int = 0, width: int = 3) -> None:
            super().__init__()
            self.step, self.width = step, width
            self.width += 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.step += 1
            return x

        def widen(self, width: int) -> None:
            self.width, self.other = width, self.step

    assert lost(model=Resumable()) == ["(root).model.step = 0 (int)"]


def test_a_module_of_an_installed_package_keeps_its_numbers_to_itself() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11)
    assert lost(model=transformers.GPT2LMHeadModel(config)) == []


def test_numbers_of_the_checkpoint_itself_are_named() -> None:
    checkpoint = Checkpoint(model=nn.Linear(1, 1))
    checkpoint.step, checkpoint.text, checkpoint.cache = 3, "text", NoDependency(4)
    checkpoint.losses = [0.5, 0.25]
    expected = ["(root).step = 3 (int)", "(root).losses[0] = 0.5 (float)"]
    assert lost_values(capture(checkpoint), checkpoint) == expected


def test_numbers_of_a_checkpoint_with_a_root_are_named() -> None:
    checkpoint = Checkpoint(nn.Linear(1, 1))
    checkpoint.step = 3
    assert lost_values(capture(checkpoint._graph_root(), checkpoint._attached()), checkpoint) == [
        "(root).step = 3 (int)"
    ]


def test_what_an_auto_trackable_saves_is_not_named_and_what_is_mixed_is() -> None:
    made = thing(step=1, losses=[0.5], mixed=[torch.ones(1), 3], marked=NoDependency([1, torch.ones(1)]))
    assert lost(made=made) == ["(root).made.mixed[1] = 3 (int)"]


def test_a_number_of_a_class_of_its_own_is_named() -> None:
    class Steps(int):
        pass

    assert lost(made=thing(steps=Steps(3), epoch=1)) == ["(root).made.steps = 3 (Steps)"]


def test_objects_that_say_what_is_saved_are_not_looked_at() -> None:
    class Own(AutoTrackable):
        def __init__(self) -> None:
            self.number = 3

        def _serialize_to_tensors(self) -> Any:
            return {"half": torch.tensor(1.5)}

    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    assert lost(own=Own(), optimizer=optimizer, scheduler=scheduler, parameter=parameter) == []


# ---------------------------------------------------------------------------------------------- The warning


def test_the_first_save_warns_and_says_what_to_do(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = Checkpoint(model=nn.Sequential(*(Counting() for _ in range(3))))
    checkpoint.save(prefix)
    checkpoint.save(prefix)
    (message,) = records(caplog)
    assert message.startswith("9 plain numbers or tensors of tracked objects are not saved")
    assert "(root).model.0.step = 0 (int); (root).model.0.best = inf (float); " in message
    assert "(root).model.1.best = inf (float); ..." in message
    assert "(root).model.2" not in message
    assert "register_buffer" in message
    assert "AutoTrackable" in message
    assert "warn_of_lost_values=False" in message


def test_the_warning_can_be_silenced(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = Checkpoint(model=Counting())
    checkpoint.save(prefix, CheckpointOptions(warn_of_lost_values=False))
    assert records(caplog) == []
    checkpoint.save(prefix)
    assert len(records(caplog)) == 1


def test_a_copy_of_a_checkpoint_warns_anew(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = Checkpoint(model=Counting())
    checkpoint.write(prefix)
    copy.copy(checkpoint).write(prefix)
    assert len(records(caplog)) == 2


def test_the_manager_and_a_frozen_saver_warn_as_well(
    prefix: str, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    CheckpointManager(Checkpoint(model=Counting()), tmp_path / "run", max_to_keep=1).save()
    assert len(records(caplog)) == 1
    saver = frozen_saver(Checkpoint(model=Counting()))
    assert len(records(caplog)) == 1
    saver.save(prefix)
    saver.save(prefix)
    assert len(records(caplog)) == 2


def test_nothing_is_said_where_nothing_is_lost(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    Checkpoint(model=Net(2), progress=thing(step=1, best=math.inf)).save(prefix)
    assert records(caplog) == []


def test_a_dataclass_that_is_not_trackable_gets_a_hint() -> None:
    @dataclasses.dataclass
    class Plain:
        step: int = 0

    with pytest.raises(ValueError, match=r"progress is a Plain, which is not trackable.*derive from .*AutoTrackable"):
        Checkpoint(progress=Plain())
    with pytest.raises(ValueError, match=r"root is a Plain, which is not trackable.*derive from .*AutoTrackable"):
        Checkpoint(Plain())
