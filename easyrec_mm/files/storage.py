"""What a place of files offers, a bucket or a server, whatever library reaches it; and what may go wrong there."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from easyrec_mm.errors import DataError


class Failure(Enum):
    """What a failure says of others.

    MISSING   there is no such file
    DENIED    it may not be read or written; others perhaps
    PLACE     nothing of the place can be had: no such bucket, no credentials or wrong ones, no library for it
    PASSING   another try may succeed: the server is overloaded, or cannot be reached
    CHANGED   it is no longer the file that was listed
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
      path: of the file, or of the place.
      reason: in plain words.
      failure: what it says of others.
    """

    def __init__(self, path: str, reason: str, failure: Failure) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.failure = failure


class FileInfo(NamedTuple):
    """A file as it is listed.

    path       in full
    size       bytes
    version    changes when it is written anew: its ETag, or when it was changed; "" if the place does not say
    is_folder  it is none
    """

    path: str
    size: int
    version: str
    is_folder: bool = False


class Content(NamedTuple):
    """What a file holds, and the version of that."""

    data: bytes
    version: str


class Storage(Protocol):
    """The files of a place. Paths are in full, with scheme; every method raises StorageError alone."""

    def find(self, pattern: str) -> list[FileInfo]:
        """Files and folders of a path in which *, ? and [...] stand for parts of names; sorted, [] if there is none."""

    def below(self, folder: str) -> list[FileInfo]:
        """All files below a folder, however deep; [] if there is none."""

    def stat(self, path: str) -> FileInfo:
        """A file."""

    def read(self, path: str, known: str | None = None) -> Content | None:
        """A file's content; None if its version is still the `known` one. With known=None its version may be ""."""

    def start(self, path: str, size: int) -> bytes:
        """The first bytes of a file, `size` of them or all there are."""

    def download(self, info: FileInfo, local: Path) -> None:
        """Write a file's content to a local one."""

    def upload(self, local: Path, path: str) -> None:
        """Write a local file's content; what stands there is replaced at once, never in parts."""

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
