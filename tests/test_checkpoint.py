"""Checkpoint: the counter, root and keywords, saving and restoring."""

import copy
import os
import pickle
import weakref
from pathlib import Path

import pytest
import torch
import witness
from checkpoints import X, names_in, paths, thing, zero
from torch import nn

from torch_trackckpt import (
    Checkpoint,
    latest_checkpoint,
    load_variable,
)

COUNTER = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"


def root_children(prefix: str) -> list[tuple[str, int]]:
    return [(child.local_name, child.node_id) for child in witness.read_graph(prefix)[0].children]


# ------------------------------------------------------------------------------------------ save_counter


def test_a_numbered_save_holds_the_values_the_counter_and_the_graph(prefix: str) -> None:
    """C001, C017, C018"""
    path = Checkpoint(model=nn.Linear(1, 1)).save(prefix)
    stored = witness.read_bundle(path)
    assert list(stored) == [
        "_CHECKPOINTABLE_OBJECT_GRAPH",
        "model/bias/.ATTRIBUTES/VARIABLE_VALUE",
        "model/weight/.ATTRIBUTES/VARIABLE_VALUE",
        COUNTER,
    ]
    assert (stored[COUNTER].dtype, stored[COUNTER].shape, stored[COUNTER].data) == (9, (), b"\1" + bytes(7))


def test_the_counter_starts_at_zero_is_made_on_first_use_and_is_not_trained() -> None:
    """C039"""
    checkpoint = Checkpoint()
    assert "save_counter" not in checkpoint._trackable_children()
    counter = checkpoint.save_counter
    assert (counter.dtype, counter.shape, counter.item()) == (torch.int64, (), 0)
    assert not counter.requires_grad
    assert checkpoint.save_counter is counter
    assert "save_counter" in checkpoint._trackable_children()


def test_each_save_takes_the_next_number_and_stores_it(prefix: str) -> None:
    """C040, C054"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    saved = [checkpoint.save(prefix) for _ in range(10)]
    assert saved == [f"{prefix}-{number}" for number in range(1, 11)]
    assert [int(torch.as_tensor(load_variable(path, COUNTER))) for path in saved] == list(range(1, 11))
    assert checkpoint.save_counter.item() == 10
    assert latest_checkpoint(os.path.dirname(prefix)) == saved[-1]


def test_a_restored_counter_is_where_the_next_save_goes_on(prefix: str) -> None:
    """C041"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.save(prefix)
    second = checkpoint.save(prefix)
    restored = Checkpoint(x=zero())
    restored.restore(second).assert_consumed()
    assert restored.save_counter.item() == 2
    assert restored.save(prefix) == prefix + "-3"


def test_a_written_file_holds_no_counter_unless_it_was_touched(prefix: str) -> None:
    """C019"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.write(prefix)
    assert paths(prefix) == ["x"]
    checkpoint.save_counter  # noqa: B018
    checkpoint.write(prefix)
    assert paths(prefix) == ["save_counter", "x"]


def test_the_counter_is_the_last_child_of_the_root(prefix: str) -> None:
    """C013, C014, C043"""
    assert root_children(Checkpoint(zeta=zero(), alpha=zero()).save(prefix)) == [
        ("alpha", 1),
        ("zeta", 2),
        ("save_counter", 3),
    ]


def test_a_checkpoint_around_another_uses_its_counter(prefix: str) -> None:
    """C043"""
    inner = Checkpoint(x=torch.tensor(1))
    inner.save(prefix)
    outer = Checkpoint(inner)
    assert outer.save_counter is inner.save_counter
    assert outer.save(prefix) == prefix + "-2"
    assert inner.save_counter.item() == 2
    assert paths(prefix + "-2") == ["save_counter", "x"]


def test_the_counters_name_is_refused_as_a_keyword() -> None:
    with pytest.raises(ValueError, match="the name save_counter is taken"):
        Checkpoint(save_counter=zero())


# ----------------------------------------------------------------------------------------- root and kwargs


def test_a_root_lends_its_children_and_keywords_are_attached_after_them(prefix: str) -> None:
    """C002, C014, C029"""
    Checkpoint(thing(w=zero()), extra=zero(), also=zero()).write(prefix)
    assert root_children(prefix) == [("w", 1), ("also", 2), ("extra", 3), ("root", 0)]
    assert paths(prefix) == ["also", "extra", "w"]


def test_a_keyword_that_names_another_child_of_the_root_is_refused(prefix: str) -> None:
    """C030"""
    value = zero()
    root = thing(w=value)
    with pytest.raises(ValueError, match=r"root\.w already exists"):
        Checkpoint(root, w=zero())
    Checkpoint(root, w=value).write(prefix)
    assert root_children(prefix) == [("w", 1), ("root", 0)]


def test_root_and_keywords_are_interchangeable_on_load(prefix: str) -> None:
    """C031"""
    Checkpoint(thing(v=torch.tensor(1)), w=torch.tensor(2)).save(prefix)
    for make in (
        lambda v, w: Checkpoint(thing(w=w), v=v),
        lambda v, w: Checkpoint(v=v, w=w),
        lambda v, w: Checkpoint(thing(v=v, w=w)),
    ):
        v, w = zero(), zero()
        make(v, w).restore(prefix + "-1").assert_consumed()
        assert (v.item(), w.item()) == (1, 2)


def test_of_overlapping_checkpoints_the_common_names_are_restored(prefix: str) -> None:
    """C032"""
    Checkpoint(thing(a=torch.tensor(1), b=torch.tensor(2)), c=torch.tensor(3)).save(prefix)
    b, c, d = zero(), zero(), zero()
    Checkpoint(thing(b=b), c=c, d=d).restore(prefix + "-1").expect_partial()
    assert (b.item(), c.item(), d.item()) == (2, 3, 0)


@pytest.mark.parametrize("value", [3, "text", object(), len, nn.Linear])
def test_a_keyword_that_is_not_trackable_is_refused_by_name(value: object) -> None:
    """C033"""
    with pytest.raises(ValueError, match=rf"Checkpoint: speed is a {type(value).__name__}, which is not trackable"):
        Checkpoint(speed=value)


def test_a_root_that_is_not_trackable_is_refused_by_name() -> None:
    """C034"""
    with pytest.raises(ValueError, match=r"Checkpoint: root is a object, which is not trackable"):
        Checkpoint(object())


def test_a_falsy_root_is_a_root(prefix: str) -> None:
    """C002: a zero, an empty container."""
    Checkpoint(torch.tensor(0.0)).write(prefix)
    assert "/.ATTRIBUTES/VARIABLE_VALUE" in witness.read_bundle(prefix)
    container: list[torch.Tensor] = []
    checkpoint = Checkpoint(container)
    container.append(torch.tensor(1))
    checkpoint.write(prefix)
    assert paths(prefix) == ["0"]


def test_a_weakly_referenced_root_is_saved_and_restored_and_not_kept_alive(prefix: str) -> None:
    """C035"""
    root = thing(x=torch.tensor(1))
    checkpoint = Checkpoint(weakref.ref(root))
    path = checkpoint.save(prefix)
    root.x.zero_()
    checkpoint.restore(path).assert_consumed()
    assert root.x.item() == 1
    alive = weakref.ref(root)
    del root
    assert alive() is None


def test_a_weakly_referenced_root_that_died_is_an_error_and_nothing_is_written(prefix: str) -> None:
    """C036"""
    root = thing(x=torch.tensor(1))
    checkpoint = Checkpoint(weakref.ref(root))
    del root
    with pytest.raises(ReferenceError, match="is gone"):
        checkpoint.save(prefix)
    assert names_in(os.path.dirname(prefix)) == []


def test_containers_of_trackables_are_tracked_element_by_element(prefix: str) -> None:
    """C037"""
    Checkpoint(items=[zero(), (zero(), {"k": zero()})]).write(prefix)
    assert paths(prefix) == ["items/0", "items/1/0", "items/1/1/k"]


def test_a_deep_copy_has_parameters_of_its_own_whose_file_loads_into_the_original(prefix: str) -> None:
    """C038"""
    model, extra = nn.Linear(1, 1), torch.tensor(1)
    checkpoint = Checkpoint(model, extra=extra)
    clone = copy.deepcopy(checkpoint)
    clone.extra.fill_(5)
    with torch.no_grad():
        clone.root.weight.fill_(7.0)
    assert extra.item() == 1
    checkpoint.restore(clone.save(prefix)).assert_consumed()
    assert extra.item() == 5
    assert model.weight.item() == 7.0


def test_an_attribute_set_later_is_saved_from_then_on(prefix: str) -> None:
    """C055"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    early = checkpoint.save(prefix)
    checkpoint.y, checkpoint.count = torch.tensor(2), 3
    late = checkpoint.save(prefix)
    assert (paths(early), paths(late)) == (["save_counter", "x"], ["save_counter", "x", "y"])
    checkpoint.y.fill_(9)
    checkpoint.x.fill_(9)
    checkpoint.restore(early).expect_partial()
    assert (checkpoint.x.item(), checkpoint.y.item()) == (1, 9)


def test_a_subclass_may_set_children_before_and_after_its_base_is_initialised(prefix: str) -> None:
    """C097"""

    class Trainer(Checkpoint):
        def __init__(self) -> None:
            super().__init__(x=torch.tensor(1))
            self.y = torch.tensor(2)

    Trainer().save(prefix)
    assert paths(prefix + "-1") == ["save_counter", "x", "y"]


# ------------------------------------------------------------------------------------- save and restore


def test_restore_puts_every_value_back_in_place(prefix: str) -> None:
    """C044, C126"""
    model = nn.Linear(2, 3)
    before = [(parameter, parameter.data_ptr(), parameter.detach().clone()) for parameter in model.parameters()]
    checkpoint = Checkpoint(model=model)
    path = checkpoint.save(prefix)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)
    checkpoint.restore(path).assert_consumed()
    for parameter, (old, pointer, value) in zip(model.parameters(), before, strict=True):
        assert parameter is old
        assert parameter.data_ptr() == pointer
        assert torch.equal(parameter, value)


def test_write_returns_its_path_adds_no_number_and_touches_neither_counter_nor_state_file(prefix: str) -> None:
    """C045, C366"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    assert checkpoint.write(prefix) == prefix
    assert names_in(os.path.dirname(prefix)) == ["ckpt.data-00000-of-00001", "ckpt.index"]
    assert checkpoint.save_counter.item() == 0


def test_a_fresh_object_reads_what_was_written(prefix: str) -> None:
    """C046"""
    Checkpoint(x=torch.tensor(1)).write(prefix)
    x = zero()
    Checkpoint(x=x).read(prefix).assert_consumed()
    assert x.item() == 1


def test_restoring_a_written_file_gives_the_values_and_misses_the_counter(prefix: str) -> None:
    """C047"""
    Checkpoint(x=torch.tensor(1)).write(prefix)
    x = zero()
    status = Checkpoint(x=x).restore(prefix)
    assert x.item() == 1
    with pytest.raises(AssertionError, match=r"Found 1 Python objects .*\(root\)\.save_counter"):
        status.assert_consumed()


def test_after_a_restore_reading_a_written_file_misses_the_counter(prefix: str) -> None:
    """C061"""
    Checkpoint(x=torch.tensor(1)).write(prefix)
    checkpoint = Checkpoint(x=zero())
    checkpoint.restore(prefix).expect_partial()
    with pytest.raises(AssertionError, match=r"\(root\)\.save_counter"):
        checkpoint.read(prefix).assert_consumed()


def test_writing_over_a_checkpoint_replaces_it(prefix: str) -> None:
    """C048"""
    Checkpoint(x=torch.tensor(1), y=torch.ones(100)).write(prefix)
    Checkpoint(x=torch.tensor(2)).write(prefix)
    assert paths(prefix) == ["x"]
    assert torch.equal(torch.as_tensor(load_variable(prefix, X)), torch.tensor(2))
    assert names_in(os.path.dirname(prefix)) == ["ckpt.data-00000-of-00001", "ckpt.index"]


def test_the_same_state_gives_the_same_files(tmp_path: Path) -> None:
    """C028"""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    one, other = checkpoint.write(tmp_path / "one"), checkpoint.write(tmp_path / "other")
    for suffix in (".index", ".data-00000-of-00001"):
        assert Path(one + suffix).read_bytes() == Path(other + suffix).read_bytes()


def test_values_that_change_after_a_save_do_not_reach_its_file(prefix: str) -> None:
    """C058"""
    x = torch.tensor(1)
    path = Checkpoint(x=x).save(prefix)
    x.fill_(2)
    assert torch.equal(torch.as_tensor(load_variable(path, X)), torch.tensor(1))


def test_restored_values_do_not_depend_on_the_file(prefix: str) -> None:
    """C059"""
    Checkpoint(x=torch.arange(3)).write(prefix)
    x = torch.zeros(3, dtype=torch.int64)
    status = Checkpoint(x=x).read(prefix)
    for name in names_in(os.path.dirname(prefix)):
        os.unlink(os.path.join(os.path.dirname(prefix), name))
    assert torch.equal(x, torch.arange(3))
    status.assert_consumed()


def test_of_two_restores_the_later_decides(prefix: str) -> None:
    """C069"""
    x = torch.tensor(1)
    checkpoint = Checkpoint(x=x)
    first = checkpoint.save(prefix)
    x.fill_(2)
    second = checkpoint.save(prefix)
    first_status = checkpoint.restore(second)
    checkpoint.restore(first)
    assert x.item() == 1
    first_status.assert_consumed()


def test_only_names_count_not_the_kind_of_object_that_holds_them(prefix: str) -> None:
    """C031"""
    Checkpoint(v=torch.tensor(1)).write(prefix)
    holder = thing(v=zero())
    Checkpoint(holder).read(prefix).assert_consumed()
    assert holder.v.item() == 1


def train(directory: Path, num_steps: int) -> tuple[int, nn.Linear]:
    """A program that continues from the latest checkpoint of a folder, or starts anew."""
    torch.manual_seed(0)
    model, step = nn.Linear(3, 1), zero()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    checkpoint = Checkpoint(model=model, optimizer=optimizer, step=step)
    status = checkpoint.restore(latest_checkpoint(directory))
    if step.item():
        status.assert_consumed()
    for _ in range(num_steps):
        step += 1
        optimizer.zero_grad()
        model(torch.arange(3.0) * step).square().sum().backward()
        optimizer.step()
    checkpoint.save(directory / "ckpt")
    return int(step), model


def test_training_that_is_continued_twice_equals_uninterrupted_training(tmp_path: Path) -> None:
    """C070, C111"""
    continued = [train(tmp_path / "continued", 10) for _ in range(3)]
    assert [step for step, _ in continued] == [10, 20, 30]
    _, uninterrupted = train(tmp_path / "whole", 30)
    assert torch.equal(continued[-1][1].weight, uninterrupted.weight)
    assert torch.equal(continued[-1][1].bias, uninterrupted.bias)


def test_state_of_parameters_that_the_checkpoint_does_not_reach_is_reported_once(
    prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """C024"""
    model, nuisance = nn.Linear(1, 1), nn.Linear(1, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *nuisance.parameters()], lr=0.1, momentum=0.9)
    (model(torch.ones(1)) + nuisance(torch.ones(1))).sum().backward()
    optimizer.step()
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    checkpoint.write(prefix)
    checkpoint.write(prefix)
    (record,) = caplog.records
    assert "The state of 2 optimizer parameters is not saved" in record.getMessage()
    assert "(root).optimizer param_groups[0]['params'][2]" in record.getMessage()
    assert [path for path in paths(prefix) if "OPTIMIZER_SLOT" in path] == [
        "model/bias/.OPTIMIZER_SLOT/optimizer/momentum_buffer",
        "model/weight/.OPTIMIZER_SLOT/optimizer/momentum_buffer",
    ]


# ------------------------------------------------------------------------------- names that are taken


def test_a_later_attribute_that_hides_a_child_of_the_root_is_refused(prefix: str) -> None:
    """C030"""
    checkpoint = Checkpoint(thing(x=torch.tensor(1)))
    checkpoint.x = torch.tensor(2)
    with pytest.raises(ValueError, match=r"root\.x already exists"):
        checkpoint.write(prefix)


@pytest.mark.parametrize("name", ["save", "write", "save_counter", "_own", "_trackable_children"])
def test_a_keyword_that_would_break_the_checkpoint_is_refused(name: str) -> None:
    """C033"""
    with pytest.raises(ValueError, match=f"the name {name} is taken"):
        Checkpoint(**{name: torch.tensor(1)})


def test_a_path_of_bytes_is_a_path(tmp_path: Path) -> None:
    """C052"""
    path = Checkpoint(x=torch.tensor(1)).save(os.fsencode(tmp_path / "ckpt"))  # type: ignore[arg-type]
    assert path == str(tmp_path / "ckpt-1")


def test_a_copy_by_pickle_saves_on_its_own(prefix: str) -> None:
    """C038"""
    copied = pickle.loads(pickle.dumps(Checkpoint(x=torch.tensor(3))))
    copied.write(prefix)
    Checkpoint(x=torch.tensor(0)).read(prefix).assert_consumed()
