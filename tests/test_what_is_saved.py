"""What is saved equals what comes back, and a resumed training equals one that was never interrupted, bit for bit.

For each program of `programs.py`: N steps, a save, and M more; then a new process builds the objects in another order,
restores, and takes the same M steps. All resumed programs share one new process, because starting one takes seconds.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import PROGRAMS, Objects, Program, observe

from torch_trackckpt import Checkpoint, CheckpointOptions

NUM_BEFORE = 5
NUM_AFTER = 4
FAST = CheckpointOptions(durable=False)

Result = dict[str, Any]


def is_runnable(program: Program) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in program.needs)


RUNNABLE = {name: program for name, program in PROGRAMS.items() if is_runnable(program)}


def interrupt(program: Program, prefix: str) -> Result:
    """What a program holds when it is saved, and what it does from there."""
    objects = program.start(rebuilt=False)
    program.run(objects, NUM_BEFORE)
    Checkpoint(**objects).save(prefix, FAST)
    return go_on(program, objects)


def resume(program: Program, prefix: str) -> Result:
    """What the rebuilt program holds after the restore, and what it does from there."""
    objects = program.start(rebuilt=True)
    Checkpoint(**objects).restore(f"{prefix}-1").assert_consumed()
    return go_on(program, objects)


def go_on(program: Program, objects: Objects) -> Result:
    held = observe(objects)
    return {"held": held, "seen": program.run(objects, NUM_AFTER), "held at the end": observe(objects)}


def results(run: Callable[[Program, str], Result], directory: Path) -> dict[str, Result]:
    """By program; one that fails leaves its error."""
    found: dict[str, Result] = {}
    for index, (name, program) in enumerate(RUNNABLE.items()):
        try:
            found[name] = run(program, str(directory / str(index)))
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    return json.loads(json.dumps(found))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Result, Result]]:
    """By program: how it went on uninterrupted, and resumed in another process."""
    directory = tmp_path_factory.mktemp("programs")
    uninterrupted = results(interrupt, directory)
    code = (
        "import json, pathlib, sys, test_what_is_saved as tests\n"
        "directory = pathlib.Path(sys.argv[1])\n"
        "(directory / 'resumed.json').write_text(json.dumps(tests.results(tests.resume, directory)))"
    )
    command = [sys.executable, "-c", code, str(directory)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    resumed = json.loads((directory / "resumed.json").read_text())
    return {name: (uninterrupted[name], resumed[name]) for name in RUNNABLE}


def of(name: str, both: dict[str, tuple[Result, Result]]) -> tuple[Result, Result]:
    """The two runs of one program, both of which went well."""
    if name not in RUNNABLE:
        pytest.skip(f"{' or '.join(PROGRAMS[name].needs)} is not installed")
    uninterrupted, resumed = both[name]
    assert (uninterrupted.get("error"), resumed.get("error")) == (None, None)
    return uninterrupted, resumed


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_saved_equals_what_comes_back(name: str, both: dict[str, tuple[Result, Result]]) -> None:
    uninterrupted, resumed = of(name, both)
    assert resumed["held"] == uninterrupted["held"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_resumed_training_equals_an_uninterrupted_one(name: str, both: dict[str, tuple[Result, Result]]) -> None:
    uninterrupted, resumed = of(name, both)
    assert resumed["seen"] == uninterrupted["seen"]
    assert resumed["held at the end"] == uninterrupted["held at the end"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_step_of_a_program_changes_something(name: str, both: dict[str, tuple[Result, Result]]) -> None:
    """Otherwise the other tests would show little."""
    uninterrupted, _ = of(name, both)
    assert len({json.dumps(seen) for seen in uninterrupted["seen"]}) == NUM_AFTER
    assert uninterrupted["held"] != uninterrupted["held at the end"]
