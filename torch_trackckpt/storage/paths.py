"""Paths of files: those of this machine, to which the rules of `os.path` apply, and URLs, whose parts stay as they are.

A URL is what begins with a scheme and ``://``, as in ``s3://bucket/run/ckpt``. It is always absolute.
"""

from __future__ import annotations

import os
import re

__all__ = ["absolute", "anchored", "directory", "is_absolute", "is_url", "joined", "relative", "same"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")


def is_url(path: str) -> bool:
    """Whether it is a URL."""
    return _URL.match(path) is not None


def is_absolute(path: str) -> bool:
    """Whether it means the same wherever the program is."""
    return is_url(path) or os.path.isabs(path)


def anchored(path: str) -> str:
    """The path with which a program that changes its directory later still finds the file."""
    return path if is_absolute(path) else os.path.join(os.getcwd(), path)


def absolute(path: str) -> str:
    """The one path by which two that mean the same file, as their texts say, can be compared."""
    return path if is_url(path) else os.path.abspath(path)


def same(path: str, other: str) -> bool:
    """Whether two paths lead to one file, also by way of links."""
    if is_url(path) or is_url(other):
        return path == other
    return os.path.realpath(path) == os.path.realpath(other)


def directory(path: str) -> str:
    """What a path has before its last name; of a URL at least the scheme."""
    match = _URL.match(path)
    if match is None:
        return os.path.dirname(path)
    parent, slash, _ = path[match.end() :].rpartition("/")
    return match[0] + (parent.rstrip("/") if slash else "")


def joined(folder: str, name: str) -> str:
    """A path that is relative to a directory, as one that is not; what is absolute stays."""
    return name if is_url(name) else os.path.join(folder, name)


def relative(path: str, folder: str) -> str:
    """The path from a directory; where there is none from a URL, the path as it is."""
    if is_url(path):
        return path.removeprefix(folder if folder.endswith("/") else folder + "/") if is_url(folder) else path
    return anchored(path) if is_url(folder) else os.path.relpath(path, folder or ".")
