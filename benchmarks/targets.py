"""The figures that are looked for: ours beside whose, and what it should be at most."""

from __future__ import annotations

import dataclasses

from benchmarks.contenders.entries import ENTRIES, OURS

MEGABYTE = 10**6
READERS = tuple(entry.name for entry in ENTRIES if "read" in entry.does and not entry.is_ours)
QUICK_READERS = ("safetensors", "fastsafetensors")


@dataclasses.dataclass(frozen=True)
class Target:
    """One line of the table."""

    label: str
    figure: str
    """action/workload/medium, as in the results."""
    factor: float
    """Ours is to be at most this many times the best of the peers; or, without peers, this many times `reference`."""
    peers: tuple[str, ...] = ()
    essential: tuple[str, ...] | None = None
    """Those of the peers that are measured first and in every round, if not all."""
    ours: str = OURS
    metric: str = "wall"
    reference: str = ""
    """Without peers: another metric of our own, or ``bytes`` for the payload, or nothing for a number of MB."""
    limit: str = ""
    """What the machine allows for this, by the name in `limits`; only for times that move the whole payload."""


TARGETS = (
    Target("save W1, tmpfs", "save/W1/tmpfs", 0.65, ("safetensors",), limit="tmpfs write"),
    Target("save W3, tmpfs", "save/W3/tmpfs", 1.0, ("torchsnapshot",), limit="tmpfs write"),
    Target("save W3, tmpfs", "save/W3/tmpfs", 0.55, ("safetensors",), limit="tmpfs write"),
    Target("save W2, tmpfs", "save/W2/tmpfs", 0.10, ("torch",), limit="tmpfs write"),
    Target("restore W1, tmpfs, checked", "load/W1/tmpfs", 1.0, ("safetensors",), limit="tmpfs read"),
    Target("restore W1, disk warm, checked", "load/W1/disk", 0.7, ("safetensors",), limit="disk read"),
    Target("restore W2, tmpfs", "load/W2/tmpfs", 0.12, ("safetensors",), limit="tmpfs read"),
    Target("durable save W1, disk", "save/W1/disk", 0.6, ("safetensors",), limit="disk write"),
    Target("cold restore W1, disk", "cold/W1/disk", 0.5, ("DCP, 2 threads",), limit="disk cold read"),
    Target("read one tensor (5 MB) of W1", "read/W1/tmpfs", 0.9, READERS, QUICK_READERS),
    Target(
        "async stall W1",
        "async/W1/tmpfs",
        0.7,
        ("clone + thread",),
        ours=f"{OURS}, copy",
        metric="stall_later",
        limit="memory copy",
    ),
    Target(
        "async stall W1, first call, of a later one",
        "async/W1/tmpfs",
        1.5,
        ours=f"{OURS}, copy, prewarmed",
        metric="stall_first",
        reference="stall_later",
    ),
    Target(
        "overlapped: lost in that step",
        "async/W1/tmpfs",
        0.7,
        ("torch_checkpointing, overlapped",),
        ours=f"{OURS}, overlapped",
        metric="lost_step",
    ),
    Target(
        "overlapped: lost until complete",
        "async/W1/tmpfs",
        0.6,
        ("torch_checkpointing, overlapped",),
        ours=f"{OURS}, overlapped",
        metric="lost_total",
    ),
    Target(
        "training time lost to one async save W1",
        "async/W1/tmpfs",
        0.6,
        ("DCP async, kept stager",),
        ours=f"{OURS}, copy",
        metric="lost_total",
    ),
    Target("peak memory of a save of W1, MB", "save/W1/tmpfs", 32, metric="peak"),
    Target("peak memory of a restore of W1, MB", "load/W1/tmpfs", 32, metric="peak"),
    Target(
        "peak memory of async saves of W1, of payload + 32 MB",
        "async/W1/tmpfs",
        1.0,
        ours=f"{OURS}, copy",
        metric="peak",
        reference="bytes",
    ),
    Target(
        "index of 100,000 keys (short form: 20,000): open + list",
        "index/keys/tmpfs",
        0.2,
        ("TensorFlow",),
        metric="open_list",
    ),
    Target("the same: open + read one", "index/keys/tmpfs", 0.2, ("TensorFlow",), metric="open_one"),
)

ALLOWANCE_BYTES = 32 * MEGABYTE
"""What an asynchronous save may take beside the payload: as much as a synchronous one."""


PROBE = "probe/W1/tmpfs"
"""Not a time: whether one damaged byte is noticed."""


def is_essential(figure: str, contender: str) -> bool:
    """Whether a target needs it: these are measured first, and in every round."""
    if figure == PROBE:
        return contender == OURS
    return any(
        target.figure == figure
        and contender in (target.ours, *(target.peers if target.essential is None else target.essential))
        for target in TARGETS
    )
