"""Opening a file by a library that reads files of this machine only: a remote one is copied first."""

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
    """A path of this machine at which to open a file at once: its own, or that of a copy.

    Raises:
      DataError: if it cannot be fetched.
    """
    return local_copy(path) if is_remote(path) else path


def open_binary(path: str) -> IO[bytes]:
    """A file, unpacked if it is gzip."""
    path = opened_at(path)
    return gzip.open(path) if is_gzip(path) else open(path, "rb")  # type: ignore[return-value]


def exists(path: str) -> bool:
    """Whether there is such a file."""
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
    """Bytes of a file."""
    return place_of(path).stat(path).size if is_remote(path) else os.path.getsize(path)


def is_gzip(path: str) -> bool:
    """Whether a file is packed by gzip, told by its first bytes."""
    with open(opened_at(path), "rb") as stream:
        return stream.read(2) == _GZIP_MAGIC
