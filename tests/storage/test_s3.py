"""Checkpoints in a bucket of a real server of S3, which a proxy makes fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

pytest.importorskip("s3fs", reason="s3fs is not installed (pip install 'torch_trackckpt[test]')")

import faulty_proxy
import fsspec
from faulty_proxy import FaultyProxy

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

EXAMPLE = Path(__file__).parents[2] / "examples" / "plain_loop.py"
X = "x/.ATTRIBUTES/VARIABLE_VALUE"
ONE_FILE = CheckpointOptions(num_threads=1)
LARGE = 2 * PART_BYTES + (5 << 20)
"""Three parts."""


def large(value: int = 1) -> torch.Tensor:
    return torch.full((LARGE // 4,), value, dtype=torch.int32)


def objects(bucket: str) -> dict[str, int]:
    """What is in the bucket, with sizes, past the proxy's faults."""
    files = fsspec.filesystem("s3")
    files.invalidate_cache()
    found = files.find(bucket.removeprefix("s3://"), detail=True)
    return {path.partition("/")[2]: info["size"] for path, info in found.items()}


def unfinished_uploads(bucket: str) -> list[object]:
    answer = fsspec.filesystem("s3").call_s3("list_multipart_uploads", Bucket=bucket.removeprefix("s3://"))
    return list(answer.get("Uploads", []))


def stored(path: str) -> torch.Tensor:
    reader = CheckpointReader(path)
    reader.verify()
    return torch.as_tensor(reader.get_tensor(X))


def test_a_training_is_saved_and_restored_by_the_same_calls(s3: FaultyProxy, bucket: str) -> None:
    def training() -> Checkpoint:
        model = torch.nn.Linear(300, 200)
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.randn(4, 300)).sum().backward()
        optimizer.step()
        return Checkpoint(model=model, optimizer=optimizer)

    saved, other = training(), training()
    path = saved.save(f"{bucket}/run/ckpt")

    assert path == f"{bucket}/run/ckpt-1"
    assert latest_checkpoint(f"{bucket}/run") == path
    assert dict(list_variables(path))["model/weight/.ATTRIBUTES/VARIABLE_VALUE"] == [200, 300]
    other.restore(path).assert_consumed()
    assert torch.equal(saved.model.weight, other.model.weight)
    assert torch.equal(
        saved.optimizer.state_dict()["state"][0]["exp_avg"], other.optimizer.state_dict()["state"][0]["exp_avg"]
    )


@pytest.mark.parametrize("num_threads", [1, 2])
def test_large_files_go_up_in_parts_and_are_those_of_a_local_save(
    s3: FaultyProxy, bucket: str, tmp_path: Path, num_threads: int
) -> None:
    options = CheckpointOptions(num_threads=num_threads, durable=False)
    torch.manual_seed(0)
    checkpoint = Checkpoint(x=torch.randn(LARGE // 4), y=torch.randn(LARGE // 4))
    checkpoint.write(tmp_path / "ckpt", options)

    checkpoint.write(f"{bucket}/ckpt", options)

    fsspec.filesystem("s3").get(bucket + "/", str(tmp_path / "downloaded"), recursive=True)
    downloaded = {path.name: path.read_bytes() for path in (tmp_path / "downloaded").iterdir()}
    assert downloaded == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert len(downloaded) == 1 + num_threads
    parts = [request for request in s3.requests if "partNumber=" in request.path]
    assert len(parts) == 6
    assert max(request.num_bytes for request in parts) == PART_BYTES
    assert unfinished_uploads(bucket) == []


def test_requests_that_are_throttled_or_dropped_are_made_again(s3: FaultyProxy, bucket: str) -> None:
    checkpoint = Checkpoint(x=large())
    s3.fail("PUT .*partNumber=2", faulty_proxy.slow_down)
    s3.fail("PUT .*partNumber=3", faulty_proxy.drop_connection)
    s3.fail("PUT .*partNumber=1&", faulty_proxy.lose_answer)
    s3.fail("POST .*uploads", faulty_proxy.slow_down)
    s3.fail("PUT .*\\.index", faulty_proxy.slow_down)
    s3.fail("PUT .*/checkpoint", faulty_proxy.lose_answer)
    s3.fail("HEAD ", faulty_proxy.drop_connection)
    s3.fail("GET .*list-type", faulty_proxy.slow_down)

    path = checkpoint.save(f"{bucket}/run/ckpt", ONE_FILE)

    s3.fail("GET .*\\.data-", faulty_proxy.slow_down)
    s3.fail("GET .*\\.data-", faulty_proxy.drop_connection)
    s3.fail("GET .*\\.data-", faulty_proxy.cut_answer)
    s3.fail("GET .*\\.data-", faulty_proxy.shorten_answer)
    s3.fail("GET .*\\.index", faulty_proxy.cut_answer)
    s3.fail("HEAD .*\\.index", faulty_proxy.slow_down)
    s3.fail("GET .*/checkpoint", faulty_proxy.cut_answer)
    assert latest_checkpoint(f"{bucket}/run") == path
    x = torch.zeros(LARGE // 4, dtype=torch.int32)
    Checkpoint(x=x).restore(path).assert_consumed()
    assert torch.equal(x, large())
    assert unfinished_uploads(bucket) == []


def test_an_upload_whose_completion_was_not_heard_of_is_complete(s3: FaultyProxy, bucket: str) -> None:
    s3.fail("POST .*uploadId", faulty_proxy.lose_answer)
    assert torch.equal(stored(Checkpoint(x=large()).write(f"{bucket}/ckpt", ONE_FILE)), large())


def test_a_truncated_upload_is_never_published(s3: FaultyProxy, bucket: str) -> None:
    checkpoint = Checkpoint(x=large())
    first = checkpoint.save(f"{bucket}/run/ckpt", ONE_FILE)
    before = objects(bucket)
    s3.fail("PUT .*ckpt-2.data.*partNumber=3", faulty_proxy.cut_upload, times=1000)

    with pytest.raises(OSError, match=r"ckpt-2\.data"):
        checkpoint.save(f"{bucket}/run/ckpt", ONE_FILE)

    s3.clear()
    assert objects(bucket) == before
    assert unfinished_uploads(bucket) == []
    assert latest_checkpoint(f"{bucket}/run") == first
    assert torch.equal(stored(first), large())


@pytest.mark.parametrize("fault", [faulty_proxy.slow_down, faulty_proxy.drop_connection])
@pytest.mark.parametrize("request_", ["POST .*uploads", "PUT .*partNumber=2", "POST .*uploadId", r"PUT .*\.index"])
def test_a_save_that_cannot_get_on_leaves_nothing_and_the_next_one_works(
    s3: FaultyProxy, bucket: str, monkeypatch: pytest.MonkeyPatch, request_: str, fault: faulty_proxy.Action
) -> None:
    monkeypatch.setattr("torch_trackckpt.storage.remote._PAUSES_SECONDS", (0.0,))
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    checkpoint = Checkpoint(x=large())
    checkpoint.save(f"{bucket}/run/ckpt", ONE_FILE)
    before = objects(bucket)
    s3.fail(request_, fault, times=1000)

    with pytest.raises(OSError, match=r"s3://.*/run/ckpt-2"):
        checkpoint.save(f"{bucket}/run/ckpt", ONE_FILE)

    s3.clear()
    assert objects(bucket) == before
    assert unfinished_uploads(bucket) == []
    assert latest_checkpoint(f"{bucket}/run") == f"{bucket}/run/ckpt-1"
    assert torch.equal(stored(checkpoint.save(f"{bucket}/run/ckpt", ONE_FILE)), large())


def test_a_download_that_stays_short_is_an_error_that_says_where(
    s3: FaultyProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_trackckpt.storage.remote._PAUSES_SECONDS", (0.0,))
    path = Checkpoint(x=torch.ones(1000)).write(f"{bucket}/ckpt")
    s3.fail("GET .*\\.data-", faulty_proxy.shorten_answer, times=1000)
    with pytest.raises(OSError, match=r"Reading 4000 bytes at offset 0 failed 2 times.*2000 bytes have come") as raised:
        CheckpointReader(path).get_tensor(X)
    assert raised.value.filename == f"{path}.data-00000-of-00001"


def test_only_what_is_needed_is_downloaded(s3: FaultyProxy, bucket: str) -> None:
    path = Checkpoint(x=large(), y=torch.arange(1000)).write(f"{bucket}/ckpt", ONE_FILE)
    reader = CheckpointReader(path)
    s3.clear()
    part = reader.get_tensor(X, slice(1000, 3000))
    assert torch.equal(torch.as_tensor(part), large()[1000:3000])
    ranges = [request.range for request in s3.requests if ".data-" in request.path and request.method == "GET"]
    assert ranges == [f"bytes={4000}-{11999}"]


def test_a_manager_lists_prunes_and_falls_back(s3: FaultyProxy, bucket: str) -> None:
    x = torch.zeros(100)
    manager = CheckpointManager(Checkpoint(x=x), f"{bucket}/run", max_to_keep=2)
    for value in (1, 2, 3):
        x.fill_(value)
        manager.save()
    assert sorted({name.partition(".")[0] for name in objects(bucket)}) == [
        "run/checkpoint",
        "run/ckpt-2",
        "run/ckpt-3",
    ]
    files = fsspec.filesystem("s3")
    files.rm(f"{bucket}/run/ckpt-3.data-00000-of-00001")

    later = CheckpointManager(Checkpoint(x=x), f"{bucket}/run", max_to_keep=2)
    assert later.restore_or_initialize() == f"{bucket}/run/ckpt-2"
    assert torch.equal(x, torch.full((100,), 2.0))


def test_saves_of_another_process_are_seen_although_fsspec_remembers_listings(s3: FaultyProxy, bucket: str) -> None:
    files = fsspec.filesystem("s3")
    checkpoint = Checkpoint(x=torch.zeros(3))
    assert latest_checkpoint(f"{bucket}/run") is None
    first = checkpoint.save(f"{bucket}/run/ckpt")
    files.ls(f"{bucket}/run")
    # Not by the object that remembers.
    other = type(files)(**fsspec.config.conf["s3"], skip_instance_cache=True)
    for path in other.glob(f"{bucket}/run/ckpt-1*"):
        other.copy(path, path.replace("ckpt-1", "ckpt-2"))
    assert torch.equal(stored(f"{bucket}/run/ckpt-2"), torch.zeros(3))
    other.rm(first + ".index")
    with pytest.raises(CheckpointNotFoundError):
        stored(first)


PROGRAM = """
import json, sys, fsspec, torch
fsspec.config.conf["s3"] = json.loads(sys.argv[1])
from torch_trackckpt import Checkpoint, CheckpointOptions
checkpoint = Checkpoint(x=torch.full((%d,), 2, dtype=torch.int32))
checkpoint.save_counter.fill_(1)
checkpoint.save(sys.argv[2] + "/run/ckpt", CheckpointOptions(num_threads=1, enable_async=%s))
"""


def run_program(s3: FaultyProxy, bucket: str, *, is_async: bool) -> subprocess.Popen[str]:
    import json

    settings = json.dumps(fsspec.config.conf["s3"] | {"endpoint_url": s3.url.replace("127.0.0.1", "localhost")})
    program = textwrap.dedent(PROGRAM % (LARGE // 4, is_async))
    return subprocess.Popen([sys.executable, "-c", program, settings, bucket], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("request_", ["PUT .*partNumber=2", "POST .*uploadId", r"PUT .*\.index", "PUT .*/checkpoint"])
def test_a_process_that_is_killed_while_it_saves_leaves_the_checkpoint_before_it(
    s3: FaultyProxy, bucket: str, request_: str
) -> None:
    """And what it has left there is gone after the next save."""
    checkpoint = Checkpoint(x=large())
    first = checkpoint.save(f"{bucket}/run/ckpt", ONE_FILE)
    processes: list[subprocess.Popen[str]] = []

    def kill(exchange: faulty_proxy._Exchange) -> None:
        processes[0].send_signal(signal.SIGKILL)
        exchange.drop()

    s3.fail(request_, kill)
    processes.append(run_program(s3, bucket, is_async=False))
    processes[0].communicate(timeout=120)
    assert processes[0].returncode == -signal.SIGKILL

    assert latest_checkpoint(f"{bucket}/run") == first
    assert torch.equal(stored(first), large())
    second = checkpoint.save(f"{bucket}/run/ckpt", ONE_FILE)
    assert torch.equal(stored(second), large())
    # What was published when the process died has been replaced: then there are two data files.
    num_files = 2 if "checkpoint" in request_ else 1
    assert set(objects(bucket)) == {
        "run/checkpoint",
        *(f"run/ckpt-1.{end}" for end in ("index", "data-00000-of-00001")),
        *(f"run/ckpt-2.{end}" for end in ("index", *(f"data-{n:05d}-of-{num_files:05d}" for n in range(num_files)))),
    }


def test_an_asynchronous_save_is_complete_when_the_process_has_ended(s3: FaultyProxy, bucket: str) -> None:
    """At its exit the interpreter gives no threads any more, and the server is called by a name."""
    process = run_program(s3, bucket, is_async=True)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert latest_checkpoint(f"{bucket}/run") == f"{bucket}/run/ckpt-2", errors
    assert torch.equal(stored(f"{bucket}/run/ckpt-2"), large(2))


def test_a_program_takes_a_url_for_its_directory_and_is_killed_and_resumed_as_on_this_machine(
    s3: FaultyProxy, bucket: str, tmp_path: Path
) -> None:
    """`examples/plain_loop.py`, unchanged, with credentials from the environment."""
    settings = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "eu-west-1"}
    environment = os.environ | settings | {"AWS_ENDPOINT_URL": s3.url}

    def run(directory: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(EXAMPLE), f"--directory={directory}", "--steps=40", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)

    whole = run(str(tmp_path))
    killed = run(f"{bucket}/run", "--die-after-step=27")
    resumed = run(f"{bucket}/run")

    assert (whole.returncode, killed.returncode, resumed.returncode) == (0, -signal.SIGKILL, 0), resumed.stderr
    assert f"restored {bucket}/run/ckpt-2, step 20" in resumed.stdout
    assert resumed.stdout.splitlines()[-1].endswith(f"saved as {bucket}/run/ckpt-4")
    expected, found = CheckpointReader(str(tmp_path / "ckpt-4")), CheckpointReader(f"{bucket}/run/ckpt-4")
    assert list(expected) == list(found)
    assert [key for key in expected if bits(expected, key) != bits(found, key)] == []


def test_a_sharded_program_takes_a_url_for_its_directory(s3: FaultyProxy, bucket: str) -> None:
    """`examples/fsdp.py`, unchanged, under torchrun and alone."""
    settings = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "eu-west-1"}
    environment = os.environ | settings | {"AWS_ENDPOINT_URL": s3.url, "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

    def run(launcher: list[str], steps: int) -> subprocess.CompletedProcess[str]:
        script = str(EXAMPLE.with_name("fsdp.py"))
        command = [sys.executable, *launcher, script, f"--directory={bucket}/run", f"--steps={steps}"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)

    together, alone = run(torchrun, 10), run([], 15)

    assert together.returncode == 0, together.stderr
    assert f"2 processes, 10 steps, saved as {bucket}/run/ckpt-2" in together.stdout
    assert alone.returncode == 0, alone.stderr
    assert f"restored {bucket}/run/ckpt-2, step 10" in alone.stdout
    CheckpointReader(f"{bucket}/run/ckpt-2").verify()
    assert {name for name in objects(bucket) if name.startswith("run/ckpt-2")} == {
        "run/ckpt-2.data-00000-of-00002",
        "run/ckpt-2.data-00001-of-00002",
        "run/ckpt-2.index",
    }


def bits(reader: CheckpointReader, key: str) -> bytes:
    value = reader.get_tensor(key)
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()


def test_nothing_that_is_logged_has_a_secret(
    s3: FaultyProxy, bucket: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_trackckpt.storage.remote._PAUSES_SECONDS", (0.0,))
    caplog.set_level("DEBUG", logger="torch_trackckpt")
    checkpoint = Checkpoint(x=torch.ones(3))
    checkpoint.save(f"{bucket}/run/ckpt")
    s3.fail(r"PUT .*\.index", faulty_proxy.drop_connection, times=1000)
    with pytest.raises(OSError, match="ckpt-2") as raised:
        checkpoint.save(f"{bucket}/run/ckpt")
    assert fsspec.config.conf["s3"]["secret"] not in caplog.text + str(raised.value)
    assert os.fspath(bucket) in caplog.text
