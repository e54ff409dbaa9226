"""Paths of this machine, and paths with a scheme: s3://bucket/folder/file."""

from __future__ import annotations

import os
import re

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme_of(path: str) -> str:
    """The scheme; "" for a path of this machine, also if it is written as file:///folder/file."""
    match = _SCHEME.match(path)
    scheme = match[1].lower() if match else ""
    return "" if scheme == "file" else scheme


def is_remote(path: str) -> bool:
    """Whether a path is not of this machine."""
    return bool(scheme_of(path))


def plain(path: str) -> str:
    """A path of this machine as the operating system takes it; others as they are."""
    return path[len("file://") :] if path[:7].lower() == "file://" else path


def join(folder: str, name: str) -> str:
    """The path of a name in a folder; a name that is a whole path stays."""
    if not folder or is_remote(name):
        return name
    if is_remote(folder):
        return f"{folder.rstrip('/')}/{name.lstrip('/')}"
    return os.path.join(folder, name)


def place_name(path: str) -> str:
    """Bucket or server of a path with a scheme: s3://bucket."""
    scheme, _, rest = path.partition("://")
    return f"{scheme.lower()}://{rest.partition('/')[0]}"


def inside(path: str) -> str:
    """A path with a scheme without its bucket or server: folder/file."""
    return path.partition("://")[2].partition("/")[2]
