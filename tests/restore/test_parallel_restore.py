"""A restore by several threads, from the outside: values, versions, and what is said of damage."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_trackckpt import Checkpoint, CheckpointOptions, Trackable
from torch_trackckpt.errors import DataLossError, RestoreError, ValueChangedError
from torch_trackckpt.restore import assign
from torch_trackckpt.trackable import Value

Damage = Callable[[str, str], None]
FAST = CheckpointOptions(durable=False)
MIB = 1 << 20


def values(num_elements: list[int]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"x{i}": torch.rand(size, generator=generator) + 1 for i, size in enumerate(num_elements)}


def zeros_like(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("verify", ["during", "before"])
@pytest.mark.parametrize("num_threads", [None, 1, 2, 5])
def test_values_of_all_sizes_arrive_by_any_number_of_threads(prefix: str, num_threads: int | None, verify: str) -> None:
    """C044"""
    written = values([0, 1, 1000, MIB // 4, MIB // 4 + 1, 3 * MIB, 7])
    Checkpoint(**written).write(prefix, FAST)
    live = zeros_like(written) | {"x2": torch.zeros(2000)[::2], "x5": nn.Parameter(torch.zeros(3 * MIB))}
    options = CheckpointOptions(num_threads=num_threads, verify=verify)
    Checkpoint(**live).read(prefix, options).assert_consumed()
    assert all(torch.equal(live[name], tensor) for name, tensor in written.items())


@pytest.mark.parametrize("num_threads", [1, 2, 4])
@pytest.mark.parametrize("damaged", ["x0", "x3", "x40"])
def test_exactly_the_values_that_have_changed_are_named(
    prefix: str, damage: Damage, monkeypatch: pytest.MonkeyPatch, damaged: str, num_threads: int
) -> None:
    """C382, C392"""
    monkeypatch.setattr(assign, "VERIFIED_BEFORE_BYTES", -1)
    written = values([100, 2 * MIB // 4, 100, 3 * MIB // 4, *([30_000] * 60)])
    Checkpoint(**written).write(prefix, FAST)
    damage(prefix, f"{damaged}/.ATTRIBUTES/VARIABLE_VALUE")
    live = zeros_like(written)
    with pytest.raises(DataLossError) as caught:
        Checkpoint(**live).read(prefix, CheckpointOptions(num_threads=num_threads))
    changed = [f"(root).{name}" for name, tensor in live.items() if tensor.any()]
    assert sorted(caught.value.overwritten) == sorted(changed)
    assert len(str(caught.value).splitlines()) == (2 + len(changed) if changed else 1)


def test_several_damaged_values_of_a_small_checkpoint_are_all_named_and_nothing_changes(
    prefix: str, damage: Damage
) -> None:
    """C382, C392"""
    written = values([1000] * 40)
    Checkpoint(**written).write(prefix, FAST)
    for name in ("x3", "x17", "x31"):
        damage(prefix, f"{name}/.ATTRIBUTES/VARIABLE_VALUE")
    live = zeros_like(written)
    with pytest.raises(DataLossError, match="3 values of") as caught:
        Checkpoint(**live).read(prefix)
    assert all(f"key {name}/" in str(caught.value) for name in ("x3", "x17", "x31"))
    assert not any(tensor.any() for tensor in live.values())


def test_torch_knows_of_the_change_before_the_first_value_is_written_and_after_the_last(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C056: who copies the tensors meanwhile, in another thread, notices, whenever that began."""
    monkeypatch.setattr(assign, "PROGRESS_BYTES", 1000)
    written = values([1000] * 10)
    Checkpoint(**written).write(prefix, FAST)
    live = zeros_like(written)
    before = {name: tensor._version for name, tensor in live.items()}
    seen: list[tuple[bool, bool]] = []

    def look(done: int, total: int) -> None:
        know = all(tensor._version > before[name] for name, tensor in live.items())
        seen.append((know, all(tensor.any() for tensor in live.values())))
        before.update({name: tensor._version for name, tensor in live.items()} if done == total else {})

    Checkpoint(**live).read(prefix, CheckpointOptions(progress=look))
    assert seen[0] == (True, False)
    assert seen[-1] == (True, True)
    assert all(tensor._version > before[name] for name, tensor in live.items())


def test_a_save_that_begins_during_a_restore_is_refused(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold some values of before and some of after."""
    monkeypatch.setattr(assign, "PROGRESS_BYTES", 1000)
    written = values([100_000] * 4)
    Checkpoint(**written).write(prefix, FAST)
    live = zeros_like(written)
    has_begun, has_restored = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def save_progress(done: int, total: int) -> None:
        has_begun.set()
        assert has_restored.wait(60)

    def save() -> None:
        options = CheckpointOptions(durable=False, num_threads=1, progress=save_progress)
        try:
            Checkpoint(**live).write(tmp_path / "other", options)
        except ValueChangedError as error:
            failures.append(error)

    thread = threading.Thread(target=save)

    def restore_progress(done: int, total: int) -> None:
        if not has_begun.is_set():
            thread.start()
            assert has_begun.wait(60)

    Checkpoint(**live).read(prefix, CheckpointOptions(progress=restore_progress))
    has_restored.set()
    thread.join(60)
    assert len(failures) == 1
    assert not list(tmp_path.glob("other*"))


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_tensor_that_is_given_other_memory_by_who_is_told_of_the_progress_ends_the_restore(
    size: int, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assign, "PROGRESS_BYTES", 1)
    written = values([size] * 5)
    Checkpoint(**written).write(prefix, FAST)
    live = zeros_like(written)

    def move(done: int, total: int) -> None:
        for tensor in live.values():
            tensor.data = torch.zeros_like(tensor)

    with pytest.raises(RestoreError, match="was given other memory, or another shape, while"):
        Checkpoint(**live).read(prefix, CheckpointOptions(progress=move))


def test_two_tensors_with_memory_in_common_are_restored_without_a_false_alarm(prefix: str) -> None:
    large = torch.rand(4 * MIB // 4)
    Checkpoint(a=large, b=large[: 3 * MIB // 4] + 1).write(prefix, FAST)
    live = torch.zeros(4 * MIB // 4)
    Checkpoint(a=live, b=live[: 3 * MIB // 4]).read(prefix, CheckpointOptions(num_threads=4)).assert_consumed()
    assert torch.equal(live, torch.cat([large[: 3 * MIB // 4] + 1, large[3 * MIB // 4 :]]))


class Owner(Trackable):
    """An object that gives its tensor other memory when it takes its state."""

    def __init__(self, renew: Callable[[nn.Parameter], torch.Tensor]) -> None:
        self.weight = nn.Parameter(torch.zeros(1000))
        self._renew = renew

    def _trackable_children(self) -> Mapping[str, object]:
        return {"weight": self.weight}

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        return {"state": torch.tensor(1.0)}

    def _restore_from_tensors(self, values: Mapping[str, Value]) -> None:
        self.weight.data = self._renew(self.weight)


def test_a_tensor_that_gets_other_memory_while_states_are_assigned_is_read_into_that(prefix: str) -> None:
    owner = Owner(torch.clone)
    with torch.no_grad():
        owner.weight.uniform_(1, 2)
    Checkpoint(owner=owner).write(prefix, FAST)
    live = Owner(lambda weight: weight.detach().clone())
    old = live.weight.data
    Checkpoint(owner=live).read(prefix).assert_consumed()
    assert live.weight.data_ptr() != old.data_ptr()
    assert torch.equal(live.weight, owner.weight)
    assert not old.any()


def test_a_tensor_that_gets_another_shape_while_states_are_assigned_is_refused(prefix: str) -> None:
    Checkpoint(owner=Owner(torch.clone)).write(prefix, FAST)
    live = Owner(lambda weight: weight.detach()[:7].clone())
    with pytest.raises(RestoreError, match=r"while they took their state: .*(.|\n)*\(root\)\.owner\.weight: received"):
        Checkpoint(owner=live).read(prefix)
