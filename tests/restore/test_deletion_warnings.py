"""Objects that go while values of the checkpoint have not been restored: the log says so, once for each restore."""

import copy
import gc
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import thing
from named_values import full, ones, write_named, zeros
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointOptions
from torch_trackckpt.errors import MismatchError
from torch_trackckpt.restore.deferred import Restoration


class Text:
    def serialize(self) -> str:
        return "text"

    def deserialize(self, string_value: bytes) -> None: ...


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Only reference counts free memory, so a test knows when an object goes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Log:
    """What was said in the log since one last asked."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def said(self) -> list[str]:
        records = [record for record in self._caplog.records if record.levelno == logging.WARNING]
        assert {record.name for record in records} <= {"torch_trackckpt"}
        messages = [record.getMessage() for record in records]
        self._caplog.clear()
        return messages


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)


def trained() -> tuple[nn.ParameterDict, torch.optim.Optimizer]:
    model = nn.ParameterDict({"v1": ones(), "v2": ones()})
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer


# ----------------------------------------------------------------------------------------------------- what it says


def test_values_that_nobody_took_are_named_in_one_record(prefix: str, log: Log) -> None:
    """C144, C145"""
    Checkpoint(a=thing(x=ones(), y=ones()), z=ones()).write(prefix)
    checkpoint = Checkpoint(a=thing(x=zeros()))
    checkpoint.read(prefix)
    del checkpoint
    (message,) = log.said()
    assert repr(prefix) in message
    assert "could not be found in the restored objects: (root).z, (root).a.y." in message
    assert "(root).a.x" not in message
    assert "status.expect_partial()" in message


def test_slots_are_named_after_optimizer_and_variable(prefix: str, log: Log) -> None:
    """C146"""
    model, optimizer = trained()
    Checkpoint(model=model, optimizer=optimizer).write(prefix)
    checkpoint = Checkpoint(model=nn.ParameterDict({"v1": zeros()}))
    checkpoint.read(prefix)
    del checkpoint
    (message,) = log.said()
    assert "(root).optimizer's state 'exp_avg' for (root).model.v1" in message
    assert "(root).optimizer's state 'step' for (root).model.v2" in message


def test_an_attribute_that_an_object_does_not_know_is_named_with_the_object(prefix: str, log: Log) -> None:
    """C147"""
    Checkpoint(a=Text(), x=ones()).write(prefix)
    Checkpoint(a=thing(), x=zeros()).read(prefix)
    (message,) = log.said()
    assert "attributes that the restored objects do not know: (root).a: py_state." in message
    assert "could not be found" not in message


def test_of_many_values_the_first_are_named_and_the_others_counted(prefix: str, log: Log) -> None:
    """C143, C144"""
    Checkpoint(items=[ones() for _ in range(1000)]).write(prefix)
    Checkpoint().read(prefix)
    (message,) = log.said()
    assert message.count("(root).items.") == 20
    assert ", and 980 more" in message


def test_each_restore_says_what_it_has_left(prefix: str, log: Log) -> None:
    """C144"""
    old = Checkpoint(x=full(1.0), y=full(1.0)).write(prefix + "-old")
    new = Checkpoint(x=full(2.0), z=full(2.0)).write(prefix + "-new")
    checkpoint = Checkpoint()
    checkpoint.read(old)
    checkpoint.read(new)
    checkpoint.x = zeros()
    del checkpoint
    said = {message.split("'")[1]: message for message in log.said()}
    assert said.keys() == {old, new}
    # An object with newer values has not been forgotten.
    assert "(root).x" not in said[old]
    assert "(root).y" in said[old]
    assert "(root).z" in said[new]


# --------------------------------------------------------------------------------------------------- when it says it


def test_where_nothing_can_come_the_warning_comes_with_the_end_of_the_status(prefix: str, log: Log) -> None:
    """C148"""
    Checkpoint(a=thing(x=ones())).write(prefix)
    checkpoint = Checkpoint(a=zeros())
    status = checkpoint.read(prefix)
    assert not log.said()
    del status
    assert len(log.said()) == 1
    del checkpoint
    assert not log.said()


def test_as_long_as_an_object_may_take_a_value_nothing_is_said(prefix: str, log: Log) -> None:
    """C152"""
    Checkpoint(a=thing(x=ones(), y=ones()), b=thing(x=ones())).write(prefix)
    a, b = AutoTrackable(), AutoTrackable()
    checkpoint = Checkpoint(a=a, b=b)
    status = checkpoint.read(prefix)
    del status
    del checkpoint
    assert not log.said()
    del b
    assert not log.said()
    a.x = zeros()
    assert a.x.all()
    assert not log.said()
    del a
    (message,) = log.said()
    assert "(root).a.y, (root).b.x" in message or "(root).b.x, (root).a.y" in message
    assert "(root).a.x" not in message


def test_as_long_as_there_is_a_status_nothing_is_said(prefix: str, log: Log) -> None:
    """C152"""
    Checkpoint(x=ones()).write(prefix)
    checkpoint = Checkpoint()
    status = checkpoint.read(prefix)
    again = copy.copy(status)
    del checkpoint, status
    # A status knows the program, to ask it, and so keeps the checkpoint alive.
    assert not log.said()
    del again
    assert len(log.said()) == 1


@pytest.mark.parametrize("kind", ["module", "lazy module", "module on meta", "optimizer"])
def test_modules_and_optimizers_are_waited_for_as_well(prefix: str, log: Log, kind: str) -> None:
    """C152"""
    model, optimizer = trained()
    saved: dict[str, object] = {
        "module": thing(part=model),
        "lazy module": thing(part=nn.Linear(2, 1, bias=False)),
        "module on meta": thing(part=nn.Linear(2, 1)),
        "optimizer": thing(model=model, part=optimizer),
    }
    Checkpoint(saved[kind]).write(prefix)
    half = nn.ParameterDict({"v1": zeros()})
    live: dict[str, object] = {
        "module": nn.Module(),
        "lazy module": nn.LazyLinear(1),  # with a bias, which only the first forward pass can make
        "module on meta": nn.Linear(2, 1, device="meta"),
        "optimizer": torch.optim.Adam(half.parameters()),
    }
    part = live.pop(kind)
    live.clear()
    Checkpoint(thing(part=part, model=half)).read(prefix)
    assert not log.said()
    del part, half
    gc.collect()  # a lazy module is its own hook
    assert len(log.said()) == 1


def test_what_runs_out_of_scope_in_a_function_is_noticed(prefix: str, log: Log) -> None:
    """C144"""

    def load() -> torch.Tensor:
        net = nn.Sequential(nn.Linear(2, 3))
        Checkpoint(net=net).read(prefix)
        return net[0].weight

    Checkpoint(net=nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))).write(prefix)
    weight = load()
    (message,) = log.said()
    assert "(root).net.1.weight, (root).net.1.bias" in message
    del weight


# ------------------------------------------------------------------------------------------------- when it is silent


def test_after_expect_partial_nothing_is_said(prefix: str, log: Log) -> None:
    """C140, C149"""
    Checkpoint(x=ones(), y=ones()).write(prefix)
    checkpoint = Checkpoint(x=zeros())
    checkpoint.read(prefix).expect_partial().expect_partial()
    del checkpoint
    assert not log.said()


def test_expect_partial_is_for_one_restore(prefix: str, log: Log) -> None:
    """C149"""
    Checkpoint(x=ones(), y=ones()).write(prefix)
    checkpoint = Checkpoint(x=zeros())
    checkpoint.read(prefix).expect_partial()
    checkpoint.read(prefix)
    del checkpoint
    assert len(log.said()) == 1


@pytest.mark.parametrize("check", ["assert_existing_objects_matched", "assert_nontrivial_match"])
def test_an_assertion_that_passes_does_not_silence_it(prefix: str, log: Log, check: str) -> None:
    """C150"""
    Checkpoint(x=ones(), y=ones()).write(prefix)
    checkpoint = Checkpoint(x=zeros())
    getattr(checkpoint.read(prefix), check)()
    del checkpoint
    assert len(log.said()) == 1


def test_after_a_full_restore_nothing_is_said(prefix: str, log: Log) -> None:
    """C151"""
    model, optimizer = trained()
    path = Checkpoint(model=model, optimizer=optimizer, text=Text()).save(prefix)
    checkpoint = Checkpoint(model=model, optimizer=optimizer, text=Text())
    checkpoint.restore(path)
    del checkpoint, model, optimizer
    assert not log.said()


def test_after_everything_came_late_nothing_is_said(prefix: str, log: Log) -> None:
    """C154"""
    model, optimizer = trained()
    Checkpoint(model=model, optimizer=optimizer, text=Text()).write(prefix)
    checkpoint = Checkpoint()
    checkpoint.read(prefix)
    checkpoint.text, checkpoint.model = Text(), nn.ParameterDict()
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    checkpoint.model["v1"] = nn.Parameter(zeros())
    checkpoint.model["v2"] = nn.Parameter(zeros())
    checkpoint.optimizer = torch.optim.Adam(checkpoint.model.parameters())
    del checkpoint
    assert not log.said()


def test_a_counter_that_read_leaves_is_told_like_every_other_value(prefix: str, log: Log) -> None:
    """C144"""
    path = Checkpoint(x=ones()).save(prefix)
    Checkpoint(x=zeros()).read(path)
    (message,) = log.said()
    assert "(root).save_counter" in message
    Checkpoint(x=zeros()).restore(path)
    assert not log.said()


def test_skipped_slots_are_no_surprise(prefix: str, log: Log) -> None:
    """C116"""
    model, optimizer = trained()
    Checkpoint(model=model, optimizer=optimizer).write(prefix)
    options = CheckpointOptions(experimental_skip_slot_variables=True)
    Checkpoint(model=model, optimizer=optimizer).read(prefix, options)
    assert not log.said()


def test_a_restore_that_failed_says_nothing_more(prefix: str, log: Log) -> None:
    Checkpoint(x=ones(), y=ones()).write(prefix)
    checkpoint = Checkpoint(x=torch.zeros(7))
    with pytest.raises(MismatchError):
        checkpoint.read(prefix)
    del checkpoint
    assert not log.said()


def test_of_names_and_of_nothing_there_is_nothing_to_say(prefix: str, log: Log) -> None:
    write_named(prefix, {"x": ones(), "more": ones()})
    Checkpoint(nn.ParameterDict({"x": zeros()})).read(prefix)
    (message,) = log.said()
    assert "no object graph" in message
    Checkpoint(x=zeros()).restore(None)
    assert not log.said()


def test_what_the_logger_is_told_to_leave_out_is_left_out(prefix: str, log: Log) -> None:
    Checkpoint(x=ones()).write(prefix)
    logger = logging.getLogger("torch_trackckpt")
    logger.setLevel(logging.ERROR)
    try:
        Checkpoint().read(prefix)
    finally:
        logger.setLevel(logging.NOTSET)
    assert not log.said()


# ---------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))],
    ids=["copy", "deep", "pickle"],
)
def test_a_copy_has_nothing_to_say(prefix: str, log: Log, duplicate: Callable[[Checkpoint], Checkpoint]) -> None:
    """C152"""
    Checkpoint(x=ones(), net=nn.Linear(1, 1)).write(prefix)
    checkpoint = Checkpoint(net=nn.Module())
    checkpoint.read(prefix)
    other = duplicate(checkpoint)
    other.x = zeros()
    del other
    assert not log.said()
    del checkpoint
    assert len(log.said()) == 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps])
def test_a_status_that_cannot_be_copied_says_so_and_no_more(
    prefix: str, log: Log, duplicate: Callable[[object], object]
) -> None:
    Checkpoint(x=ones()).write(prefix)
    status = Checkpoint().read(prefix)
    with pytest.raises(TypeError, match="pickle"):
        duplicate(status)
    gc.collect()
    assert not log.said()
    status.expect_partial()


def test_a_restore_that_never_began_says_nothing(log: Log) -> None:
    """C153: not even an attribute is sure to be there when an object goes."""
    restoration = Restoration.__new__(Restoration)
    del restoration
    assert not log.said()


# ------------------------------------------------------------------------------------------- the end of the process


def at_exit(prefix: str, program: str) -> str:
    """What a process writes to its standard error stream."""
    frame = f"""
import torch
from torch import nn
from torch_trackckpt import *
prefix = {prefix!r}
{program}
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", frame],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "PYTHONDEVMODE": ""},
    )
    return done.stderr


@pytest.fixture
def saved(prefix: str) -> str:
    return Checkpoint(x=ones(), net=nn.Linear(2, 1)).write(prefix)


@pytest.mark.parametrize(
    "live",
    ["Checkpoint()", "Checkpoint(net=nn.Module())", "Checkpoint(net=nn.Linear(2, 1, device='meta'))"],
)
def test_at_the_end_of_the_process_the_warning_still_comes(saved: str, live: str) -> None:
    """C153"""
    said = at_exit(saved, f"checkpoint = {live}\nstatus = checkpoint.read(prefix)")
    assert said.count("unrestored values") == 1
    assert "(root).x" in said
    assert "Exception" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "keeper",
    [
        "class Cycle: pass\ncycle = Cycle()\ncycle.own, cycle.kept = cycle, (checkpoint, status)",
        "import torch_trackckpt.restore.deferred as module\nmodule.kept = (checkpoint, status)",
        "import builtins\nbuiltins.kept = (checkpoint, status)",
        "def kept(checkpoint=checkpoint, status=status): pass\nimport logging\nlogging.kept = kept",
    ],
    ids=["cycle", "own module", "builtins", "function"],
)
def test_whatever_keeps_the_objects_to_the_end_no_exception_escapes(saved: str, keeper: str) -> None:
    """C153"""
    said = at_exit(saved, f"checkpoint = Checkpoint()\nstatus = checkpoint.read(prefix)\n{keeper}")
    assert "Exception" not in said
    assert "Traceback" not in said


def test_a_log_file_takes_the_warning_at_the_end_or_nothing_does(saved: str, tmp_path: Path) -> None:
    """C153"""
    file = tmp_path / "log"
    said = at_exit(
        saved,
        f"import logging\nlogging.basicConfig(filename={str(file)!r})\n"
        "checkpoint = Checkpoint()\nstatus = checkpoint.read(prefix)",
    )
    assert "Exception" not in said
    assert "Traceback" not in said


def test_a_handler_that_raises_does_not_raise_in_the_middle_of_the_program(saved: str) -> None:
    """C153"""
    said = at_exit(
        saved,
        """
import logging
class Handler(logging.Handler):
    def emit(self, record):
        raise RuntimeError("no")
logging.getLogger("torch_trackckpt").addHandler(Handler())
Checkpoint().read(prefix)
print("went on")
""",
    )
    assert "RuntimeError" not in said
