"""The files of an input: which there are, where each can be opened, and whether they stay as they were.

What reads files by its own means, TensorFlow or Arrow, opens `opened_at(file)`: the file itself, or a copy of a remote
one that it cannot read.
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

# Of the files that are read next, how many are fetched meanwhile.
NUM_AHEAD = 2
_STATS_AT_A_TIME = 16


@dataclass
class _Found:
    """A remote file as it was when it was found, where its copy is kept, and a file that is needed with it."""

    info: FileInfo
    copies: LocalCopies
    beside: FileInfo | None = None

    def begin(self) -> None:
        """Begin to copy both."""
        self.copies.begin(self.info)
        if self.beside is not None:
            self.copies.begin(self.beside)


_found: dict[str, _Found] = {}


def find_files(path: str, setting: str) -> list[str]:
    """Files of a comma-separated list of paths and globs, in the order given, each glob sorted.

    Raises:
      DataError: naming the setting and the part that matches nothing, is a folder or cannot be listed.
    """
    return [info.path for info in find_infos(path, setting)]


def find_infos(path: str, setting: str, copies: LocalCopies | None = None) -> list[FileInfo]:
    """As `find_files`, with size and version; `copies` is where copies of remote files are kept."""
    infos: dict[str, FileInfo] = {}
    for part in filter(None, (part.strip() for part in path.split(","))):
        try:
            found = place_of(part).find(part) if is_remote(part) else _find_here(part)
        except (tf.errors.OpError, StorageError, OSError) as error:
            reason = error.message if isinstance(error, tf.errors.OpError) else error
            raise DataError(f"{setting}: '{part}' cannot be listed: {reason}") from error
        if not found:
            raise DataError(f"{setting}: '{part}' matches no file; check the path")
        for info in found:
            if info.is_folder:
                name = info.path.rstrip("/")
                raise DataError(f"{setting}: '{info.path}' is a folder; name its files, as in '{name}/*'")
            infos.setdefault(info.path, info)
    if not infos:
        raise DataError(f"{setting}: is not set; give the files to read")
    for name, info in infos.items():
        if is_remote(name):
            _found[name] = _Found(info, copies or local_copies())
    return list(infos.values())


def find_beside(beside: Mapping[str, str], setting: str, copies: LocalCopies) -> list[FileInfo]:
    """Files that belong to others, and are fetched with them.

    Args:
      beside: file that was found -> the one that belongs to it.
      setting: that asks for them, for messages.
      copies: where copies of remote ones are kept.

    Raises:
      DataError: if one is missing.
    """
    with ThreadPoolExecutor(_STATS_AT_A_TIME) as pool:
        infos = list(pool.map(partial(_info_beside, setting), beside, beside.values()))
    for file, info in zip(beside, infos, strict=True):
        if is_remote(file):
            _known(file).beside = info
            _found[info.path] = _Found(info, copies)
    return infos


def _info_beside(setting: str, file: str, name: str) -> FileInfo:
    try:
        return place_of(name).stat(name) if is_remote(name) else _info_here(name)
    except (StorageError, OSError) as error:
        reason = error.reason if isinstance(error, StorageError) else error.strerror
        raise DataError(f"{setting}: {file} needs {name} beside it, which cannot be found: {reason}") from error


def opened_at(file: str, by_tensorflow: bool = False) -> str:
    """A path of this machine at which to open a file at once; with `by_tensorflow` also one that TensorFlow can read.

    Raises:
      DataError: if it cannot be fetched, or is no longer what it was when it was found.
    """
    if not is_remote(file):
        return file if by_tensorflow else plain(file)
    if by_tensorflow and not needs_copy(file):
        return file
    found = _known(file)
    found.begin()
    return found.copies.get(found.info)


def fetch_ahead(files: Sequence[str], by_tensorflow: bool = False) -> None:
    """Begin to copy these files, which are to be opened next: NUM_AHEAD of them."""
    for file in files:
        if needs_copy(file) if by_tensorflow else is_remote(file):
            _known(file).begin()


def needs_copy(file: str) -> bool:
    """Whether TensorFlow cannot read a file where it lies."""
    return is_remote(file) and not knows(scheme_of(file))


def require_unchanged(infos: Sequence[FileInfo]) -> None:
    """Check that files which are read where they lie are still what they were when they were found.

    TensorFlow takes a text file that has become shorter for one that ends there. Copies are compared when they are
    made.

    Raises:
      DataError: naming the first that is not.
    """
    some = [info for info in infos if not needs_copy(info.path)]
    with ThreadPoolExecutor(_STATS_AT_A_TIME) as pool:
        problems = filter(None, pool.map(_change, some))
        problem = next(problems, None)
    if problem:
        raise DataError(f"{problem}; start again, with files that nobody writes to")


def _change(info: FileInfo) -> str | None:
    """What has happened to a file."""
    try:
        now = place_of(info.path).stat(info.path) if is_remote(info.path) else _info_here(info.path)
    except (StorageError, OSError) as error:
        reason = error.reason if isinstance(error, StorageError) else error.strerror
        return f"{info.path}: was there when reading began, and cannot be found now: {reason}"
    if now.size != info.size:
        return f"{info.path}: has changed while it was read: {info.size} bytes when reading began, now {now.size}"
    return f"{info.path}: was written anew while it was read" if now.version != info.version else None


def _known(file: str) -> _Found:
    if file not in _found:
        _found[file] = _Found(place_of(file).stat(file), local_copies())
    return _found[file]


def _find_here(pattern: str) -> list[FileInfo]:
    return [_info_here(path) for path in sorted(tf.io.gfile.glob(pattern))]


def _info_here(path: str) -> FileInfo:
    try:
        status = os.stat(plain(path))
    except OSError:
        if os.path.islink(plain(path)):
            return FileInfo(path, 0, "")  # a link to nowhere: found, and told when it is opened
        raise
    return FileInfo(path, status.st_size, str(status.st_mtime_ns), os.path.isdir(plain(path)))
