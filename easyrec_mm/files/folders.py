"""Remote folders that are worked on in copies on this machine.

A program that reads a folder copies it here; one that writes puts back what has changed, in an order in which a reader
sees no half: files first, then those that say that others are complete.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from easyrec_mm.files.paths import is_remote, join, plain
from easyrec_mm.files.place import place_of
from easyrec_mm.files.storage import FileInfo
from easyrec_mm.files.work_folder import work_folder

_FILES_AT_A_TIME = 4
_numbers = itertools.count()
# Copy -> what it is a copy of, for messages.
_names: dict[str, str] = {}


def shown(text: str) -> str:
    """A message that speaks of what is copied, not of the copies."""
    for copy, name in _names.items():
        text = text.replace(copy, name)
    return text


def new_copy_of(path: str) -> Path:
    """A path of this machine, at which nothing is yet, for the copy of a remote file or folder; see `shown`."""
    copy = Path(work_folder()) / str(next(_numbers))
    _names[str(copy)] = path.rstrip("/")
    return copy


class Folder:
    """A folder and the copy of it that is worked on. One of this machine is its own copy.

    Args:
      path: of the folder; nothing is read yet.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_remote = is_remote(path)
        self.local = new_copy_of(path) if self.is_remote else Path(plain(path))
        self._remote: dict[str, FileInfo] = {}
        # Size and time of files here when they were last the same as there.
        self._same: dict[str, tuple[int, int]] = {}

    def names(self) -> list[str]:
        """Names of the files that were there when they were listed last, and of those put there since."""
        return list(self._remote)

    def list(self) -> None:
        """Look what is there.

        Raises:
          StorageError: if it cannot be listed.
        """
        if self.is_remote:
            prefix = len(self.path.rstrip("/")) + 1
            found = place_of(self.path).below(self.path)
            self._remote = {info.path[prefix:]: info for info in found if not info.is_folder}

    def fetch(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Copy the files of these names that are not here.

        Raises:
          StorageError: if one cannot be read.
        """
        names = [name for name in self._remote if wanted(name) and name not in self._same]

        def fetch(name: str) -> None:
            path = self.local / name
            path.parent.mkdir(parents=True, exist_ok=True)
            place_of(self.path).download(self._remote[name], path)
            self._same[name] = _status(path)

        _side_by_side(fetch, names)

    def put(self, order: Callable[[str], int] = lambda name: 0) -> None:
        """Put there what was written here, those of a higher `order` after those of a lower.

        Raises:
          StorageError: if one cannot be written.
        """
        if not self.is_remote:
            return
        here = [str(path.relative_to(self.local)) for path in self.local.rglob("*") if path.is_file()]
        # Files that are being written, as TensorFlow and this project name them.
        here = [name for name in here if not re.search(r"(^|/)\.|\.tmp(-|$)|\.tempstate", name)]
        changed = [name for name in here if self._same.get(name) != _status(self.local / name)]

        def put(name: str) -> None:
            status = _status(self.local / name)
            path = join(self.path, name)
            place_of(self.path).upload(self.local / name, path)
            self._same[name] = status
            self._remote[name] = FileInfo(path, status[0], "")

        for _, some in itertools.groupby(sorted(changed, key=order), order):
            _side_by_side(put, some)

    def remove(self, names: Collection[str]) -> None:
        """Remove files there.

        Raises:
          StorageError: if one cannot be removed.
        """
        place = place_of(self.path)
        _side_by_side(lambda name: place.remove(join(self.path, name)), names)
        for name in names:
            self._remote.pop(name, None)
            self._same.pop(name, None)


def _status(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _side_by_side(action: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        list(pool.map(action, names))
