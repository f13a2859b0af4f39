"""For any small program: what a report says is true, and it leaves nothing out."""

import itertools
import tempfile
from collections.abc import Iterator
from typing import Any

import hypothesis
import torch
from checkpoints import Text
from hypothesis import strategies as st
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointReader
from torch_trackckpt.errors import MismatchError
from torch_trackckpt.restore.report import RestoreReport
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY

NAMES = st.sampled_from("abc")
LEAVES = st.sampled_from(["tensor", "meta", "share", "share", "state"])
PROGRAMS = st.dictionaries(
    NAMES,
    st.recursive(
        LEAVES, lambda parts: st.tuples(st.sampled_from(["thing", "dict", "module"]), st.dictionaries(NAMES, parts))
    ),
    max_size=3,
)


class Program:
    """Makes the objects that are described by names and kinds.

    Args:
        values: those of its tensors, one after the other.
        is_live: whether tensors may be on the meta device.
    """

    def __init__(self, values: Iterator[float], *, is_live: bool) -> None:
        self._values = values
        self._is_live = is_live
        self.parameters: list[nn.Parameter] = []

    def make(self, kind: Any) -> Any:
        if kind == "state":
            return Text(str(next(self._values)))
        if kind == "share" and self.parameters:
            return self.parameters[0]
        if isinstance(kind, str):
            device = "meta" if kind == "meta" and self._is_live else "cpu"
            self.parameters.append(nn.Parameter(torch.full((2,), next(self._values), device=device)))
            return self.parameters[-1]
        kind, parts = kind
        made = {name: self.make(part) for name, part in parts.items()}
        if kind == "dict":
            return made
        parent = nn.Module() if kind == "module" else AutoTrackable()
        for name, part in made.items():
            setattr(parent, name, part)
        return parent

    def optimizer(self) -> torch.optim.Optimizer | None:
        return torch.optim.Adam(self.parameters) if self.parameters else None


def train(optimizer: torch.optim.Optimizer, values: Iterator[float]) -> None:
    """Gives the slots values that nothing else has."""
    for parameter in optimizer.param_groups[0]["params"]:
        optimizer.state[parameter] = {
            "step": torch.tensor(next(values)),
            "exp_avg": torch.full((2,), next(values)),
            "exp_avg_sq": torch.full((2,), next(values)),
        }


def save(program: Any, with_optimizer: bool, values: Iterator[float], prefix: str) -> None:
    saved = Program(values, is_live=False)
    checkpoint = Checkpoint()
    for name, kind in program.items():
        setattr(checkpoint, name, saved.make(kind))
    if with_optimizer and (optimizer := saved.optimizer()):
        train(optimizer, values)
        checkpoint.optimizer = optimizer
    checkpoint.write(prefix)


def values_of(objects: Any, seen: set[int]) -> Iterator[Any]:
    """Every value that can be reached, each object once."""
    if isinstance(objects, nn.Module):
        children: Any = [*objects._parameters.values(), *objects._modules.values(), *vars(objects).values()]
    elif isinstance(objects, dict):
        children = objects.values()
    elif isinstance(objects, torch.optim.Optimizer):
        children = [slot for state in objects.state.values() for slot in state.values()]
    else:
        children = objects._trackable_children().values() if isinstance(objects, AutoTrackable) else ()
    if id(objects) in seen:
        return
    seen.add(id(objects))
    if isinstance(objects, torch.Tensor):
        yield None if objects.is_meta else float(objects.detach().reshape(-1)[0])
    elif isinstance(objects, Text) and not objects.text.startswith("{"):
        yield float(objects.text)
    for child in children:
        yield from values_of(child, seen)


def stored_value(reader: CheckpointReader, key: str) -> float:
    value = reader.get_tensor(key)
    return float(value) if isinstance(value, bytes) else float(value.reshape(-1)[0])


def is_json(reader: CheckpointReader, key: str) -> bool:
    """Whether a value is the state of an optimizer, or of a thing with lists or dicts of nothing."""
    value = reader.get_tensor(key)
    return isinstance(value, bytes) and value.startswith(b"{")


def restored_values(report: RestoreReport, reader: CheckpointReader) -> list[float]:
    """Those that live objects have now. A thing takes the state of an object of another kind, and does not use it."""
    unused = {value.name for value in report.only_in_checkpoint if not value.key}
    keys = [value.key for value in report.restored if value.name not in unused]
    return [stored_value(reader, key) for key in keys if not is_json(reader, key)]


def check_that_each_is_told_once(report: RestoreReport, reader: CheckpointReader) -> None:
    parts = (report.restored, report.waiting, report.only_in_checkpoint, report.superseded, report.skipped)
    keys = [value.key for value in itertools.chain(*parts) if value.key]
    assert sorted(keys) == sorted(key for key in reader if key != OBJECT_GRAPH_KEY)


def check(report: RestoreReport, reader: CheckpointReader, checkpoint: Checkpoint) -> None:
    check_that_each_is_told_once(report, reader)
    # Live values are 0, stored ones are all different: a live value that is not 0 was restored.
    live = [value for value in values_of(checkpoint, set()) if value]
    assert sorted(live) == sorted(restored_values(report, reader))
    str(report), report._repr_html_()


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    saved=PROGRAMS,
    live=PROGRAMS,
    same=st.booleans(),
    late=st.sets(st.sampled_from(["a", "b", "c", "optimizer"])),
    optimizers=st.tuples(st.booleans(), st.booleans()),
)
def test_each_value_is_told_once_and_what_is_restored_is_equal(
    saved: Any, live: Any, same: bool, late: set[str], optimizers: tuple[bool, bool]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        prefix = f"{directory}/ckpt"
        save(saved, optimizers[0], map(float, itertools.count(1)), prefix)
        program = Program(itertools.repeat(0.0), is_live=True)
        children = {name: program.make(kind) for name, kind in (saved if same else live).items()}
        if optimizers[1] and (optimizer := program.optimizer()):
            children["optimizer"] = optimizer
        checkpoint = Checkpoint()
        for name in children.keys() - late:
            setattr(checkpoint, name, children[name])
        reader = CheckpointReader(prefix)
        try:
            status = checkpoint.read(prefix).expect_partial()
            check(status.report(), reader, checkpoint)
            for name in sorted(children.keys() & late):
                setattr(checkpoint, name, children[name])
                check(status.report(), reader, checkpoint)
            status.run_restore_ops()
        except MismatchError:
            hypothesis.reject()
        report = status.report()
        check(report, reader, checkpoint)
        assert report == status.report()
        try:
            status.assert_consumed()
        except AssertionError:
            assert not report.is_complete
        else:
            assert report.is_complete


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(first=PROGRAMS, second=PROGRAMS, live=PROGRAMS, late=st.sets(NAMES))
def test_of_two_restores_each_tells_all_of_its_own_values_and_the_later_one_wins(
    first: Any, second: Any, live: Any, late: set[str]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        prefixes = [f"{directory}/first", f"{directory}/second"]
        save(first, False, map(float, itertools.count(1)), prefixes[0])
        save(second, False, map(float, itertools.count(1000)), prefixes[1])
        program = Program(itertools.repeat(0.0), is_live=True)
        children = {name: program.make(kind) for name, kind in live.items()}
        checkpoint = Checkpoint()
        for name in children.keys() - late:
            setattr(checkpoint, name, children[name])
        statuses = [checkpoint.read(prefix).expect_partial() for prefix in prefixes]
        for name in sorted(children.keys() & late):
            setattr(checkpoint, name, children[name])
        for status in statuses:
            status.run_restore_ops()
        for status, prefix in zip(statuses, prefixes, strict=True):
            check_that_each_is_told_once(status.report(), CheckpointReader(prefix))
        later = restored_values(statuses[1].report(), CheckpointReader(prefixes[1]))
        assert set(later) <= set(values_of(checkpoint, set()))
