"""Opens files for libraries that read only files of this machine: a remote file is copied first."""

from __future__ import annotations

import gzip
import os
from typing import IO

from easyrec_mm.files.local_copies import local_copy
from easyrec_mm.files.paths import is_remote
from easyrec_mm.files.place import place_of
from easyrec_mm.files.storage import Failure, StorageError

_GZIP_MAGIC = b"\x1f\x8b"


def opened_at(path: str) -> str:
    """Return a local path at which to open a file at once: its own path, or the path of a copy.

    Raises:
      DataError: if the file cannot be fetched.
    """
    return local_copy(path) if is_remote(path) else path


def open_binary(path: str) -> IO[bytes]:
    """Open a file for reading bytes; gzip is decompressed."""
    path = opened_at(path)
    return gzip.open(path) if is_gzip(path) else open(path, "rb")  # type: ignore[return-value]


def exists(path: str) -> bool:
    """Return whether a file exists."""
    try:
        size_of(path)
    except StorageError as error:
        if error.failure != Failure.MISSING:
            raise
        return False
    except FileNotFoundError:
        return False
    return True


def size_of(path: str) -> int:
    """Return the size of a file in bytes."""
    return place_of(path).stat(path).size if is_remote(path) else os.path.getsize(path)


def is_gzip(path: str) -> bool:
    """Return whether a file is compressed by gzip, according to its first bytes."""
    with open(opened_at(path), "rb") as stream:
        return stream.read(2) == _GZIP_MAGIC
