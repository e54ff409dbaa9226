"""Open LMDB files, which other programs cannot cut or overwrite while they are being read.

LMDB maps its file into memory. Reading beyond the end of a file that was cut ends the process (SIGBUS), and so may
reading one that is half overwritten, as by `cp` onto a store in use. Therefore a reader has a lease of Linux on the
file (fcntl(2), F_SETLEASE): whoever opens the file to write waits until the reader has closed it. Our own writers say
that they are there by a shared lock on the folder; beside them readers read on, registered in LMDB's lock file. While
anyone else writes to the file, it is not read.

Where the system grants no lease (another user's file, some network file systems), a cut file is noticed before each
read.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

import lmdb

# Maximum size of the file: it reserves addresses, not memory or disk.
_MAP_BYTES = 1 << 40
_MAX_READERS = 1024
_DATA = "data.mdb"
_LEAST_PAGE_BYTES = 4096
# How soon a waiting writer is let in at the latest, and the lease is taken again after it.
_WATCH_EVERY_S = 0.1
# Who looks for writers has the lock for a moment, in which another one must not take it for a writer.
_NUM_LOOKS, _BETWEEN_LOOKS_S = 4, 0.002

T = TypeVar("T")
# lmdb.Transaction, whose type hints also allow buffers, although we always get bytes.
Transaction: TypeAlias = Any


class UnreadableError(OSError):
    """The data file must not be read now; the message says why, and what to do."""


def identity_of(path: str) -> tuple[int, ...]:
    """Return values that differ for the data files of two folders; () if there is none."""
    try:
        status = os.stat(f"{path}/{_DATA}")
    except OSError:
        return ()
    return status.st_dev, status.st_ino


class Environment:
    """An LMDB environment, which all stores of this process that use its file share.

    Args:
      path: the folder.
      writable: whether to open it for writing as well.

    Raises:
      lmdb.Error, OSError: if it cannot be opened or is cut, or another program is writing to it.
    """

    def __init__(self, path: str, writable: bool) -> None:
        self.writable = writable
        self.num_users = 0
        self._path = path
        self._lock = threading.Lock()
        self._environment: lmdb.Environment | None = None
        self._file = -1
        self._has_lease, self._can_lease = False, True
        self.identity: tuple[int, ...] = ()
        self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if writable:
                with suppress(OSError):  # some network file systems have no such locks
                    fcntl.flock(self._folder, fcntl.LOCK_SH)
            self._open()
        except BaseException:
            self.close()
            raise
        self.identity = identity_of(self._own_path())
        if not writable:
            threading.Thread(target=self._watch, name="LMDB", daemon=True).start()

    def run(self, function: Callable[[Transaction], T], write: bool = False) -> T:
        """Return the result of a function in a transaction.

        Raises:
          lmdb.Error, OSError: as the function; or if the file is cut, or another program is writing to it.
        """
        with self._lock:
            self._give_way()
            if self._environment is None:
                self._open()
            with self._environment.begin(write=write) as transaction:  # type: ignore[union-attr]
                return function(transaction)

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            self._let_go()
            if self._folder >= 0:
                os.close(self._folder)
                self._folder = -1

    def _open(self) -> None:
        if self._folder < 0:
            raise OSError("the store is closed")
        path = self._own_path()
        if self.identity and identity_of(path) != self.identity:
            raise UnreadableError(f"another {_DATA} has been put in the place of the one that was opened")
        try:
            if self.writable:
                with suppress(FileNotFoundError):  # it is created
                    self._require_bytes(2 * _LEAST_PAGE_BYTES)
            else:
                self._file = os.open(f"{path}/{_DATA}", os.O_RDONLY)
                self._has_lease = self._can_lease and not self._has_writer() and self._take_lease()
                self._require_bytes(2 * _LEAST_PAGE_BYTES)
            # Without the lock file LMDB is given the data file alone, because the lock file may be that of another
            # data file by now, which this process has open, too. On a read-only file system LMDB does without it.
            has_lock_file = not self._has_lease
            self._environment = lmdb.open(
                path if has_lock_file else f"{path}/{_DATA}", subdir=has_lock_file, lock=has_lock_file,
                readonly=not self.writable, create=self.writable, map_size=_MAP_BYTES, max_readers=_MAX_READERS,
                readahead=False,
            )  # fmt: skip
            self._require_whole()
        except BaseException:
            self._let_go()
            raise

    def _own_path(self) -> str:
        """Return a path of the folder that was opened, also if another one has been put in its place."""
        try:
            if os.path.samestat(os.stat(self._path), os.fstat(self._folder)):
                return self._path
        except FileNotFoundError:
            pass
        return f"/proc/self/fd/{self._folder}"

    def _take_lease(self) -> bool:
        for _ in range(_NUM_LOOKS):
            try:
                # The signal to us when someone waits; ignored by default, as the lease is looked at before each read.
                fcntl.fcntl(self._file, fcntl.F_SETSIG, signal.SIGURG)
                fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
                return True
            except BlockingIOError:  # it is open for writing
                if self._has_writer():
                    return False
                time.sleep(_BETWEEN_LOOKS_S)  # when a process ends, its lock goes before its files are closed
            except OSError:
                self._can_lease = False
                return False
        raise UnreadableError(f"another program is writing to {_DATA}; it is read when that is through")

    def _has_writer(self) -> bool:
        """Return whether a store of this folder is open for writing, in any process."""
        for _ in range(_NUM_LOOKS):
            try:
                fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_BETWEEN_LOOKS_S)
            except OSError:  # there are no such locks here: there may be one
                return True
            else:
                fcntl.flock(self._folder, fcntl.LOCK_UN)
                return False
        return True

    def _give_way(self) -> None:
        """Close the file if someone waits to write to it; otherwise make sure that it can be read."""
        if self.writable or self._environment is None:
            return
        if not self._has_lease:
            try:
                self._require_whole()
            except UnreadableError:
                self._let_go()
                raise
        elif fcntl.fcntl(self._file, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
            has_writer = self._has_writer()
            self._let_go()
            if not has_writer:
                raise UnreadableError(f"another program opens {_DATA} to write to it; it is read when that is through")

    def _let_go(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None
        if self._file >= 0:
            if self._has_lease:
                fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            os.close(self._file)
            self._file, self._has_lease = -1, False

    def _require_whole(self) -> None:
        if self._environment is not None:
            num_pages = self._environment.info()["last_pgno"] + 1
            self._require_bytes(num_pages * self._environment.stat()["psize"])

    def _require_bytes(self, expected: int) -> None:
        actual = os.stat(self._file if self._file >= 0 else f"{self._path}/{_DATA}").st_size
        if actual < expected and (actual or not self.writable):  # a writer fills a file that is empty
            raise UnreadableError(
                f"{_DATA} is cut: it has {actual} bytes, and its content needs {expected}; copy the store again while "
                "nothing writes to it, or write it anew"
            )

    def _watch(self) -> None:
        while self._folder >= 0:
            time.sleep(_WATCH_EVERY_S)
            # What is wrong is told by the next read.
            with suppress(lmdb.Error, OSError):
                with self._lock:
                    self._give_way()
                    has_lease = self._has_lease or not self._can_lease or self._environment is None
                if not has_lease and not self._has_writer():
                    with self._lock:
                        self._let_go()
                        self._open()
