"""Finds the files of an input, decides where each is opened, and checks that they have not changed.

Libraries that open files themselves, TensorFlow and Arrow, open `DataFiles.opened_at(file)`: the file itself, or a
local copy of a remote file that the library cannot read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import tensorflow as tf

from easyrec_mm.errors import DataError
from easyrec_mm.files import FileInfo, StorageError, is_remote, place_of, plain, scheme_of
from easyrec_mm.files.data_names import is_meant
from easyrec_mm.files.local_copies import LocalCopies, local_copies
from easyrec_mm.files.tensorflow_storage import knows

# Number of following files that are fetched while a file is read.
NUM_AHEAD = 2
_STATS_AT_A_TIME = 16


class DataFiles:
    """The files of an input as they were when they were found, and the copies of those that are remote.

    Args:
      path: comma-separated list of paths and globs. The files are in the given order, those of a glob sorted. A glob
        passes over hidden files, markers such as _SUCCESS, and what `group` writes beside the data.
      setting: the config path of `path`, for messages.
      copies: keeps the copies of remote files; by default in a folder of this process.

    Raises:
      DataError: if a part matches no file, is a folder or cannot be listed; the message names the setting and the part.
    """

    def __init__(self, path: str, setting: str, copies: LocalCopies | None = None) -> None:
        self._path, self._setting = path, setting
        self._copies = copies or local_copies()
        self._infos = {info.path: info for info in _find(path, setting)}
        # File -> the file that belongs to it.
        self._companions: dict[str, FileInfo] = {}

    @property
    def names(self) -> list[str]:
        """Return the paths of the files."""
        return list(self._infos)

    @property
    def infos(self) -> list[FileInfo]:
        """Return the files with their sizes and versions."""
        return list(self._infos.values())

    def find_companions(self, companion_of: Callable[[str], str], setting: str) -> dict[str, FileInfo]:
        """Find a file that belongs to each file, and is fetched together with it; return path -> companion.

        Args:
          companion_of: path of a file -> path of the file that belongs to it.
          setting: the setting that requires these files, for messages.

        Raises:
          DataError: if a companion is missing.
        """
        paths = [companion_of(name) for name in self._infos]
        with ThreadPoolExecutor(_STATS_AT_A_TIME) as pool:
            companions = list(pool.map(partial(_companion_info, setting), self._infos, paths))
        self._companions = dict(zip(self._infos, companions, strict=True))
        return {info.path: info for info in companions}

    def opened_at(self, file: str, by_tensorflow: bool = False) -> str:
        """Return a path at which to open a file at once: a local one, or any that TensorFlow can read.

        Raises:
          DataError: if the file cannot be fetched, or has changed since it was found.
        """
        if not is_remote(file):
            return file if by_tensorflow else plain(file)
        if by_tensorflow and not needs_copy(file):
            return file
        self._begin(file)
        return self._copies.get(self._infos[file])

    def fetch_ahead(self, files: Sequence[str], by_tensorflow: bool = False) -> None:
        """Begin to copy these files, which are the next NUM_AHEAD files to be opened."""
        for file in files:
            if needs_copy(file) if by_tensorflow else is_remote(file):
                self._begin(file)

    def is_up_to_date(self) -> bool:
        """Return whether the files and their companions are still as they were when they were found.

        Raises:
          DataError: if no files are found any more, or they cannot be listed.
        """
        if _find(self._path, self._setting) != self.infos:
            return False
        with ThreadPoolExecutor(_STATS_AT_A_TIME) as pool:
            return not any(pool.map(_change, self._companions.values()))

    def require_unchanged(self) -> None:
        """Check that files which are read without a copy have not changed since they were found.

        TensorFlow reads a text file that has become shorter without an error. Copies are compared when they are made.

        Raises:
          DataError: if a file has changed; the message names the first one.
        """
        infos = [info for info in (*self.infos, *self._companions.values()) if not needs_copy(info.path)]
        with ThreadPoolExecutor(_STATS_AT_A_TIME) as pool:
            problems = filter(None, pool.map(_change, infos))
            problem = next(problems, None)
        if problem:
            raise DataError(f"{problem}; start again, with files that nobody writes to")

    def _begin(self, file: str) -> None:
        self._copies.begin(self._infos[file])
        if file in self._companions:
            self._copies.begin(self._companions[file])


def needs_copy(file: str) -> bool:
    """Return whether TensorFlow cannot read a file without a local copy."""
    return is_remote(file) and not knows(scheme_of(file))


def _find(path: str, setting: str) -> list[FileInfo]:
    infos: dict[str, FileInfo] = {}
    for part in filter(None, (part.strip() for part in path.split(","))):
        try:
            matches = place_of(part).find(part) if is_remote(part) else _find_here(part)
        except (tf.errors.OpError, StorageError, OSError) as error:
            reason = error.message if isinstance(error, tf.errors.OpError) else error
            raise DataError(f"{setting}: '{part}' cannot be listed: {reason}") from error
        matches = [info for info in matches if is_meant(info.path, part)]
        if not matches:
            raise DataError(f"{setting}: '{part}' matches no file; check the path")
        for info in matches:
            if info.is_folder:
                name = info.path.rstrip("/")
                raise DataError(f"{setting}: '{info.path}' is a folder; name its files, as in '{name}/*'")
            infos.setdefault(info.path, info)
    if not infos:
        raise DataError(f"{setting}: is not set; give the files to read")
    return list(infos.values())


def _companion_info(setting: str, file: str, name: str) -> FileInfo:
    try:
        return place_of(name).stat(name) if is_remote(name) else _info_here(name)
    except (StorageError, OSError) as error:
        reason = error.reason if isinstance(error, StorageError) else error.strerror
        raise DataError(f"{setting}: {file} needs {name} beside it, which cannot be found: {reason}") from error


def _change(info: FileInfo) -> str | None:
    """Return how a file has changed since it was found; None if it has not changed."""
    try:
        now = place_of(info.path).stat(info.path) if is_remote(info.path) else _info_here(info.path)
    except (StorageError, OSError) as error:
        reason = error.reason if isinstance(error, StorageError) else error.strerror
        return f"{info.path}: existed when reading began, but cannot be found now: {reason}"
    if now.size != info.size:
        return f"{info.path}: has changed while it was read: {info.size} bytes when reading began, now {now.size}"
    return f"{info.path}: was replaced while it was read" if now.version != info.version else None


def _find_here(pattern: str) -> list[FileInfo]:
    return [_info_here(path) for path in sorted(tf.io.gfile.glob(pattern))]


def _info_here(path: str) -> FileInfo:
    try:
        status = os.stat(plain(path))
    except OSError:
        if os.path.islink(plain(path)):
            return FileInfo(path, 0, "")  # a dangling link counts as found; the error occurs when it is opened
        raise
    return FileInfo(path, status.st_size, str(status.st_mtime_ns), os.path.isdir(plain(path)))
