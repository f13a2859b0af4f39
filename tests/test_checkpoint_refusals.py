"""What does not fit or is damaged is named, and nothing live has changed."""

import os
from collections.abc import Callable
from pathlib import Path

import planned
import pytest
import torch
from checkpoints import thing, zero
from graph_messages import encode_object_graph

from torch_trackckpt import (
    Checkpoint,
    load_variable,
)
from torch_trackckpt.errors import (
    CheckpointNotFoundError,
    DataLossError,
    MismatchError,
    TensorNotFoundError,
)
from torch_trackckpt.graph.object_graph import Attribute, Child, Node, ObjectGraph
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY, Value

GOLDEN = Path(__file__).parent / "golden"

Damage = Callable[[str, str], None]


# ---------------------------------------------------------------------------------- mismatch and damage


def test_every_conflict_of_shape_and_dtype_is_listed_in_one_error_and_nothing_changes(prefix: str) -> None:
    """C065, C066, C067, C068"""
    Checkpoint(a=torch.tensor(5), b=torch.ones(2, 3), c=torch.ones(1), d=torch.ones(2)).save(prefix)
    live = {"a": zero(), "b": torch.zeros(3, 2), "c": torch.tensor(0.0), "d": torch.zeros(2, dtype=torch.float64)}
    checkpoint = Checkpoint(**live)
    with pytest.raises(MismatchError) as caught:
        checkpoint.restore(prefix + "-1")
    message = str(caught.value)
    assert message.startswith(f"3 values of '{prefix}-1' cannot be restored; nothing has been assigned:")
    assert (
        "(root).b: received incompatible tensor with shape [2, 3] when attempting to restore a tensor with shape "
        "[3, 2] (key b/.ATTRIBUTES/VARIABLE_VALUE)"
    ) in message
    assert "(root).c: received incompatible tensor with shape [1] when" in message
    assert (
        "(root).d: tensor_name = d/.ATTRIBUTES/VARIABLE_VALUE; expected dtype float64 does not equal original dtype "
        "float32"
    ) in message
    assert not any(tensor.any() for tensor in live.values())
    assert checkpoint.save_counter.item() == 0


def x_and_y() -> tuple[torch.Tensor, torch.Tensor, Checkpoint]:
    x, y = torch.zeros(2), torch.zeros(3)
    return x, y, Checkpoint(x=x, y=y)


def test_a_flipped_bit_is_an_error_that_names_key_and_file_and_nothing_changes(prefix: str, damage: Damage) -> None:
    """C382, C392"""
    path = Checkpoint(x=torch.ones(2), y=torch.ones(3)).save(prefix)
    damage(path, "y/.ATTRIBUTES/VARIABLE_VALUE")
    x, y, checkpoint = x_and_y()
    with pytest.raises(
        DataLossError, match=rf"Checksum does not match: key y/.*, file {path}\.data-.*stored 0x.* but computed 0x"
    ):
        checkpoint.restore(path)
    assert not x.any()
    assert not y.any()
    assert checkpoint.save_counter.item() == 0


def test_a_flipped_bit_in_the_graph_is_an_error_and_nothing_changes(prefix: str, damage: Damage) -> None:
    """C388"""
    path = Checkpoint(x=torch.ones(2), y=torch.ones(3)).save(prefix)
    damage(path, OBJECT_GRAPH_KEY)
    x, _, checkpoint = x_and_y()
    with pytest.raises(DataLossError, match=rf"key {OBJECT_GRAPH_KEY}, file {path}\.data-"):
        checkpoint.restore(path)
    assert not x.any()


@pytest.mark.parametrize("num_bytes", [0, 7, 15])
def test_a_cut_data_file_is_an_error_that_names_it_and_nothing_changes(prefix: str, num_bytes: int) -> None:
    """C384, C385"""
    path = Checkpoint(x=torch.ones(2), y=torch.ones(3)).save(prefix)
    os.truncate(f"{path}.data-00000-of-00001", num_bytes)
    x, _, checkpoint = x_and_y()
    with pytest.raises(DataLossError, match=rf"{path}\.data-00000-of-00001: .* but the file has {num_bytes} bytes"):
        checkpoint.restore(path)
    assert not x.any()


def test_a_missing_data_file_is_an_error_that_names_it_and_nothing_changes(prefix: str) -> None:
    """C385"""
    path = Checkpoint(x=torch.ones(2), y=torch.ones(3)).save(prefix)
    os.unlink(f"{path}.data-00000-of-00001")
    x, _, checkpoint = x_and_y()
    with pytest.raises(CheckpointNotFoundError, match=rf"{path}\.data-00000-of-00001"):
        checkpoint.restore(path)
    assert not x.any()


@pytest.mark.parametrize("content", [b"", b"garbage" * 20])
def test_a_damaged_index_is_an_error_that_names_it(prefix: str, content: bytes) -> None:
    """C386"""
    path = Checkpoint(x=torch.ones(2), y=torch.ones(3)).save(prefix)
    Path(path + ".index").write_bytes(content)
    x, _, checkpoint = x_and_y()
    with pytest.raises(DataLossError, match=rf"{path}\.index"):
        checkpoint.restore(path)
    assert not x.any()


def graph_of_x(key: str) -> dict[str, Value]:
    nodes = (
        Node(children=(Child(1, "x"), Child(2, "y"))),
        Node(attributes=(Attribute("VARIABLE_VALUE", "", key),)),
        Node(attributes=(Attribute("VARIABLE_VALUE", "", "other"),)),
    )
    return {OBJECT_GRAPH_KEY: encode_object_graph(ObjectGraph(nodes))}


def test_a_value_that_the_graph_names_and_the_file_lacks_is_an_error_with_its_key(prefix: str) -> None:
    """C073"""
    planned.publish(prefix, graph_of_x("missing") | {"other": torch.ones(3)})
    _, y, checkpoint = x_and_y()
    with pytest.raises(TensorNotFoundError, match=rf"'{prefix}' names a value for \(root\)\.x under the key missing"):
        checkpoint.read(prefix)
    assert not y.any()


def test_the_key_that_the_graph_names_counts_not_the_one_that_the_path_would_give(prefix: str) -> None:
    """C015"""
    planned.publish(prefix, graph_of_x("elsewhere") | {"elsewhere": torch.ones(2), "other": torch.ones(3)})
    x, _, checkpoint = x_and_y()
    checkpoint.read(prefix).assert_consumed()
    assert torch.equal(x, torch.ones(2))


def test_text_where_the_program_has_a_tensor_is_an_error_and_nothing_changes(prefix: str) -> None:
    """C067"""
    planned.publish(prefix, graph_of_x("text") | {"text": b"12345678", "other": torch.ones(3)})
    x, y, checkpoint = x_and_y()
    with pytest.raises(MismatchError, match=r"expected dtype float32 does not equal original dtype string"):
        checkpoint.read(prefix)
    assert not x.any()
    assert not y.any()


def test_a_graph_record_that_is_no_string_is_damage(prefix: str) -> None:
    """C391"""
    planned.publish(prefix, {OBJECT_GRAPH_KEY: torch.ones(2)})
    with pytest.raises(DataLossError, match=rf"The object graph of '{prefix}' .* not a string scalar"):
        Checkpoint().read(prefix)


def test_a_model_alone_is_restored_from_a_tensorflow_file_of_model_and_optimizer() -> None:
    """C397"""
    path = GOLDEN / "obj_adam_slots" / "ckpt-1"
    w = torch.zeros(2, 2)
    Checkpoint(model=thing(w=w)).restore(path).expect_partial()
    assert torch.equal(w, torch.as_tensor(load_variable(path, "model/w/.ATTRIBUTES/VARIABLE_VALUE")))
