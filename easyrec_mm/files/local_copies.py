"""Local copies of remote data files, complete, in a folder of limited size; the next files are fetched ahead."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from functools import lru_cache, partial
from pathlib import Path

from easyrec_mm.errors import DataError
from easyrec_mm.files.daemon_pool import DaemonPool
from easyrec_mm.files.disk_cache import DiskCache, Held
from easyrec_mm.files.place import place_of
from easyrec_mm.files.storage import Failure, FileInfo, StorageError
from easyrec_mm.files.work_folder import work_folder

# Number of copies that are kept regardless of the folder's size: those being opened, and those fetched ahead.
NUM_HELD = 8
_NUM_FETCHED_AT_A_TIME = 2
_CHANGED = "has changed since the data were listed; start again, with files that nobody writes to"


class LocalCopies:
    """Copies by path.

    Args:
      folder: folder that keeps the copies, also beyond this process; "" for a folder of the process.
      max_gib: maximum size of all copies. A copy that was removed after it was opened can still be read to its end.

    Raises:
      DataError: if the folder cannot be created.
    """

    def __init__(self, folder: str, max_gib: float) -> None:
        self._folder = folder or str(Path(work_folder()) / "copies")
        self.cache = DiskCache(self._folder, int(max_gib * 2**30), "data_config.file_cache_dir")
        self._lock = threading.Lock()
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._fetching: dict[str, Future[Held]] = {}
        self._pool = DaemonPool(_NUM_FETCHED_AT_A_TIME, "copies")

    def get(self, info: FileInfo) -> str:
        """Return the path of a file's copy, to be opened at once.

        Raises:
          DataError: if the file cannot be fetched, or has changed since it was listed.
        """
        future = self.begin(info)
        try:
            held = future.result()
        finally:
            with self._lock:
                self._fetching.pop(key_of(info), None)
        with self._lock:
            self._keep(key_of(info), held)
        return str(held.path)

    def begin(self, info: FileInfo) -> Future[Held]:
        """Begin to fetch a file's copy, for `get`."""
        key = key_of(info)
        with self._lock:
            if key not in self._fetching:
                if len(self._fetching) >= NUM_HELD:
                    self._forget_one()
                self._fetching[key] = self._pool.submit(self._fetch, info)
            return self._fetching[key]

    def _forget_one(self) -> None:
        """Give up a copy that was fetched ahead but not requested, as at the end of the data."""
        for key, future in self._fetching.items():
            if future.done():
                if future.exception() is None:
                    self._keep(key, future.result())
                del self._fetching[key]
                return

    def _keep(self, key: str, held: Held) -> None:
        before = self._held.pop(key, None)
        if before is not None and before is not held:
            before.release()
        self._held[key] = held
        while len(self._held) > NUM_HELD:
            self._held.popitem(last=False)[1].release()

    def _fetch(self, info: FileInfo) -> Held:
        while (held := self.cache.hold(key_of(info))) is None:
            try:
                self.cache.add(key_of(info), info.size, partial(place_of(info.path).download, info))
            except StorageError as error:
                if error.failure in (Failure.MISSING, Failure.CHANGED):
                    raise DataError(f"{info.path}: {_CHANGED}") from error
                raise
            except OSError as error:
                raise DataError(
                    f"{self._folder}: no room for a copy of {info.path} ({info.size} bytes): {error.strerror}; "
                    "give a larger disk with data_config.file_cache_dir"
                ) from error
        return held


@lru_cache
def local_copies(folder: str = "", max_gib: float = 16.0) -> LocalCopies:
    """Return the single LocalCopies of a folder in this process."""
    return LocalCopies(folder, max_gib)


def local_copy(path: str) -> str:
    """Return the path of a copy of a remote file as it is now, in the folder of this process; see LocalCopies.get."""
    return local_copies().get(place_of(path).stat(path))


def key_of(info: FileInfo) -> str:
    """Return the key under which a copy of this version of a file is kept."""
    return f"{info.path}\n{info.size}\n{info.version}"
