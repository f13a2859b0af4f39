"""Checkpoints behind URLs: the same calls, the same bytes."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from remote_memory import Place

from torch_trackckpt import (
    Checkpoint,
    CheckpointManager,
    CheckpointOptions,
    CheckpointReader,
    checkpoints_iterator,
    get_checkpoint_state,
    latest_checkpoint,
    list_variables,
    load_checkpoint,
    load_variable,
    merge_checkpoints,
    update_checkpoint_state,
)
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError, UnsupportedFormatError
from torch_trackckpt.sharding import MaxShardSizePolicy
from torch_trackckpt.storage.remote import RemoteStorage

URL = "counted://run/ckpt"
X = "x/.ATTRIBUTES/VARIABLE_VALUE"


def training(seed: int) -> Checkpoint:
    """A module and an optimizer that has made a step."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    return Checkpoint(model=model, optimizer=optimizer, step=torch.tensor(seed))


def values(checkpoint: Checkpoint) -> list[torch.Tensor]:
    states = checkpoint.optimizer.state_dict()["state"]
    return [*checkpoint.model.state_dict().values(), *(t for s in states.values() for t in s.values()), checkpoint.step]


def local_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def below(place: Place, folder: str = "run/") -> dict[str, bytes]:
    return {path.removeprefix(folder): data for path, data in place.files().items() if path.startswith(folder)}


def test_a_training_is_saved_and_restored_by_the_same_calls(place: Place) -> None:
    saved, other = training(1), training(2)

    path = saved.save(URL)

    assert path == "counted://run/ckpt-1"
    other.restore(path).assert_consumed()
    assert all(torch.equal(a, b) for a, b in zip(values(saved), values(other), strict=True))


@pytest.mark.parametrize("sharding", [None, MaxShardSizePolicy(1 << 12)])
def test_the_files_are_byte_for_byte_those_of_a_local_save(
    place: Place, tmp_path: Path, sharding: MaxShardSizePolicy | None
) -> None:
    options = CheckpointOptions(durable=False, experimental_sharding_callback=sharding)
    torch.manual_seed(0)
    checkpoint = Checkpoint(x=torch.randn(5000), y=torch.arange(7), z=torch.nn.Linear(30, 40))
    checkpoint.save(tmp_path / "ckpt", options)
    checkpoint.save_counter.zero_()

    checkpoint.save(URL, options)

    assert below(place) == local_files(tmp_path)
    assert len(below(place)) > 3 or sharding is None


@pytest.mark.parametrize("num_parts", [1, 3])
def test_a_file_of_several_parts_is_whole(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_parts: int
) -> None:
    monkeypatch.setattr("torch_trackckpt.storage.upload.PART_BYTES", 4000 // num_parts + 100)
    checkpoint = Checkpoint(x=torch.randn(1000))
    checkpoint.write(tmp_path / "ckpt", CheckpointOptions(durable=False))

    checkpoint.write(URL)

    assert below(place) == local_files(tmp_path)


def test_slices_and_strings_and_parts_come_back(place: Place) -> None:
    big = torch.randn(64, 32)
    options = CheckpointOptions(experimental_sharding_callback=MaxShardSizePolicy(1 << 10))
    path = Checkpoint(x=big, s=torch.arange(3)).write(URL, options)
    reader = CheckpointReader(path)

    assert reader.stored_slices(X)
    assert torch.equal(torch.as_tensor(reader.get_tensor(X)), big)
    assert torch.equal(torch.as_tensor(reader.get_tensor(X, np.s_[5:50, 3:7])), big[5:50, 3:7])
    assert torch.equal(torch.as_tensor(reader.get_tensor(X, np.s_[5:50, 3:7], verify=True)), big[5:50, 3:7])
    assert isinstance(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"), bytes)
    reader.verify()


def test_the_state_file_has_names_that_are_relative_to_its_directory(place: Place) -> None:
    """So that a bucket can be copied to another place. TensorFlow reads it so as well."""
    checkpoint = Checkpoint(x=torch.ones(1))
    checkpoint.save(URL)
    second = checkpoint.save(URL)

    assert below(place)["checkpoint"] == b'model_checkpoint_path: "ckpt-2"\nall_model_checkpoint_paths: "ckpt-2"\n'
    assert latest_checkpoint("counted://run") == latest_checkpoint("counted://run/") == second
    assert latest_checkpoint("counted://run", verify=True) == second
    assert next(checkpoints_iterator("counted://run", timeout=0)) == second
    state = get_checkpoint_state("counted://run")
    assert state is not None
    assert state.all_model_checkpoint_paths == (second,)


def test_a_state_file_may_name_checkpoints_of_other_places(place: Place, tmp_path: Path) -> None:
    path = Checkpoint(x=torch.ones(1)).write("counted://elsewhere/best")
    update_checkpoint_state("counted://run", path)
    assert latest_checkpoint("counted://run") == path
    update_checkpoint_state(tmp_path, path)
    assert latest_checkpoint(tmp_path) == path
    local = Checkpoint(x=torch.ones(1)).write(tmp_path / "local")
    update_checkpoint_state("counted://run", local)
    assert latest_checkpoint("counted://run") == local


def test_the_root_of_a_place_is_a_directory(place: Place) -> None:
    path = Checkpoint(x=torch.ones(2)).save("counted://ckpt")
    assert path == "counted://ckpt-1"
    assert place.files()["checkpoint"].startswith(b'model_checkpoint_path: "ckpt-1"')
    assert latest_checkpoint("counted://") == path


def test_a_checkpoint_is_looked_into_by_its_url_or_its_directorys(place: Place) -> None:
    path = Checkpoint(x=torch.arange(3)).save(URL)

    for name in (path, path + ".index", "counted://run"):
        assert (X, [3]) in list_variables(name)
        assert torch.equal(torch.as_tensor(load_variable(name, X)), torch.arange(3))
    assert repr(CheckpointReader(path)) == "CheckpointReader('counted://run/ckpt-1')"
    with pytest.raises(CheckpointNotFoundError, match=r"no file 'counted://run/ckpt-2\.index'"):
        load_checkpoint("counted://run/ckpt-2")


def test_a_saved_model_directory_stands_for_its_variables(place: Place) -> None:
    Checkpoint(x=torch.ones(2)).write("counted://model/variables/variables")
    RemoteStorage(URL).put("counted://model/saved_model.pb", b"a graph")
    x = torch.zeros(2)

    Checkpoint(x=x).restore("counted://model").expect_partial()

    assert torch.equal(x, torch.ones(2))


def test_an_asynchronous_save_uploads_in_its_thread(place: Place) -> None:
    x = torch.ones(1000)
    checkpoint = Checkpoint(x=x)

    path = checkpoint.save(URL, CheckpointOptions(enable_async=True))
    x.zero_()
    checkpoint.sync()

    assert torch.equal(torch.as_tensor(CheckpointReader(path).get_tensor(X)), torch.ones(1000))
    assert latest_checkpoint("counted://run") == path
    files = [data for name, data in below(place).items() if name != "checkpoint"]
    assert checkpoint.io_metrics.writes.last_bytes == sum(map(len, files))


def test_a_manager_lists_prunes_and_goes_on(place: Place) -> None:
    checkpoint = Checkpoint(x=torch.zeros(2))
    manager = CheckpointManager(checkpoint, "counted://run", max_to_keep=2, checkpoint_name="model")
    for _ in range(4):
        manager.save()

    assert manager.checkpoints == ["counted://run/model-3", "counted://run/model-4"]
    later = CheckpointManager(checkpoint, "counted://run", max_to_keep=2, checkpoint_name="model")
    assert later.checkpoints == manager.checkpoints
    assert later.restore_or_initialize() == "counted://run/model-4"
    later.save()
    assert sorted({name.partition(".")[0] for name in below(place)}) == ["checkpoint", "model-4", "model-5"]


def test_a_manager_keeps_records_by_metrics(place: Place) -> None:
    from torch_trackckpt.retention import KeepBest

    checkpoint = Checkpoint(x=torch.zeros(2))
    manager = CheckpointManager(checkpoint, "counted://run", retention=KeepBest(1, metric="loss", mode="min"))
    for loss in (3, 1, 2):
        manager.save(metrics={"loss": loss})

    assert [
        record.metrics
        for record in CheckpointManager(
            checkpoint, "counted://run", retention=KeepBest(1, metric="loss", mode="min")
        ).records
    ] == [
        {"loss": 1.0},
        {"loss": 2.0},
    ]


def test_a_manager_falls_back_from_a_damaged_checkpoint(place: Place) -> None:
    x = torch.zeros(100)
    manager = CheckpointManager(Checkpoint(x=x), "counted://run")
    for value in (1, 2):
        x.fill_(value)
        manager.save()
    storage = RemoteStorage(URL)
    data = "counted://run/ckpt-2.data-00000-of-00001"
    storage.put(data, bytes([storage.get(data)[0] ^ 1]) + storage.get(data)[1:])

    assert manager.restore_or_initialize() == "counted://run/ckpt-1"
    assert torch.equal(x, torch.ones(100))
    with pytest.raises(DataLossError):
        CheckpointReader("counted://run/ckpt-2").verify()


def test_what_needs_files_of_this_machine_says_so(place: Place, tmp_path: Path) -> None:
    path = Checkpoint(x=torch.ones(2)).write(URL)
    with pytest.raises(ValueError, match=r"Only files of this machine can be mapped, and 'counted://run/ckpt'"):
        CheckpointReader(path).get_tensor(X, mmap=True)
    with pytest.raises(ValueError, match=r"Only checkpoints on this machine can be merged; 'counted://run/ckpt'"):
        merge_checkpoints([path], tmp_path / "merged")
    RemoteStorage(URL).put("counted://old/model.ckpt", b"a file of the older format")
    with pytest.raises(UnsupportedFormatError, match="older format are read from local files only"):
        CheckpointReader("counted://old/model.ckpt")
    with pytest.raises(CheckpointNotFoundError, match="is a directory, not a checkpoint; latest_checkpoint"):
        CheckpointReader("counted://old")


def test_file_urls_go_by_fsspec_too(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    url = (tmp_path / "new" / "folder").as_uri()
    manager = CheckpointManager(Checkpoint(x=torch.ones(3)), url, max_to_keep=1)
    manager.save()
    path = manager.save()

    assert path == url + "/ckpt-2"
    assert latest_checkpoint(url) == path
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == [
        "checkpoint",
        "ckpt-2.data-00000-of-00001",
        "ckpt-2.index",
    ]
    assert torch.equal(
        torch.as_tensor(CheckpointReader(str(tmp_path / "new/folder/ckpt-2")).get_tensor(X)), torch.ones(3)
    )


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'torch_trackckpt[remote]'")):
        CheckpointReader("s3://bucket/ckpt")


def test_a_missing_package_for_a_scheme_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    # No test imports this one; fsspec remembers those that it has found.
    monkeypatch.setitem(sys.modules, "ocifs", None)
    with pytest.raises(ImportError, match=r"cannot open 'oci://bucket/ckpt', because .*[Ii]nstall ocifs"):
        Checkpoint().write("oci://bucket/ckpt")
    with pytest.raises(ValueError, match="cannot open 'no-such-place://ckpt'"):
        Checkpoint().write("no-such-place://ckpt")


def test_urls_with_passwords_are_refused_without_being_told() -> None:
    with pytest.raises(ValueError, match="holds a password") as raised:
        Checkpoint().save("ftp://me:secret@host/run/ckpt")
    assert "secret" not in str(raised.value)
