"""Looking into a checkpoint without a model, and what a damaged one says."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from torch_trackckpt import Checkpoint, CheckpointReader, list_variables, load_checkpoint, load_variable
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError, TensorNotFoundError

GOLDEN = Path(__file__).parent / "golden"
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
A = "a/.ATTRIBUTES/VARIABLE_VALUE"
B = "b/.ATTRIBUTES/VARIABLE_VALUE"

Damage = Callable[[str, str], None]


@pytest.fixture
def path(prefix: str) -> str:
    """A checkpoint of two tensors."""
    return Checkpoint(a=torch.arange(6.0).reshape(2, 3), b=torch.tensor([7, 8])).write(prefix)


def data_file(path: str) -> str:
    return f"{path}.data-00000-of-00001"


# ----------------------------------------------------------------------------------------------- finding


def test_a_path_and_the_index_file_itself_open_the_checkpoint(path: str) -> None:
    """C345, C347, C354"""
    for name in (path, Path(path), path + ".index"):
        assert load_checkpoint(name).has_tensor(A)
        assert load_checkpoint(name).file_prefix == path


def test_a_directory_stands_for_its_latest_checkpoint(tmp_path: Path) -> None:
    """C345, C354"""
    x = torch.tensor(1)
    checkpoint = Checkpoint(x=x)
    checkpoint.save(tmp_path / "ckpt")
    x += 1
    path = checkpoint.save(tmp_path / "ckpt")
    assert load_checkpoint(tmp_path).file_prefix == path
    assert torch.equal(torch.as_tensor(load_variable(str(tmp_path), "x/.ATTRIBUTES/VARIABLE_VALUE")), x)


def test_a_directory_without_checkpoints_is_an_error_that_names_it(path: str) -> None:
    """C346"""
    directory = os.path.dirname(path)
    for function in (load_checkpoint, list_variables):
        with pytest.raises(ValueError, match=rf"Couldn't find a checkpoint in the directory '{directory}'"):
            function(directory)


def test_a_missing_path_is_not_found(tmp_path: Path) -> None:
    """C346, C353"""
    for function in (load_checkpoint, list_variables, CheckpointReader):
        with pytest.raises(FileNotFoundError, match=rf"There is no checkpoint at '{tmp_path}/run/ckpt-1'"):
            function(str(tmp_path / "run" / "ckpt-1"))


def test_a_data_file_is_no_checkpoint(path: str) -> None:
    """C347"""
    with pytest.raises(CheckpointNotFoundError, match=re.escape(repr(data_file(path)))):
        load_checkpoint(data_file(path))


# ----------------------------------------------------------------------------------------------- listing


def test_variables_are_listed_by_key_with_shapes_graph_and_strings_included(path: str) -> None:
    """C348"""
    assert list_variables(path) == [(GRAPH, []), (A, [2, 3]), (B, [2])]


def test_variables_of_a_tensorflow_file_are_listed() -> None:
    """C348"""
    listed = dict(list_variables(GOLDEN / "obj_adam_slots"))
    assert listed["model/w/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE"] == [2, 2]
    assert list(listed) == sorted(listed)


def test_a_reader_knows_shapes_types_and_keys(path: str) -> None:
    """C351"""
    reader = load_checkpoint(path)
    assert reader.get_variable_to_shape_map() == {GRAPH: [], A: [2, 3], B: [2]}
    types = reader.get_variable_to_dtype_map()
    assert {key: dtype.name for key, dtype in types.items()} == {GRAPH: "string", A: "float32", B: "int64"}
    assert types[A].torch_dtype == torch.float32
    assert reader.has_tensor(A)
    assert not reader.has_tensor("a")
    assert reader.debug_string() == f"{GRAPH} (DT_STRING) []\n{A} (DT_FLOAT) [2,3]\n{B} (DT_INT64) [2]\n"


# ----------------------------------------------------------------------------------------------- reading


def test_a_value_is_a_tensor_of_the_stored_type_that_owns_its_memory(path: str) -> None:
    """C349, C352"""
    reader = load_checkpoint(path)
    value, again = reader.get_tensor(A), reader.get_tensor(A)
    assert isinstance(value, torch.Tensor)
    assert torch.equal(value, torch.arange(6.0).reshape(2, 3))
    value.zero_()
    assert torch.equal(torch.as_tensor(again), torch.arange(6.0).reshape(2, 3))


def test_a_trailing_zero_output_is_dropped_from_a_name(path: str) -> None:
    """C349"""
    assert torch.equal(torch.as_tensor(load_variable(path, B + ":0")), torch.tensor([7, 8]))


def test_strings_are_bytes() -> None:
    """C352"""
    text = load_variable(GOLDEN / "obj_module" / "ckpt-1", "text/.ATTRIBUTES/VARIABLE_VALUE")
    assert text == "hé".encode()
    strings = GOLDEN / "v2_strings" / "ckpt"
    (key, shape), *_ = [(key, shape) for key, shape in list_variables(strings) if len(shape) == 1]
    array = load_variable(strings, key)
    assert isinstance(array, np.ndarray)
    assert list(array.shape) == shape
    assert all(type(element) is bytes for element in array)


def test_an_unknown_name_is_an_error_that_names_it_and_the_checkpoint(path: str) -> None:
    """C350"""
    with pytest.raises(TensorNotFoundError, match=rf"^Key c not found in checkpoint '{path}'\.$"):
        load_variable(path, "c")
    with pytest.raises(KeyError):
        load_checkpoint(path).get_tensor("c")


def test_no_file_stays_open_and_values_outlive_the_files(path: str) -> None:
    """C059"""
    reader = load_checkpoint(path)
    value = reader.get_tensor(A)
    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
    assert not [name for name in names if name.startswith(path)]
    for file in Path(path).parent.iterdir():
        file.unlink()
    assert torch.equal(torch.as_tensor(value), torch.arange(6.0).reshape(2, 3))


def _is_open(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


# ------------------------------------------------------------------------------------------------ damage


def test_a_flipped_bit_in_a_value_is_named_with_file_offset_and_both_checksums(path: str, damage: Damage) -> None:
    """C355, C382"""
    damage(path, A)
    reader = load_checkpoint(path)
    with pytest.raises(
        DataLossError,
        match=rf"^Checksum does not match: key {A}, file {data_file(path)}, offset 0, size 24: "
        r"stored 0x[0-9a-f]{8} but computed 0x[0-9a-f]{8}$",
    ):
        reader.get_tensor(A)
    assert torch.equal(torch.as_tensor(reader.get_tensor(B)), torch.tensor([7, 8]))


def test_verifying_finds_a_flipped_bit_among_all_values(path: str, damage: Damage) -> None:
    """C382"""
    load_checkpoint(path).verify()
    damage(path, B)
    with pytest.raises(DataLossError, match=rf"Checksum does not match: key {B}"):
        load_checkpoint(path).verify()
    load_checkpoint(path).verify([A])


def test_a_flipped_bit_in_the_graph_leaves_other_values_readable(path: str, damage: Damage) -> None:
    """C388"""
    damage(path, GRAPH)
    reader = load_checkpoint(path)
    assert torch.equal(torch.as_tensor(reader.get_tensor(B)), torch.tensor([7, 8]))
    with pytest.raises(DataLossError, match=GRAPH):
        reader.get_tensor(GRAPH)


def test_values_beyond_the_end_of_a_cut_file_are_named_and_the_others_readable(path: str) -> None:
    """C355, C384"""
    os.truncate(data_file(path), 39)
    reader = load_checkpoint(path)
    assert torch.equal(torch.as_tensor(reader.get_tensor(A)), torch.arange(6.0).reshape(2, 3))
    with pytest.raises(
        DataLossError, match=rf"{data_file(path)}: .* key {B} lies at offset 24, size 16, but the file has 39 bytes"
    ):
        reader.get_tensor(B)


def test_an_empty_data_file_is_named(path: str) -> None:
    """C385"""
    os.truncate(data_file(path), 0)
    with pytest.raises(DataLossError, match=rf"{data_file(path)}: .* but the file has 0 bytes"):
        load_variable(path, A)


def test_a_missing_data_file_is_named(path: str) -> None:
    """C385"""
    os.unlink(data_file(path))
    reader = load_checkpoint(path)
    assert reader.get_variable_to_shape_map()[A] == [2, 3]
    with pytest.raises(CheckpointNotFoundError, match=data_file(path)):
        reader.get_tensor(A)


def cut_to_half(index: Path) -> None:
    os.truncate(index, index.stat().st_size // 2)


def flip_in_first_block(index: Path) -> None:
    content = bytearray(index.read_bytes())
    content[4] ^= 1
    index.write_bytes(content)


def change_magic_number(index: Path) -> None:
    index.write_bytes(index.read_bytes()[:-1] + b"\0")


INDEX_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda index: os.truncate(index, 0), r"too short .*\(0 bytes\)"),
    "cut": (cut_to_half, "magic number"),
    "wrong magic": (change_magic_number, "magic number"),
    "garbage": (lambda index: index.write_bytes(bytes(range(256))), "magic number"),
    "flipped": (flip_in_first_block, "block checksum mismatch"),
}


@pytest.mark.parametrize("kind", list(INDEX_DAMAGE))
def test_a_damaged_index_is_an_error_at_opening_that_names_the_file(path: str, kind: str) -> None:
    """C386, C387"""
    break_index, reason = INDEX_DAMAGE[kind]
    break_index(Path(path + ".index"))
    with pytest.raises(DataLossError, match=reason) as caught:
        load_checkpoint(path)
    assert path + ".index" in str(caught.value)


def test_a_missing_index_is_not_found(path: str) -> None:
    """C386"""
    os.unlink(path + ".index")
    with pytest.raises(CheckpointNotFoundError, match=rf"no file '{path}\.index'"):
        load_checkpoint(path)
