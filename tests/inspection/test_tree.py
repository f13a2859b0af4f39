"""The object graph of a checkpoint as text."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from checkpoints import thing
from graph_messages import encode_object_graph
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError
from torch_trackckpt.graph.object_graph import Attribute, Child, Node, ObjectGraph, SlotVariable
from torch_trackckpt.inspection.tree import format_tree
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY

GOLDEN = Path(__file__).parents[1] / "golden"
SCALAR = torch.zeros((), dtype=torch.int32)


def text(drawing: str) -> str:
    return dedent(drawing).strip("\n")


def write(prefix: str, values: Mapping[str, torch.Tensor], *nodes: Node) -> str:
    """A bundle of values, with an object graph if nodes are given."""
    with BundleWriter(f"{prefix}.data-00000-of-00001", f"{prefix}.index", durable=False) as writer:
        for key, value in values.items():
            writer.add(key, value)
        if nodes:
            writer.add_strings(OBJECT_GRAPH_KEY, encode_object_graph(ObjectGraph(nodes)))
    return prefix


def variable(key: str) -> Node:
    return Node(attributes=(Attribute("VARIABLE_VALUE", "", key),))


class Note:
    """A python state of three bytes."""

    def serialize(self) -> bytes:
        return b"abc"

    def deserialize(self, state: bytes) -> None: ...


def test_objects_stand_under_their_local_names_and_values_have_dtype_shape_and_size(prefix: str) -> None:
    model = nn.ModuleDict({"fc": nn.Linear(300, 2, dtype=torch.float64), "act": nn.ReLU()})
    Checkpoint(model=model, step=torch.tensor(7), mask=torch.tensor([True, False])).write(prefix)

    assert format_tree(prefix) == text("""
        ckpt
        ├─ mask          bool [2]              2 B
        ├─ model
        │  ├─ fc
        │  │  ├─ weight  float64 [2, 300]  4.7 KiB
        │  │  └─ bias    float64 [2]          16 B
        │  └─ act
        └─ step          int64 []              8 B
        4 values, 4.7 KiB, 8 objects
    """)


def test_a_slot_stands_under_its_variable_with_its_optimizer(prefix: str) -> None:
    weight = nn.Parameter(torch.ones(16, 8))
    adam = torch.optim.Adam([weight])
    weight.sum().backward()
    adam.step()
    Checkpoint(weight=weight, optimizer=adam).write(prefix)

    lines = format_tree(prefix).splitlines()

    assert [" ".join(line.split()) for line in lines[3:7]] == [
        "└─ weight float32 [16, 8] 512 B",
        "├─ exp_avg (optimizer) float32 [16, 8] 512 B",
        "├─ exp_avg_sq (optimizer) float32 [16, 8] 512 B",
        "└─ step (optimizer) float32 [] 4 B",
    ]
    assert lines[7].startswith("5 values, ")
    assert lines[7].endswith(", 7 objects")


def test_slots_of_two_optimizers_are_told_apart_by_the_paths_of_the_optimizers(prefix: str) -> None:
    weight = nn.Parameter(torch.ones(2))
    both = [torch.optim.SGD([weight], momentum=0.9) for _ in range(2)]
    weight.sum().backward()
    for optimizer in both:
        optimizer.step()
    Checkpoint(weight=weight, both=both).write(prefix)

    tree = format_tree(prefix)

    assert "├─ momentum_buffer (both/0)  float32 [2]" in tree
    assert "└─ momentum_buffer (both/1)  float32 [2]" in tree


def test_a_python_state_is_shown_with_its_size(prefix: str) -> None:
    Checkpoint(note=Note()).write(prefix)

    # A length, a checksum of four bytes, the three bytes themselves.
    assert format_tree(prefix) == text("""
        ckpt
        └─ note  python state  8 B
        1 value, 8 B, 2 objects
    """)


def test_an_object_with_two_names_stands_once_and_the_other_name_points_to_it(prefix: str) -> None:
    embedding, head = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
    head.weight = embedding.weight
    Checkpoint(model=nn.ModuleDict({"embedding": embedding, "head": head})).write(prefix)

    assert format_tree(prefix) == text("""
        ckpt
        └─ model
           ├─ embedding
           │  └─ weight  float32 [3, 2]  24 B
           └─ head
              └─ weight -> model/embedding/weight
        1 value, 24 B, 5 objects
    """)


def test_the_path_that_is_pointed_to_is_spelled_as_in_the_keys(prefix: str) -> None:
    shared = torch.zeros(1)
    Checkpoint(a={"x.y/z": shared}, b={"other": shared}).write(prefix)

    assert "other -> a/x..y.Sz" in format_tree(prefix)


def test_an_object_stands_at_the_end_of_the_shortest_way_even_if_a_longer_one_comes_first(prefix: str) -> None:
    shared = torch.zeros(1)
    Checkpoint(a={"deep": shared}, z=shared).write(prefix)

    assert format_tree(prefix) == text("""
        ckpt
        ├─ a
        │  └─ deep -> z
        └─ z  float32 [1]  4 B
        1 value, 4 B, 3 objects
    """)


def test_cycles_end_with_a_pointer(prefix: str) -> None:
    parent, child = AutoTrackable(), AutoTrackable()
    parent.child, child.parent, child.itself = child, parent, child
    Checkpoint(parent=parent).write(prefix)

    assert format_tree(prefix) == text("""
        ckpt
        └─ parent
           └─ child
              ├─ parent -> parent
              └─ itself -> parent/child
        0 values, 0 B, 3 objects
    """)


def test_the_edge_of_a_root_to_itself_points_to_the_root(prefix: str) -> None:
    Checkpoint(nn.Linear(1, 1, bias=False)).write(prefix)

    assert "└─ root -> (root)" in format_tree(prefix)


def test_slots_that_tensorflow_wrote_stand_under_their_variables() -> None:
    assert format_tree(GOLDEN / "obj_adam_slots" / "ckpt-1") == text("""
        ckpt-1
        ├─ model
        │  ├─ w                 float32 [2, 2]  16 B
        │  │  ├─ m (optimizer)  float32 [2, 2]  16 B
        │  │  └─ v (optimizer)  float32 [2, 2]  16 B
        │  └─ b                 float32 [2]      8 B
        │     ├─ m (optimizer)  float32 [2]      8 B
        │     └─ v (optimizer)  float32 [2]      8 B
        ├─ optimizer
        │  ├─ beta1_power       float32 []       4 B
        │  └─ beta2_power       float32 []       4 B
        └─ save_counter         int64 []         8 B
        9 values, 88 B, 12 objects
    """)


def test_a_slot_that_is_a_child_as_well_stands_once(prefix: str) -> None:
    root = Node(children=(Child(1, "w"), Child(2, "opt")))
    optimizer = Node(children=(Child(3, "m"),), slot_variables=(SlotVariable(1, "m", 3),))
    write(prefix, {"w": SCALAR, "m": SCALAR}, root, variable("w"), optimizer, variable("m"))

    tree = format_tree(prefix)

    assert tree.count("int32 []") == 2
    assert tree.count("->") == 1


def test_several_values_of_one_object_stand_under_it_by_their_names(prefix: str) -> None:
    table = Node(attributes=(Attribute("-keys", "", "t/keys"), Attribute("-values", "", "t/values")))
    write(prefix, {"t/keys": SCALAR, "t/values": torch.zeros(3)}, Node(children=(Child(1, "table"),)), table)

    assert format_tree(prefix) == text("""
        ckpt
        └─ table
           ├─ -keys    int32 []      4 B
           └─ -values  float32 [3]  12 B
        2 values, 16 B, 2 objects
    """)


def test_a_value_that_the_graph_names_and_the_file_lacks_is_missing(prefix: str) -> None:
    write(prefix, {}, Node(children=(Child(1, "w"),)), variable("w"))

    assert format_tree(prefix) == text("""
        ckpt
        └─ w  missing
        0 values, 0 B, 2 objects
    """)


def test_a_graph_record_that_is_a_number_is_refused(prefix: str) -> None:
    write(prefix, {OBJECT_GRAPH_KEY: SCALAR})

    with pytest.raises(DataLossError, match="not a string scalar"):
        format_tree(prefix)


def test_keys_without_an_object_graph_are_split_at_slashes(prefix: str) -> None:
    write(prefix, {"a": SCALAR, "a.b": SCALAR, "a/b": torch.zeros(2), "dense/kernel": torch.zeros(2, 3)})

    assert format_tree(prefix) == text("""
        ckpt
        ├─ a          int32 []         4 B
        │  └─ b       float32 [2]      8 B
        ├─ a.b        int32 []         4 B
        └─ dense
           └─ kernel  float32 [2, 3]  24 B
        4 values, 40 B, no object graph
    """)


def test_a_value_in_slices_has_the_size_of_the_whole() -> None:
    tree = format_tree(GOLDEN / "v2_slices" / "ckpt")

    assert "├─ far                uint8 [10000000]  9.5 MiB\n" in tree
    assert "├─ grid               float32 [4, 6]       96 B\n" in tree


def test_names_that_would_break_the_lines_are_escaped(prefix: str) -> None:
    Checkpoint(names={"two\nlines": torch.zeros(1), "\x1b[31mred": torch.zeros(1)}).write(prefix)

    tree = format_tree(prefix)

    assert "├─ 'two\\nlines'" in tree
    assert "└─ '\\x1b[31mred'" in tree


@pytest.mark.parametrize(
    ("num_bytes", "size"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1 << 20, "1.0 MiB"), (5 << 20, "5.0 MiB")],
)
def test_sizes_have_human_units(prefix: str, num_bytes: int, size: str) -> None:
    write(prefix, {"x": torch.zeros(num_bytes, dtype=torch.uint8)})

    assert format_tree(prefix).splitlines()[1:] == [
        f"└─ x  uint8 [{num_bytes}]  {size}",
        f"1 value, {size}, no object graph",
    ]


def test_a_directory_stands_for_its_latest_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint(x=SCALAR)
    checkpoint.save(tmp_path / "ckpt")
    checkpoint.save(tmp_path / "ckpt")

    assert format_tree(tmp_path).startswith("ckpt-2\n")


def test_an_absent_checkpoint_is_an_error(prefix: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint at"):
        format_tree(prefix)


def test_a_long_tree_is_cut_after_as_many_lines_as_asked_for(prefix: str) -> None:
    write(prefix, dict.fromkeys("abcd", SCALAR))

    assert format_tree(prefix, max_lines=3) == text("""
        ckpt
        ├─ a  int32 []  4 B
        ├─ b  int32 []  4 B
        ... 2 more lines
        4 values, 16 B, no object graph
    """)
    assert "... 1 more line\n" in format_tree(prefix, max_lines=4)
    assert format_tree(prefix, max_lines=5) == format_tree(prefix)


@pytest.mark.parametrize("max_lines", [0, -1])
def test_fewer_lines_than_one_are_refused(prefix: str, max_lines: int) -> None:
    with pytest.raises(ValueError, match=f"max_lines is {max_lines}"):
        format_tree(prefix, max_lines=max_lines)


def test_ten_thousand_objects_in_a_row_are_no_deeper_than_python_can_go(prefix: str) -> None:
    chain = [Node(children=(Child(node_id + 1, "next"),)) for node_id in range(9_999)]
    write(prefix, {}, *chain, Node())

    assert format_tree(prefix, max_lines=3) == text("""
        ckpt
        └─ next
           └─ next
        ... 99 more lines
        0 values, 0 B, 10,000 objects
    """)


def test_ten_thousand_objects_side_by_side_have_a_line_each(prefix: str) -> None:
    leaves = [variable(f"v{index}") for index in range(9_999)]
    root = Node(children=tuple(Child(index + 1, f"v{index}") for index in range(9_999)))
    with BundleWriter(f"{prefix}.data-00000-of-00001", f"{prefix}.index", durable=False) as writer:
        writer.add("v9998", SCALAR)
        writer.add_strings(OBJECT_GRAPH_KEY, encode_object_graph(ObjectGraph((root, *leaves))))

    lines = format_tree(prefix).splitlines()

    assert len(lines) == 10_001
    assert lines[-2:] == ["└─ v9998  int32 []  4 B", "1 value, 4 B, 10,000 objects"]


def test_a_chain_of_very_many_objects_is_drawn_to_a_depth(prefix: str) -> None:
    """Each line begins with the way to it, so that a deep graph would make a text that no memory holds."""
    root = thing()
    last = root
    for _ in range(150):
        last.next = thing()
        last = last.next
    last.x = torch.ones(2)
    tree = format_tree(Checkpoint(root=root).write(prefix))
    assert "└─ ... (deeper)" in tree
    assert max(map(len, tree.splitlines())) < 400
    assert tree.count("next") == 100
