"""Remote folders, worked on through copies on this machine.

A program that reads a folder downloads it; a program that writes uploads what has changed, in an order in which readers
never see an incomplete state: first the files, then the files that mark other files as complete.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from easyrec_mm.files.paths import is_remote, join, plain
from easyrec_mm.files.place import place_of
from easyrec_mm.files.storage import FileInfo
from easyrec_mm.files.work_folder import work_folder
from easyrec_mm.safe_text import hide_secrets

# File of a remote folder that is being replaced.
UNFINISHED = ".unfinished"
_FILES_AT_A_TIME = 4
_numbers = itertools.count()
# Path of a copy -> path of the original, for messages.
_names: dict[str, str] = {}


def shown(text: str) -> str:
    """Return a message in which the paths of copies are replaced by those of the originals, without their secrets."""
    for copy, name in reversed(_names.items()):  # 15 before 1, with which it begins
        text = text.replace(copy, name)
    return hide_secrets(text)


def new_copy_of(path: str) -> Path:
    """Return an unused local path for the copy of a remote file or folder; see `shown`."""
    copy = Path(work_folder()) / str(next(_numbers))
    _names[str(copy)] = path.rstrip("/")
    return copy


class Folder:
    """A folder and its local copy, which is worked on. A local folder is its own copy.

    Args:
      path: path of the folder; nothing is read yet.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_remote = is_remote(path)
        self.local = new_copy_of(path) if self.is_remote else Path(plain(path))
        self._remote: dict[str, FileInfo] = {}
        # Name -> size and modification time of the local file when it was last the same as the remote one.
        self._same: dict[str, tuple[int, int]] = {}

    def names(self) -> list[str]:
        """Return the names of the remote files at the last listing, and of those uploaded since."""
        return list(self._remote)

    def look(self) -> None:
        """List the remote files.

        Raises:
          StorageError: if the folder cannot be listed.
        """
        if self.is_remote:
            prefix = len(self.path.rstrip("/")) + 1
            infos = place_of(self.path).below(self.path)
            self._remote = {info.path[prefix:]: info for info in infos if not info.is_folder}

    def contents(self) -> list[str] | None:
        """List the folder; return the names of what it contains, [] if it does not exist, and None if it is a file.

        Raises:
          StorageError: if the folder cannot be listed.
        """
        self.look()
        if self.is_remote or not self.local.exists():
            return self.names()
        return [path.name for path in self.local.iterdir()] if self.local.is_dir() else None

    def fetch(self, is_wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Download the remote files with names that `is_wanted` accepts, unless they have local copies.

        Raises:
          StorageError: if a file cannot be read.
        """
        names = [name for name in self._remote if is_wanted(name) and name not in self._same]

        def fetch(name: str) -> None:
            path = self.local / name
            path.parent.mkdir(parents=True, exist_ok=True)
            place_of(self.path).download(self._remote[name], path)
            self._same[name] = _status(path)

        _side_by_side(fetch, names)

    def forget(self, names: Collection[str]) -> None:
        """Remove the local copies of remote files; `fetch` downloads them again."""
        for name in names:
            (self.local / name).unlink(missing_ok=True)
            self._same.pop(name, None)

    def refresh(self, is_wanted: Callable[[str], bool], always: Callable[[str], bool]) -> None:
        """Download the files that `is_wanted` accepts and that are new or rewritten, and those of `always` in any case.

        Raises:
          StorageError: if the folder cannot be listed, or a file cannot be read.
        """
        before = self._remote
        self.look()
        for name, info in self._remote.items():
            if is_wanted(name) and (always(name) or info != before.get(name)):
                self._same.pop(name, None)
        self.fetch(is_wanted)

    def put(self, order: Callable[[str], int | None]) -> None:
        """Upload the files that were written locally, in ascending `order`; None leaves a file out.

        Raises:
          StorageError: if a file cannot be written.
        """
        here = [name for name in self._names_here() if order(name) is not None]
        changed = [name for name in here if self._same.get(name) != _status(self.local / name)]

        def put(name: str) -> None:
            status = _status(self.local / name)
            path = join(self.path, name)
            place_of(self.path).upload(self.local / name, path)
            self._same[name] = status
            self._remote[name] = FileInfo(path, status[0], "")

        for number in sorted({order(name) or 0 for name in changed}):
            _side_by_side(put, [name for name in changed if (order(name) or 0) == number])

    def replace(self, last: str) -> None:
        """Replace all remote files by the local ones; `last` is removed first and uploaded last.

        If the process is killed meanwhile, the folder contains UNFINISHED.

        Raises:
          StorageError: if a file cannot be written.
        """
        (self.local / UNFINISHED).touch()
        self.put(lambda name: 0 if name == UNFINISHED else None)
        if last in self._remote:
            self.remove([last])
        self.put(lambda name: None if name == last else 0)
        self.remove(set(self._remote).difference(self._names_here()))
        self.put(lambda name: 0)
        (self.local / UNFINISHED).unlink()
        self.remove([UNFINISHED])

    def _names_here(self) -> list[str]:
        return [str(path.relative_to(self.local)) for path in self.local.rglob("*") if path.is_file()]

    def remove(self, names: Collection[str]) -> None:
        """Remove remote files.

        Raises:
          StorageError: if a file cannot be removed.
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
