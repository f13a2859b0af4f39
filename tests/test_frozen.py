"""A saver that walks once writes what `Checkpoint.write` writes, and refuses objects that it does not know."""

import collections
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Text, names_in, thing, zero
from held import PATIENCE_SECONDS
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointOptions, RNGState, Trackable, frozen_saver
from torch_trackckpt.adapters import Adapter, register_adapter
from torch_trackckpt.errors import MismatchError, StructureChangedError, UnsavableContainerError, UnsupportedValueError
from torch_trackckpt.sharding import MaxShardSizePolicy

FAST = CheckpointOptions(durable=False)


class Meter(Trackable):
    """A total and a count that are encoded when they are saved."""

    def __init__(self) -> None:
        self.values = {"total": torch.tensor(0.0)}

    def _serialize_to_tensors(self) -> dict[str, torch.Tensor]:
        return {name: value + 0 for name, value in self.values.items()}

    def _restore_from_tensors(self, values: Any) -> None:
        self.values = dict(values)


class History:
    """Keeps tensors in its state."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self.tensors: tuple[torch.Tensor, ...] = tensors

    def state_dict(self) -> dict[str, Any]:
        return {"tensors": self.tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tensors = state["tensors"]


class Training:
    """Objects of every kind."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1)
        self.meter, self.text, self.history = Meter(), Text("0"), History(torch.ones(2), torch.ones(2))
        self.generator = torch.Generator()
        self.checkpoint = Checkpoint(
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            parts=[self.meter, 5, {"text": self.text, "n": 3}, (self.history, self.generator)],
            rng=RNGState(),
        )
        self.step()

    def step(self) -> None:
        self.model(torch.rand(5, 3)).sum().backward()
        self.optimizer.step()
        self.scheduler.step()
        self.meter.values["total"] += 1
        self.text.text += "longer"
        self.history.tensors = tuple(torch.rand(tensor.numel() + 1) for tensor in self.history.tensors)
        torch.rand(1, generator=self.generator)
        self.checkpoint.parts[1] += 1


def files(path: str) -> dict[str, bytes]:
    prefix = Path(path)
    return {file.name.removeprefix(prefix.name): file.read_bytes() for file in prefix.parent.glob(prefix.name + ".*")}


def written_by_both(saver: Any, checkpoint: Checkpoint, directory: Path, options: CheckpointOptions = FAST) -> bool:
    ours, theirs = saver.save(directory / "frozen", options), checkpoint.write(directory / "whole", options)
    return files(ours) == files(theirs) != {}


# ---------------------------------------------------------------------------------------------------- what it saves


def test_each_save_writes_the_bytes_that_write_would(tmp_path: Path) -> None:
    training = Training()
    saver = frozen_saver(training.checkpoint)
    for _ in range(3):
        assert written_by_both(saver, training.checkpoint, tmp_path)
        training.step()


def test_the_files_can_be_sharded_and_callbacks_get_the_path(tmp_path: Path) -> None:
    training, called = Training(), []
    options = CheckpointOptions(
        durable=False,
        experimental_sharding_callback=MaxShardSizePolicy(100),
        experimental_write_callbacks=[called.append],
    )
    assert written_by_both(frozen_saver(training.checkpoint), training.checkpoint, tmp_path, options)
    assert called == [str(tmp_path / "frozen"), str(tmp_path / "whole")]
    assert len(names_in(tmp_path)) > 4


@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 1), lambda: [zero(), nn.Linear(1, 1)], lambda: thing(x=zero())])
def test_a_root_is_saved_as_that_of_a_checkpoint(tmp_path: Path, make: Callable[[], object]) -> None:
    root = make()
    assert written_by_both(frozen_saver(root), Checkpoint(root), tmp_path)


def test_there_is_no_number_and_no_state_file(tmp_path: Path) -> None:
    saver = frozen_saver(nn.Linear(2, 1))
    assert saver.save(tmp_path / "ckpt") == str(tmp_path / "ckpt")
    assert names_in(tmp_path) == ["ckpt.data-00000-of-00001", "ckpt.index"]


def test_keys_and_the_record_of_the_graph_are_made_once(prefix: str) -> None:
    training = Training()
    saver = frozen_saver(training.checkpoint)
    before = saver._frozen.snapshot.graph
    training.step()
    saver.save(prefix, FAST)
    assert saver._frozen.snapshot.graph is before


def test_a_tensor_may_get_another_dtype_and_shape_in_place(tmp_path: Path) -> None:
    layer = nn.Linear(2, 1)
    checkpoint = Checkpoint(layer)
    saver = frozen_saver(checkpoint)
    layer.weight.data = torch.arange(6).to(torch.float16).reshape(3, 2)
    assert written_by_both(saver, checkpoint, tmp_path)
    layer.bias.data.untyped_storage().resize_(0)
    with pytest.raises(UnsupportedValueError, match=r"bias/\.ATTRIBUTES/VARIABLE_VALUE: the tensor's memory has been"):
        saver.save(tmp_path / "frozen", FAST)


def test_what_is_not_trackable_may_come_and_go(tmp_path: Path) -> None:
    root = thing(x=zero(), number=1, text="text")
    checkpoint = Checkpoint(root, rest=[1, zero(), "text"])
    saver = frozen_saver(checkpoint)
    root.number, root.more = "one", None
    del root.text
    checkpoint.rest[0] = None
    assert written_by_both(saver, checkpoint, tmp_path)


def test_a_module_may_be_wrapped_meanwhile(tmp_path: Path) -> None:
    checkpoint = Checkpoint(model=nn.Linear(2, 1))
    saver = frozen_saver(checkpoint)
    checkpoint.model = nn.DataParallel(checkpoint.model)
    assert written_by_both(saver, checkpoint, tmp_path)


def test_hyper_parameters_and_the_order_in_a_group_are_values(tmp_path: Path) -> None:
    training = Training()
    saver = frozen_saver(training.checkpoint)
    training.optimizer.param_groups[0]["params"].reverse()
    training.optimizer.param_groups[0] |= {"lr": 0.5, "note": "new"}
    assert written_by_both(saver, training.checkpoint, tmp_path)


class Sensor:
    reading = 0


class SensorPart(Trackable):
    def __init__(self, sensor: Sensor) -> None:
        self.sensor, self.value = sensor, torch.tensor(sensor.reading + 1)

    def _serialize_to_tensors(self) -> dict[str, torch.Tensor]:
        return {"value": self.value}

    def _identity(self) -> Hashable:
        return id(self.sensor), "part"


class SensorAdapter(Adapter):
    """Looks at its object when it is made, and makes up a part that does so as well."""

    def __init__(self, sensor: Sensor) -> None:
        super().__init__(sensor)
        self._value = torch.tensor(sensor.reading)

    def _trackable_children(self) -> dict[str, object]:
        return {"part": SensorPart(self.adapted)}

    def _serialize_to_tensors(self) -> dict[str, torch.Tensor]:
        return {"value": self._value}


def test_an_adapter_is_made_anew_for_each_save(tmp_path: Path) -> None:
    register_adapter(Sensor, SensorAdapter)
    sensor = Sensor()
    checkpoint = Checkpoint(sensor=sensor, sensors=[sensor, Sensor()])
    saver = frozen_saver(checkpoint)
    for reading in range(3):
        sensor.reading = checkpoint.sensors[1].reading = reading
        assert written_by_both(saver, checkpoint, tmp_path)


def test_objects_that_nobody_else_keeps_stay_alive(prefix: str) -> None:
    layer = nn.Linear(2, 1)
    there = weakref.ref(layer)
    saver = frozen_saver(weakref.ref(layer))
    del layer
    gc.collect()
    assert there() is not None
    saver.save(prefix, FAST)


# ------------------------------------------------------------------------------------------------- what it refuses


def test_a_root_that_is_not_trackable_is_refused() -> None:
    with pytest.raises(ValueError, match="root is a str, which is not trackable"):
        frozen_saver("text")


def grow_state(training: Training) -> None:
    training.history.tensors = tuple(torch.ones(1) for _ in range(3))


def replace_slot(training: Training) -> None:
    training.optimizer.state[training.model[0].weight]["step"] = torch.tensor(1.0)


def add_group(training: Training) -> None:
    extra = nn.Parameter(torch.ones(1))
    training.optimizer.add_param_group({"params": [extra]})


def move_between_groups(training: Training) -> None:
    training.optimizer.param_groups[0]["params"].pop()


def make_persistent(training: Training) -> None:
    training.model[1]._non_persistent_buffers_set.add("running_mean")


CHANGES: dict[str, tuple[Callable[[Training], object], str]] = {
    "parameter_added": (
        lambda t: t.model[0].register_parameter("scale", nn.Parameter(torch.ones(1))),
        r"\(root\)\.model\.0\.scale, a Parameter, was added",
    ),
    "parameter_removed": (
        lambda t: t.model[2].register_parameter("bias", None),
        r"\(root\)\.model\.2\.bias was removed",
    ),
    "parameter_replaced": (
        lambda t: setattr(t.model[2], "bias", nn.Parameter(torch.ones(2))),
        r"\(root\)\.model\.2\.bias was replaced by another Parameter",
    ),
    "buffer_added": (
        lambda t: t.model[0].register_buffer("mask", torch.ones(1)),
        r"\(root\)\.model\.0\.mask, a Tensor, was added",
    ),
    "buffer_no_longer_persistent": (make_persistent, r"\(root\)\.model\.1\.running_mean was removed"),
    "buffer_replaced": (
        lambda t: setattr(t.model[1], "running_mean", torch.ones(4)),
        r"\(root\)\.model\.1\.running_mean was replaced by another Tensor",
    ),
    "submodule_added": (lambda t: t.model.append(nn.ReLU()), r"\(root\)\.model\.3, a ReLU, was added"),
    "submodule_replaced": (
        lambda t: t.model.__setitem__(1, nn.BatchNorm1d(4)),
        r"\(root\)\.model\.1 was replaced by another BatchNorm1d",
    ),
    "element_added": (lambda t: t.checkpoint.parts.append(zero()), r"\(root\)\.parts\.4, a Tensor, was added"),
    "element_becomes_trackable": (
        lambda t: t.checkpoint.parts.__setitem__(1, zero()),
        r"\(root\)\.parts\.1, a Tensor, was added",
    ),
    "entry_replaced": (
        lambda t: t.checkpoint.parts[2].update(text=Text("")),
        r"\(root\)\.parts\.2\.text was replaced by another Text",
    ),
    "attribute_added": (lambda t: setattr(t.checkpoint, "new", nn.ReLU()), r"\(root\)\.new, a ReLU, was added"),
    "attribute_removed": (lambda t: delattr(t.checkpoint, "rng"), r"\(root\)\.rng was removed"),
    "values_of_an_object": (
        lambda t: t.meter.values.update(count=zero()),
        r"the values of \(root\)\.parts\.0 are called \['total', 'count'\], no longer \['total'\]",
    ),
    "tensors_in_a_state": (grow_state, r"\(root\)\.parts\.3\.0\.2, a StateTensor, was added"),
    "slot_replaced": (
        replace_slot,
        r"\(root\)\.optimizer's state 'step' for \(root\)\.model\.0\.weight was replaced by another tensor",
    ),
    "slot_added": (
        lambda t: t.optimizer.state[t.model[0].weight].update(max_exp_avg_sq=torch.ones(4, 3)),
        r"\(root\)\.optimizer's state 'max_exp_avg_sq' for \(root\)\.model\.0\.weight was added",
    ),
    "slots_removed": (
        lambda t: t.optimizer.state.clear(),
        r"\(root\)\.optimizer's state 'exp_avg' for \(root\)\.model\.0\.weight was removed; .* and \d+ more changes",
    ),
    "state_that_is_no_slot": (
        lambda t: t.optimizer.state[t.model[0].weight].update(note="text"),
        r"\(root\)\.optimizer\.extra_state, a StateNode, was added",
    ),
    "group_added": (add_group, r"\(root\)\.optimizer has 2 parameter groups, no longer 1"),
    "parameter_left_a_group": (move_between_groups, r"the parameters of group 0 of \(root\)\.optimizer are others"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_structure_is_refused_by_path_before_anything_is_written(tmp_path: Path, name: str) -> None:
    change, text = CHANGES[name]
    training = Training()
    saver = frozen_saver(training.checkpoint)
    path = saver.save(tmp_path / "ckpt", FAST)
    before = files(path)
    change(training)
    for _ in range(2):
        with pytest.raises(StructureChangedError, match=text):
            saver.save(tmp_path / "ckpt", FAST)
    assert files(path) == before
    assert len(names_in(tmp_path)) == 2
    assert written_by_both(frozen_saver(training.checkpoint), training.checkpoint, tmp_path)


def test_another_order_of_children_is_another_structure(prefix: str) -> None:
    table = collections.OrderedDict(a=zero(), b=zero())
    saver = frozen_saver(Checkpoint(table=table))
    table["a"] = table.pop("a")
    with pytest.raises(StructureChangedError, match=r"the children of \(root\)\.table are in another order"):
        saver.save(prefix, FAST)


def test_another_name_is_another_structure(prefix: str) -> None:
    table = collections.OrderedDict(a=zero())
    saver = frozen_saver(Checkpoint(table=table))
    table["b"] = table.pop("a")
    with pytest.raises(StructureChangedError, match=r"\(root\)\.table\.a was removed; \(root\)\.table\.b, a Tensor"):
        saver.save(prefix, FAST)


def test_a_tracked_list_whose_elements_have_moved_is_refused_as_by_every_save(prefix: str) -> None:
    checkpoint = Checkpoint(parts=[zero(), zero()])
    saver = frozen_saver(checkpoint)
    checkpoint.parts.pop(0)
    with pytest.raises(UnsavableContainerError, match=r"\(root\)\.parts"):
        saver.save(prefix, FAST)


def test_state_that_an_optimizer_makes_in_its_first_step_is_refused(prefix: str) -> None:
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(layer.parameters())
    saver = frozen_saver(Checkpoint(layer=layer, optimizer=optimizer))
    saver.save(prefix, FAST)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(
        StructureChangedError, match=r"\(root\)\.optimizer's state 'exp_avg' for \(root\)\.layer\.weight"
    ):
        saver.save(prefix, FAST)


def test_if_the_old_objects_come_back_the_saver_goes_on(tmp_path: Path) -> None:
    training = Training()
    saver = frozen_saver(training.checkpoint)
    old = training.model[0]
    training.model[0] = nn.Linear(3, 4)
    with pytest.raises(StructureChangedError):
        saver.save(tmp_path / "frozen", FAST)
    training.model[0] = old
    assert written_by_both(saver, training.checkpoint, tmp_path)


def test_slots_of_parameters_that_are_not_saved_do_not_matter_but_are_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layer, other = nn.Linear(2, 1), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([*layer.parameters(), other], momentum=0.9)
    checkpoint = Checkpoint(layer=layer, optimizer=optimizer)
    with caplog.at_level(logging.WARNING, "torch_trackckpt"):
        saver = frozen_saver(checkpoint)
        other.sum().backward()
        optimizer.step()
        assert written_by_both(saver, checkpoint, tmp_path)
        assert written_by_both(saver, checkpoint, tmp_path)
    assert [record.getMessage()[:41] for record in caplog.records] == ["The state of 1 optimizer parameters is no"]


# ------------------------------------------------------------------------------------------------- what it restores


def test_a_save_is_restored_into_the_objects_and_into_those_of_another_program(prefix: str) -> None:
    training = Training()
    saver = frozen_saver(training.checkpoint)
    path = saver.save(prefix, FAST)
    saved = [parameter.clone() for parameter in training.model.parameters()]
    training.step()
    other = Training()
    for restored, by in ((training, saver), (other, frozen_saver(other.checkpoint))):
        by.restore(path).assert_consumed()
        assert all(torch.equal(a, b) for a, b in zip(saved, restored.model.parameters(), strict=True))
        assert restored.text.text == "0longer"
        by.save(prefix + "-again", FAST)


def test_a_checkpoint_that_lacks_a_value_is_refused_before_anything_changes(prefix: str) -> None:
    layer, other = nn.Linear(2, 1), nn.Linear(2, 1, bias=False)
    before = layer.weight.clone()
    path = Checkpoint(other).write(prefix, FAST)
    with pytest.raises(MismatchError, match=r"lacks 1 of their values, the first is bias/\.ATTRIBUTES/VARIABLE_VALUE"):
        frozen_saver(layer).restore(path)
    assert torch.equal(layer.weight, before)


def test_a_checkpoint_that_has_more_is_restored(prefix: str) -> None:
    layer = nn.Linear(2, 1)
    path = Checkpoint(layer, step=zero()).save(prefix, FAST)
    other = nn.Linear(2, 1)
    frozen_saver(other).restore(path).assert_existing_objects_matched()
    assert torch.equal(other.weight, layer.weight)


def test_a_callback_that_restores_what_is_being_saved_is_an_error_not_a_deadlock(prefix: str) -> None:
    checkpoint = Checkpoint(x=zero())
    saver = frozen_saver(checkpoint)
    options = CheckpointOptions(enable_async=True, experimental_write_callbacks=[lambda path: restore(path)])
    gate = threading.Event()

    def restore(path: str) -> None:
        assert gate.wait(PATIENCE_SECONDS)
        saver.restore(path)

    saver.save(prefix, options)
    # As the next save does that waits for the pending one.
    with checkpoint._own.lock:
        gate.set()
        with pytest.raises(RuntimeError, match="would wait for this very save; use another Checkpoint"):
            checkpoint.sync()


def test_a_root_may_hold_itself(tmp_path: Path) -> None:
    root = AutoTrackable()
    root.again, root.child = root, thing(up=root, x=zero())
    assert written_by_both(frozen_saver(root), Checkpoint(root), tmp_path)
