"""Which storage a path belongs to."""

from __future__ import annotations

import os
import re

from torch_trackckpt.storage.base import Storage
from torch_trackckpt.storage.local import LocalStorage
from torch_trackckpt.storage.paths import is_url
from torch_trackckpt.storage.remote import RemoteStorage

__all__ = ["storage_for"]

_COLLAPSED_URL = re.compile(r"([a-z][a-z0-9+.-]+:)/(?!/)")


def storage_for(path: str, *, durable: bool = True) -> Storage:
    """The storage in which a path is.

    Args:
        path: one of this machine, or a URL.
        durable: whether local storage waits for the disk; remote storage has nothing to wait for.

    Raises:
        ImportError: the package that knows such URLs is not installed; the text names it.
        ValueError: no package knows such URLs; the URL holds a password; or the path was a URL before something took
            it for a local path, as `pathlib` does.
    """
    if is_url(path):
        return RemoteStorage(path)
    collapsed = _COLLAPSED_URL.match(path)
    if collapsed and not os.path.exists(collapsed[1]):
        raise ValueError(
            f"{path!r} looks like a URL that has lost a slash, as it does in a pathlib.Path. Pass URLs as text; if a "
            f"local directory {collapsed[1]!r} is meant, make it first, or begin with './'."
        )
    return LocalStorage(durable=durable)
