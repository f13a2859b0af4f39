"""Checkpoints without an object graph: every variable is looked up under its own name."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from checkpoints import thing
from hypothesis import given, settings
from hypothesis import strategies as st
from named_values import ASSERTIONS, assert_all_pass, assert_each_raises, layer, scalar, write_named
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointOptions, load_checkpoint
from torch_trackckpt.errors import DataLossError, MismatchError

GOLDEN = Path(__file__).parent.parent / "golden"

Damage = Callable[[str, str], None]


# --------------------------------------------------------------------------------------------------- names


def model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ModuleDict({"a/b": nn.Linear(4, 2), "é": nn.ModuleList([nn.PReLU()])})
    )


@pytest.mark.parametrize("where", ["root", "child", "deep", "attribute"])
def test_a_modules_variables_have_the_names_of_its_state_dict_wherever_it_is(prefix: str, where: str) -> None:
    """C334, C335, C338"""
    saved, live = model(), model()
    write_named(prefix, saved.state_dict())
    checkpoint = {
        "root": lambda: Checkpoint(live),
        "child": lambda: Checkpoint(net=live),
        "deep": lambda: Checkpoint(parts={"x": [live]}),
        "attribute": lambda: Checkpoint(thing(trainer=thing(net=live))),
    }[where]()
    assert_all_pass(checkpoint.read(prefix))
    assert [name for name, value in saved.state_dict().items() if not torch.equal(live.state_dict()[name], value)] == []


def test_outside_of_modules_the_name_is_the_dotted_path_from_the_root(prefix: str) -> None:
    """C338"""
    write_named(prefix, {"step": torch.tensor(3), "parts.0.x": torch.tensor(4), "table.a/b.c": torch.tensor(5)})
    step, x, c = torch.tensor(0), torch.tensor(0), torch.tensor(0)
    status = Checkpoint(step=step, parts=[thing(x=x)], table={"a/b": {"c": c}}).read(prefix)
    assert_all_pass(status)
    assert (step, x, c) == (3, 4, 5)


def test_variables_of_one_name_are_told_apart_by_their_paths(prefix: str) -> None:
    """C338"""
    write_named(prefix, {"weight": scalar(1), "actor.weight": scalar(2), "critic.weight": scalar(3)})
    actor, critic = layer(), layer()
    assert_all_pass(Checkpoint(actor=actor, critic=critic).read(prefix))
    assert (actor["weight"], critic["weight"]) == (2, 3)


def test_the_path_of_one_variable_is_not_taken_for_the_name_of_another(prefix: str) -> None:
    """C338: `weight` is the name of two, so that these go by their paths; one path is a third one's name."""
    write_named(prefix, {"a.weight": scalar(1), "b.weight": scalar(2), "m.a.weight": scalar(3)})
    a, b, inner = layer(), layer(), layer()
    assert_all_pass(Checkpoint(a=a, b=b, m=nn.ModuleDict({"a": inner})).read(prefix))
    assert (a["weight"], b["weight"], inner["weight"]) == (1, 2, 3)


def test_one_variable_in_two_places_has_the_name_of_the_first(prefix: str) -> None:
    write_named(prefix, {"weight": scalar(1)})
    shared = layer()
    assert_all_pass(Checkpoint(a=shared, b={"again": shared}).read(prefix))
    assert shared["weight"] == 1


NAMES = st.sampled_from(["a", "b", "weight"])
TREES = st.dictionaries(
    NAMES,
    st.recursive(st.none(), lambda children: st.dictionaries(NAMES, children, min_size=1, max_size=3), max_leaves=4),
    min_size=1,
)


def modules_of(tree: object) -> object:
    if not isinstance(tree, dict):
        return layer()
    return nn.ModuleDict({name: modules_of(child) for name, child in tree.items()})


@given(tree=TREES)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_no_two_variables_share_a_name(tree: dict[str, object]) -> None:
    """C338"""
    children = {name: modules_of(child) for name, child in tree.items()}
    asked: list[str] = []

    def note(name: str) -> str:
        asked.append(name)
        return name

    with TemporaryDirectory() as directory:
        write_named(f"{directory}/ckpt", {"none": scalar()})
        Checkpoint(**children).read(f"{directory}/ckpt", CheckpointOptions(name_map=note))
    count = sum(isinstance(part, nn.ParameterDict) for child in children.values() for part in child.modules())  # type: ignore[attr-defined]
    assert len(asked) == len(set(asked)) == count


# ------------------------------------------------------------------------------------------------ name_map


def test_a_function_translates_names(prefix: str) -> None:
    """C338"""
    write_named(prefix, {"dense/kernel": torch.ones(2, 3), "dense/bias": torch.ones(2), "step": scalar(7)})
    fc, step = nn.Linear(3, 2), scalar()
    table = {"weight": "kernel", "bias": "bias"}
    options = CheckpointOptions(name_map=lambda name: f"dense/{table[name]}" if name in table else name)
    assert_all_pass(Checkpoint(fc=fc, step=step).read(prefix, options))
    assert torch.equal(fc.weight, torch.ones(2, 3))
    assert torch.equal(fc.bias, torch.ones(2))
    assert step == 7


def test_a_mapping_translates_the_names_that_it_has_and_leaves_the_others(prefix: str) -> None:
    """C338"""
    write_named(prefix, {"dense/kernel": torch.ones(2, 3), "bias": torch.ones(2)})
    fc = nn.Linear(3, 2)
    assert_all_pass(Checkpoint(fc=fc).read(prefix, CheckpointOptions(name_map={"weight": "dense/kernel", "x": "y"})))
    assert torch.equal(fc.weight, torch.ones(2, 3))
    assert torch.equal(fc.bias, torch.ones(2))


def test_two_variables_may_be_mapped_to_one_value(prefix: str) -> None:
    write_named(prefix, {"both": torch.ones(2)})
    a, b = torch.zeros(2), torch.zeros(2)
    assert_all_pass(Checkpoint(a=a, b=b).read(prefix, CheckpointOptions(name_map={"a": "both", "b": "both"})))
    assert torch.equal(a, torch.ones(2))
    assert torch.equal(b, torch.ones(2))


def test_a_name_map_that_raises_is_heard_and_nothing_changes(prefix: str) -> None:
    write_named(prefix, {"a": torch.ones(2)})
    a, b = torch.zeros(2), torch.zeros(2)
    with pytest.raises(KeyError, match="b"):
        Checkpoint(a=a, b=b).read(prefix, CheckpointOptions(name_map={"a": "a"}.__getitem__))
    assert not a.any()


def test_a_checkpoint_with_an_object_graph_is_restored_by_objects_whatever_its_names(prefix: str) -> None:
    Checkpoint(a=scalar(1), b=scalar(2)).write(prefix)
    a, b = scalar(), scalar()
    options = CheckpointOptions(name_map={"a": "b/.ATTRIBUTES/VARIABLE_VALUE"})
    Checkpoint(a=a, b=b).read(prefix, options).assert_consumed()
    assert (a, b) == (1, 2)


# -------------------------------------------------------------------------------------------------- missing


@pytest.mark.parametrize("assertion", ASSERTIONS)
def test_a_missing_name_makes_each_assertion_raise_and_leaves_its_variable_alone(prefix: str, assertion: str) -> None:
    """C335"""
    write_named(prefix, {"weight": torch.ones(2, 3), "more": scalar()})
    fc = nn.Linear(3, 2)
    before = fc.bias.clone()
    status = Checkpoint(fc=fc).read(prefix)
    with pytest.raises(AssertionError, match=rf"not restored from '{prefix}', .*: \(root\)\.fc\.bias\. list_variables"):
        getattr(status, assertion)()
    assert torch.equal(fc.weight, torch.ones(2, 3))
    assert torch.equal(fc.bias, before)


def test_of_many_missing_names_ten_are_shown_and_all_counted(prefix: str) -> None:
    """C335"""
    write_named(prefix, {"x": scalar()})
    with pytest.raises(AssertionError) as caught:
        Checkpoint(many=[scalar() for _ in range(25)]).read(prefix).assert_consumed()
    assert str(caught.value).count("(root).many.") == 10
    assert "and 15 more" in str(caught.value)


def test_values_that_nothing_asks_for_are_no_concern(prefix: str) -> None:
    """C335"""
    write_named(prefix, {"x": scalar(1), "y": scalar(2)})
    assert_all_pass(Checkpoint(x=scalar()).read(prefix))


def test_what_was_missing_is_no_longer_asked_for_when_it_is_gone(prefix: str) -> None:
    write_named(prefix, {"x": scalar(1)})
    checkpoint = Checkpoint(x=scalar(), y=scalar())
    status = checkpoint.read(prefix)
    assert_each_raises(status, r"\(root\)\.y")
    del checkpoint.y
    assert_all_pass(status)


def test_expecting_a_partial_match_returns_the_status(prefix: str) -> None:
    write_named(prefix, {"x": scalar(1)})
    status = Checkpoint(y=scalar()).read(prefix)
    assert status.expect_partial() is status


# --------------------------------------------------------------------------------------------- save_counter


def test_the_missing_counter_alone_does_not_count_through_restore(prefix: str) -> None:
    """C336"""
    write_named(prefix, {"x": scalar(1)})
    checkpoint = Checkpoint(x=scalar())
    assert_all_pass(checkpoint.restore(prefix))
    assert checkpoint.x == 1
    assert checkpoint.save_counter == 0


def test_a_missing_counter_counts_through_read_where_there_is_one(prefix: str) -> None:
    """C335"""
    write_named(prefix, {"x": scalar(1)})
    checkpoint = Checkpoint(x=scalar())
    assert_all_pass(checkpoint.read(prefix))
    checkpoint.save_counter  # noqa: B018  makes it
    assert_each_raises(checkpoint.read(prefix), r"\(root\)\.save_counter")


def test_a_counter_in_the_file_is_restored(prefix: str) -> None:
    """C336"""
    write_named(prefix, {"x": scalar(1), "save_counter": torch.tensor(41)})
    checkpoint = Checkpoint(x=scalar())
    assert_all_pass(checkpoint.restore(prefix))
    assert checkpoint.save(prefix) == prefix + "-42"


def test_a_missing_variable_called_like_the_counter_elsewhere_counts(prefix: str) -> None:
    """C337"""
    write_named(prefix, {"x": scalar(1)})
    status = Checkpoint(x=scalar(), part=thing(save_counter=torch.tensor(0))).restore(prefix)
    assert_each_raises(status, r"under their names: \(root\)\.part\.save_counter\.")


def test_a_counter_of_the_roots_own_need_not_be_in_the_file_either(prefix: str) -> None:
    """C336"""
    write_named(prefix, {"x": scalar(1)})
    assert_all_pass(Checkpoint(thing(x=scalar(), save_counter=torch.tensor(0))).restore(prefix))


# ------------------------------------------------------------------------------------------------- conflicts


def test_every_conflict_is_listed_with_its_key_and_nothing_changes(prefix: str) -> None:
    """C065, C066, C067, C068"""
    write_named(prefix, {"a": torch.ones(2), "b": torch.ones(1), "c/c": torch.ones(2), "d": b"text"})
    live = {"a": torch.zeros(2), "b": scalar(), "c": torch.zeros(2, dtype=torch.float64), "d": scalar()}
    with pytest.raises(MismatchError) as caught:
        Checkpoint(**live).read(prefix, CheckpointOptions(name_map={"c": "c/c"}))
    message = str(caught.value)
    assert message.startswith(f"3 values of '{prefix}' cannot be restored; nothing has been assigned:")
    assert "(root).b: received incompatible tensor with shape [1] when attempting to restore a tensor with" in message
    assert "(root).c: tensor_name = c/c; expected dtype float64 does not equal original dtype float32" in message
    assert "(root).d: tensor_name = d; expected dtype float32 does not equal original dtype string" in message
    assert not any(tensor.any() for tensor in live.values())


def test_damage_is_found_before_anything_changes(prefix: str, damage: Damage) -> None:
    """C382"""
    write_named(prefix, {"a": torch.ones(2), "b": torch.ones(3)})
    damage(prefix, "b")
    a, b = torch.zeros(2), torch.zeros(3)
    with pytest.raises(DataLossError, match=rf"key b, file {prefix}\.data-"):
        Checkpoint(a=a, b=b).read(prefix)
    assert not a.any()
    assert not b.any()


class Text:
    """A python state."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data

    def deserialize(self, string_value: bytes) -> None:
        self.data = string_value


def test_python_states_are_left_alone_and_not_asked_for(prefix: str) -> None:
    """C335"""
    write_named(prefix, {"x": scalar(1), "text": b"stored", "text.py_state": b"stored"})
    text = Text(b"live")
    module = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.25)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    before = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    assert_all_pass(Checkpoint(x=scalar(), text=text, optimizer=optimizer, scheduler=scheduler).read(prefix))
    assert text.data == b"live"
    assert (optimizer.state_dict(), scheduler.state_dict()) == before


def test_the_log_says_that_names_alone_are_fragile(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """C339"""
    write_named(prefix, {"x": scalar(1)})
    checkpoint = Checkpoint(x=scalar())
    status = checkpoint.read(prefix)
    checkpoint.y = AutoTrackable()
    status.assert_consumed()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("torch_trackckpt", logging.WARNING)
    assert f"'{prefix}' has no object graph" in record.getMessage()
    assert "breaks when something is renamed" in record.getMessage()


# ---------------------------------------------------------------------------------------- files of TensorFlow


def test_a_file_of_tensorflows_saver_is_restored() -> None:
    """C404"""
    path = GOLDEN / "name_based_v2" / "model.ckpt-9"
    dense, step = nn.Linear(2, 3), torch.tensor(0)
    kernel = torch.zeros(2, 3)
    names = {"bias": "dense/bias", "kernel": "dense/kernel"}
    live = {"net": nn.ParameterDict({"bias": dense.bias}), "kernel": kernel, "global_step": step}
    assert_all_pass(Checkpoint(**live).restore(path, CheckpointOptions(name_map=names)))
    assert torch.equal(kernel, torch.arange(6.0).reshape(2, 3))
    assert torch.equal(dense.bias, torch.tensor([1.0, 2.0, 3.0]))
    assert step == 9


def test_a_partitioned_variable_is_restored_whole() -> None:
    """C404"""
    emb = torch.zeros(5, 2)
    assert_all_pass(Checkpoint(emb=emb).restore(GOLDEN / "name_based_v2" / "model.ckpt-9"))
    assert torch.equal(emb, torch.ones(5, 2))


def test_a_file_of_the_older_format_is_restored() -> None:
    """C380, C404"""
    w, b = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    options = CheckpointOptions(name_map={"scope.b": "scope/b"})
    status = Checkpoint(w=w, scope=thing(b=b)).restore(GOLDEN / "v1_saver" / "model.ckpt-3", options)
    assert_all_pass(status)
    assert torch.equal(w, torch.arange(6.0).reshape(2, 3))
    assert torch.equal(b, torch.tensor([1, 2]))


@pytest.mark.parametrize("name", ["model.ckpt-7", "model.ckpt-7-?????-of-00003"])
def test_several_files_of_the_older_format_are_restored(name: str) -> None:
    """C380, C404"""
    path = GOLDEN / "v1_sharded" / name
    reader = load_checkpoint(path)
    stored = {key: reader.get_tensor(key) for key in reader}
    live = {key: torch.zeros_like(value) for key, value in stored.items() if isinstance(value, torch.Tensor)}
    assert live
    assert_all_pass(Checkpoint(live).read(path))
    assert [key for key, value in live.items() if not torch.equal(value, torch.as_tensor(stored[key]))] == []
