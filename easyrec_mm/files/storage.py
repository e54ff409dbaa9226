"""The interface of a place of files, a bucket or a server, for all libraries that reach it; and its failures."""

from __future__ import annotations

import tempfile
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from easyrec_mm.errors import DataError


class Failure(Enum):
    """The kind of a failure, which determines whether other requests may succeed.

    MISSING   the file does not exist
    DENIED    the file may not be read or written; other files may perhaps
    PLACE     the place cannot be used at all: no such bucket, missing or wrong credentials, no library for the scheme
    PASSING   another attempt may succeed: the server is overloaded, or cannot be reached
    CHANGED   the file has changed since it was listed
    REFUSED   this request will never succeed
    """

    MISSING = 1
    DENIED = 2
    PLACE = 3
    PASSING = 4
    CHANGED = 5
    REFUSED = 6


class StorageError(DataError):
    """A file that cannot be read or written, or a place that cannot be reached.

    Args:
      path: path of the file, or of the place.
      reason: reason in plain words.
      failure: kind of the failure.
    """

    def __init__(self, path: str, reason: str, failure: Failure) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.failure = failure


class FileInfo(NamedTuple):
    """A file as it is listed.

    path       complete path
    size       in bytes
    version    changes when the file is rewritten: its ETag or modification time; "" if the place provides neither
    is_folder  whether it is a folder, not a file
    """

    path: str
    size: int
    version: str
    is_folder: bool = False


class Content(NamedTuple):
    """The content of a file, and its version."""

    data: bytes
    version: str


class Storage(Protocol):
    """The files of a place. Paths are complete, with scheme; every method raises only StorageError."""

    def find(self, pattern: str) -> list[FileInfo]:
        """Return the files and folders that match a path with *, ? and [...] in names; sorted, [] without a match."""

    def below(self, folder: str) -> list[FileInfo]:
        """Return all files below a folder, at any depth; [] if the folder does not exist."""

    def stat(self, path: str) -> FileInfo:
        """Return the FileInfo of a file."""

    def read(self, path: str, known_version: str | None = None, max_bytes: int | None = None) -> Content | None:
        """Return a file's content; None if its version is `known_version`. If that is None, the version may be "".

        With `max_bytes`, no more than that is read of a larger file, and returned.
        """

    def start(self, path: str, size: int) -> bytes:
        """Return the first `size` bytes of a file, or all bytes of a shorter file."""

    def download(self, info: FileInfo, local: Path) -> None:
        """Write the content of a file to a local file."""

    def upload(self, local: Path, path: str) -> None:
        """Write the content of a local file; an existing file is replaced in one step, never in parts."""

    def put(self, path: str, data: bytes, version: str) -> bool:
        """Write a small file if its version is still `version`, "" if it must not exist; return whether it was written.

        A place that cannot compare versions writes it in any case.
        """

    def remove(self, path: str) -> None:
        """Remove a file if it exists."""


def put_by_upload(storage: Storage, path: str, data: bytes) -> bool:
    """Write a small file as Storage.put does where versions cannot be compared."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        storage.upload(Path(file.name), path)
    return True
