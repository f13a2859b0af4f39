"""A reader that is open while another checkpoint takes the place of its own."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointOptions, CheckpointReader, merge_checkpoints
from torch_trackckpt.bundle import reader as reader_module
from torch_trackckpt.errors import DataLossError
from torch_trackckpt.sharding import MaxShardSizePolicy

KEY = "x/.ATTRIBUTES/VARIABLE_VALUE"
FAST = CheckpointOptions(durable=False)
OLD, NEW = torch.zeros(1000), torch.ones(1000)

READS: dict[str, Callable[[CheckpointReader], object]] = {
    "a part": lambda reader: reader[KEY][:3],
    "a mapped value": lambda reader: reader.get_tensor(KEY, mmap=True),
    "the whole": lambda reader: reader.get_tensor(KEY),
    "its checksum": lambda reader: reader.verify([KEY]),
}


def write(prefix: str, value: torch.Tensor, options: CheckpointOptions = FAST) -> None:
    Checkpoint(x=value).write(prefix, options)


def replace_by_writing(prefix: str) -> None:
    write(prefix, NEW)


def replace_by_shards(prefix: str) -> None:
    write(prefix, NEW, CheckpointOptions(durable=False, experimental_sharding_callback=MaxShardSizePolicy(1000)))


def replace_by_merging(prefix: str) -> None:
    write(prefix + "-other", NEW)
    merge_checkpoints([prefix + "-other"], prefix, durable=False)


def remove(prefix: str) -> None:
    for path in Path(prefix).parent.iterdir():
        path.unlink()


@pytest.mark.parametrize("replace", [replace_by_writing, replace_by_shards, replace_by_merging, remove])
@pytest.mark.parametrize("read", READS.values(), ids=list(READS))
def test_what_replaced_a_checkpoint_is_never_taken_for_it(
    prefix: str, read: Callable[[CheckpointReader], object], replace: Callable[[str], None]
) -> None:
    write(prefix, OLD)
    reader = CheckpointReader(prefix)
    replace(prefix)

    with pytest.raises(DataLossError, match="was replaced or removed after this reader had opened it"):
        read(reader)


def test_a_value_that_is_replaced_between_its_check_and_its_mapping_is_noticed(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(prefix, OLD)
    reader = CheckpointReader(prefix)
    map_tensor = reader_module.map_tensor

    def late(*place: object) -> torch.Tensor:
        write(prefix, NEW)
        return map_tensor(*place)  # type: ignore[arg-type]

    monkeypatch.setattr(reader_module, "map_tensor", late)
    with pytest.raises(DataLossError, match="was replaced"):
        reader.get_tensor(KEY, mmap=True)


def test_an_index_that_gets_its_final_name_is_the_same_index(prefix: str) -> None:
    write(prefix, OLD)
    for name in (".index", ".data-00000-of-00001"):
        os.rename(prefix + name, prefix + name + ".next")
    reader = CheckpointReader(prefix)
    for name in (".data-00000-of-00001", ".index"):
        os.rename(prefix + name + ".next", prefix + name)

    assert torch.equal(torch.as_tensor(reader[KEY][:3]), OLD[:3])
    assert torch.equal(torch.as_tensor(reader.get_tensor(KEY, mmap=True)), OLD)


def test_data_on_their_way_to_another_checkpoint_are_not_read(prefix: str) -> None:
    """A reader that has met `.next` files once must not take those of the next save for its own."""
    write(prefix, OLD)
    data = prefix + ".data-00000-of-00001"
    os.rename(prefix + ".index", prefix + ".index.next")
    shutil.copy(data, data + ".next")
    reader = CheckpointReader(prefix)
    os.rename(prefix + ".index.next", prefix + ".index")
    other = prefix + "-other"
    write(other, NEW)
    os.replace(other + ".data-00000-of-00001", data + ".next")

    assert torch.equal(torch.as_tensor(reader[KEY][:3]), OLD[:3])


def test_a_value_that_waits_is_not_taken_from_what_replaced_its_checkpoint(prefix: str) -> None:
    write(prefix, OLD)
    group = Checkpoint(part=AutoTrackable())
    group.read(prefix)
    group.write(prefix, FAST)

    with pytest.raises(DataLossError, match="was replaced"):
        group.x = torch.zeros(1000)


def test_readers_that_look_while_a_writer_replaces_see_one_checkpoint_each_or_an_error(prefix: str) -> None:
    def write_generation(generation: int) -> None:
        values = {name: torch.full((500,), float(generation)) for name in "xy"}
        Checkpoint(**values).write(prefix, FAST)

    def write_many() -> None:
        for generation in range(1, 200):
            write_generation(generation)

    write_generation(0)
    writer = threading.Thread(target=write_many)
    writer.start()
    num_whole = 0
    while writer.is_alive():
        reader = CheckpointReader(prefix)
        try:
            part = torch.as_tensor(reader[KEY][:3])
            other = torch.as_tensor(reader[KEY.replace("x", "y", 1)][100:102])
            mapped = torch.as_tensor(reader.get_tensor(KEY, mmap=True))
        except DataLossError as error:
            assert "was replaced" in str(error)  # noqa: PT017  what matters is that nothing else is raised
            continue
        assert {*part.tolist(), *other.tolist(), *mapped.tolist()} == {float(part[0])}
        num_whole += 1
    writer.join()

    assert num_whole > 0
