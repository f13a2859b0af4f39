"""`CheckpointReader` as a mapping of names to values that have not been read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from native import crafted, crafted_v1

from torch_trackckpt import Checkpoint, CheckpointReader
from torch_trackckpt.bundle.dtypes import VARIANT, data_type_of_name, data_type_of_number
from torch_trackckpt.bundle.reader import LazyTensor, StoredTensor
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.errors import DataLossError, TensorNotFoundError, UnsupportedFormatError

ALL = (0, -1)
FLOAT, STRING = 1, 7
KEYS = ["B", "a", "a/b", "b", "é", "日本"]
ODD = [b"\xff\xfe", b"na\xc3", b"\xed\xa0\x80", b"nul\x00in", b"line\nbreak", b"\x80"]


@pytest.fixture
def reader(tmp_path: Path) -> CheckpointReader:
    """A float matrix under each key, and strings and a sliced tensor."""
    bundle = crafted.Bundle()
    for number, key in enumerate(KEYS):
        bundle.add_array(key.encode(), FLOAT, np.full((2, 3), number, np.float32))
    bundle.add_array(b"text", STRING, np.array([b"x", b"yz"], dtype=object))
    bundle.add_slices(b"w", FLOAT, np.arange(6, dtype=np.float32), [((0, 2),), ((2, 4),)])
    bundle.write(tmp_path / "ckpt")
    return CheckpointReader(tmp_path / "ckpt")


def test_it_is_a_mapping_in_the_byte_order_of_the_keys(reader: CheckpointReader) -> None:
    """C379"""
    names = sorted([*KEYS, "text", "w"], key=str.encode)
    assert isinstance(reader, Mapping)
    assert list(reader) == list(reader.keys()) == [lazy.key for lazy in reader.values()] == names
    assert [(key, lazy.key) for key, lazy in reader.items()] == list(zip(names, names, strict=True))
    assert [stored.key for stored in reader.all_stored()] == names
    assert list(reader.get_variable_to_shape_map()) == list(reader.get_variable_to_dtype_map()) == names
    assert len(reader) == len(names)
    assert bool(reader)
    assert list(iter(reader)) == list(iter(reader))


def test_membership_and_get_follow_the_keys(reader: CheckpointReader) -> None:
    """C351"""
    assert all(key in reader and reader.has_tensor(key) for key in reader)
    lazy = reader.get("a")
    assert lazy is not None
    assert lazy == reader["a"]
    for absent in ("", "A", "a/", "a/b/c", "w\0", "\0w", "é".encode("latin-1").decode("utf-8", "surrogateescape")):
        assert absent not in reader
        assert not reader.has_tensor(absent)
        assert reader.get(absent) is None
        with pytest.raises(KeyError):
            reader[absent]
    for other in (None, 1, b"a", ("a",), ["a"], np.array(1)):
        assert other not in reader


@pytest.mark.parametrize("key", [chr(0xD800), "a" + chr(0xDFFF), chr(0xDC00)], ids=ascii)
def test_a_text_that_is_no_key_of_any_file_is_not_found(reader: CheckpointReader, key: str) -> None:
    """C350: lone surrogates, but for those that stand for bytes, have no bytes."""
    assert key not in reader
    assert not reader.has_tensor(key)
    assert reader.get(key) is None
    for ask in (reader.get_tensor, reader.stored, reader.get_variants, reader.__getitem__):
        with pytest.raises(TensorNotFoundError):
            ask(key)


def test_the_keys_of_stored_slices_and_of_the_header_are_no_values(reader: CheckpointReader) -> None:
    """C371"""
    for extents in (((0, 2),), ((2, 4),)):
        key = crafted.witness.slice_key(b"w", extents).decode(errors="surrogateescape")
        assert key not in list(reader)
    assert "" not in reader
    assert reader["w"].shape == (6,)


def test_it_cannot_be_changed(reader: CheckpointReader) -> None:
    with pytest.raises(TypeError):
        reader["a"] = torch.zeros(1)  # type: ignore[index]
    with pytest.raises(TypeError):
        del reader["a"]  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        reader["a"].stored = None  # type: ignore[misc,assignment]


# ---------------------------------------------------------------------------------------------- lazy tensors


def test_a_lazy_tensor_tells_what_is_stored_without_the_data(reader: CheckpointReader, tmp_path: Path) -> None:
    (tmp_path / "ckpt.data-00000-of-00001").unlink()
    lazy = reader["a/b"]
    assert isinstance(lazy, LazyTensor)
    assert (lazy.key, lazy.dtype.name, lazy.shape, lazy.nbytes) == ("a/b", "float32", (2, 3), 24)
    assert lazy.stored == StoredTensor("a/b", data_type_of_name("float32"), (2, 3), 24) == reader.stored("a/b")
    assert lazy.reader is reader
    assert (reader["w"].nbytes, reader["w"].shape) == (24, (6,))
    assert reader["text"].nbytes == 2 + 4 + 3
    assert (reader["text"].dtype.name, reader["text"].dtype.torch_dtype) == ("string", None)


def test_a_lazy_tensor_shows_what_it_is_and_not_its_reader(reader: CheckpointReader) -> None:
    shown = repr(reader["a"])
    assert re.match(
        r"LazyTensor\(stored=StoredTensor\(key='a', dtype=.*float32.*, shape=\(2, 3\), nbytes=24\)\)", shown
    )
    assert "reader" not in shown


def test_a_lazy_tensor_reads_anew_each_time(reader: CheckpointReader, tmp_path: Path) -> None:
    lazy = reader["b"]
    first = torch.as_tensor(lazy.read())
    first.zero_()
    assert torch.as_tensor(lazy.read()).tolist() == [[3.0] * 3] * 2
    assert torch.as_tensor(lazy[1, 1:]).tolist() == [3.0, 3.0]
    assert torch.as_tensor(lazy["0,1:-"]).tolist() == [[3.0] * 3]
    crafted.flip(tmp_path / "ckpt.data-00000-of-00001", 3 * 24)
    with pytest.raises(DataLossError, match="key b"):
        lazy.read()


def test_two_readers_of_one_file_are_not_equal_and_one_is_equal_to_itself(
    reader: CheckpointReader, tmp_path: Path
) -> None:
    other = CheckpointReader(tmp_path / "ckpt")
    assert reader == reader
    assert reader != other
    assert reader != dict(reader)
    assert len({reader, other, reader}) == 2
    assert reader["a"] == reader["a"] != other["a"]
    assert len({reader["a"], reader["a"], reader["b"], other["a"]}) == 3


def test_a_reader_shows_its_path(reader: CheckpointReader, tmp_path: Path) -> None:
    assert repr(reader) == f"CheckpointReader('{tmp_path}/ckpt')"
    assert repr(CheckpointReader(tmp_path / "ckpt.index")) == repr(reader)


def test_stored_slices_are_told_in_their_order(reader: CheckpointReader) -> None:
    """C371"""
    assert reader.stored_slices("w") == [TensorSlice.parse("6 0,2"), TensorSlice.parse("6 2,4")]
    assert reader.stored_slices("a") == reader.stored_slices("text") == []


def test_a_line_is_shown_for_each_value(reader: CheckpointReader) -> None:
    """C351"""
    lines = reader.debug_string().split("\n")
    assert lines[-1] == ""
    assert lines[:-1] == [
        "B (DT_FLOAT) [2,3]",
        "a (DT_FLOAT) [2,3]",
        "a/b (DT_FLOAT) [2,3]",
        "b (DT_FLOAT) [2,3]",
        "text (DT_STRING) [2]",
        "w (DT_FLOAT) [6]",
        "é (DT_FLOAT) [2,3]",
        "日本 (DT_FLOAT) [2,3]",
    ]


# ---------------------------------------------------------------------------------------------- odd keys


@pytest.mark.parametrize("kind", ["bundle", "V1"])
def test_keys_of_any_bytes_are_listed_and_read(tmp_path: Path, kind: str) -> None:
    """C379: what is no UTF-8 is surrogates, and leads back to the bytes."""
    if kind == "bundle":
        bundle = crafted.Bundle()
        for number, key in enumerate(ODD):
            bundle.add_array(key, FLOAT, np.array([number], np.float32))
        bundle.write(tmp_path / "ckpt")
    else:
        metas = [crafted_v1.tensor_meta(key, 3, (1,), [(ALL,)]) for key in ODD]
        records = [crafted_v1.saved(key, (ALL,), crafted_v1.proto(3, bytes([n, 0, 0, 0]))) for n, key in enumerate(ODD)]
        crafted_v1.write_records(tmp_path / "ckpt", crafted_v1.meta(metas), records)
    reader = CheckpointReader(tmp_path / "ckpt")
    assert {key.encode(errors="surrogateescape") for key in reader} == set(ODD)
    assert len(reader) == len(ODD)
    for key, lazy in reader.items():
        number = ODD.index(key.encode(errors="surrogateescape"))
        assert key in reader
        assert lazy.key == key
        assert torch.as_tensor(lazy.read()).tolist() == [number]
        assert torch.as_tensor(lazy[0]).item() == number
    reader.verify()
    assert set(reader.get_variable_to_shape_map()) == set(reader)


def test_a_damaged_value_under_an_odd_key_is_an_error_that_can_be_shown(tmp_path: Path) -> None:
    """C382"""
    bundle = crafted.Bundle()
    bundle.add_array(b"\xff\xfe", FLOAT, np.zeros(2, np.float32))
    bundle.write(tmp_path / "ckpt")
    crafted.flip(tmp_path / "ckpt.data-00000-of-00001", 0)
    with pytest.raises(DataLossError, match="Checksum does not match") as caught:
        CheckpointReader(tmp_path / "ckpt").verify()
    assert str(caught.value).encode(errors="surrogateescape")
    with pytest.raises(TensorNotFoundError, match="Key"):
        CheckpointReader(tmp_path / "ckpt").get_tensor("\udcff")


def test_the_object_graph_is_one_of_the_keys(prefix: str) -> None:
    """C348"""
    reader = CheckpointReader(Checkpoint(x=torch.ones(2)).write(prefix))
    assert list(reader) == ["_CHECKPOINTABLE_OBJECT_GRAPH", "x/.ATTRIBUTES/VARIABLE_VALUE"]
    assert type(reader["_CHECKPOINTABLE_OBJECT_GRAPH"].read()) is bytes


# ------------------------------------------------------------------------------ unknown types, variants


@pytest.mark.parametrize("number", [0, 34, 99, 101, 133, 1 << 20])
def test_an_unknown_type_is_listed_with_its_number_and_refused_when_read(tmp_path: Path, number: int) -> None:
    """C390"""
    bundle = crafted.Bundle()
    bundle.add(b"odd", number, (2, 2), b"\0" * 12)
    bundle.add_array(b"x", FLOAT, np.ones(2, np.float32))
    bundle.write(tmp_path / "ckpt")
    reader = CheckpointReader(tmp_path / "ckpt")
    lazy = reader["odd"]
    assert (lazy.dtype.number, lazy.dtype.name, lazy.dtype.torch_dtype) == (number, f"unknown_{number}", None)
    assert (lazy.shape, lazy.nbytes, lazy.dtype.is_twin) == ((2, 2), 12, False)
    assert reader.get_variable_to_dtype_map()["odd"] == data_type_of_number(number)
    assert reader.debug_string().startswith(f"odd (DT_UNKNOWN_{number}) [2,2]\n")
    for ask in (lazy.read, lambda: lazy.read(mmap=True), lambda: lazy[0], lambda: reader.get_tensor("odd", "-:-")):
        with pytest.raises(UnsupportedFormatError, match=rf"^odd: .*unknown_{number}"):
            ask()
    with pytest.raises(ValueError, match="odd is no variant tensor"):
        reader.get_variants("odd")
    assert torch.as_tensor(reader["x"].read()).tolist() == [1, 1]


def test_variants_are_refused_as_tensors_and_given_as_messages() -> None:
    """C381"""
    reader = CheckpointReader(crafted.GOLDEN / "variant" / "ckpt")
    assert {key: (lazy.dtype, lazy.shape) for key, lazy in reader.items() if key != "number"} == {
        "matrix": (VARIANT, (2, 2)),
        "none": (VARIANT, (0, 2)),
        "scalar": (VARIANT, ()),
    }
    for key in ("matrix", "none", "scalar"):
        for index in (None, ..., ()):
            with pytest.raises(UnsupportedFormatError, match=rf"^{key}: .*variant.*get_variants\(key\)"):
                reader.get_tensor(key, index)
    assert [len(reader.get_variants(key)) for key in ("matrix", "none", "scalar")] == [4, 0, 1]
    assert all(b"tensorflow::TensorList" in message for message in reader.get_variants("matrix"))
    assert isinstance(reader["number"].read(), torch.Tensor)


@pytest.mark.parametrize(("key", "name"), [("number", "int32"), ("text", "string")])
def test_what_is_no_variant_has_no_messages(tmp_path: Path, key: str, name: str) -> None:
    """C381"""
    bundle = crafted.Bundle()
    bundle.add(b"number", 3, (1,), b"\1\0\0\0")
    bundle.add(b"text", STRING, (), [b"words"])
    bundle.write(tmp_path / "ckpt")
    with pytest.raises(ValueError, match=rf"{key} is no variant tensor but {name}; use get_tensor"):
        CheckpointReader(tmp_path / "ckpt").get_variants(key)


def test_a_damaged_entry_costs_itself_alone(tmp_path: Path) -> None:
    """C355, C390"""
    bundle = crafted.Bundle()
    bundle.add_array(b"x", FLOAT, np.ones(2, np.float32))
    bundle.entries[b"bad"] = crafted.entry(FLOAT, (-1,), size=4)
    bundle.write(tmp_path / "ckpt")
    reader = CheckpointReader(tmp_path / "ckpt")
    asks: list[Any] = [reader.get_tensor, reader.stored, reader.stored_slices, lambda key: reader.get_tensor(key, ...)]
    for ask in asks:
        with pytest.raises(DataLossError, match="Invalid tensor shape: bad"):
            ask("bad")
    assert torch.as_tensor(reader.get_tensor("x")).tolist() == [1, 1]
    assert torch.as_tensor(reader["x"][1]).item() == 1
