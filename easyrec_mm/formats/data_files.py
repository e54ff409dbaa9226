"""Finds the files of an input, decides where each is opened, and checks that they have not changed.

Libraries that open files themselves, TensorFlow and Arrow, open `opened_at(file)`: the file itself, or a local copy of
a remote file that the library cannot read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import tensorflow as tf

from easyrec_mm.errors import DataError
from easyrec_mm.files import FileInfo, StorageError, is_remote, place_of, plain, scheme_of
from easyrec_mm.files.local_copies import LocalCopies, local_copies
from easyrec_mm.files.tensorflow_storage import knows

# Number of following files that are fetched while a file is read.
NUM_AHEAD = 2
_STATS_AT_A_TIME = 16


@dataclass
class _FoundFile:
    """A remote file as it was when it was found, the place of its copy, and a file that is needed together with it."""

    info: FileInfo
    copies: LocalCopies
    companion: FileInfo | None = None

    def begin(self) -> None:
        """Begin to copy both files."""
        self.copies.begin(self.info)
        if self.companion is not None:
            self.copies.begin(self.companion)


_found_files: dict[str, _FoundFile] = {}


def find_files(path: str, setting: str) -> list[str]:
    """Return the files of a comma-separated list of paths and globs, in the given order, the files of a glob sorted.

    Raises:
      DataError: if a part matches no file, is a folder or cannot be listed; the message names the setting and the part.
    """
    return [info.path for info in find_infos(path, setting)]


def find_infos(path: str, setting: str, copies: LocalCopies | None = None) -> list[FileInfo]:
    """Return the files as `find_files` does, with size and version; `copies` keeps the copies of remote files."""
    infos: dict[str, FileInfo] = {}
    for part in filter(None, (part.strip() for part in path.split(","))):
        try:
            matches = place_of(part).find(part) if is_remote(part) else _find_here(part)
        except (tf.errors.OpError, StorageError, OSError) as error:
            reason = error.message if isinstance(error, tf.errors.OpError) else error
            raise DataError(f"{setting}: '{part}' cannot be listed: {reason}") from error
        if not matches:
            raise DataError(f"{setting}: '{part}' matches no file; check the path")
        for info in matches:
            if info.is_folder:
                name = info.path.rstrip("/")
                raise DataError(f"{setting}: '{info.path}' is a folder; name its files, as in '{name}/*'")
            infos.setdefault(info.path, info)
    if not infos:
        raise DataError(f"{setting}: is not set; give the files to read")
    for name, info in infos.items():
        if is_remote(name):
            _found_files[name] = _FoundFile(info, copies or local_copies())
    return list(infos.values())


def find_beside(companions: Mapping[str, str], setting: str, copies: LocalCopies) -> list[FileInfo]:
    """Find the files that belong to other files, to be fetched together with them.

    Args:
      companions: file that was found -> the file that belongs to it.
      setting: the setting that requires these files, for messages.
      copies: keeps the copies of remote files.

    Raises:
      DataError: if a file is missing.
    """
    with ThreadPoolExecutor(_STATS_AT_A_TIME) as pool:
        infos = list(pool.map(partial(_info_beside, setting), companions, companions.values()))
    for file, info in zip(companions, infos, strict=True):
        if is_remote(file):
            _found_file(file).companion = info
            _found_files[info.path] = _FoundFile(info, copies)
    return infos


def _info_beside(setting: str, file: str, name: str) -> FileInfo:
    try:
        return place_of(name).stat(name) if is_remote(name) else _info_here(name)
    except (StorageError, OSError) as error:
        reason = error.reason if isinstance(error, StorageError) else error.strerror
        raise DataError(f"{setting}: {file} needs {name} beside it, which cannot be found: {reason}") from error


def opened_at(file: str, by_tensorflow: bool = False) -> str:
    """Return a path at which to open a file at once: a local one, or with `by_tensorflow` any that TensorFlow can read.

    Raises:
      DataError: if the file cannot be fetched, or has changed since it was found.
    """
    if not is_remote(file):
        return file if by_tensorflow else plain(file)
    if by_tensorflow and not needs_copy(file):
        return file
    found_file = _found_file(file)
    found_file.begin()
    return found_file.copies.get(found_file.info)


def fetch_ahead(files: Sequence[str], by_tensorflow: bool = False) -> None:
    """Begin to copy these files, which are the next NUM_AHEAD files to be opened."""
    for file in files:
        if needs_copy(file) if by_tensorflow else is_remote(file):
            _found_file(file).begin()


def needs_copy(file: str) -> bool:
    """Return whether TensorFlow cannot read a file without a local copy."""
    return is_remote(file) and not knows(scheme_of(file))


def require_unchanged(infos: Sequence[FileInfo]) -> None:
    """Check that files which are read without a copy have not changed since they were found.

    TensorFlow reads a text file that has become shorter without an error. Copies are compared when they are made.

    Raises:
      DataError: if a file has changed; the message names the first one.
    """
    direct_infos = [info for info in infos if not needs_copy(info.path)]
    with ThreadPoolExecutor(_STATS_AT_A_TIME) as pool:
        problems = filter(None, pool.map(_change, direct_infos))
        problem = next(problems, None)
    if problem:
        raise DataError(f"{problem}; start again, with files that nobody writes to")


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


def _found_file(file: str) -> _FoundFile:
    if file not in _found_files:
        _found_files[file] = _FoundFile(place_of(file).stat(file), local_copies())
    return _found_files[file]


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
