"""What modules of torch itself have renamed, and take over from older versions of torch."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from torch_trackckpt import Checkpoint

weight_norm_of_old = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


def without(module: nn.Module, name: str) -> nn.Module:
    """As it was before it had a buffer of this name."""
    old = copy.deepcopy(module)
    del old._buffers[name]
    return old


@weight_norm_of_old
def test_weight_norm_becomes_a_parametrization(prefix: str) -> None:
    def train(model: nn.Module) -> torch.optim.Adam:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.arange(6.0).reshape(2, 3)).square().sum().backward()
            optimizer.step()
        return optimizer

    old = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.utils.weight_norm(nn.Linear(4, 2), dim=1))
    optimizer = train(old)
    path = Checkpoint(model=old, optimizer=optimizer).write(prefix)
    new = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 4)),
        nn.ReLU(),
        parametrizations.weight_norm(nn.Linear(4, 2), dim=1),
    )
    its_optimizer = torch.optim.Adam(new.parameters())

    Checkpoint(model=new, optimizer=its_optimizer).read(path).assert_consumed()

    for layer, other in ((old[0], new[0]), (old[2], new[2])):
        originals = other.parametrizations.weight
        for before, now in ((layer.weight_g, originals.original0), (layer.weight_v, originals.original1)):
            assert torch.equal(before, now)
            state = its_optimizer.state[now]
            assert all(torch.equal(value, state[name]) for name, value in optimizer.state[before].items())
    assert its_optimizer.param_groups[0]["lr"] == 0.1
    x = torch.ones(1, 3)
    assert torch.equal(old(x), new(x))


def test_spectral_norm_solves_for_what_old_files_have_not(prefix: str) -> None:
    module = nn.utils.spectral_norm(nn.Linear(3, 3))
    module(torch.ones(1, 3))
    old = nn.Module()
    for name in ("bias", "weight_orig"):
        old.register_parameter(name, nn.Parameter(module.get_parameter(name).detach().clone()))
    old.register_buffer("weight_u", module.weight_u.clone())
    old.register_buffer("weight", module.weight.detach().clone())
    state = {name: value.clone() for name, value in old.state_dict().items()}
    path = Checkpoint(model=old).write(prefix)
    expected, found = (nn.utils.spectral_norm(nn.Linear(3, 3)) for _ in range(2))
    expected.load_state_dict(state)

    Checkpoint(model=found).read(path).assert_consumed()

    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)


def test_spectral_norm_of_today_is_restored_by_its_names(prefix: str) -> None:
    saved, found = (nn.utils.spectral_norm(nn.Linear(3, 3)) for _ in range(2))
    path = Checkpoint(model=saved).write(prefix)

    Checkpoint(model=found).read(path).assert_consumed()

    assert torch.equal(found.weight_v, saved.weight_v)


def test_a_batch_norm_without_a_count_keeps_the_live_one(prefix: str) -> None:
    saved = without(nn.BatchNorm1d(2), "num_batches_tracked")
    saved._version = 1
    saved.running_mean.fill_(3)
    path = Checkpoint(model=nn.Sequential(saved)).write(prefix)
    model = nn.Sequential(nn.BatchNorm1d(2))
    model(torch.ones(3, 2))
    count = model[0].num_batches_tracked
    version = count._version

    Checkpoint(model=model).read(path).assert_consumed()

    assert torch.equal(model[0].running_mean, saved.running_mean)
    assert (count.item(), count._version) == (1, version)


def test_a_batch_norm_without_a_count_counts_from_zero_on_the_meta_device(prefix: str) -> None:
    saved = without(nn.BatchNorm1d(2), "num_batches_tracked")
    saved._version = 1
    path = Checkpoint(model=saved).write(prefix)
    with torch.device("meta"):
        model = nn.BatchNorm1d(2)

    status = Checkpoint(model=model).read(path)
    status.run_restore_ops("cpu")
    status.assert_consumed()

    assert model.num_batches_tracked.item() == 0


def test_a_batch_norm_of_today_that_has_no_count_in_the_file_is_incomplete(prefix: str) -> None:
    """It says that it is of version 2, which has one."""
    path = Checkpoint(model=without(nn.BatchNorm1d(2), "num_batches_tracked")).write(prefix)

    status = Checkpoint(model=nn.BatchNorm1d(2)).read(path)

    with pytest.raises(AssertionError, match=r"\(root\)\.model\.num_batches_tracked"):
        status.assert_existing_objects_matched()


def test_a_batch_norm_that_says_version_1_is_restored_completely(prefix: str) -> None:
    saved = nn.BatchNorm1d(2)
    saved(torch.ones(3, 2))
    saved._version = 1
    path = Checkpoint(model=saved).write(prefix)
    model = nn.BatchNorm1d(2)

    Checkpoint(model=model).read(path).assert_consumed()

    assert model.num_batches_tracked.item() == 1


def test_the_version_of_a_batch_norm_is_in_the_graph_and_in_no_key(prefix: str) -> None:
    module = nn.BatchNorm1d(2)
    second = Path(Checkpoint(model=module).write(f"{prefix}-1") + ".data-00000-of-00001").read_bytes()
    module._version = 1
    first = Path(Checkpoint(model=module).write(f"{prefix}-2") + ".data-00000-of-00001").read_bytes()

    assert len(second) - len(first) == len(b"\x8a\xb5\x18\x02\x08\x02")
    assert b"\x8a\xb5\x18\x02\x08\x02" in second
