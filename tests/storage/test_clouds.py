"""Checkpoints in Google's and in Azure's object storage, of which servers run on this machine."""

from __future__ import annotations

import logging
from pathlib import Path

import faulty_proxy
import pytest
import torch

pytest.importorskip("fsspec", reason="fsspec is not installed (pip install 'torch_trackckpt[test]')")

from cloud_servers import AZURITE_KEY
from clouds import Cloud

from torch_trackckpt import (
    Checkpoint,
    CheckpointManager,
    CheckpointOptions,
    CheckpointReader,
    latest_checkpoint,
    list_variables,
)
from torch_trackckpt.errors import CheckpointNotFoundError
from torch_trackckpt.storage.upload import PART_BYTES

# Of aiohttp, about parts that adlfs and gcsfs hand over as bytes.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")

X = "x/.ATTRIBUTES/VARIABLE_VALUE"
ONE_FILE = CheckpointOptions(num_threads=1)
LARGE = 2 * PART_BYTES + (5 << 20)
"""Three parts."""


def large(value: int = 1) -> torch.Tensor:
    return torch.full((LARGE // 4,), value, dtype=torch.int32)


def stored(path: str) -> torch.Tensor:
    """The value of a checkpoint, all of whose checksums are right."""
    reader = CheckpointReader(path)
    reader.verify()
    return torch.as_tensor(reader.get_tensor(X))


def test_a_training_is_saved_and_restored_by_the_same_calls(cloud: Cloud) -> None:
    def training() -> Checkpoint:
        model = torch.nn.Linear(300, 200)
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.randn(4, 300)).sum().backward()
        optimizer.step()
        return Checkpoint(model=model, optimizer=optimizer)

    saved, other = training(), training()
    path = saved.save(f"{cloud.url}/run/ckpt")

    assert path == f"{cloud.url}/run/ckpt-1"
    assert latest_checkpoint(f"{cloud.url}/run") == path
    assert dict(list_variables(path))["model/weight/.ATTRIBUTES/VARIABLE_VALUE"] == [200, 300]
    other.restore(path).assert_consumed()
    assert torch.equal(saved.model.weight, other.model.weight)
    assert torch.equal(
        saved.optimizer.state_dict()["state"][0]["exp_avg"], other.optimizer.state_dict()["state"][0]["exp_avg"]
    )


@pytest.mark.parametrize("num_threads", [1, 2])
def test_large_files_go_up_in_parts_and_are_those_of_a_local_save(
    cloud: Cloud, tmp_path: Path, num_threads: int
) -> None:
    """One of the files ends where a part does."""
    options = CheckpointOptions(num_threads=num_threads, durable=False)
    torch.manual_seed(0)
    checkpoint = Checkpoint(x=torch.randn(2 * PART_BYTES // 4), y=torch.randn(LARGE // 4))
    checkpoint.write(tmp_path / "ckpt", options)

    checkpoint.write(f"{cloud.url}/ckpt", options)

    local = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert cloud.objects() == {name: len(data) for name, data in local.items()}
    assert [name for name, data in local.items() if cloud.content(name) != data] == []
    assert len(local) == 1 + num_threads
    assert len(cloud.parts()) >= 5
    assert max(cloud.parts()) == PART_BYTES
    x = torch.zeros(2 * PART_BYTES // 4)
    Checkpoint(x=x).read(f"{cloud.url}/ckpt").expect_partial()
    assert torch.equal(x, checkpoint.x)


def test_a_checkpoint_takes_the_place_of_another(cloud: Cloud) -> None:
    x = large(1)
    checkpoint = Checkpoint(x=x)
    for value in (1, 2, 3):
        x.fill_(value)
        checkpoint.write(f"{cloud.url}/ckpt", ONE_FILE)
        assert torch.equal(stored(f"{cloud.url}/ckpt"), large(value))
    assert len([name for name in cloud.objects() if name.endswith(".index")]) == 1


def test_an_asynchronous_save_has_the_values_of_its_call(cloud: Cloud) -> None:
    x = large(1)
    checkpoint = Checkpoint(x=x)
    first = checkpoint.save(f"{cloud.url}/run/ckpt", CheckpointOptions(enable_async=True))
    x.fill_(2)
    second = checkpoint.save(f"{cloud.url}/run/ckpt", CheckpointOptions(enable_async=True))
    x.zero_()
    checkpoint.sync()

    assert torch.equal(stored(first), large(1))
    assert torch.equal(stored(second), large(2))
    assert latest_checkpoint(f"{cloud.url}/run") == second


def test_a_manager_lists_prunes_and_falls_back_from_a_damaged_checkpoint(cloud: Cloud) -> None:
    x = torch.zeros(100)
    manager = CheckpointManager(Checkpoint(x=x), f"{cloud.url}/run", max_to_keep=2)
    for value in (1, 2, 3):
        x.fill_(value)
        manager.save()
    assert sorted({name.partition(".")[0] for name in cloud.objects()}) == [
        "run/checkpoint",
        "run/ckpt-2",
        "run/ckpt-3",
    ]
    data = "run/ckpt-3.data-00000-of-00001"
    content = cloud.content(data)
    cloud.change(data, bytes([content[0] ^ 1]) + content[1:])

    later = CheckpointManager(Checkpoint(x=x), f"{cloud.url}/run", max_to_keep=2)
    assert later.checkpoints == [f"{cloud.url}/run/ckpt-2", f"{cloud.url}/run/ckpt-3"]
    assert later.restore_or_initialize() == f"{cloud.url}/run/ckpt-2"
    assert torch.equal(x, torch.full((100,), 2.0))


def test_only_what_is_needed_is_downloaded(cloud: Cloud) -> None:
    path = Checkpoint(x=large(), y=torch.arange(1000)).write(f"{cloud.url}/ckpt", ONE_FILE)
    reader = CheckpointReader(path)
    cloud.calm()
    part = reader.get_tensor(X, slice(1000, 3000))
    assert torch.equal(torch.as_tensor(part), large()[1000:3000])
    assert len(cloud.asked(r"GET .*\.data-")) == 1


def test_requests_that_are_throttled_are_made_again(cloud: Cloud) -> None:
    part, index = {
        "gs": ("POST .*upload_id=", "POST .*uploadType=multipart"),
        "az": ("PUT .*comp=block&", r"PUT .*\.index"),
    }[cloud.scheme]
    cloud.proxy.fail(part, faulty_proxy.slow_down)
    cloud.proxy.fail(index, faulty_proxy.slow_down)
    path = Checkpoint(x=large()).save(f"{cloud.url}/run/ckpt", ONE_FILE)
    cloud.proxy.fail(r"GET .*\.data-.*", faulty_proxy.slow_down)
    cloud.proxy.fail(r"GET .*\.data-.*", faulty_proxy.cut_answer)
    assert torch.equal(stored(path), large())


@pytest.mark.parametrize("stage", ["first request", "part", "last request", "index"])
def test_a_save_that_cannot_get_on_leaves_nothing_and_the_next_one_works(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stage: str
) -> None:
    monkeypatch.setattr("torch_trackckpt.storage.remote._PAUSES_SECONDS", (0.0,))
    checkpoint = Checkpoint(x=large())
    checkpoint.save(f"{cloud.url}/run/ckpt", ONE_FILE)
    before = cloud.objects()
    request, times = {
        ("gs", "first request"): (r"POST .*uploadType=resumable$", 0),
        ("gs", "part"): ("POST .*upload_id=", 1),
        ("gs", "last request"): ("POST .*upload_id=", 2),
        ("gs", "index"): ("POST .*uploadType=multipart", 0),
        ("az", "first request"): ("PUT .*comp=block&", 0),
        ("az", "part"): ("PUT .*comp=block&", 1),
        ("az", "last request"): ("PUT .*comp=blocklist", 0),
        ("az", "index"): (r"PUT .*\.index", 0),
    }[cloud.scheme, stage]
    cloud.proxy.fail(request, faulty_proxy.pass_on, times=times)
    cloud.proxy.fail(request, faulty_proxy.refuse, times=1000)

    with pytest.raises(OSError, match=rf"{cloud.scheme}://.*/run/ckpt-2"):
        checkpoint.save(f"{cloud.url}/run/ckpt", ONE_FILE)

    assert [record for record in caplog.records if record.name == "torch_trackckpt"] == []
    gives_up = cloud.scheme == "gs" and stage in ("part", "last request")
    assert len(cloud.asked("DELETE .*upload_id=")) == gives_up
    cloud.calm()
    assert cloud.objects() == before
    assert latest_checkpoint(f"{cloud.url}/run") == f"{cloud.url}/run/ckpt-1"
    assert torch.equal(stored(checkpoint.save(f"{cloud.url}/run/ckpt", ONE_FILE)), large())


def test_saves_of_another_process_are_seen_although_fsspec_remembers_listings(cloud: Cloud) -> None:
    checkpoint = Checkpoint(x=torch.zeros(3))
    assert latest_checkpoint(f"{cloud.url}/run") is None
    first = checkpoint.save(f"{cloud.url}/run/ckpt")
    cloud.files.ls(f"{cloud.url}/run")
    other = cloud.elsewhere()
    for path in other.glob(f"{cloud.url}/run/ckpt-1*"):
        other.pipe_file(path.replace("ckpt-1", "ckpt-2"), other.cat_file(path))
    assert torch.equal(stored(f"{cloud.url}/run/ckpt-2"), torch.zeros(3))
    cloud.files.ls(f"{cloud.url}/run")
    other.rm(first + ".index")
    with pytest.raises(CheckpointNotFoundError):
        stored(first)


def test_a_bucket_that_is_not_there_is_an_error_that_says_which_file_it_was(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_trackckpt.storage.remote._PAUSES_SECONDS", (0.0,))
    url = f"{cloud.scheme}://no-such-bucket/run"
    assert latest_checkpoint(url) is None
    with pytest.raises(OSError, match="no-such-bucket") as raised:
        Checkpoint(x=torch.ones(3)).save(f"{url}/ckpt")
    assert raised.value.filename == f"{url}/ckpt-1.data-00000-of-00001"


def test_nothing_that_is_logged_has_a_secret(
    cloud: Cloud, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_trackckpt.storage.remote._PAUSES_SECONDS", (0.0,))
    caplog.set_level(logging.DEBUG, logger="torch_trackckpt")
    checkpoint = Checkpoint(x=torch.ones(3))
    checkpoint.save(f"{cloud.url}/run/ckpt")
    cloud.proxy.fail("(PUT|POST) ", faulty_proxy.refuse, times=1000)
    with pytest.raises(OSError, match="ckpt-2") as raised:
        checkpoint.save(f"{cloud.url}/run/ckpt")
    said = "".join(record.getMessage() for record in caplog.records if record.name == "torch_trackckpt")
    assert AZURITE_KEY not in said + str(raised.value)
    assert cloud.url in said
