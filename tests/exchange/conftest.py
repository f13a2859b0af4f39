"""TensorFlow, in a process of its own, for the tests of exchange with it.

The tests describe TensorFlow's objects by plain ones: a tensor stands for a tf.Variable, a SimpleNamespace for a
tf.Module with these attributes, a `Text` for a PythonState, lists and dicts for themselves. One
object in two places is one object there too. After a restore, they hold the values that TensorFlow's objects have.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
TIMEOUT_SECONDS = 120.0

# The worker's files are programs; collecting them for doctests would import TensorFlow.
collect_ignore = [
    "container_functions.py",
    "functions.py",
    "keras_functions.py",
    "keras_programs.py",
    "interop_functions.py",
    "manager_functions.py",
    "matching_functions.py",
    "name_functions.py",
    "reading_functions.py",
    "sharding_functions.py",
    "sonnet_programs.py",
    "view_functions.py",
    "worker.py",
]


class WorkerError(AssertionError):
    """The worker raised, died, or did not answer in time."""


class Worker:
    """A process that executes functions of a file; started by the first call, and again after it died.

    Args:
        functions: the file.
        timeout_seconds: how long a call may take, the start of the process included.
    """

    def __init__(self, functions: Path, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._functions = functions
        self._timeout_seconds = timeout_seconds
        self._process: subprocess.Popen[str] | None = None
        self._printed = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed by close()
        self._thread = ThreadPoolExecutor(1)

    def call(self, function: str, **arguments: object) -> Any:
        """The function's result.

        Raises:
            WorkerError: the function raised, and the text has its traceback; or the worker died or hangs, and the
                text has what it printed. A worker that hangs is killed.
        """
        process = self._running()
        request = json.dumps({"function": function, "arguments": arguments})
        try:
            answer = self._thread.submit(_exchange, process, request).result(self._timeout_seconds)
        except FutureTimeoutError:
            self._stop()
            raise WorkerError(
                f"{function} gave no answer within {self._timeout_seconds} seconds.\n{self._tail()}"
            ) from None
        if not answer:
            status = process.wait()
            self._stop()
            raise WorkerError(f"{function} ended the worker with status {status}.\n{self._tail()}")
        reply = json.loads(answer)
        if "error" in reply:
            raise WorkerError(f"{function}: {reply['error']}\n{reply['traceback']}")
        return reply["result"]

    def close(self) -> None:
        self._stop()
        self._thread.shutdown()
        self._printed.close()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "worker.py"), str(self._functions)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
                text=True,
            )
        return self._process

    def _stop(self) -> None:
        if self._process is None:
            return
        # Killing it ends an exchange that still waits for an answer; only then may the pipes be closed.
        self._process.kill()
        self._process.wait()
        self._thread.submit(_close_pipes, self._process).result()
        self._process = None

    def _tail(self) -> str:
        self._printed.seek(0)
        return self._printed.read()[-8000:]


def _exchange(process: subprocess.Popen[str], request: str) -> str:
    """The answer's line; empty where the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(request + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline()


def _close_pipes(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()
    # What a failed write left to be flushed has no reader.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


class Value(NamedTuple):
    """A value as a checkpoint holds it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | list[bytes]
    """The elements, little-endian and row-major; for strings a list of them."""

    @classmethod
    def of(cls, value: torch.Tensor | bytes | np.ndarray[Any, np.dtype[np.object_]]) -> Value:
        """A live value in that form."""
        if isinstance(value, bytes):
            return cls("string", (), [value])
        if isinstance(value, np.ndarray):
            return cls("string", value.shape, value.ravel().tolist())
        elements = value.detach().contiguous().reshape(-1).view(torch.uint8)
        return cls(str(value.dtype).removeprefix("torch."), tuple(value.shape), elements.numpy().tobytes())

    def tensor(self) -> torch.Tensor:
        """A tensor of the value."""
        assert isinstance(self.data, bytes)
        result = torch.empty(self.shape, dtype=getattr(torch, self.dtype))
        result.view(-1).view(torch.uint8).numpy()[:] = np.frombuffer(self.data, np.uint8)
        return result


class Text:
    """A python state: bytes as they are."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data

    def deserialize(self, string_value: bytes) -> None:
        self.data = string_value


class TensorFlow:
    """TensorFlow's functions, executed by a worker. Each raises `WorkerError` where TensorFlow raises."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    # Bundles.

    def save_tensors(
        self, prefix: Path, values: Sequence[tuple[str, Value]], slices: Sequence[str] | None = None
    ) -> None:
        """`tf.raw_ops.SaveV2`; ``slices`` are its ``shape_and_slices``."""
        keys = [_to_base64(key.encode()) for key, _ in values]
        encoded = [_encoded(value) for _, value in values]
        texts = [""] * len(keys) if slices is None else list(slices)
        self._worker.call("save_tensors", prefix=str(prefix), keys=keys, values=encoded, slices=texts)

    def merge_bundles(self, prefixes: Sequence[Path], destination: Path) -> None:
        """`tf.raw_ops.MergeV2Checkpoints`."""
        self._worker.call("merge_bundles", prefixes=[str(p) for p in prefixes], destination=str(destination))

    def read_all(self, path: str | Path) -> dict[str, Value]:
        """Every value that `tf.train.load_checkpoint` reads."""
        return {key: _decoded(value) for key, value in self._worker.call("read_all", path=str(path)).items()}

    def read_one(self, path: str | Path, key: str) -> Value:
        """One value that `tf.train.load_checkpoint` reads."""
        return _decoded(self._worker.call("read_one", path=str(path), key=key))

    def list_variables(self, path: str | Path) -> list[tuple[str, list[int]]]:
        """`tf.train.list_variables`."""
        return [(key, shape) for key, shape in self._worker.call("list_variables", path=str(path))]

    def latest_checkpoint(self, directory: Path) -> str | None:
        """`tf.train.latest_checkpoint`."""
        path: str | None = self._worker.call("latest_checkpoint", directory=str(directory))
        return path

    # Files of the older format.

    def save_v1(self, path: Path, values: Sequence[tuple[str, Value]], slices: Sequence[str] | None = None) -> None:
        """`tf.raw_ops.SaveSlices`; without ``slices``, its ``shapes_and_slices``, each value is a whole tensor."""
        keys = [_to_base64(key.encode()) for key, _ in values]
        encoded = [_encoded(value) for _, value in values]
        texts = [""] * len(keys) if slices is None else list(slices)
        self._worker.call("save_v1", path=str(path), keys=keys, values=encoded, slices=texts)

    # Checkpoints.

    def write(self, prefix: Path, root: object = None, **children: object) -> str:
        """`tf.train.Checkpoint(root, **children).write(prefix)`."""
        path: str = self._worker.call("write", prefix=str(prefix), tree=_Tree(root, children).encoded())
        return path

    def save(
        self, prefix: Path, root: object = None, *, times: int = 1, after: str | None = None, **children: object
    ) -> str:
        """`tf.train.Checkpoint(root, **children).save(prefix)`, several times, after `restore(after)`."""
        tree = _Tree(root, children).encoded()
        path: str = self._worker.call("save", prefix=str(prefix), tree=tree, times=times, after=after)
        return path

    def restore(self, path: str, assertions: Sequence[str], root: object = None, **children: object) -> int:
        """`tf.train.Checkpoint(root, **children).restore(path)` and assertions; returns the save counter."""
        tree = _Tree(root, children)
        outcome = self._worker.call("restore", path=path, tree=tree.encoded(), assertions=assertions)
        tree.take(outcome["contents"])
        counter: int = outcome["save_counter"]
        return counter

    def read(self, path: str, assertions: Sequence[str], root: object = None, **children: object) -> None:
        """`tf.train.Checkpoint(root, **children).read(path)` and assertions."""
        tree = _Tree(root, children)
        tree.take(self._worker.call("read", path=path, tree=tree.encoded(), assertions=assertions)["contents"])

    # Slot variables.

    def write_with_adam(self, prefix: Path, **children: object) -> dict[str, Value]:
        """Writes a checkpoint with an `optimizer` that has slots `m` and `v`; returns what it holds."""
        tree = _Tree(None, children).encoded()
        values = self._worker.call("write_with_adam", prefix=str(prefix), tree=tree)
        return {key: _decoded(value) for key, value in values.items()}

    def restore_slots(self, path: str, slot_names: Sequence[str], **children: object) -> dict[str, list[Value]]:
        """By slot name, the slots that TensorFlow's optimizer takes from a checkpoint for each variable."""
        tree = _Tree(None, children).encoded()
        slots = self._worker.call("restore_slots", path=path, tree=tree, slot_names=slot_names)
        return {name: [_decoded(value) for value in values] for name, values in slots.items()}


class _Tree:
    """The plain objects below a checkpoint, numbered breadth first.

    A variable's name is what the package calls the tensor: its dotted path under the outermost module, or, outside
    modules, from the checkpoint.
    """

    def __init__(self, root: object, children: Mapping[str, object]) -> None:
        self._root = root
        self._children = children
        self._objects: list[object] = []
        self._names: list[str] = []
        self._index: dict[int, int] = {}
        queue: deque[tuple[object, tuple[str, ...], bool]] = deque()
        if root is not None:
            queue.append((root, (), False))
        queue.extend((child, (name,), isinstance(root, SimpleNamespace)) for name, child in sorted(children.items()))
        while queue:
            value, names, is_in_module = queue.popleft()
            if id(value) in self._index:
                continue
            self._index[id(value)] = len(self._objects)
            self._objects.append(value)
            self._names.append(".".join(names))
            if isinstance(value, SimpleNamespace) and not is_in_module:
                names, is_in_module = (), True
            queue.extend((child, (*names, name), is_in_module) for name, child in _children_of(value).items())

    def encoded(self) -> dict[str, object]:
        return {
            "objects": [self._described(*pair) for pair in zip(self._objects, self._names, strict=True)],
            "root": None if self._root is None else self._index[id(self._root)],
            "children": {name: self._index[id(child)] for name, child in self._children.items()},
        }

    def take(self, contents: Sequence[Any]) -> None:
        """Gives the objects the contents that TensorFlow's have."""
        for value, content in zip(self._objects, contents, strict=True):
            if isinstance(value, torch.Tensor):
                with torch.no_grad():
                    value.copy_(_decoded(content).tensor())
            elif isinstance(value, Text):
                value.data = base64.b64decode(content)

    def _described(self, value: object, name: str) -> dict[str, object]:
        if isinstance(value, torch.Tensor):
            return {"kind": "variable", "name": name, "value": _encoded(Value.of(value))}
        if isinstance(value, Text):
            return {"kind": "state", "data": _to_base64(value.data)}
        kind = {SimpleNamespace: "module", dict: "dict", list: "list"}[type(value)]
        children = [(name, self._index[id(child)]) for name, child in _children_of(value).items()]
        return {"kind": kind, "children": children}


def _children_of(value: object) -> Mapping[str, object]:
    if isinstance(value, SimpleNamespace):
        return vars(value)
    if isinstance(value, list):
        return {str(index): element for index, element in enumerate(value)}
    return value if isinstance(value, dict) else {}


def _encoded(value: Value) -> dict[str, object]:
    data = _to_base64(value.data) if isinstance(value.data, bytes) else [_to_base64(e) for e in value.data]
    return {"dtype": value.dtype, "shape": value.shape, "data": data}


def _decoded(value: Any) -> Value:
    data = value["data"]
    decoded = base64.b64decode(data) if isinstance(data, str) else [base64.b64decode(element) for element in data]
    return Value(value["dtype"], tuple(value["shape"]), decoded)


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@contextlib.contextmanager
def tensorflow_worker(functions: str) -> Iterator[Worker]:
    """TensorFlow in a worker that executes a file of this folder; a skip where it is not installed."""
    spec = importlib.util.find_spec("tensorflow")
    # Without TensorFlow, a folder may be found under the name, as a package without a file.
    if spec is None or spec.origin is None:
        pytest.skip("TensorFlow is not installed (pip install 'torch_trackckpt[test]')")
    worker = Worker(HERE / functions)
    try:
        yield worker
    finally:
        worker.close()


@pytest.fixture(scope="session")
def tensorflow() -> Iterator[TensorFlow]:
    """TensorFlow in a worker that all tests share."""
    with tensorflow_worker("functions.py") as worker:
        yield TensorFlow(worker)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Where a test writes a checkpoint, in a folder of its own."""
    return tmp_path / "ckpt"
