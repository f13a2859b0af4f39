"""Every checkpoint of the corpus, written by other people since 2015, is read as TensorFlow reads it."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpus_truth import CHECKPOINTS, CORPUS, MANIFEST, Content, contents

from torch_trackckpt import (
    Checkpoint,
    CheckpointOptions,
    CheckpointReader,
    latest_checkpoint,
    list_variables,
    load_checkpoint,
)
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError
from torch_trackckpt.graph.messages import read_object_graph
from torch_trackckpt.state_file import get_checkpoint_state

OBJECT_BASED = [content for content in CHECKPOINTS if "object_graph" in content.facts]
NAME_BASED = [content for content in CHECKPOINTS if "object_graph" not in content.facts]


def sha256(value: torch.Tensor | bytes | np.ndarray[Any, Any]) -> str:
    """The digest of the manifest: of row-major bytes; for strings of each length and the bytes."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    elements = [value] if isinstance(value, bytes) else value.ravel().tolist()
    return hashlib.sha256(b"".join(struct.pack("<Q", len(element)) + element for element in elements)).hexdigest()


def tensors_of(reader: CheckpointReader) -> list[list[Any]]:
    """Rows as in the manifest."""
    return [[key, lazy.dtype.name, list(lazy.shape), sha256(lazy.read())] for key, lazy in reader.items()]


def aggregate(rows: list[list[Any]]) -> str:
    lines = "".join(f"{name}\t{dtype}\t{','.join(map(str, shape))}\t{digest}\n" for name, dtype, shape, digest in rows)
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def test_the_files_are_those_that_the_manifest_was_made_of() -> None:
    for item, description in MANIFEST["items"].items():
        for name, size, digest in description["files"]:
            content = (CORPUS / item / name).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest), f"{item}/{name}"


@pytest.mark.parametrize("content", CHECKPOINTS, ids=str)
def test_every_tensor_has_its_name_type_shape_and_bytes(content: Content) -> None:
    """C370, C378, C380."""
    reader = load_checkpoint(content.path)

    rows = tensors_of(reader)

    assert sorted(rows) == sorted(content.facts["tensors"])
    assert aggregate(rows) == content.facts["aggregate"]
    assert len(reader) == content.facts["count"]
    reader.verify()


@pytest.mark.parametrize("content", CHECKPOINTS, ids=str)
def test_names_and_shapes_are_listed_without_a_look_at_the_data(content: Content, tmp_path: Path) -> None:
    """C280, C348."""
    is_bundle = content.facts["kind"] == "v2"
    for path in Path(content.path).parent.glob(Path(content.path).name + "*"):
        if is_bundle and ".data-" not in path.name:
            shutil.copy(path, tmp_path)
    path = str(tmp_path / Path(content.path).name) if is_bundle else content.path

    assert list_variables(path) == sorted((name, shape) for name, _, shape, _ in content.facts["tensors"])


@pytest.mark.parametrize("content", CHECKPOINTS, ids=str)
def test_a_part_of_each_tensor_equals_the_part_of_the_whole(content: Content) -> None:
    """C372."""
    for lazy in load_checkpoint(content.path).values():
        if not lazy.shape or lazy.dtype.torch_dtype is None:
            continue
        index = tuple(slice(size // 3, size - size // 4) for size in lazy.shape)
        whole = lazy.read()
        assert isinstance(whole, torch.Tensor)
        part = lazy[index]
        assert isinstance(part, torch.Tensor)
        assert torch.equal(part.view(-1).view(torch.uint8), whole[index].reshape(-1).view(torch.uint8)), lazy.key


@pytest.mark.parametrize("content", [c for c in CHECKPOINTS if c.facts["kind"] == "v2"], ids=str)
def test_a_mapped_tensor_has_the_bytes_of_the_read_one(content: Content) -> None:
    reader = load_checkpoint(content.path)
    for key, lazy in reader.items():
        assert sha256(reader.get_tensor(key, mmap=True)) == sha256(lazy.read()), key


@pytest.mark.parametrize("content", OBJECT_BASED, ids=str)
def test_the_object_graph_has_the_nodes_edges_slots_and_keys_of_the_manifest(content: Content) -> None:
    expected = content.facts["object_graph"]

    graph = read_object_graph(load_checkpoint(content.path))

    assert graph is not None
    edges = sorted(
        (i, child.local_name, child.node_id) for i, node in enumerate(graph.nodes) for child in node.children
    )
    slots = sorted(
        (i, slot.variable_id, slot.slot_name, slot.slot_id)
        for i, node in enumerate(graph.nodes)
        for slot in node.slot_variables
    )
    keys = sorted(a.checkpoint_key for node in graph.nodes for a in node.attributes)
    assert (len(graph.nodes), len(edges), len(slots)) == (expected["nodes"], expected["edges"], expected["slots"])
    for rows, digest in ((edges, expected["edges_sha256"]), (slots, expected["slots_sha256"])):
        lines = "".join("\t".join(map(str, row)) + "\n" for row in rows)
        assert hashlib.sha256(lines.encode()).hexdigest() == digest
    assert keys == expected["checkpoint_keys"]


@pytest.mark.parametrize("content", OBJECT_BASED, ids=str)
def test_an_object_based_checkpoint_is_restored_as_one(content: Content) -> None:
    """C340."""
    checkpoint = Checkpoint()
    graph = read_object_graph(load_checkpoint(content.path))
    assert graph is not None
    variables = [
        (child.local_name, attribute.checkpoint_key)
        for child in graph.nodes[0].children
        for attribute in graph.nodes[child.node_id].attributes
        if attribute.name == "VARIABLE_VALUE" and child.local_name != "save_counter"
    ]
    reader = load_checkpoint(content.path)
    expected = {name: reader.get_tensor(key) for name, key in variables}
    for name, value in expected.items():
        setattr(checkpoint, name, torch.zeros_like(torch.as_tensor(value)))

    checkpoint.restore(content.path).expect_partial()

    for name, value in expected.items():
        assert torch.equal(getattr(checkpoint, name), torch.as_tensor(value))


@pytest.mark.parametrize("content", NAME_BASED, ids=str)
def test_a_name_based_checkpoint_is_restored_by_its_names(content: Content, caplog: pytest.LogCaptureFixture) -> None:
    """C334, C404."""
    reader = load_checkpoint(content.path)
    names = [name for name, lazy in reader.items() if lazy.dtype.is_twin and lazy.dtype.torch_dtype is not None]
    live = {f"v{i}": torch.zeros_like(torch.as_tensor(reader.get_tensor(name))) for i, name in enumerate(names)}
    checkpoint = Checkpoint(**live)
    options = CheckpointOptions(name_map={f"v{i}": name for i, name in enumerate(names)})
    checkpoint.restore(content.path, options).assert_consumed()

    assert [sha256(tensor) for tensor in live.values()] == [sha256(reader.get_tensor(name)) for name in names]
    assert "no object graph" in caplog.text


@pytest.mark.parametrize("content", [c for c in contents("saved_model") if "error" not in c.facts], ids=str)
def test_a_saved_model_directory_stands_for_its_variables(content: Content) -> None:
    """C340, C403."""
    directory = content.path
    assert tensors_of(load_checkpoint(directory)) == tensors_of(load_checkpoint(f"{directory}/variables/variables"))
    Checkpoint().restore(directory).expect_partial()


@pytest.mark.parametrize("content", contents("state"), ids=str)
def test_a_state_file_says_what_the_manifest_says(content: Content) -> None:
    """C240, C247."""
    directory = os.path.dirname(content.path)
    facts = content.facts

    state = get_checkpoint_state(directory)

    assert state is not None
    joined = [os.path.join(directory, path) for path in facts["all_model_checkpoint_paths"]]
    assert list(state.all_model_checkpoint_paths) == joined
    assert state.model_checkpoint_path == os.path.join(directory, facts["model_checkpoint_path"])
    assert len(state.all_model_checkpoint_timestamps) == facts["timestamps"]
    latest = facts["latest_checkpoint"]
    assert latest_checkpoint(directory) == (None if latest is None else str(CORPUS / content.item / latest))


def test_a_pointer_of_git_lfs_is_called_one() -> None:
    with pytest.raises(DataLossError, match=r"variables\.index.*Git LFS.*git lfs pull"):
        load_checkpoint(CORPUS / "bad-lfs-pointers" / "variables" / "variables")
    with pytest.raises(DataLossError, match="Git LFS"):
        Checkpoint().restore(CORPUS / "bad-lfs-pointers")


def test_a_data_file_that_is_a_pointer_of_git_lfs_is_called_one(tmp_path: Path) -> None:
    source = CORPUS / "v2-onnx-regression"
    shutil.copy(source / "model.index", tmp_path)
    pointer = CORPUS / "bad-lfs-pointers" / "variables" / "variables.data-00000-of-00001"
    shutil.copy(pointer, tmp_path / "model.data-00000-of-00001")
    reader = load_checkpoint(tmp_path / "model")
    with pytest.raises(DataLossError, match=r"model\.data-00000-of-00001.*Git LFS.*git lfs pull"):
        reader.get_tensor("b")


def test_a_state_file_alone_is_no_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    """C254."""
    with pytest.raises(ValueError, match="Couldn't find a checkpoint"):
        load_checkpoint(CORPUS / "bad-state-only")
    assert "/tmp/bad_half_plus_two/00000123/export" in caplog.text


def test_a_missing_shard_leaves_the_tensors_of_the_others_readable(tmp_path: Path) -> None:
    """C385."""
    source = CORPUS / "v2-sonnet-mean-2shards"
    for name in ("checkpoint-1.index", "checkpoint-1.data-00001-of-00002"):
        shutil.copy(source / name, tmp_path)
    reader = load_checkpoint(tmp_path / "checkpoint-1")
    whole = load_checkpoint(source / "checkpoint-1")

    outcomes = {}
    for key in reader:
        try:
            outcomes[key] = sha256(reader.get_tensor(key)) == sha256(whole.get_tensor(key))
        except CheckpointNotFoundError as error:
            outcomes[key] = str(tmp_path / "checkpoint-1.data-00000-of-00002") in str(error)

    assert set(outcomes.values()) == {True}
    with pytest.raises((CheckpointNotFoundError, DataLossError), match="data-00000-of-00002"):
        reader.verify()


def test_a_v1_checkpoint_in_several_files_is_opened_by_pattern_or_by_what_the_names_share(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """C380."""
    caplog.set_level(logging.WARNING)
    folder = CORPUS / "v1-half-plus-two"
    (content,) = [c for c in CHECKPOINTS if c.item == "v1-half-plus-two"]
    for name in ("export-?????-of-00001", "export-00000-of-00001", "export"):
        assert sorted(tensors_of(load_checkpoint(folder / name))) == sorted(content.facts["tensors"])
    assert caplog.text == ""
