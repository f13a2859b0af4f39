"""The graph of a checkpoint and that of a program, side by side."""

import gc
import json
import logging
import os
import shutil
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import thing, walk
from torch import nn

from torch_trackckpt import (
    AutoTrackable,
    Checkpoint,
    CheckpointOptions,
    CheckpointView,
    TrackableView,
    _native,
    list_objects,
    object_metadata,
)
from torch_trackckpt.adapters import Adapter, adapt
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError
from torch_trackckpt.sharding import MaxShardSizePolicy
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY

GOLDEN = Path(__file__).parent / "golden"
WITH_GRAPH = [v for v in json.loads((GOLDEN / "manifest.json").read_text())["vectors"] if "object_graph" in v]


def simple(*, extra: bool = True) -> AutoTrackable:
    """Two tensors, a list of two more, and a leaf with one."""
    made = thing(a=torch.tensor(5.0), b=torch.tensor(4.0), items=[torch.tensor(1.0), torch.tensor(2.0)])
    if extra:
        made.leaf = thing(c=torch.tensor(6.0))
    return made


def trained() -> tuple[nn.Linear, torch.optim.Adam]:
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return layer, optimizer


# ------------------------------------------------------------------------------------ of a checkpoint: children


def test_the_children_of_the_root_come_in_the_stored_order_and_the_counter_last(prefix: str) -> None:
    """C268"""
    view = CheckpointView(Checkpoint(z=torch.tensor(1), layer=nn.Linear(2, 1)).save(prefix))
    assert list(view.children(0).items()) == [("layer", 1), ("z", 2), ("save_counter", 3)]
    assert view.children(1) == {"weight": 4, "bias": 5}
    assert view.children(4) == {}


def test_a_checkpoint_of_a_root_has_the_root_among_the_children_of_itself(prefix: str) -> None:
    """C268"""
    view = CheckpointView(Checkpoint(nn.Linear(2, 1), step=torch.tensor(1)).save(prefix))
    assert list(view.children(0).items()) == [("weight", 1), ("bias", 2), ("root", 0), ("step", 3), ("save_counter", 4)]


@pytest.mark.parametrize("node_id", [4, 1000, -1])
def test_an_unknown_node_is_an_error_that_tells_which_there_are(prefix: str, node_id: int) -> None:
    """C274: also for a negative one, which TensorFlow counts from the end."""
    view = CheckpointView(Checkpoint(layer=nn.Linear(2, 1)).write(prefix))
    with pytest.raises(IndexError, match=rf"no node {node_id} in '.*ckpt'; its nodes are 0, the root, to 3"):
        view.children(node_id)


# --------------------------------------------------------------------------------- of a checkpoint: descendants


def test_the_descendants_are_all_nodes_breadth_first(prefix: str) -> None:
    """C269"""
    view = CheckpointView(Checkpoint(simple()).save(prefix))
    assert view.descendants() == list(range(9))


def test_a_node_that_many_ways_lead_to_is_one_descendant(prefix: str) -> None:
    """C269"""
    parent, shared = thing(), torch.tensor(1)
    parent.child = thing(parent=parent, x=shared)
    parent.x = shared
    assert CheckpointView(Checkpoint(parent).write(prefix)).descendants() == [0, 1, 2]


def test_slot_variables_are_no_descendants(prefix: str) -> None:
    """C269"""
    layer, optimizer = trained()
    path = Checkpoint(layer=layer, optimizer=optimizer).write(prefix)
    slots = [slot.slot_id for node in object_metadata(path).nodes for slot in node.slot_variables]
    assert len(slots) == 6
    descendants = CheckpointView(path).descendants()
    assert sorted(descendants + slots) == list(range(len(object_metadata(path).nodes)))


# --------------------------------------------------------------------------------------- of a checkpoint: match


def test_objects_match_by_the_path_that_leads_to_them(prefix: str) -> None:
    """C270"""
    view = CheckpointView(Checkpoint(simple()).save(prefix))
    live = thing(a=torch.tensor(0.0), items=[torch.tensor(0.0)], other=thing(c=torch.tensor(0.0)))
    matched = view.match(live)
    assert matched.keys() == {0, 1, 3, 6}
    assert matched[0] is live
    assert matched[1] is live.a
    assert matched[3] is live.items
    assert matched[6] is live.items[0]


def test_the_root_matches_whatever_it_is(prefix: str) -> None:
    """C270"""
    view = CheckpointView(Checkpoint(simple()).write(prefix))
    live = nn.ReLU()
    assert view.match(live) == {0: live}


@pytest.mark.parametrize("has_root", [False, True])
def test_a_checkpoint_matches_as_it_would_be_restored(prefix: str, has_root: bool) -> None:
    """C270: with a root of its own, this is node 0, and the checkpoint's children count as the root's."""
    layer, step = nn.Linear(2, 1), torch.tensor(1)

    def checkpoint(layer: nn.Linear, step: torch.Tensor) -> Checkpoint:
        return Checkpoint(layer, step=step) if has_root else Checkpoint(layer=layer, step=step)

    view = CheckpointView(checkpoint(layer, step).write(prefix))
    other, other_step = nn.Linear(2, 1), torch.tensor(2)
    live = checkpoint(other, other_step)
    matched, only_stored, only_live = view.diff(live)
    assert matched[0] is (other if has_root else live)
    assert {id(value) for value in matched.values()} >= {id(o) for o in (other, other.weight, other.bias, other_step)}
    assert (only_stored, only_live) == ([], [])


def test_an_object_that_was_shared_goes_to_the_first_place_and_a_warning_tells_of_the_other(
    prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """C271"""
    shared = torch.tensor(1)
    view = CheckpointView(Checkpoint(thing(a=shared, b=shared)).write(prefix))
    live = thing(a=torch.tensor(2), b=torch.tensor(3))
    with caplog.at_level(logging.WARNING, "torch_trackckpt"):
        matched = view.match(live)
    assert matched == {0: live, 1: live.a}
    assert [record.getMessage().startswith("Inconsistent references") for record in caplog.records] == [True]


def test_two_nodes_may_have_one_live_object(prefix: str) -> None:
    """C270"""
    view = CheckpointView(Checkpoint(thing(a=torch.tensor(1), b=torch.tensor(2))).write(prefix))
    shared = torch.tensor(3)
    live = thing(a=shared, b=shared)
    assert view.match(live) == {0: live, 1: shared, 2: shared}


def test_a_part_that_an_optimizer_keeps_matches_with_what_stands_for_it(prefix: str) -> None:
    """C270: and the live optimizer gets no state by being looked at."""
    layer, optimizer = trained()
    view = CheckpointView(Checkpoint(layer=layer, optimizer=optimizer).write(prefix))
    other = nn.Linear(2, 1)
    live = Checkpoint(layer=other, optimizer=torch.optim.Adam(other.parameters()))
    matched, only_stored, only_live = view.diff(live)
    assert (only_stored, only_live) == ([], [])
    groups = view.children(view.children(0)["optimizer"])["param_groups"]
    part = adapt(live.optimizer)._trackable_children()["param_groups"]
    assert matched[groups]._identity() == part._identity()
    assert not live.optimizer.state


def test_what_a_restore_without_slots_leaves_out_does_not_match(prefix: str) -> None:
    """C270"""
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.LBFGS([weight])
    optimizer.step(lambda: weight.sum().backward() or weight.sum())
    checkpoint = Checkpoint(weight=weight, optimizer=optimizer)
    path = checkpoint.write(prefix)
    view, without = CheckpointView(path), CheckpointView(path, CheckpointOptions(experimental_skip_slot_variables=True))
    extra = view.children(view.children(0)["optimizer"])["extra_state"]
    assert extra in view.match(checkpoint)
    assert extra not in without.match(checkpoint)
    assert extra in without.diff(checkpoint)[1]


# ---------------------------------------------------------------------------------------- of a checkpoint: diff


def test_a_diff_has_what_is_common_and_what_is_on_either_side_only(prefix: str) -> None:
    """C272"""
    view = CheckpointView(Checkpoint(simple()).save(prefix))
    live = thing(a=torch.tensor(0.0), items=[torch.tensor(0.0)], other=thing(c=torch.tensor(0.0)))
    matched, only_stored, only_live = view.diff(live)
    assert matched == view.match(live)
    assert only_stored == [2, 4, 5, 7, 8]  # b, leaf, save_counter, items[1], leaf.c
    assert only_live == [live.other, live.other.c]


def test_a_diff_tells_of_inconsistent_references_once(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """C271, C272"""
    shared = torch.tensor(1)
    view = CheckpointView(Checkpoint(thing(a=shared, b=shared)).write(prefix))
    live = thing(a=torch.tensor(2), b=torch.tensor(3))
    assert view.diff(live) == ({0: live, 1: live.a}, [], [live.b])
    assert len(caplog.records) == 1


@pytest.mark.parametrize("value", [5, "text", None, object(), torch.float32])
def test_what_is_not_trackable_has_no_match(prefix: str, value: object) -> None:
    """C273"""
    view = CheckpointView(Checkpoint(x=torch.tensor(1)).write(prefix))
    for ask in (view.match, view.diff):
        with pytest.raises(ValueError, match=f"A trackable object is expected, .* of type {type(value).__name__}"):
            ask(value)


# ----------------------------------------------------------------------------- what can be viewed, what is read


@pytest.mark.parametrize("view", [CheckpointView, object_metadata])
def test_a_path_without_a_checkpoint_is_not_found(tmp_path: Path, view: type[CheckpointView]) -> None:
    """C275"""
    with pytest.raises(CheckpointNotFoundError, match="nothing-here"):
        view(tmp_path / "nothing-here")


@pytest.mark.parametrize("view", [CheckpointView, object_metadata])
def test_a_file_without_an_object_graph_is_refused(tmp_path: Path, view: type[CheckpointView]) -> None:
    """C275"""
    prefix = str(tmp_path / "names")
    with BundleWriter(f"{prefix}.data-00000-of-00001", f"{prefix}.index", durable=False) as writer:
        writer.add("dense/kernel", torch.ones(2))
    for path in (prefix, GOLDEN / "v1_basic" / "model.ckpt"):
        with pytest.raises(ValueError, match=f"not object-based: it has no {OBJECT_GRAPH_KEY}"):
            view(path)


def test_a_directory_stands_for_its_latest_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.save(tmp_path / "ckpt")
    checkpoint.y = torch.tensor(2)
    checkpoint.save(tmp_path / "ckpt")
    assert set(CheckpointView(tmp_path).children(0)) == {"x", "save_counter", "y"}


def sharded(prefix: str) -> Checkpoint:
    """A checkpoint of one value in each data file; the record of the graph is in the last."""
    checkpoint = Checkpoint(**{name: torch.arange(100.0) for name in "abc"})
    checkpoint.write(prefix, CheckpointOptions(experimental_sharding_callback=MaxShardSizePolicy(400), durable=False))
    return checkpoint


def data_files(prefix: str) -> tuple[str, list[str]]:
    """The data file with the record of the graph, and the others."""
    files = sorted(map(str, Path(prefix).parent.glob("*.data-*")))
    entry = _native.BundleReader(f"{prefix}.index", prefix).find(OBJECT_GRAPH_KEY.encode())
    assert entry is not None
    return files.pop(entry.shard_id), files


def test_only_the_data_file_of_the_graph_is_needed(prefix: str) -> None:
    """C280"""
    checkpoint = sharded(prefix)
    _, others = data_files(prefix)
    assert len(others) == 2
    for name in others:
        os.remove(name)
    view = CheckpointView(prefix)
    assert list(view.children(0)) == ["a", "b", "c"]
    assert view.descendants() == [0, 1, 2, 3]
    assert view.diff(checkpoint) == ({0: checkpoint, 1: checkpoint.a, 2: checkpoint.b, 3: checkpoint.c}, [], [])
    assert len(object_metadata(prefix).nodes) == 4


def test_only_the_data_file_of_the_graph_is_needed_of_what_tensorflow_wrote(tmp_path: Path) -> None:
    """C280"""
    for path in (GOLDEN / "obj_sharded").glob("ckpt-1.*"):
        shutil.copy(path, tmp_path)
    prefix = str(tmp_path / "ckpt-1")
    whole = object_metadata(prefix)
    for name in data_files(prefix)[1]:
        os.remove(name)
    assert len(list(tmp_path.iterdir())) == 2
    assert object_metadata(prefix) == whole


def test_without_the_data_file_of_the_graph_the_error_names_it(prefix: str) -> None:
    """C280"""
    sharded(prefix)
    record, _ = data_files(prefix)
    os.remove(record)
    with pytest.raises(CheckpointNotFoundError, match=os.path.basename(record)):
        CheckpointView(prefix)


def test_damaged_values_do_not_matter_but_a_damaged_record_does(
    prefix: str, damage: Callable[[str, str], None]
) -> None:
    """C280"""
    path = Checkpoint(x=torch.arange(100.0)).write(prefix)
    damage(path, "x/.ATTRIBUTES/VARIABLE_VALUE")
    assert CheckpointView(path).descendants() == [0, 1]
    damage(path, OBJECT_GRAPH_KEY)
    with pytest.raises(DataLossError):
        CheckpointView(path)


def test_looking_changes_no_live_value(prefix: str) -> None:
    """C280"""
    view = CheckpointView(Checkpoint(layer=nn.Linear(2, 1)).write(prefix))
    layer = nn.Linear(2, 1)
    before = [(parameter._version, parameter.clone()) for parameter in layer.parameters()]
    view.diff(thing(layer=layer))
    after = list(layer.parameters())
    assert all(
        now._version == version and torch.equal(now, then) for now, (version, then) in zip(after, before, strict=True)
    )


# -------------------------------------------------------------------------------------------------- of a program


def test_the_children_of_a_live_object_come_by_name_in_order() -> None:
    """C276"""
    root = simple()
    view = TrackableView(root)
    assert list(view.children(root)) == ["a", "b", "items", "leaf"]
    assert view.children(root)["leaf"] is root.leaf


def test_the_children_of_any_object_can_be_asked_without_a_view() -> None:
    """C276"""
    layer = nn.Linear(2, 1)
    assert TrackableView.children(layer) == {"weight": layer.weight, "bias": layer.bias}
    assert list(TrackableView.children([1, layer, "text", layer.bias])) == ["1", "3"]
    assert TrackableView.children({"x": layer, "n": 3}) == {"x": layer}
    assert TrackableView.children(layer.bias) == {}
    assert list(TrackableView.children(torch.optim.SGD(layer.parameters()))) == ["param_groups"]
    with pytest.raises(ValueError, match="A trackable object is expected, not 5"):
        TrackableView.children(5)


def test_the_descendants_of_a_live_object_come_breadth_first_and_once() -> None:
    """C277"""
    root = simple()
    root.leaf.again = root.a
    root.leaf.up = root
    objects = TrackableView(root).descendants()
    expected = [root, root.a, root.b, root.items, root.leaf, *root.items, root.leaf.c]
    assert all(found is wanted for found, wanted in zip(objects, expected, strict=True))
    assert all(found is wanted for found, wanted in zip(list_objects(root), expected, strict=True))


def test_the_descendants_are_the_nodes_of_a_checkpoint(prefix: str) -> None:
    """C277, C279"""
    layer, optimizer = trained()
    checkpoint = Checkpoint(layer=layer, optimizer=optimizer)
    view = CheckpointView(checkpoint.write(prefix))
    assert len(TrackableView(checkpoint).descendants()) == len(view.descendants())


def test_a_view_keeps_its_root_alive_no_longer_than_others_do() -> None:
    """C278"""
    root = simple()
    gone = weakref.ref(root)
    view = TrackableView(root)
    assert view.root is root
    del root
    gc.collect()
    assert gone() is None
    with pytest.raises(ReferenceError, match="The root of this view is gone"):
        view.descendants()
    with pytest.raises(ReferenceError, match="The root of this view is gone"):
        view.root  # noqa: B018


def test_a_weak_reference_may_be_given_as_the_root() -> None:
    """C278"""
    root = simple()
    view = TrackableView(weakref.ref(root))
    assert view.descendants()[0] is root
    del root
    gc.collect()
    with pytest.raises(ReferenceError):
        view.descendants()


@pytest.mark.parametrize("make", [list, tuple, lambda items: {str(id(item)): item for item in items}])
def test_a_root_without_weak_references_is_kept(make: Callable[[Iterable[object]], object]) -> None:
    """C278: there is no other way to refer to a list, tuple or dict."""
    tensor = torch.tensor(1)
    view = TrackableView(make([tensor]))
    gc.collect()
    assert [type(obj) for obj in view.descendants()][1:] == [torch.Tensor]


def test_a_view_of_what_is_not_trackable_is_refused() -> None:
    """C273"""
    with pytest.raises(ValueError, match="A trackable object is expected, not 'text' of type str"):
        TrackableView("text")


def test_objects_behind_adapters_are_seen_themselves() -> None:
    """C276, C277"""
    layer = nn.Linear(2, 1)
    root = {"weak": weakref.ref(layer), "parallel": nn.DataParallel(layer)}
    assert TrackableView.children(root) == {"weak": layer, "parallel": layer}
    assert not any(isinstance(obj, Adapter) for obj in TrackableView(root).descendants())


# ------------------------------------------------------------------------------------------------------ metadata


def test_the_metadata_are_the_graph_that_was_saved(prefix: str) -> None:
    """C279"""
    layer, optimizer = trained()
    checkpoint = Checkpoint(layer=layer, optimizer=optimizer)
    path = checkpoint.save(prefix)
    graph = object_metadata(path)
    assert graph == walk(checkpoint).graph
    weight = graph.nodes[graph.find("layer/weight") or 0]
    assert [value.checkpoint_key for value in weight.attributes] == ["layer/weight/.ATTRIBUTES/VARIABLE_VALUE"]
    assert [value.full_name for value in weight.attributes] == ["weight"]
    slots = graph.nodes[graph.find("optimizer") or 0].slot_variables
    assert [slot.slot_name for slot in slots] == ["exp_avg"] * 2 + ["exp_avg_sq"] * 2 + ["step"] * 2
    assert {slot.variable_id for slot in slots} == {graph.find("layer/weight"), graph.find("layer/bias")}


@pytest.mark.parametrize("vector", WITH_GRAPH, ids=lambda vector: vector["name"])
def test_the_metadata_of_what_tensorflow_wrote_are_what_tensorflow_reads(vector: dict[str, Any]) -> None:
    """C268, C279"""
    graph, view = object_metadata(GOLDEN / vector["prefix"]), CheckpointView(GOLDEN / vector["prefix"])
    assert [len(node.attributes) for node in graph.nodes] == [len(n["attributes"]) for n in vector["object_graph"]]
    for node_id, node in enumerate(vector["object_graph"]):
        assert list(view.children(node_id).items()) == [tuple(child) for child in node["children"]]
