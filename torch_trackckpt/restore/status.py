"""What a restore matched and what it did not; the assertions look at the program as it is when they are called."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch_trackckpt.graph.walk import LiveGraph
from torch_trackckpt.restore.deferred import Restoration
from torch_trackckpt.restore.holder import Holder
from torch_trackckpt.restore.materialize import Device, device_with_memory, initialize
from torch_trackckpt.restore.name_based import NameBasedRestoration, WantedValue
from torch_trackckpt.restore.outcome import Program, report_of_graph, report_of_names, report_of_nothing, reported
from torch_trackckpt.restore.report import RestoreReport

__all__ = [
    "CheckpointLoadStatus",
    "InitializationOnlyStatus",
    "LoadStatus",
    "NameBasedLoadStatus",
    "streaming_restore",
]

_MOST_NAMED = 10

T = TypeVar("T")


class LoadStatus(abc.ABC):
    """The outcome of a restore. Each assertion returns the status, so that calls can be chained.

    ``print`` shows a table of what was restored and what was not, and notebooks show it as HTML.
    """

    @abc.abstractmethod
    def assert_consumed(self) -> LoadStatus:
        """Asserts that every value of the checkpoint has an object, and every object with values got them.

        Raises:
            AssertionError: naming what did not match.
        """

    @abc.abstractmethod
    def assert_existing_objects_matched(self) -> LoadStatus:
        """Asserts that every live object with values got them; the checkpoint may hold more.

        Raises:
            AssertionError: naming what did not match.
        """

    @abc.abstractmethod
    def assert_nontrivial_match(self) -> LoadStatus:
        """Asserts that more than the root was matched.

        Raises:
            AssertionError: nothing else was.
        """

    def expect_partial(self) -> LoadStatus:
        """Says that a partial match is fine: nothing is said in the log when unrestored values are dropped."""
        return self

    @abc.abstractmethod
    def run_restore_ops(self, device: Device = None) -> None:
        """Gives tensors on the meta device their memory and their values.

        Args:
            device: where to make them; None is torch's default device.
        """

    @abc.abstractmethod
    def initialize_or_restore(self, device: Device = None) -> None:
        """As `run_restore_ops`; modules that the checkpoint has not all values for are made and initialised first, by
        their ``reset_parameters``.

        Args:
            device: where to make them; None is torch's default device.

        Raises:
            UninitializedError: a module has no ``reset_parameters``.
        """

    @abc.abstractmethod
    def report(self) -> RestoreReport:
        """What became of each value, as it is now."""

    def __str__(self) -> str:
        return str(self.report())

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()


class CheckpointLoadStatus(LoadStatus):
    """The outcome of restoring a checkpoint with an object graph.

    Args:
        restoration: the restore, which may still go on.
        discover: walks the live objects as they are now.
    """

    def __init__(self, restoration: Restoration, discover: Callable[[], LiveGraph]) -> None:
        self._restoration = restoration
        self._discover = discover
        self._prefix = restoration.reader.file_prefix
        restoration.observe(self)

    def assert_consumed(self) -> CheckpointLoadStatus:
        return self._assert_none([*self._complaints_of_program(), *self._complaints_of_checkpoint()])

    def assert_existing_objects_matched(self) -> CheckpointLoadStatus:
        return self._assert_none(self._complaints_of_program())

    def expect_partial(self) -> CheckpointLoadStatus:
        self._restoration.expects_partial = True
        return self

    def _assert_none(self, complaints: list[str]) -> CheckpointLoadStatus:
        if not complaints:
            return self
        if any(self._restoration.unnoticed()):
            complaints.append("What has come since to objects that tell nobody is restored by run_restore_ops().")
        raise AssertionError("\n".join(complaints))

    def _complaints_of_program(self) -> list[str]:
        """What the program has and the checkpoint has not."""
        program = Program(self._restoration, self._discover())
        unassigned = [node.readable for node in program.unassigned]
        missing = program.names_missing()
        complaints = []
        if program.unmade:
            complaints.append(_complaint_of_unmade([node.readable for node in program.unmade], self._prefix))
        if unassigned:
            complaints.append(
                f"Object{_s(unassigned)} {_listed(unassigned)} not assigned a value from checkpoint {self._prefix!r}: "
                "what it holds under this name is of another kind."
            )
        if lacking := self._listed_attributes(self._restoration.missing_attributes):
            complaints.append(
                f"Attributes that checkpoint {self._prefix!r} lacks, although it has others of the same object: "
                f"{lacking}. They keep their values."
            )
        if missing:
            complaints.append(
                f"Found {len(missing)} Python objects that were not bound to checkpointed values of "
                f"{self._prefix!r}: {_listed(missing)}. The checkpoint has nothing of their own under these names."
            )
        return complaints

    def _complaints_of_checkpoint(self) -> list[str]:
        """What the checkpoint has and the program has not."""
        complaints = []
        graph = self._restoration.graph
        unresolved = self._restoration.unresolved()
        if unresolved:
            complaints.append(
                f"Unresolved object{_s(unresolved)} in checkpoint {self._prefix!r}: "
                f"{_listed(unresolved, graph.readable)}. The "
                "program has nothing of this name."
            )
        if unused := self._listed_attributes(self._restoration.unused_attributes):
            complaints.append(
                f"Unused attributes in checkpoint {self._prefix!r}, which the objects of the program do not know: "
                f"{unused}."
            )
        return complaints

    def _listed_attributes(self, by_node: Mapping[int, Sequence[str]]) -> str:
        readable = self._restoration.graph.readable
        return _listed([f"{readable(node_id)}: {', '.join(names)}" for node_id, names in by_node.items()])

    def assert_nontrivial_match(self) -> CheckpointLoadStatus:
        if len(self._restoration.bindings) > 1 or self._restoration.unmade():
            return self
        live, graph = self._discover(), self._restoration.graph
        root, *others = live.nodes.values()
        if not any(node.trackable._asks_for_values(False) for node in others):
            raise AssertionError(f"Nothing to load. No dependencies have been added to {root.readable} yet.")
        raise AssertionError(
            f"Nothing except the root object matched a checkpointed value of {self._prefix!r}. The checkpoint has "
            f"{_listed([graph.readable(child.node_id) for child in graph.nodes[0].children])}; "
            f"the program has {_listed([node.readable for node in others])}."
        )

    def run_restore_ops(self, device: Device = None) -> None:
        """As `LoadStatus.run_restore_ops`. Everything else was restored at once; what has appeared since then where
        nobody told of it, as in an ``OrderedDict``, is restored now."""
        device = device_with_memory(device)
        self._restoration.look()
        self._restoration.materialize(device)

    def initialize_or_restore(self, device: Device = None) -> None:
        device = device_with_memory(device)
        self._restoration.look()
        stored = [unmade.tensor for unmade in self._restoration.unmade()]
        with contextlib.ExitStack() as undo:
            initialize(self._discover(), stored, device, undo)
            self._restoration.materialize(device)
            undo.pop_all()

    def report(self) -> RestoreReport:
        return report_of_graph(self._restoration, self._discover())


def _complaint_of_unmade(names: Sequence[str], prefix: str) -> str:
    return (
        f"{len(names)} tensor{_s(names)} of the meta device wait{'' if len(names) > 1 else 's'} for values of "
        f"checkpoint {prefix!r}: {_listed(names)}. Call run_restore_ops() on the status."
    )


def streaming_restore(status: LoadStatus, device: Device = None) -> None:
    """Has values land as soon as there is a module for them. TensorFlow's ``streaming_restore``.

    Tensors on the meta device that are bound get their memory and values now, and those of modules that are attached
    later when these are attached, so that a large model can be made and filled one part at a time. Other objects are
    restored at once in any case.

    Args:
        status: what `Checkpoint.restore` or `Checkpoint.read` returned.
        device: where to make the tensors; None is torch's default device.

    Raises:
        TypeError: the status is that of a checkpoint without an object graph, or of none.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint, streaming_restore
        >>> path = Checkpoint(net=torch.nn.Linear(2, 1)).write(tempfile.mkdtemp() + "/ckpt")
        >>> checkpoint = Checkpoint()
        >>> streaming_restore(checkpoint.read(path))
        >>> checkpoint.net = torch.nn.Linear(2, 1, device="meta")
        >>> checkpoint.net.weight.device
        device(type='cpu')
    """
    if not isinstance(status, CheckpointLoadStatus):
        raise TypeError(
            f"streaming_restore needs the status of a checkpoint with an object graph, not a {type(status).__name__}."
        )
    # The default device is that of now, not the one where a module is made later, which may well be meta.
    status._restoration.stream(device_with_memory(device))


class NameBasedLoadStatus(LoadStatus):
    """The outcome of restoring a checkpoint without an object graph.

    The three assertions are one, as in TensorFlow: every variable of the program was found in the checkpoint. Each
    of them first restores what was attached meanwhile. What the checkpoint holds beyond that is nobody's concern, and
    python states, which no such checkpoint has, are left as they are.

    Args:
        restoration: the restore.
        holder: the checkpoint object that it was called on.
        prefix: the checkpoint.
        optional: a live object that need not be in the checkpoint.
    """

    def __init__(self, restoration: NameBasedRestoration, holder: Holder, prefix: str, optional: object = None) -> None:
        self._restoration = restoration
        self._holder = holder
        self._prefix = prefix
        self._optional = optional

    def assert_consumed(self) -> NameBasedLoadStatus:
        return self.assert_existing_objects_matched()

    def assert_existing_objects_matched(self) -> NameBasedLoadStatus:
        self._restoration.run()
        wanted = [value for value in self._wanted() if not (value.is_restored or value.is_superseded)]
        unmade = [reported(value).name for value in wanted if value.is_stored and value.tensor.is_meta]
        if unmade:
            raise AssertionError(_complaint_of_unmade(unmade, self._prefix))
        missing = [reported(value).name for value in wanted]
        if missing:
            raise AssertionError(
                f"Some objects had attributes which were not restored from {self._prefix!r}, which holds nothing "
                f"under their names: {_listed(missing)}. list_variables({self._prefix!r}) shows the names that it "
                "has; CheckpointOptions(name_map=...) translates to them."
            )
        return self

    def assert_nontrivial_match(self) -> NameBasedLoadStatus:
        return self.assert_existing_objects_matched()

    def run_restore_ops(self, device: Device = None) -> None:
        self._restoration.materialize(device_with_memory(device))

    def initialize_or_restore(self, device: Device = None) -> None:
        self._restoration.initialize(device_with_memory(device))

    def report(self) -> RestoreReport:
        return report_of_names(self._prefix, self._wanted(), self._restoration.stored_values())

    def _wanted(self) -> list[WantedValue]:
        wanted = self._restoration.wanted(self._holder)
        return [value for value in wanted if value.is_stored or value.tensor is not self._optional]


class InitializationOnlyStatus(LoadStatus):
    """The outcome of ``restore(None)``: there was nothing to restore from.

    Args:
        discover: walks the live objects as they are now.
    """

    def __init__(self, discover: Callable[[], LiveGraph]) -> None:
        self._discover = discover

    def _refuse(self) -> AssertionError:
        return AssertionError("No checkpoint specified (save_path=None); nothing is being restored.")

    def assert_consumed(self) -> LoadStatus:
        raise self._refuse()

    def assert_existing_objects_matched(self) -> LoadStatus:
        raise self._refuse()

    def assert_nontrivial_match(self) -> LoadStatus:
        raise self._refuse()

    def run_restore_ops(self, device: Device = None) -> None:
        raise self._refuse()

    def initialize_or_restore(self, device: Device = None) -> None:
        """Makes and initialises modules on the meta device; others were initialised when they were made."""
        with contextlib.ExitStack() as undo:
            initialize(self._discover(), (), device_with_memory(device), undo)
            undo.pop_all()

    def report(self) -> RestoreReport:
        return report_of_nothing(self._discover())


def _s(names: Sequence[object]) -> str:
    return "s" if len(names) > 1 else ""


def _listed(names: Sequence[T], readable: Callable[[T], str] = str) -> str:
    # A path can be long, so only those that are shown are made.
    shown = ", ".join(readable(name) for name in names[:_MOST_NAMED])
    return shown + (f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
