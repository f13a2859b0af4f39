"""Reading a checkpoint can never run code: nothing is unpickled, evaluated, or imported by a name that a file holds.

Once by the text of the package, and once by what the interpreter reports while a checkpoint of everything is restored.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import torch_trackckpt

PACKAGE = Path(torch_trackckpt.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
CORE = sorted(path for path in (PACKAGE.parent / "csrc").rglob("*") if path.suffix in {".cpp", ".h"})

UNPICKLING = {
    "pickle", "_pickle", "cPickle", "pickletools", "marshal", "shelve", "dill", "cloudpickle", "joblib", "copyreg",
    "imp", "runpy", "code", "codeop", "pydoc", "pkgutil", "zipimport", "yaml",
}  # fmt: skip
RUNNING = {"eval", "exec", "compile", "__import__", "execfile"}
BY_NAME = {
    "import_module",
    "find_spec",
    "spec_from_file_location",
    "locate",
    "find_class",
    "load_module",
    "exec_module",
}


def offences(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {name.name}" for name in node.names if name.name.split(".")[0] in UNPICKLING)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in UNPICKLING:
                yield f"from {node.module} import"
            yield from (f"import of {name.name}" for name in node.names if name.name in RUNNING | BY_NAME)
        elif isinstance(node, ast.Name) and node.id in RUNNING | {"__builtins__"}:
            yield node.id
        elif isinstance(node, ast.Attribute) and node.attr in BY_NAME | {
            "__globals__",
            "__builtins__",
            "__reduce_ex__",
        }:
            yield f".{node.attr}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in {f"builtins.{name}" for name in RUNNING}:
            yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "torch.jit.load", "torch.package"}:
            safe = {ast.unparse(keyword) for keyword in node.keywords}
            if "weights_only=True" not in safe:
                yield f"{ast.unparse(node.func)} without weights_only=True"
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield "allow_pickle"


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(PACKAGE)) for path in SOURCES])
def test_no_module_of_the_package_unpickles_evaluates_or_imports_by_name(path: Path) -> None:
    assert list(offences(ast.parse(path.read_text()))) == []


def test_the_core_knows_of_one_import_and_of_one_library_that_is_there_by_names_of_their_own() -> None:
    imports = [
        line.strip()
        for path in CORE
        for line in path.read_text().splitlines()
        if re.search(r"import_\(|PyRun_|PyEval_|PyMarshal_|PyImport_|nb::eval|nb::exec|dlopen|system\(", line)
    ]
    assert sorted(imports) == [
        'return nb::module_::import_("torch_trackckpt.errors").attr(name);',
        # CUDA's driver, where it has been loaded.
        'void* const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);',
    ]


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from marshal import loads",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "importlib.import_module(name)",
        "from importlib import import_module",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "run = eval",
        "builtins.eval(text)",
    ],
)
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    assert list(offences(ast.parse(code)))


PROGRAM = """
import sys, tempfile
import numpy, torch
from torch import nn
from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointReader, RNGState

class Extra(nn.Linear):
    def get_extra_state(self):
        return {"size": torch.Size([1]), "kind": torch.float16, "numbers": (1, {2: 3.0}), "array": numpy.ones(3)}
    def set_extra_state(self, state):
        self.seen = state

def program():
    model = nn.Sequential(Extra(3, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)
    parts = AutoTrackable()
    parts.list, parts.dict, parts.generator = [model], {"a": torch.ones(2)}, torch.Generator()
    return Checkpoint(model=model, optimizer=optimizer, scheduler=scheduler, rng=RNGState(), parts=parts)

def use(checkpoint, path):
    checkpoint.restore(path).assert_consumed()
    reader = CheckpointReader(path)
    return [reader.get_tensor(key) for key in reader.get_variable_to_shape_map()]

path = program().save(tempfile.mkdtemp() + "/ckpt")
checkpoint = program()
use(checkpoint, path)  # imports that the first use of anything brings
seen = []
watched = {"pickle.find_class", "marshal.load", "marshal.loads", "exec", "compile", "import", "code.__new__"}
sys.addaudithook(lambda event, arguments: seen.append((event, str(arguments)[:200])) if event in watched else None)
eval("1")
assert [event for event, _ in seen][:2] == ["compile", "exec"], seen
seen.clear()
use(checkpoint, path)
print(seen)
"""


def test_the_interpreter_is_asked_for_no_code_while_a_checkpoint_is_restored() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=300)
    assert (result.stdout.strip(), result.returncode) == ("[]", 0), result.stderr
