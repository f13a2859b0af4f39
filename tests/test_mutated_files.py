"""Real files with bytes changed, added or taken away: every answer is an error of the package or right."""

from __future__ import annotations

import functools
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpus_truth import CORPUS
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trackckpt import Checkpoint, CheckpointOptions, load_checkpoint
from torch_trackckpt.errors import TrackckptError

GOLDEN = Path(__file__).parent / "golden"

PREFIXES = {
    "two scalars of TensorFlow 1": CORPUS / "v2-onnx-regression" / "model",
    "two shards, Snappy": CORPUS / "v2-sonnet-mean-2shards" / "checkpoint-1",
    "object graph, Snappy": CORPUS / "v2-sonnet-vqvae-ema" / "checkpoint-1",
    "object graph": GOLDEN / "obj_module" / "ckpt-1",
    "slot variables": GOLDEN / "obj_adam_slots" / "ckpt-1",
    "SavedModel": CORPUS / "sm2-int64" / "variables" / "variables",
    "every type": GOLDEN / "v2_dtypes" / "ckpt",
    "strings": GOLDEN / "v2_strings" / "ckpt",
    "slices": GOLDEN / "v2_slices" / "ckpt",
    "slices in shards": GOLDEN / "obj_sharded" / "ckpt-1",
    "big-endian": GOLDEN / "crafted_big_endian" / "ckpt",
    "V1": GOLDEN / "v1_basic" / "model.ckpt",
    "V1 in slices": GOLDEN / "v1_slices" / "model.ckpt",
    "V1 in several files": GOLDEN / "v1_sharded" / "model.ckpt-7",
    "V1, Snappy": GOLDEN / "crafted_snappy_v1" / "model.ckpt",
}

Outcome = str | type[Exception]
Mutation = Callable[[bytearray], None]


@st.composite
def mutations(draw: st.DrawFn) -> Mutation:
    """One change of a file, at a place that scales with its size."""
    kind = draw(st.sampled_from(["flip", "set", "insert", "delete", "cut", "copy", "number"]))
    place = draw(st.floats(0, 1, exclude_max=True))
    source = draw(st.floats(0, 1, exclude_max=True))
    data = draw(st.binary(min_size=1, max_size=9))
    number = draw(st.sampled_from([0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1]))

    def mutate(content: bytearray) -> None:
        at, from_ = int(place * len(content)), int(source * len(content))
        if not content:
            return
        if kind == "flip":
            content[at] ^= 1 << (data[0] & 7)
        elif kind == "set":
            content[at : at + len(data)] = data
        elif kind == "insert":
            content[at:at] = data
        elif kind == "delete":
            del content[at : at + len(data)]
        elif kind == "cut":
            del content[at:]
        elif kind == "copy":
            content[at : at + 16] = content[from_ : from_ + 16]
        else:
            content[at : at + 8] = number.to_bytes(8, "little")

    return mutate


def digest(value: torch.Tensor | bytes | np.ndarray[Any, Any]) -> str:
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(bytes(value.contiguous().reshape(-1).view(torch.uint8).tolist())).hexdigest()
    return hashlib.sha256(repr(value if isinstance(value, bytes) else value.tolist()).encode()).hexdigest()


def outcomes(prefix: Path) -> dict[str, Outcome]:
    """What is read under each key: a digest of type, shape and value, or an error of the package."""
    found: dict[str, Outcome] = {}
    reader = load_checkpoint(prefix)
    for key, lazy in reader.items():
        try:
            found[key] = f"{lazy.dtype} {lazy.shape} {digest(lazy.read())}"
        except TrackckptError as error:
            found[key] = type(error)
    return found


@functools.cache
def truth(name: str) -> dict[str, Outcome]:
    return outcomes(PREFIXES[name])


def files_of(name: str) -> list[Path]:
    prefix = PREFIXES[name]
    return sorted(path for path in prefix.parent.glob(prefix.name + "*"))


@pytest.mark.parametrize("name", PREFIXES)
@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), mutations()), min_size=1, max_size=3))
def test_a_changed_file_gives_errors_of_the_package_or_the_right_values(
    name: str, changes: list[tuple[float, Mutation]]
) -> None:
    """C355, C382, C384, C386, C387, C390, C391."""
    with tempfile.TemporaryDirectory() as folder:
        for path in files_of(name):
            shutil.copy(path, folder)
        changed = sorted(Path(folder).iterdir())
        for which, mutate in changes:
            path = changed[int(which * len(changed))]
            content = bytearray(path.read_bytes())
            mutate(content)
            path.write_bytes(content)
        prefix = Path(folder) / PREFIXES[name].name

        try:
            found = outcomes(prefix)
        except TrackckptError:
            found = {}

        expected = truth(name)
        assert {k: v for k, v in found.items() if isinstance(v, str)}.items() <= expected.items()
        assert_restore_is_all_or_nothing(prefix, found, expected)


def assert_restore_is_all_or_nothing(prefix: Path, found: dict[str, Outcome], expected: dict[str, Outcome]) -> None:
    """C392: a restore of what the names say either succeeds with the right values or changes nothing."""
    live = {key: torch.full((2,), 7.0) for key in list(expected)[:3]}
    names = {f"v{index}": key for index, key in enumerate(live)}
    checkpoint = Checkpoint(**dict(zip(names, live.values(), strict=True)))
    try:
        checkpoint.read(prefix, CheckpointOptions(name_map=names))
    except TrackckptError:
        assert all(torch.equal(tensor, torch.full((2,), 7.0)) for tensor in live.values())
