"""TensorFlow's objects restore what the model of matching says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from restore.matching_model import Model, Program, programs
from restore.test_matching_model import LEADS_BACK, write

from .conftest import Worker, tensorflow_worker


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with tensorflow_worker("matching_functions.py") as worker:
        yield worker


def run_in_tensorflow(worker: Worker, program: Program) -> list[float]:
    """The value of each live variable after all steps."""
    live = program.live
    with tempfile.TemporaryDirectory() as folder:
        values: list[float] = worker.call(
            "run_program",
            paths=[write(program, file, folder) for file in range(len(program.files))],
            kinds=live.kinds,
            edges=live.edges,
            steps=program.steps,
            initial=[program.initial_value(number) for number in range(len(live.kinds))],
        )
    return values


@given(program=programs())
@example(program=LEADS_BACK)
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_every_live_variable_has_the_value_that_the_model_gives_it(worker: Worker, program: Program) -> None:
    """TensorFlow judges the model that judges the package.

    C031, C074, C082, C083, C090, C091, C134, C135, C136, C396
    """
    assert run_in_tensorflow(worker, program) == Model(program, counts_nodes_without_values=True).run()
