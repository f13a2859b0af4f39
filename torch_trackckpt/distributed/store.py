"""What is asked of the key-value store that `torch.distributed` began with."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Store", "connection", "peek"]

_ABSENT = "?"
"""What a store answers for a key that it does not have, if asked by `peek`; nothing that is said looks like it."""


class Store(Protocol):
    """What is asked of ``torch.distributed.Store``."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def multi_get(self, keys: list[str], /) -> list[bytes]: ...
    def check(self, keys: list[str], /) -> bool: ...
    def delete_key(self, key: str, /) -> bool: ...
    def add(self, key: str, amount: int, /) -> int: ...
    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...


def peek(store: Store, key: str) -> str | None:
    """The value of a key, if there is one; ``get`` would wait for it, for minutes."""
    found = store.compare_set(key, _ABSENT, _ABSENT).decode()
    return None if found == _ABSENT else found


def connection(store: Store) -> Store:
    """The same store by a connection of our own, so that nobody has to wait for what another thread asks of it."""
    clone = getattr(store, "clone", None)
    if clone is None:
        return store
    try:
        cloned: Store = clone()
    except RuntimeError:
        # Some kinds of stores cannot.
        return store
    return cloned
