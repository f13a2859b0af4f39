"""The surface of the package, and that each part of it is documented with an example that runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import torch_trackckpt
from torch_trackckpt import _native

ROOT = Path(__file__).parents[1]
MODULES = sorted(module.name for module in pkgutil.walk_packages(torch_trackckpt.__path__, "torch_trackckpt."))


def test_the_public_names_are_these() -> None:
    assert torch_trackckpt.__all__ == [
        "AutoTrackable",
        "Checkpoint",
        "CheckpointManager",
        "CheckpointOptions",
        "CheckpointReader",
        "CheckpointView",
        "NoDependency",
        "PythonState",
        "RNGState",
        "SaveOnSignal",
        "Trackable",
        "TrackableView",
        "__version__",
        "capture_dependencies",
        "checkpoints_iterator",
        "frozen_saver",
        "gather_initializers",
        "get_checkpoint_state",
        "latest_checkpoint",
        "list_objects",
        "list_variables",
        "load_checkpoint",
        "load_variable",
        "merge_checkpoints",
        "object_metadata",
        "preemption_save_context",
        "register_adapter",
        "streaming_restore",
        "update_checkpoint_state",
    ]
    assert all(hasattr(torch_trackckpt, name) for name in torch_trackckpt.__all__)


@pytest.mark.parametrize("name", [name for name in torch_trackckpt.__all__ if name != "__version__"])
def test_a_public_name_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(torch_trackckpt, name))


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("._native")])
def test_the_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)

    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)

    assert failed == 0


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("._native")])
def test_a_module_says_what_it_is_for_and_what_it_offers(name: str) -> None:
    module = importlib.import_module(name)

    assert module.__doc__
    assert all(hasattr(module, public) for public in getattr(module, "__all__", []))


def test_the_stub_of_the_native_module_names_what_the_module_has() -> None:
    stub = ast.parse((ROOT / "torch_trackckpt" / "_native.pyi").read_text())
    declared = {node.name: node for node in stub.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}

    assert {name for name in dir(_native) if not name.startswith("_")} == declared.keys()
    for name, node in declared.items():
        if isinstance(node, ast.ClassDef):
            methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            public = {method for method in methods if not method.startswith("_")}
            assert public == {method for method in dir(getattr(_native, name)) if not method.startswith("_")}


def test_importing_the_package_loads_no_optional_dependency() -> None:
    code = (
        "import sys, torch_trackckpt; "
        "print([n for n in ('rich', 'fsspec.core', 'lightning', 'transformers', 'safetensors', 'tensorflow', "
        "'torch._dynamo') if n in sys.modules and n not in before])"
    )
    result = subprocess.run(
        [sys.executable, "-c", "import sys, torch, numpy; before = set(sys.modules); " + code],
        capture_output=True,
        text=True,
        check=True,
    )

    assert result.stdout.strip() == "[]"


def test_the_code_of_the_readme_runs(tmp_path: Path) -> None:
    blocks = (ROOT / "README.md").read_text().split("```python\n")[1:]
    code = "\n".join(block.split("```")[0] for block in blocks)

    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "ckpt-10.index").exists()
