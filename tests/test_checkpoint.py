"""The whole way: save, write, read, restore, and the counter, arguments, paths and failures around them."""

import copy
import os
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import witness
from stored_dtypes import DTYPES
from torch import nn

from torch_trackckpt import (
    AutoTrackable,
    Checkpoint,
    CheckpointOptions,
    PythonState,
    latest_checkpoint,
    list_variables,
    load_variable,
)
from torch_trackckpt.errors import (
    CheckpointNotFoundError,
    DataLossError,
    MismatchError,
    TensorNotFoundError,
    UnsupportedFormatError,
)
from torch_trackckpt.graph.keys import OBJECT_GRAPH_KEY
from torch_trackckpt.graph.messages import encode_object_graph
from torch_trackckpt.graph.object_graph import Attribute, Child, Node, ObjectGraph
from torch_trackckpt.graph.walk import NamedValue
from torch_trackckpt.save.commit import commit
from torch_trackckpt.save.plan import make_plan
from torch_trackckpt.save.staging import stage
from torch_trackckpt.save.write import write_shards
from torch_trackckpt.storage.local import LocalStorage

GOLDEN = Path(__file__).parent / "golden"
COUNTER = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"
X = "x/.ATTRIBUTES/VARIABLE_VALUE"

Damage = Callable[[str, str], None]


def paths(prefix: str) -> list[str]:
    """The object paths of all values in a file, in the order of their keys."""
    return [key.split("/.ATTRIBUTES")[0] for key in witness.read_bundle(prefix) if key != OBJECT_GRAPH_KEY]


def root_children(prefix: str) -> list[tuple[str, int]]:
    return [(child.local_name, child.node_id) for child in witness.read_graph(prefix)[0].children]


def thing(**children: object) -> AutoTrackable:
    made = AutoTrackable()
    for name, child in children.items():
        setattr(made, name, child)
    return made


def names_in(directory: Path | str) -> list[str]:
    return sorted(os.listdir(directory))


def zero() -> torch.Tensor:
    return torch.tensor(0)


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


# --------------------------------------------------------------------------------------------------- paths


def test_missing_directories_are_made(tmp_path: Path) -> None:
    """C050"""
    Checkpoint().write(tmp_path / "a" / "b" / "ckpt")
    Checkpoint().save(tmp_path / "c" / "d" / "ckpt")
    assert latest_checkpoint(tmp_path / "c" / "d") == str(tmp_path / "c" / "d" / "ckpt-1")
    assert (tmp_path / "a" / "b" / "ckpt.index").exists()


def test_a_prefix_that_ends_with_a_slash_gives_a_file_that_is_only_a_number(tmp_path: Path) -> None:
    """C051"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    path = checkpoint.save(f"{tmp_path}/run/")
    assert path == f"{tmp_path}/run/-1"
    assert names_in(tmp_path / "run") == ["-1.data-00000-of-00001", "-1.index", "checkpoint"]
    assert latest_checkpoint(tmp_path / "run") == path
    checkpoint.restore(path).assert_consumed()


def test_a_written_prefix_that_ends_with_a_slash_is_read_back(tmp_path: Path) -> None:
    """C051"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.write(f"{tmp_path}/run/")
    checkpoint.write(f"{tmp_path}/run/")
    assert names_in(tmp_path / "run") == [".data-00000-of-00001", ".index"]
    checkpoint.read(f"{tmp_path}/run/").assert_existing_objects_matched()


def test_paths_may_be_path_objects_and_come_back_as_text(tmp_path: Path) -> None:
    """C052"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    saved, written = checkpoint.save(tmp_path / "ckpt"), checkpoint.write(tmp_path / "other")
    assert (type(saved), type(written)) == (str, str)
    checkpoint.restore(Path(saved)).assert_consumed()
    checkpoint.read(Path(written)).assert_consumed()


def test_relative_prefixes_stay_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C053"""
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint(x=torch.tensor(1))
    assert checkpoint.save("run/ckpt") == "run/ckpt-1"
    assert checkpoint.save("ckpt") == "ckpt-2"
    assert latest_checkpoint("run") == "run/ckpt-1"
    assert latest_checkpoint("") == latest_checkpoint(".").removeprefix("./") == "ckpt-2"  # type: ignore[union-attr]
    assert (tmp_path / "run" / "checkpoint").read_text().splitlines()[0] == 'model_checkpoint_path: "ckpt-1"'


@pytest.mark.parametrize("name", ["ck[0-9]*pt?", "ck pt", "ckpt.index", "é", "%s", "a.data-00000-of-00001"])
def test_any_file_name_serves_as_a_prefix(tmp_path: Path, name: str) -> None:
    checkpoint = Checkpoint(x=torch.tensor(1))
    for _ in range(2):
        path = checkpoint.write(tmp_path / name)
    assert names_in(tmp_path) == sorted([f"{name}.data-00000-of-00001", f"{name}.index"])
    checkpoint.read(path).assert_consumed()


def test_a_neighbour_whose_name_begins_alike_is_left_alone(tmp_path: Path) -> None:
    """C049"""
    neighbours = [tmp_path / name for name in ("ckpt-1.data-00000-of-00001.bak", "ckpt-10.index.next", "ckpt-1.old")]
    for neighbour in neighbours:
        neighbour.write_bytes(b"mine")
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.write(tmp_path / "ckpt-1")
    checkpoint.write(tmp_path / "ckpt-1")
    assert [neighbour.read_bytes() for neighbour in neighbours] == [b"mine"] * 3


def test_a_missing_path_is_not_found_with_a_hint_at_the_number(tmp_path: Path) -> None:
    """C062"""
    missing = tmp_path / "ckpt"
    with pytest.raises(FileNotFoundError, match=rf"checkpoint or SavedModel at {missing}: .*such as 'ckpt-1'"):
        Checkpoint().restore(missing)
    with pytest.raises(CheckpointNotFoundError, match=rf"There is no checkpoint at '{missing}'"):
        Checkpoint().read(missing)


def test_a_prefix_without_its_number_is_not_found(prefix: str) -> None:
    """C063"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.save(prefix)
    with pytest.raises(CheckpointNotFoundError, match="latest_checkpoint"):
        checkpoint.restore(prefix)


def test_a_directory_is_no_checkpoint(prefix: str) -> None:
    """C064"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.save(prefix)
    directory = os.path.dirname(prefix)
    for load in (checkpoint.restore, checkpoint.read):
        with pytest.raises(CheckpointNotFoundError, match=rf"'{directory}' is a directory, not a checkpoint"):
            load(directory)


def test_a_failed_lookup_leaves_no_counter_behind(prefix: str) -> None:
    checkpoint = Checkpoint(x=torch.tensor(1))
    with pytest.raises(CheckpointNotFoundError):
        checkpoint.restore(prefix)
    checkpoint.write(prefix)
    assert paths(prefix) == ["x"]


# -------------------------------------------------------------------------------------------- failing saves


class Unwilling(PythonState):
    """A state that refuses to be saved."""

    def serialize(self) -> str:
        raise LookupError("not now")

    def deserialize(self, string_value: bytes) -> None: ...


def test_a_value_that_cannot_be_saved_spends_the_number_and_leaves_no_file(tmp_path: Path) -> None:
    """C042, C160"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    first = checkpoint.save(tmp_path / "ckpt")
    before = names_in(tmp_path)
    checkpoint.state = Unwilling()
    with pytest.raises(LookupError, match="not now"):
        checkpoint.save(tmp_path / "ckpt")
    assert names_in(tmp_path) == before
    assert latest_checkpoint(tmp_path) == first
    del checkpoint.state
    assert checkpoint.save(tmp_path / "ckpt") == f"{tmp_path}/ckpt-3"


def test_a_directory_that_cannot_be_made_is_the_systems_error_and_spends_the_number(tmp_path: Path) -> None:
    """C042, C394"""
    (tmp_path / "file").write_text("")
    checkpoint = Checkpoint(x=torch.tensor(1))
    with pytest.raises(NotADirectoryError):
        checkpoint.save(tmp_path / "file" / "ckpt")
    assert checkpoint.save(tmp_path / "ckpt") == f"{tmp_path}/ckpt-2"


def test_a_raising_callback_reaches_the_caller_and_leaves_the_files_but_no_state(tmp_path: Path) -> None:
    """C042, C307, C309"""

    def refuse() -> None:
        raise LookupError("no more quota")

    checkpoint = Checkpoint(x=torch.tensor(1))
    first = checkpoint.save(tmp_path / "ckpt")
    with pytest.raises(LookupError, match="no more quota"):
        checkpoint.save(tmp_path / "ckpt", CheckpointOptions(experimental_write_callbacks=[refuse]))
    assert latest_checkpoint(tmp_path) == first
    assert paths(str(tmp_path / "ckpt-2")) == ["save_counter", "x"]
    assert checkpoint.save_counter.item() == 2


def test_callbacks_run_when_the_files_are_complete_and_before_the_state_file_names_them(tmp_path: Path) -> None:
    """C306, C307, C308"""
    seen: list[object] = []

    def look(path: str) -> None:
        seen.append((path, paths(path), latest_checkpoint(tmp_path)))

    options = CheckpointOptions(experimental_write_callbacks=[look, lambda: seen.append("second")])
    checkpoint = Checkpoint(x=torch.tensor(1))
    written = checkpoint.write(tmp_path / "other", options)
    saved = checkpoint.save(tmp_path / "ckpt", options)
    assert seen == [(written, ["x"], None), "second", (saved, ["save_counter", "x"], None), "second"]
    assert latest_checkpoint(tmp_path) == saved


def test_a_state_file_that_cannot_be_replaced_leaves_the_whole_checkpoint(tmp_path: Path) -> None:
    """C394"""
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(IsADirectoryError):
        Checkpoint(x=torch.tensor(1)).save(tmp_path / "ckpt")
    assert names_in(tmp_path) == ["checkpoint", "ckpt-1.data-00000-of-00001", "ckpt-1.index"]
    assert paths(str(tmp_path / "ckpt-1")) == ["save_counter", "x"]


# ----------------------------------------------------------------------------------- what values may be


def random_bytes_as(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Any bit pattern, NaNs with payloads included."""
    generator = torch.Generator().manual_seed(1)
    high = 2 if dtype == torch.bool else 256
    bits = torch.randint(0, high, (*shape, dtype.itemsize), dtype=torch.uint8, generator=generator)
    return bits.view(dtype).reshape(shape)


def as_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_stored_and_restored_bit_for_bit(prefix: str, dtype: torch.dtype) -> None:
    """C356, C362"""
    value = random_bytes_as(dtype, 3, 4)
    Checkpoint(x=value).write(prefix)
    stored = witness.read_bundle(prefix)[X]
    assert (stored.shape, stored.data) == ((3, 4), as_bytes(value))
    fresh = torch.zeros(3, 4, dtype=dtype)
    Checkpoint(x=fresh).read(prefix).assert_consumed()
    assert as_bytes(fresh) == as_bytes(value)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 1618), (16, 0, 18), (1, 1, 1, 1, 1, 1, 1, 2)], ids=str)
def test_every_shape_is_exact_and_empty_ones_take_no_bytes(prefix: str, shape: tuple[int, ...]) -> None:
    """C357"""
    Checkpoint(x=torch.ones(shape)).write(prefix)
    stored = witness.read_bundle(prefix)[X]
    assert (stored.shape, stored.size) == (shape, 4 * torch.ones(shape).numel())
    fresh = torch.zeros(shape)
    Checkpoint(x=fresh).read(prefix).assert_consumed()
    assert torch.equal(fresh, torch.ones(shape))


SOURCE = torch.arange(12.0).reshape(3, 4)
LAYOUTS: dict[str, torch.Tensor] = {
    "transposed": SOURCE.t(),
    "every other": SOURCE[:, ::2],
    "expanded": SOURCE[:, :1].expand(3, 4),
    "offset": SOURCE[1:],
    "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "conjugate": torch.complex(SOURCE, SOURCE + 1).conj(),
    "negative": torch.complex(SOURCE, SOURCE + 1).conj().imag,
    "negative, contiguous": torch.complex(SOURCE, SOURCE + 1)[:1, :1].conj().imag,
    "requiring grad": SOURCE.clone().requires_grad_(),
    "result": SOURCE.clone().requires_grad_() * 2,
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_tensor_of_any_layout_is_stored_in_row_major_order_and_left_untouched(prefix: str, layout: str) -> None:
    """C026"""
    value = LAYOUTS[layout]
    before = (value.stride(), value._version, value.requires_grad, value.is_conj(), value.is_neg())
    Checkpoint(x=value).write(prefix)
    assert witness.read_bundle(prefix)[X].data == value.detach().resolve_conj().resolve_neg().numpy().tobytes("C")
    assert (value.stride(), value._version, value.requires_grad, value.is_conj(), value.is_neg()) == before


def test_a_tensor_of_a_device_is_stored_as_its_values(prefix: str, device: torch.device) -> None:
    """C026"""
    value = torch.arange(6.0, device=device).reshape(2, 3).t()
    Checkpoint(x=value).write(prefix)
    assert witness.read_bundle(prefix)[X].data == value.cpu().contiguous().numpy().tobytes()


def test_an_empty_checkpoint_is_an_index_and_the_graph(prefix: str) -> None:
    """C017, C368"""
    Checkpoint().write(prefix)
    assert list_variables(prefix) == [(OBJECT_GRAPH_KEY, [])]
    Checkpoint().read(prefix).assert_consumed()


def test_the_header_names_one_shard_little_endian_and_the_versions_of_tensorflow(prefix: str) -> None:
    """C359"""
    Checkpoint(x=torch.tensor(1)).write(prefix)
    key, header = witness.table_items(prefix + ".index")[0]
    assert (key, header) == (b"", b"\x08\x01\x1a\x02\x08\x01")


def test_entries_are_sorted_by_key_and_data_lies_in_the_order_of_the_graph(prefix: str) -> None:
    """C360"""
    Checkpoint(thing(z=zero(), a=zero())).write(prefix)
    stored = witness.read_bundle(prefix)
    assert list(stored) == sorted(stored)
    assert sorted(stored, key=lambda key: stored[key].offset) == [
        "z/.ATTRIBUTES/VARIABLE_VALUE",
        "a/.ATTRIBUTES/VARIABLE_VALUE",
        OBJECT_GRAPH_KEY,
    ]


# -------------------------------------------------------------------------------------------------- contexts

CONTEXTS: dict[str, Callable[[], object]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "inference_mode off": lambda: torch.inference_mode(False),
    "meta device": lambda: torch.device("meta"),
    "cpu device": lambda: torch.device("cpu"),
}


def trained() -> Checkpoint:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return Checkpoint(model=model, optimizer=optimizer, scheduler=scheduler)


def untrained() -> Checkpoint:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return Checkpoint(model=model, optimizer=optimizer, scheduler=scheduler)


@pytest.mark.parametrize("context", list(CONTEXTS))
def test_saving_and_restoring_inside_a_context_gives_the_same_files_and_values(tmp_path: Path, context: str) -> None:
    """C071"""
    original, fresh = trained(), untrained()
    expected = original.save(tmp_path / "outside")
    original.save_counter.zero_()
    with CONTEXTS[context]():  # type: ignore[attr-defined]
        path = original.save(tmp_path / "inside")
        fresh.restore(path).assert_consumed()
    again = fresh.write(tmp_path / "again")
    for suffix in (".index", ".data-00000-of-00001"):
        assert Path(path + suffix).read_bytes() == Path(expected + suffix).read_bytes()
        assert Path(again + suffix).read_bytes() == Path(expected + suffix).read_bytes()


@pytest.mark.parametrize("context", list(CONTEXTS))
def test_after_a_restore_inside_a_context_training_and_saving_go_on_outside(tmp_path: Path, context: str) -> None:
    """C056, C071"""
    path = trained().save(tmp_path / "ckpt")
    fresh = untrained()
    with CONTEXTS[context]():  # type: ignore[attr-defined]
        fresh.restore(path).assert_consumed()
    fresh.model(torch.ones(3, 2)).sum().backward()
    fresh.optimizer.step()
    fresh.scheduler.step()
    assert fresh.save(tmp_path / "ckpt") == f"{tmp_path}/ckpt-2"


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


def write_raw(prefix: str, values: list[NamedValue]) -> None:
    """A bundle of given keys, whatever they say of each other."""
    storage = LocalStorage(durable=False)
    commit(write_shards(stage(make_plan(values)), prefix, storage, durable=False), prefix, storage)


def graph_of_x(key: str) -> NamedValue:
    nodes = (
        Node(children=(Child(1, "x"), Child(2, "y"))),
        Node(attributes=(Attribute("VARIABLE_VALUE", "", key),)),
        Node(attributes=(Attribute("VARIABLE_VALUE", "", "other"),)),
    )
    return NamedValue(OBJECT_GRAPH_KEY, encode_object_graph(ObjectGraph(nodes)))


def test_a_value_that_the_graph_names_and_the_file_lacks_is_an_error_with_its_key(prefix: str) -> None:
    """C073"""
    write_raw(prefix, [graph_of_x("missing"), NamedValue("other", torch.ones(3))])
    _, y, checkpoint = x_and_y()
    with pytest.raises(TensorNotFoundError, match=rf"'{prefix}' names a value for \(root\)\.x under the key missing"):
        checkpoint.read(prefix)
    assert not y.any()


def test_the_key_that_the_graph_names_counts_not_the_one_that_the_path_would_give(prefix: str) -> None:
    """C015"""
    write_raw(
        prefix, [graph_of_x("elsewhere"), NamedValue("elsewhere", torch.ones(2)), NamedValue("other", torch.ones(3))]
    )
    x, _, checkpoint = x_and_y()
    checkpoint.read(prefix).assert_consumed()
    assert torch.equal(x, torch.ones(2))


def test_text_where_the_program_has_a_tensor_is_an_error_and_nothing_changes(prefix: str) -> None:
    """C067"""
    write_raw(prefix, [graph_of_x("text"), NamedValue("text", b"12345678"), NamedValue("other", torch.ones(3))])
    x, y, checkpoint = x_and_y()
    with pytest.raises(MismatchError, match=r"expected dtype float32 does not equal original dtype string"):
        checkpoint.read(prefix)
    assert not x.any()
    assert not y.any()


def test_a_graph_record_that_is_no_string_is_damage(prefix: str) -> None:
    """C391"""
    write_raw(prefix, [NamedValue(OBJECT_GRAPH_KEY, torch.ones(2))])
    with pytest.raises(DataLossError, match=rf"The object graph of '{prefix}' .* not a string scalar"):
        Checkpoint().read(prefix)


def test_a_file_without_an_object_graph_is_refused_with_what_to_do(prefix: str) -> None:
    write_raw(prefix, [NamedValue("dense/kernel", torch.ones(2))])
    with pytest.raises(UnsupportedFormatError, match=rf"'{prefix}' has no object graph: .*load_checkpoint"):
        Checkpoint().read(prefix)


def test_a_model_alone_is_restored_from_a_tensorflow_file_of_model_and_optimizer() -> None:
    """C397"""
    path = GOLDEN / "obj_adam_slots" / "ckpt-1"
    w = torch.zeros(2, 2)
    Checkpoint(model=thing(w=w)).restore(path).expect_partial()
    assert torch.equal(w, torch.as_tensor(load_variable(path, "model/w/.ATTRIBUTES/VARIABLE_VALUE")))


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
