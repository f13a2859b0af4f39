"""The package's imports point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import torch_trackckpt

PACKAGE = Path(torch_trackckpt.__file__).parent

# Lower never imports higher; within a line, a unit imports only those written before it.
LEVELS = (
    ("errors", "trackable", "update_uid", "_native", "_cuda"),
    ("devices", "storage", "bundle", "distributed", "sharding", "options", "preemption", "metrics"),
    ("adapters",),
    ("tracking",),
    ("graph",),
    ("save", "restore"),
    (
        "fallback",
        "retention",
        "state_file",
        "reading",
        "checkpoint",
        "views",
        "frozen",
        "capture",
        "data",
        "management",
    ),
    ("interop",),
    ("inspection", "integrations", "doctor", "__main__"),
)
NEVER_EACH_OTHER = {frozenset({"save", "restore"})}
# The lines of the table that are narrower than their level.
ONLY = {
    "adapters": {"errors", "options", "trackable", "update_uid", "_native", "distributed"},
    "tracking": {"errors", "trackable", "adapters"},
    "devices": {"_native", "_cuda"},
    "__main__": {"doctor"},
    "inspection": {"trackable", "reading", "checkpoint", "state_file", "bundle", "graph", "storage", "errors"},
    # Of `restore`, the class of a status for an annotation.
    "integrations": {"data", "errors", "retention", "restore"},
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_units(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("torch_trackckpt.")}


def rank(unit: str) -> tuple[int, int]:
    for level, units in enumerate(LEVELS):
        if unit in units:
            return level, units.index(unit)
    raise AssertionError(f"{unit} has no place in the table of layers; give it one here and in docs/architecture.md.")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    unit = unit_of(path)

    imported = imported_units(path) - {unit}
    if unit == "integrations":
        imported -= set(torch_trackckpt.__all__)

    assert all(rank(other) < rank(unit) for other in imported), f"{unit} imports {imported}"
    assert not any(frozenset({unit, other}) in NEVER_EACH_OTHER for other in imported)
    assert imported <= ONLY.get(unit, imported)


def test_optional_packages_are_not_imported_with_the_package() -> None:
    optional = {"rich", "fsspec", "lightning", "pytorch_lightning", "transformers", "safetensors", "tensorflow"}
    for path in MODULES:
        if unit_of(path) == "integrations":
            continue
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not optional & {name.split(".")[0] for name in names}, path


def test_nothing_that_runs_code_from_a_file_is_used() -> None:
    """C169."""
    forbidden = {"pickle", "marshal", "dill", "cloudpickle", "shelve", "importlib.import_module"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not forbidden & {alias.name for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in forbidden, path
                assert not forbidden & {f"{node.module}.{alias.name}" for alias in node.names}, path
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "__import__", "compile", "torch.load"}, path


def test_the_native_core_knows_no_torch_and_only_its_bindings_know_python() -> None:
    sources = Path(__file__).parents[1] / "csrc"
    for path in [*sources.rglob("*.cpp"), *sources.rglob("*.h")]:
        includes = [line for line in path.read_text().splitlines() if line.startswith("#include")]
        assert not any("torch/" in line or "ATen" in line or "c10" in line for line in includes), path
        if path.name != "bindings.cpp" and path.parent.name != "python":
            assert not any("nanobind" in line or "Python.h" in line for line in includes), path
