"""Files of TensorFlow 1, matched by names, as both sides restore them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointOptions, latest_checkpoint, load_checkpoint
from torch_trackckpt.restore.status import LoadStatus

from .conftest import TensorFlow, Value, Worker, WorkerError, _decoded, _encoded, tensorflow_worker

VERSIONS = pytest.mark.parametrize("version", [1, 2], ids=["V1", "V2"])
ASSERTIONS = ["assert_consumed", "assert_existing_objects_matched", "assert_nontrivial_match"]

Values = Mapping[str, torch.Tensor]


class TensorFlow1:
    """TensorFlow's Saver, and its name-based restore."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def save(
        self,
        prefix: Path,
        values: Values,
        version: int = 2,
        cuts: Mapping[str, int] | None = None,
        sharded: bool = False,
    ) -> str:
        """`tf.compat.v1.train.Saver.save`; the path that it returns."""
        path: str = self._worker.call(
            "save_by_names",
            prefix=str(prefix),
            values=_all_encoded(values),
            cuts=cuts or {},
            version=version,
            sharded=sharded,
        )
        return path

    def restore(
        self,
        path: str,
        variables: Values,
        late: Values | None = None,
        nested: Values | None = None,
        call: str = "read",
        has_state: bool = False,
    ) -> tuple[dict[str, Value], dict[str, str | None], str | None]:
        """Contents by name, what each assertion says, and the content of the python state."""
        found: Any = self._worker.call(
            "restore_by_names",
            path=path,
            call=call,
            variables=_all_encoded(variables),
            late=_all_encoded(late or {}),
            nested=_all_encoded(nested or {}),
            has_state=has_state,
        )
        contents = {name: _decoded(value) for name, value in found["contents"].items()}
        return contents, found["outcomes"], found["state"]


def _all_encoded(values: Values) -> dict[str, object]:
    return {name: _encoded(Value.of(value)) for name, value in values.items()}


@pytest.fixture(scope="module")
def tensorflow1() -> Iterator[TensorFlow1]:
    with tensorflow_worker("name_functions.py") as worker:
        yield TensorFlow1(worker)


class State:
    """A python state."""

    data = b"live"

    def serialize(self) -> bytes:
        return self.data

    def deserialize(self, string_value: bytes) -> None:
        self.data = string_value


def outcomes_of(status: LoadStatus) -> dict[str, bool]:
    """Which assertions pass."""
    found = {}
    for assertion in ASSERTIONS:
        try:
            getattr(status, assertion)()
            found[assertion] = True
        except AssertionError:
            found[assertion] = False
    return found


# ------------------------------------------------------------------------------------------- files of the Saver


@VERSIONS
def test_a_module_is_restored_from_a_file_of_the_saver(tensorflow1: TensorFlow1, prefix: Path, version: int) -> None:
    """C380, C404"""
    saved = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.PReLU(4), nn.Linear(4, 2)))
    names = {name: f"model/{name.replace('.', '_')}/value" for name in saved.state_dict()}
    path = tensorflow1.save(prefix, {names[n]: tensor for n, tensor in saved.state_dict().items()}, version)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.PReLU(4), nn.Linear(4, 2)))
    checkpoint = Checkpoint(module=module)
    status = checkpoint.restore(path, CheckpointOptions(name_map=names))
    assert outcomes_of(status) == dict.fromkeys(ASSERTIONS, True)
    found = module.state_dict()
    assert [n for n, tensor in saved.state_dict().items() if Value.of(found[n]) != Value.of(tensor)] == []


@VERSIONS
@pytest.mark.parametrize("sharded", [False, True])
def test_the_latest_checkpoint_of_the_saver_is_found_and_restored(
    tensorflow1: TensorFlow1, prefix: Path, version: int, sharded: bool
) -> None:
    """C380, C404"""
    x = torch.randn(3, 2)
    path = tensorflow1.save(prefix, {"x": x}, version, sharded=sharded)
    assert latest_checkpoint(prefix.parent) == path
    assert load_checkpoint(prefix.parent).file_prefix == path
    live = torch.zeros(3, 2)
    Checkpoint(x=live).restore(path).assert_consumed()
    assert Value.of(live) == Value.of(x)


@VERSIONS
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_partitioned_variable_is_restored_whole(
    tensorflow1: TensorFlow1, prefix: Path, version: int, count: int
) -> None:
    """C404"""
    emb = torch.randn(5, 3)
    path = tensorflow1.save(prefix, {"emb": emb, "x": torch.ones(1)}, version, cuts={"emb": count})
    live = torch.zeros(5, 3)
    Checkpoint(emb=live).restore(path).assert_consumed()
    assert Value.of(live) == Value.of(emb)


V1_DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8,
    torch.uint16, torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip


@VERSIONS
def test_a_variable_of_every_dtype_is_restored(tensorflow1: TensorFlow1, prefix: Path, version: int) -> None:
    """C356, C380, C404"""
    values = {f"x{n}": torch.tensor([0, 1, -1 % 256, 100]).to(dtype) for n, dtype in enumerate(V1_DTYPES)}
    values |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(-1.5), "negative": torch.tensor([-1, -(2**62)])}
    path = tensorflow1.save(prefix, values, version)
    live = {name: torch.zeros_like(value) for name, value in values.items()}
    Checkpoint(**live).restore(path).assert_consumed()
    assert [name for name in values if Value.of(live[name]) != Value.of(values[name])] == []


# -------------------------------------------------------------------------------------- the same cases on both sides

X, Y = torch.tensor([1.0, 2.0]), torch.tensor(3)
ZEROS = {"x": torch.zeros(2), "y": torch.tensor(0)}


def zeros(*names: str) -> dict[str, torch.Tensor]:
    return {name: ZEROS.get(name, torch.tensor(0)).clone() for name in names}


CASES: dict[str, dict[str, Any]] = {
    "all": {"variables": "xy"},
    "fewer": {"variables": "x"},
    "missing": {"variables": "xyz"},
    "nothing": {"variables": "z"},
    "none": {"variables": ""},
    "late": {"variables": "x", "late": "y"},
    "all late": {"variables": "", "late": "xy"},
    "late and missing": {"variables": "x", "late": "yz"},
    "nested": {"variables": "x", "nested": "y"},
    "nested and missing": {"variables": "x", "nested": "yz"},
}


@VERSIONS
@pytest.mark.parametrize("case", list(CASES))
def test_values_and_assertions_are_those_of_tensorflow(
    tensorflow1: TensorFlow1, prefix: Path, version: int, case: str
) -> None:
    """C334, C335, C404"""
    path = tensorflow1.save(prefix, {"x": X, "y": Y}, version)
    parts = {name: zeros(*names) for name, names in CASES[case].items()}
    contents, theirs, _ = tensorflow1.restore(path, **parts)
    variables, late, nested = (parts.get(name, {}) for name in ("variables", "late", "nested"))
    checkpoint = Checkpoint(**variables)
    if nested:
        checkpoint.part = nn.Module()
        for name, tensor in nested.items():
            checkpoint.part.register_buffer(name, tensor)
    status = checkpoint.read(path)
    for name, tensor in late.items():
        setattr(checkpoint, name, tensor)
    assert {n: Value.of(tensor) for n, tensor in (variables | late | nested).items()} == contents
    assert outcomes_of(status) == {assertion: text is None for assertion, text in theirs.items()}


def test_python_states_are_left_alone_on_both_sides(tensorflow1: TensorFlow1, prefix: Path) -> None:
    """C335"""
    path = tensorflow1.save(prefix, {"x": X})
    contents, _, their_state = tensorflow1.restore(path, zeros("x"), has_state=True)
    live, state = torch.zeros(2), State()
    Checkpoint(x=live, state=state).read(path).assert_consumed()
    assert contents["x"] == Value.of(live) == Value.of(X)
    assert their_state == state.data.decode() == "live"


def test_a_counter_in_the_file_is_restored_on_both_sides(tensorflow1: TensorFlow1, prefix: Path) -> None:
    """C336"""
    path = tensorflow1.save(prefix, {"x": X, "save_counter": torch.tensor(41)})
    _, theirs, _ = tensorflow1.restore(path, zeros("x"), call="restore")
    checkpoint = Checkpoint(x=torch.zeros(2))
    ours = outcomes_of(checkpoint.restore(path))
    assert ours == {assertion: text is None for assertion, text in theirs.items()} == dict.fromkeys(ASSERTIONS, True)
    assert checkpoint.save_counter == 41


def test_a_missing_counter_makes_no_assertion_fail_on_either_side(tensorflow1: TensorFlow1, prefix: Path) -> None:
    """C336"""
    path = tensorflow1.save(prefix, {"x": X})
    _, theirs, _ = tensorflow1.restore(path, zeros("x"), call="restore")
    assert theirs == dict.fromkeys(ASSERTIONS, None)
    assert outcomes_of(Checkpoint(x=torch.zeros(2)).restore(path)) == dict.fromkeys(ASSERTIONS, True)


def test_a_missing_variable_called_like_the_counter_counts_on_both_sides(
    tensorflow1: TensorFlow1, prefix: Path
) -> None:
    """C337"""
    path = tensorflow1.save(prefix, {"x": X})
    _, theirs, _ = tensorflow1.restore(path, zeros("x"), nested=zeros("save_counter"), call="restore")
    assert None not in theirs.values()
    part = AutoTrackable()
    part.save_counter = torch.tensor(0)
    status = Checkpoint(x=torch.zeros(2), part=part).restore(path)
    assert outcomes_of(status) == dict.fromkeys(ASSERTIONS, False)


@VERSIONS
@pytest.mark.parametrize("live", [torch.zeros(3), torch.zeros(2, dtype=torch.float64), torch.zeros(())], ids=str)
def test_what_does_not_fit_is_an_error_on_both_sides(
    tensorflow1: TensorFlow1, prefix: Path, version: int, live: torch.Tensor
) -> None:
    """C065, C066, C067"""
    path = tensorflow1.save(prefix, {"x": X}, version)
    with pytest.raises(WorkerError, match=r"incompatible|dtype|type"):
        tensorflow1.restore(path, {"x": live})
    with pytest.raises(ValueError, match=r"\(root\)\.x: .*(incompatible tensor with shape|expected dtype)"):
        Checkpoint(x=live).read(path)
    assert not live.any()


def test_values_of_both_readers_are_the_same(tensorflow: TensorFlow, tensorflow1: TensorFlow1, prefix: Path) -> None:
    """C380, C404"""
    values = {"a/b": torch.randn(3), "c": torch.tensor([1, -1]), "emb": torch.randn(4, 2)}
    for version in (1, 2):
        folder = prefix.parent / str(version)
        folder.mkdir()
        path = tensorflow1.save(folder / "ckpt", values, version)
        reader = load_checkpoint(path)
        assert {key: Value.of(reader.get_tensor(key)) for key in reader} == tensorflow.read_all(path)
