"""Plans and files of given keys and values, without objects that they belong to."""

import tempfile
from collections.abc import Mapping

from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.save.commit import commit
from torch_trackckpt.save.plan import SavePlan, make_plan
from torch_trackckpt.save.write import WrittenFiles, write_shards
from torch_trackckpt.sharding import ShardingCallback
from torch_trackckpt.storage.base import Storage
from torch_trackckpt.storage.local import LocalStorage
from torch_trackckpt.trackable import Value


def plan(values: Mapping[str, Value], sharding: ShardingCallback | None = None, num_threads: int = 1) -> SavePlan:
    return make_plan(list(values), list(values.values()), sharding, num_threads)


def values_of(plan: SavePlan) -> list[object]:
    """What a file of this plan holds under each key, in the order of the plan."""
    with tempfile.TemporaryDirectory() as directory:
        prefix = f"{directory}/ckpt"
        storage = LocalStorage(durable=False)
        commit(write_shards(plan, prefix, storage, durable=False), prefix, storage)
        reader = CheckpointReader(prefix)
        return [reader.get_tensor(key) for key in plan.keys]


def write(prefix: str, values: Mapping[str, Value], sharding: ShardingCallback | None = None) -> WrittenFiles:
    """Files under temporary names."""
    return write_shards(plan(values, sharding), prefix, LocalStorage(durable=False), durable=False)


def publish(
    prefix: str, values: Mapping[str, Value], sharding: ShardingCallback | None = None, storage: Storage | None = None
) -> None:
    """A bundle of given keys, whatever they say of each other."""
    storage = storage or LocalStorage(durable=False)
    commit(write_shards(plan(values, sharding), prefix, storage, durable=False), prefix, storage)
