"""A folder of files that is kept below a maximum size: the least recently used files are removed first.

Several processes may use it at once, and each may be killed at any time: an entry appears complete or not at all, and
an entry that is held is not removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from easyrec_mm.errors import DataError

_LOG = logging.getLogger("easyrec_mm.files")
_TEMPORARY = "tmp-"
# Temporary files of at least this age were left behind by a killed process.
_ABANDONED_S = 3600.0
# Making room leaves entries of at most the share _FILLED; the entries are counted each time _COUNTED more was added.
_FILLED, _COUNTED = 0.9, 0.02


class Held:
    """An entry that is not removed until it is released, or the process ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Allow the removal of the entry."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class DiskCache:
    """Files by key.

    Args:
      folder: folder of the cache; it is created if it does not exist.
      max_bytes: maximum size of all entries together.
      setting: name of the folder's setting, for messages.

    Raises:
      DataError: if the folder cannot be created.
    """

    def __init__(self, folder: str, max_bytes: int, setting: str) -> None:
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._uncounted = max_bytes  # so that the first entry causes a count
        self._has_failed = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / ".lock").touch()
        except OSError as error:
            raise DataError(
                f"{setting}: '{folder}' cannot be written: {error.strerror}; give another folder"
            ) from error

    def place(self, key: str) -> Path:
        """Return the path of the entry of a key, whether it exists or not."""
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        return self._folder / name[:2] / name[2:]

    def hold(self, key: str) -> Held | None:
        """Return the entry of a key, which is not removed while it is held; None if it does not exist."""
        path = self.place(key)
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except (FileNotFoundError, NotADirectoryError):
                return None
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_nlink:
                os.utime(path)
                return Held(path, descriptor)
            os.close(descriptor)  # removed meanwhile

    def add(self, key: str, size: int, write: Callable[[Path], None]) -> None:
        """Add a file of `size` bytes under a key; `write` writes it to the path that it receives.

        Raises:
          OSError: if the file cannot be written, as on a full disk.
        """
        path = self.place(key)
        path.parent.mkdir(exist_ok=True)
        self._make_room(size)
        temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{threading.get_ident()}-{path.name}")
        try:
            write(temporary)
            os.replace(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()

    def add_if_possible(self, key: str, data: bytes) -> None:
        """Add data under a key; log only the first failure, because the data can be fetched again."""
        try:
            self.add(key, len(data), lambda path: _write(path, data))
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                _LOG.warning("%s: cannot be written, so nothing is cached: %s", self._folder, error.strerror)

    def _make_room(self, size: int) -> None:
        """Remove entries if that is necessary for `size` more bytes."""
        with self._lock:
            self._uncounted += size
            if self._uncounted < self._max_bytes * _COUNTED:
                return
            self._uncounted = 0
        with (self._folder / ".lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return  # another process is making room
            entries = self._entries()
            total = size + sum(num_bytes for _, num_bytes, _ in entries)
            if total <= self._max_bytes * (1 - _COUNTED):
                return
            for _, num_bytes, path in sorted(entries):
                if total <= self._max_bytes * _FILLED:
                    return
                if _remove(path):
                    total -= num_bytes

    def _entries(self) -> list[tuple[float, int, str]]:
        """Return (time of last use, bytes, path) of each entry; remove abandoned temporary files."""
        entries = []
        now = time.time()
        for folder in os.scandir(self._folder):
            if not folder.is_dir():
                continue
            for entry in os.scandir(folder.path):
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    if not entry.name.startswith(_TEMPORARY):
                        entries.append((status.st_atime, status.st_size, entry.path))
                    elif now - status.st_mtime > _ABANDONED_S:
                        os.unlink(entry.path)
        return entries


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _remove(path: str) -> bool:
    """Remove an entry unless it is held; return whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
