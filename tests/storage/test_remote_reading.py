"""What is read of remote storage: what is needed, in few and large requests, several at once."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from remote_memory import PATIENCE_SECONDS, CountedFileSystem, Place

from torch_trackckpt import Checkpoint, CheckpointManager, CheckpointOptions, CheckpointReader
from torch_trackckpt.restore import assign
from torch_trackckpt.storage import remote

URL = "counted://run/ckpt"
ATTRIBUTE = "/.ATTRIBUTES/VARIABLE_VALUE"


def num_bytes(ranges: list[tuple[int, int]]) -> int:
    return sum(end - start for start, end in ranges)


@pytest.fixture
def path(place: Place) -> str:
    """Values of 100 KiB, 4 MiB, 100 KiB and 4 MiB, in this order."""
    torch.manual_seed(0)
    small, large = 25 << 10, 1 << 20
    checkpoint = Checkpoint(a=torch.randn(small), b=torch.randn(1024, 1024), c=torch.randn(small), d=torch.randn(large))
    path = checkpoint.write(URL, CheckpointOptions(num_threads=1))
    place.calm()
    return path


def test_opening_reads_the_index_alone(place: Place, path: str) -> None:
    CheckpointReader(path).get_variable_to_shape_map()
    assert place.ranges(".data-") == []


def test_one_value_costs_its_own_bytes(place: Place, path: str) -> None:
    CheckpointReader(path).get_tensor("c" + ATTRIBUTE)
    assert num_bytes(place.ranges(".data-")) == 100 << 10


def test_rows_of_a_value_cost_their_own_bytes_in_one_request(place: Place, path: str) -> None:
    CheckpointReader(path)["b" + ATTRIBUTE][100:200]
    (only,) = place.ranges(".data-")
    assert only == ((100 << 10) + 100 * 4096, (100 << 10) + 200 * 4096)


def test_columns_of_a_value_are_read_with_what_lies_between_them(place: Place, path: str) -> None:
    """A gap costs less than a request."""
    part = CheckpointReader(path).get_tensor("b" + ATTRIBUTE, np.s_[:, 10:20])
    assert isinstance(part, torch.Tensor)
    assert part.shape == (1024, 10)
    assert len(place.ranges(".data-")) == 1


def test_a_program_with_less_in_it_reads_less(place: Place, path: str) -> None:
    c = torch.zeros(25 << 10)
    Checkpoint(c=c).read(path).expect_partial()

    graph = len(CheckpointReader(path).get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    needed = (100 << 10) + graph
    assert needed <= num_bytes(place.ranges(".data-")) <= needed + graph + 100


def test_neighbours_come_together_and_what_lies_far_off_does_not(place: Place) -> None:
    values = {f"x{i:03d}": torch.full((250,), float(i)) for i in range(400)}
    values["x200"] = torch.zeros(1 << 18)
    path = Checkpoint(**values).write(URL)
    live = {name: torch.zeros(250) for name in values if name != "x200"}
    place.calm()

    Checkpoint(**live).read(path).expect_partial()

    assert all(torch.equal(tensor, values[name]) for name, tensor in live.items())
    # The object graph, and what is before and behind the large value.
    assert len(place.ranges(".data-")) == 3


def test_what_is_checked_before_it_is_read_is_downloaded_once(place: Place, path: str) -> None:
    live = Checkpoint(
        a=torch.zeros(25 << 10), b=torch.zeros(1024, 1024), c=torch.zeros(25 << 10), d=torch.zeros(1 << 20)
    )
    live.read(path).assert_consumed()

    ranges = place.ranges(".data-")
    assert len(ranges) == len(set(ranges))
    size = len(place.files()["run/ckpt.data-00000-of-00001"])
    assert num_bytes(ranges) == size


def test_what_is_kept_for_that_is_bounded(place: Place, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "KEPT_BYTES", 1 << 20)
    reader = CheckpointReader(path)
    assert reader._ranges is not None
    for _ in range(2):
        reader.verify()
    assert not reader._ranges._kept  # type: ignore[attr-defined]
    assert num_bytes(place.ranges(".data-")) == 2 * len(place.files()["run/ckpt.data-00000-of-00001"])


def test_several_requests_are_under_way_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a single thread, which mostly waits."""
    monkeypatch.setattr(assign, "VERIFIED_BEFORE_BYTES", 0)
    path = Checkpoint(x=torch.ones(8 << 20)).write(URL)
    all_there = threading.Barrier(remote.NUM_REQUESTS)

    def wait(kind: str, path: str, start: int | None = None, end: int | None = None) -> None:
        if kind == "cat_file" and ".data-" in path and start is not None and end is not None and end - start > 1 << 20:
            all_there.wait(PATIENCE_SECONDS)

    place.before = wait
    x = torch.zeros(8 << 20)
    Checkpoint(x=x).read(path, CheckpointOptions(num_threads=1)).assert_consumed()
    assert torch.equal(x, torch.ones(8 << 20))
    assert place.most_at_once >= remote.NUM_REQUESTS


def test_a_request_is_never_larger_than_eight_mebibytes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assign, "VERIFIED_BEFORE_BYTES", 0)
    large = torch.arange(6 << 20, dtype=torch.int32)
    path = Checkpoint(x=large).write(URL, CheckpointOptions(num_threads=1))
    place.calm()

    reader = CheckpointReader(path)
    assert torch.equal(torch.as_tensor(reader.get_tensor("x" + ATTRIBUTE)), large)
    assert torch.equal(torch.as_tensor(reader.get_tensor("x" + ATTRIBUTE, slice(1, None))), large[1:])
    reader.verify()
    Checkpoint(x=torch.zeros_like(large)).read(path).assert_consumed()

    assert max(end - start for start, end in place.ranges("")) == remote.REQUEST_BYTES


def test_values_with_gaps_in_memory_and_of_other_devices_are_restored(place: Place) -> None:
    path = Checkpoint(x=torch.arange(12.0).reshape(3, 4)).write(URL)
    live: Any = torch.zeros(4, 3).T
    Checkpoint(x=live).read(path).assert_consumed()
    assert torch.equal(live, torch.arange(12.0).reshape(3, 4))


def test_what_a_file_system_remembers_of_a_directory_is_not_believed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """adlfs looks for a file in the listing of its directory, and forgets that only if it is told this very path."""
    listings: dict[str, list[dict[str, Any]]] = {}
    listing, looking = CountedFileSystem.ls, CountedFileSystem.info

    def ls(self: CountedFileSystem, path: str, detail: bool = True) -> Any:
        path = self._strip_protocol(path)
        if path not in listings:
            listings[path] = listing(self, path)
        return listings[path] if detail else [info["name"] for info in listings[path]]

    def info(self: CountedFileSystem, path: str) -> dict[str, Any]:
        path = self._strip_protocol(path)
        for info in (remembered := listings.get(self._parent(path), [])):
            if info["name"] == path:
                return info
        if remembered:
            raise FileNotFoundError(path)
        return looking(self, path)

    monkeypatch.setattr(CountedFileSystem, "ls", ls)
    monkeypatch.setattr(CountedFileSystem, "info", info)
    monkeypatch.setattr(CountedFileSystem, "invalidate_cache", lambda self, path: listings.pop(path, None))

    manager = CheckpointManager(Checkpoint(x=torch.ones(3)), "counted://run", max_to_keep=2)
    for number in (1, 2, 3):
        assert manager.save() == f"counted://run/ckpt-{number}"
    storage = remote.RemoteStorage(URL)
    assert len(storage.list("counted://run/")) == 5
    CountedFileSystem.store.pop("/run/ckpt-3.index")
    assert not storage.exists("counted://run/ckpt-3.index")
    assert len(storage.list("counted://run/")) == 4


def test_a_file_that_is_not_there_is_named_by_its_url(place: Place) -> None:
    """gcsfs tells the address of its request, and nothing else."""

    def answer(*call: Any) -> None:
        if call[0] in ("pipe_file", "cat_file"):
            raise FileNotFoundError("https://server/storage/v1/b/run")

    place.before = answer
    storage = remote.RemoteStorage(URL)
    for act in (lambda: storage.put(URL, b"x"), lambda: storage.get(URL), lambda: storage.read(URL, 0, 1)):
        with pytest.raises(FileNotFoundError, match="there is nothing at https://server/storage/v1/b/run") as raised:
            act()
        assert raised.value.filename == URL
