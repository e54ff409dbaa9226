"""Handles local paths, and paths with a scheme: s3://bucket/folder/file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# A local path as a URI: file:///folder/file, file://localhost/folder/file, or file:/folder/file, as Hadoop writes it.
_FILE_URI = re.compile(r"file:(?://(?:localhost(?=/))?|(?=/))", re.IGNORECASE)


def scheme_of(path: str) -> str:
    """Return the scheme of a path; "" for a local path, also if it is written as a URI."""
    match = _SCHEME.match(path)
    scheme = match[1].lower() if match else ""
    return "" if scheme == "file" else scheme


def is_remote(path: str) -> bool:
    """Return whether a path is not on this machine."""
    return bool(scheme_of(path))


def plain(path: str) -> str:
    """Return a local path as the operating system accepts it; any other path unchanged."""
    return _FILE_URI.sub("", path, count=1) if _FILE_URI.match(path) else path


def join(folder: str, name: str) -> str:
    """Return the path of a name in a folder; a complete path, as with any scheme, is returned unchanged."""
    if not folder or _SCHEME.match(name) or _FILE_URI.match(name):
        return name
    if is_remote(folder):
        return f"{folder.rstrip('/')}/{name.lstrip('/')}"
    return os.path.join(folder, name)


def place_name(path: str) -> str:
    """Return the bucket or server of a path with a scheme: s3://bucket."""
    scheme, _, location = path.partition("://")
    return f"{scheme.lower()}://{location.partition('/')[0]}"


def inside(path: str) -> str:
    """Return the part of a path with a scheme after the bucket or server: folder/file."""
    return path.partition("://")[2].partition("/")[2]


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Name a file in errors that name none, as those of writing to a full disk, or only its temporary name."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
