"""Each rule against the layer of Keras or Sonnet that it speaks of: the same variables, the same results."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from keras_layer_cases import CASES, REFUSED, TRAINED, Case
from torch import nn

from torch_trackckpt.interop.keras.bound import BoundVariable
from torch_trackckpt.interop.keras.composition import form_of, parts_of_saved
from torch_trackckpt.interop.keras.edges import edges_of
from torch_trackckpt.interop.keras.layers.sonnet import sonnet_form
from torch_trackckpt.interop.keras.registry import LayerForm, Rule, parts_of, rule_for

# Torch says on some machines that it has no fast LSTM with a projection.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")

PACKAGES = {
    "keras3": ("tensorflow", "keras"),
    "tf_keras": ("tensorflow", "tf_keras"),
    "sonnet": ("tensorflow", "sonnet"),
}
MISSING = {
    generation: [name for name in packages if importlib.util.find_spec(name) is None]
    for generation, packages in PACKAGES.items()
}
OTHERS: Mapping[str, Case] = {**TRAINED, **{name: case for name, (case, _) in REFUSED.items()}}

Key = tuple[str, str]
"""A case, and a generation that has the layer."""


def keys(cases: Mapping[str, Case]) -> list[Key]:
    return [(name, generation) for name, case in cases.items() for generation in case.generations]


def each(some: Iterable[Key]) -> pytest.MarkDecorator:
    """Skips what is not installed."""
    params = [
        pytest.param(*key, marks=pytest.mark.skipif(bool(MISSING[key[1]]), reason=f"not installed: {MISSING[key[1]]}"))
        for key in some
    ]
    return pytest.mark.parametrize(("name", "generation"), params)


def differ(one: np.ndarray, other: np.ndarray) -> float:
    """Relative to the largest of the results."""
    return float(np.abs(one - other).max() / max(1.0, np.abs(other).max()))


# The largest that was measured, in models with several layers, is 7.2e-7.
WITHIN = 1e-6


def without_underscores(path: str) -> str:
    return "/".join(edge.lstrip("_") for edge in path.split("/"))


class Live:
    """A module bound to a saved layer."""

    def __init__(self, name: str, generation: str, paths: Mapping[str, tuple[int, ...]]) -> None:
        self.case, self.generation = {**CASES, **TRAINED}[name], generation
        torch.manual_seed(len(name))
        self.module = self.case.module().eval()
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.normal_(std=0.5)
            for buffer in ("running_mean", "running_var", "mean", "variance"):
                if isinstance(getattr(self.module, buffer, None), torch.Tensor):
                    getattr(self.module, buffer).uniform_(0.5, 1.5)
        # As rules call them, and the paths at which Keras has them.
        self.paths = {without_underscores(path): path for path in paths}
        stored = {name: paths[path] for name, path in self.paths.items()}
        self.forms: list[LayerForm] = []
        self.variables: dict[str, BoundVariable] = {}
        if isinstance(self.module, nn.ModuleDict):
            for part, names in parts_of_saved(list(stored)).items():
                self._bind(self.module[part], names, {own: stored[name] for own, name in names.items()})
        elif "first/cell/kernel" in stored or "first/forward_layer/cell/kernel" in stored:
            for part, prefix in zip(parts_of(self.module), ("first/", "second/"), strict=True):
                own = {name.removeprefix(prefix): name for name in stored if name.startswith(prefix)}
                self._bind(self.module, own, {name: stored[whole] for name, whole in own.items()}, part.rule)
        else:
            self._bind(self.module, {name: name for name in stored}, stored, self.case.rule)

    def _bind(
        self,
        module: nn.Module,
        names: Mapping[str, str],
        stored: Mapping[str, tuple[int, ...]],
        rule: Rule | None = None,
    ) -> None:
        form = form_of(module, stored, rule)
        assert form is not None
        assert form.refused is None
        self.forms.append(form)
        assert set(names) - set(form.variables) == set(form.foreign)
        for name, array in form.variables.items():
            bound = BoundVariable(module, "", array, form.keras, name)
            if name in names:
                assert array.shape == stored[name]
                self.variables[names[name]] = bound
            else:
                assert array.absent is not None
                bound.assign(torch.full(array.shape, array.absent))
        for name, make in form.foreign.items():
            assert make is None or make(module).shape == stored[name]

    @torch.no_grad()
    def output(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return self.case.run(self.module, [torch.from_numpy(array) for array in inputs]).numpy()


class Oracle:
    """The process with the real layers, and what it answered first."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        script = Path(__file__).with_name("keras_layers.py")
        self.log = (directory / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )

    def make_layers(self) -> None:
        random = np.random.default_rng(0)
        self.inputs: dict[tuple[str, str], list[np.ndarray]] = {}
        cases: dict[str, object] = {}
        installed = [key for key in keys({**CASES, **OTHERS}) if not MISSING[key[1]]]
        for name, generation in installed:
            case = {**CASES, **OTHERS}[name]
            made = [random.normal(size=shape).astype(np.float32) for shape in case.inputs]
            if case.integers:
                made = [random.integers(0, 9, shape) for shape in case.inputs]
            self.inputs[name, generation] = made
            cases[f"{name}|{generation}"] = {
                "generation": generation,
                "layer": case.layer,
                "call": case.call,
                "inputs": len(made),
            }
        np.savez(
            self.directory / "inputs.npz",
            **{f"{'|'.join(key)}|{i}": array for key, arrays in self.inputs.items() for i, array in enumerate(arrays)},
        )
        self.made = self._ask("made", cases=cases, inputs=str(self.directory / "inputs.npz"))
        self.live = {key: Live(*key, self.shapes(*key)) for key in installed if key[0] in CASES}

    def _ask(self, name: str, **request: object) -> dict[str, np.ndarray]:
        file = self.directory / f"{name}.npz"
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request | {"into": str(file)}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        self.log.seek(0)
        assert line, f"The process died:\n{self.log.read()[-4000:]}"
        error = json.loads(line)["error"]
        assert error is None, error
        return dict(np.load(file))

    def values(self, name: str, generation: str) -> dict[str, np.ndarray]:
        prefix = f"{name}|{generation}|"
        found = {key.removeprefix(prefix): array for key, array in self.made.items() if key.startswith(prefix)}
        return {path: array for path, array in found.items() if path != "output" and not path.startswith("after/")}

    def shapes(self, name: str, generation: str) -> dict[str, tuple[int, ...]]:
        return {path: array.shape for path, array in self.values(name, generation).items()}

    def with_values_of_torch(self) -> dict[str, np.ndarray]:
        """What Keras computes with the variables of freshly made modules, which are saved as they are now."""
        given = {
            f"{name}|{generation}|{live.paths[variable]}": bound.value().numpy()
            for (name, generation), live in self.live.items()
            for variable, bound in live.variables.items()
        }
        np.savez(self.directory / "given.npz", **given)
        return self._ask("computed", values=str(self.directory / "given.npz"))

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    made = Oracle(tmp_path_factory.mktemp("layers"))
    try:
        made.make_layers()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def there_and_back(oracle: Oracle) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each case, what torch computes with its own values, and what Keras does with them."""
    with_own = {key: live.output(oracle.inputs[key]) for key, live in oracle.live.items()}
    computed = oracle.with_values_of_torch()
    return {"|".join(key): (array, computed[f"{'|'.join(key)}|output"]) for key, array in with_own.items()}


@each(keys(CASES))
def test_a_module_with_the_variables_of_keras_computes_what_keras_does(
    name: str, generation: str, oracle: Oracle
) -> None:
    live = Live(name, generation, oracle.shapes(name, generation))
    values = oracle.values(name, generation)

    for variable, bound in live.variables.items():
        bound.assign(torch.from_numpy(values[live.paths[variable]]))

    output = live.output(oracle.inputs[name, generation])
    assert differ(output, oracle.made[f"{name}|{generation}|output"]) <= WITHIN
    for variable, bound in live.variables.items():
        assert bound.value().numpy().tobytes() == values[live.paths[variable]].tobytes()


@each(keys(CASES))
def test_keras_with_the_variables_of_a_module_computes_what_the_module_does(
    name: str, generation: str, there_and_back: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    of_torch, of_keras = there_and_back[f"{name}|{generation}"]

    assert differ(of_torch, of_keras) <= WITHIN


@each(key for key in keys(CASES) if not CASES[key[0]].from_template)
def test_without_a_checkpoint_variables_are_spelled_and_shaped_as_the_generation_does(
    name: str, generation: str, oracle: Oracle
) -> None:
    module = oracle.live[name, generation].module
    rule = CASES[name].rule or rule_for(module)
    assert rule is not None

    form = sonnet_form(module, rule, None) if generation == "sonnet" else rule(module, None)

    assert form is not None
    shapes = oracle.shapes(name, generation)
    usual = {"/".join(edges_of(generation, form.keras, name)): array for name, array in form.variables.items()}
    made = {"/".join(edges_of(generation, form.keras, name)): make for name, make in form.foreign.items()}
    assert {path: array.shape for path, array in usual.items() if path in shapes} | {
        path: tuple(make(module).shape) for path, make in made.items() if make is not None
    } == shapes
    assert all(array.absent is not None for path, array in usual.items() if path not in shapes)


@each(keys(TRAINED))
def test_a_batch_norm_is_trained_on_as_in_the_generation_that_it_is_for(
    name: str, generation: str, oracle: Oracle
) -> None:
    live = Live(name, generation, oracle.shapes(name, generation))
    for variable, bound in live.variables.items():
        bound.assign(torch.from_numpy(oracle.values(name, generation)[live.paths[variable]]))
    live.module.train()

    output = live.output(oracle.inputs[name, generation])

    assert differ(output, oracle.made[f"{name}|{generation}|output"]) <= WITHIN
    for variable, bound in live.variables.items():
        after = oracle.made[f"{name}|{generation}|after/{live.paths[variable]}"]
        assert differ(bound.value().numpy(), after) <= WITHIN


@each(key for key in keys(OTHERS) if key[0] in REFUSED)
def test_a_layer_that_computes_something_else_is_refused_with_the_reason(
    name: str, generation: str, oracle: Oracle
) -> None:
    case, words = REFUSED[name]
    stored = {without_underscores(path): shape for path, shape in oracle.shapes(name, generation).items()}

    form = form_of(case.module(), stored)

    assert form is not None
    assert form.variables == {}
    assert form.refused is not None
    assert re.search(words, form.refused)
