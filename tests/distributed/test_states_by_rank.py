"""States that each process has for itself: of any shape, and empty ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.by_rank_jobs import FAST, Loader, Text, listed
from ranks import results_of, run_ranks

from torch_trackckpt import Checkpoint, CheckpointOptions, load_checkpoint
from torch_trackckpt.errors import MismatchError

SIZE = 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    path = tmp_path_factory.mktemp("by_rank")
    return path, results_of(run_ranks(SIZE, "distributed.by_rank_jobs:keep_states", str(path)))


def test_tensors_of_other_shapes_come_back_in_each_process(saved: tuple[Path, list[Any]]) -> None:
    _, results = saved
    for result in results:
        for of_save in result:
            assert of_save["found"] == of_save["expected"]
    assert {result[1]["found"]["seen"][1][0] for result in results} == {4, 7, 10}


def test_an_empty_state_is_told_from_one_that_is_not_there(saved: tuple[Path, list[Any]]) -> None:
    _, results = saved
    for rank, result in enumerate(results):
        for of_save in result:
            expected = {"first": "" if rank == 0 else "1", "last": "" if rank == SIZE - 1 else "0"}
            if rank == SIZE - 1:
                expected["only"] = ""
            if rank:
                expected["pair"] = "" if rank == 1 else "2"
            assert of_save["texts"] == expected


def test_what_is_stored_is_a_tensor_of_all_and_the_shapes_beside_it(saved: tuple[Path, list[Any]]) -> None:
    path, results = saved
    stored = load_checkpoint(path / "ckpt-0")
    stored.verify()
    shapes = {key: json.loads(bytes(stored.get_tensor(key))) for key in stored if key.endswith("/.SHAPES")}
    found = {key.split("/")[1]: shape for key, shape in shapes.items() if "VARIABLE_VALUE" in key}
    # Tensors have numbers in a state. Of one shape are "even" and what only one process has.
    names = dict(enumerate(results[-1][0]["expected"]))
    assert found == {
        str(number): [result[0]["expected"].get(name, [None, None])[1] for result in results]
        for number, name in names.items()
        if name not in ("even", "last")
    }
    texts = {key.split("/")[0]: shape for key, shape in shapes.items() if "py_state" in key}
    assert texts == {"first": [[], [], []], "last": [[], [], []], "pair": [None, [], []]}
    for key in shapes:
        value = stored.get_tensor(key.removesuffix("/.SHAPES"))
        assert len(value.shape) == 1  # type: ignore[union-attr]


def test_another_number_of_processes_is_asked_how(saved: tuple[Path, list[Any]]) -> None:
    path, results = saved
    with pytest.raises(MismatchError, match="each of the 3 processes"):
        Checkpoint(loader=Loader(0, 1)).read(path / "ckpt-0")
    loader, asked = Loader(0, 1), []

    def last(states: Any, rank: int, size: int) -> Any:
        asked.append([sorted(state) for state in states])
        return states[-1]

    Checkpoint(loader=loader).read(path / "ckpt-0", CheckpointOptions(resplit={Loader: last}))
    assert listed(loader) == results[-1][0]["expected"]
    assert asked == [[sorted(result[0]["expected"]) for result in results]]


def test_a_text_that_all_processes_have_alike_is_one_value(tmp_path: Path) -> None:
    text = Text(b"")
    Checkpoint(text=text).write(tmp_path / "ckpt", FAST)
    text.text = b"later"
    Checkpoint(text=text).read(tmp_path / "ckpt").assert_consumed()
    assert text.text == b""
    assert not [key for key in load_checkpoint(tmp_path / "ckpt") if "BY_RANK" in key]


def test_all_of_the_state_is_there_as_torch_has_it(saved: tuple[Path, list[Any]]) -> None:
    path, results = saved
    stored = load_checkpoint(path / "ckpt-1")
    (key,) = (key for key in stored if key.endswith("/.BY_RANK") and key.startswith("loader/0/"))
    expected = [number for result in results for number in result[1]["expected"]["seen"][2]]
    assert torch.as_tensor(stored.get_tensor(key)).tolist() == expected
