"""The caller's map, which may be written either way round: torch's names to Keras's, or Keras's to torch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch_trackckpt.errors import MismatchError

__all__ = ["KerasMap", "from_torch"]

KerasMap = Mapping[str, str | Sequence[str] | None]
"""Names of torch modules or parameters on one side, names or paths of Keras layers or variables on the other; several
names where one is made of several. None leaves a module, or a layer, out."""


def from_torch(given: KerasMap, is_torch: Callable[[str], bool], is_keras: Callable[[str], bool]) -> KerasMap:
    """The map from torch's names to Keras's.

    Args:
        given: what the caller has said.
        is_torch: whether a name is one of the module's.
        is_keras: whether it is one of the checkpoint's.

    Raises:
        MismatchError: it can be read both ways, and means something else then.
    """
    pairs = [(key, _names(value)) for key, value in given.items() if value is not None]
    forward = all(is_torch(key) and all(map(is_keras, names)) for key, names in pairs)
    backward = all(is_keras(key) and all(map(is_torch, names)) for key, names in pairs)
    if not backward:
        return given
    turned: dict[str, list[str]] = {}
    for key, names in pairs:
        for name in names:
            turned.setdefault(name, []).append(key)
    if forward:
        if {(key, name) for key, names in pairs for name in names} == {
            (name, key) for key, names in pairs for name in names
        }:
            return given
        key, names = next((key, names) for key, names in pairs if names != (key,))
        raise MismatchError(
            f"map={{{key!r}: {names[0]!r}, ...}} can be read both ways, because the net and the checkpoint have both "
            "of the names. Give Keras's layers by their paths, such as '_operations/1' or 'layer_with_weights-0'."
        )
    return turned | {key: value for key, value in given.items() if value is None}


def _names(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
