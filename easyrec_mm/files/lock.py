"""Locks of folders, so that two runs never write into one.

The lock is that of the operating system, which ends with its process. Where there is none, in a bucket or on some
network file systems, it is a lease (lease.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from easyrec_mm.errors import UserError, advice_for
from easyrec_mm.files.lease import STALE_S, Lease, LocalFile, RemoteFile, this_holder
from easyrec_mm.files.paths import is_remote, naming, plain

LOCK = ".lock"
# Errors of file systems that have no locks, as some network file systems.
_NO_LOCKS = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
# Whoever looks for folders that nobody uses any more holds their locks for a moment.
_NUM_TRIES, _PAUSE_S = 10, 0.05


def _tell_nobody(message: str) -> None:
    """Drop a message."""


@contextmanager
def locked(path: str, setting: str, name: str = "", tell: Callable[[str], None] = _tell_nobody) -> Iterator[FolderLock]:
    """Hold the lock of a folder, which is created if it does not exist; a run that is killed loses its lock.

    The file `.lock` of the folder names the process that holds the lock; in a remote folder, and where the file system
    has no locks, the file `.lease`. `.lock` may be removed with its folder by whoever holds the lock, and stays there
    otherwise.

    Args:
      path: path of the folder.
      setting: name of its setting, for the message.
      name: name of the folder, for the message; by default its path.
      tell: is called with notes and warnings about the lock of another process.

    Raises:
      UserError: if another process holds the lock; the message names it. Or if the folder cannot be written.
    """
    lock = FolderLock(path, setting, name, tell)
    lock.keep()
    try:
        yield lock
    finally:
        lock.release()


class FolderLock:
    """The lock of a folder, as `locked` describes it."""

    def __init__(self, path: str, setting: str, name: str, tell: Callable[[str], None]) -> None:
        self._folder = Path(plain(path))
        self._setting, self._name, self._tell = setting, name or plain(path), tell
        self._descriptor: int | None = None
        self._lease = Lease(RemoteFile(path), tell) if is_remote(path) else None

    def keep(self) -> None:
        """Take the lock, or take it again if its folder was removed meanwhile, as whoever came next could hold it.

        Raises:
          UserError: if another process holds the lock, which the message names, or the folder cannot be written.
        """
        try:
            if self._lease is None:
                self._keep_lock()
            if self._lease is not None:
                self._keep_lease(self._lease)
        except OSError as error:
            if advice := advice_for(error):
                place = f"{error.filename or self._name}: {error.strerror}"
                raise UserError(f"{self._setting} '{self._name}': cannot be written ({place}); {advice}") from error
            raise

    def _keep_lock(self) -> None:
        if self._is_held(self._folder / LOCK):
            return
        self.release()
        try:
            self._descriptor = _take(self._folder)
        except NoLocksError:
            self._lease = Lease(LocalFile(self._folder), self._tell)
            return
        if self._descriptor is None:
            raise UserError(self._in_use(self._folder / LOCK))
        with naming(self._folder / LOCK):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{this_holder()}\n".encode(), 0)

    def _in_use(self, file: Path) -> str:
        """Return the message about the process that holds the lock of a file."""
        holder = file.read_text(encoding="utf-8").strip() or "another process"
        problem = (
            f"{self._setting} '{self._name}': is in use by {holder}; wait until it has ended, or choose another folder"
        )
        if f" on {socket.gethostname()}," in holder:
            return problem
        # The server of a network file system may keep the lock of a machine that has failed.
        return f"{problem}; if that machine has failed or the process has certainly ended, remove {file}"

    def _keep_lease(self, lease: Lease) -> None:
        if holder := lease.take():
            raise UserError(
                f"{self._setting} '{self._name}': is in use by {holder}; wait until it has ended, or choose another "
                f"folder. It renews {lease.path}; a lock that is not renewed for {STALE_S:.0f} s, as after a kill, is "
                "taken over"
            )

    def release(self) -> None:
        """Give the lock back."""
        if self._lease is not None:
            self._lease.release()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _is_held(self, file: Path) -> bool:
        return self._descriptor is not None and _is_file(self._descriptor, file)


class NoLocksError(OSError):
    """The file system has no locks."""


def take_lock(path: Path, create: bool = True) -> int | None:
    """Take the lock of a file; return the descriptor that holds it until it is closed, or None if it is taken.

    Args:
      path: the file.
      create: whether it is created if it does not exist.

    Raises:
      NoLocksError: if its file system has no locks.
      OSError: if the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held the lock before may have removed the file.
        if _is_file(descriptor, path):
            return descriptor
    except BlockingIOError:
        pass
    except OSError as error:
        os.close(descriptor)
        if error.errno in _NO_LOCKS:
            raise NoLocksError(error.errno, error.strerror, str(path)) from error
        raise
    os.close(descriptor)
    return None


def _is_file(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _take(folder: Path) -> int | None:
    """Create a folder, and take its lock; None if another process keeps it."""
    for attempt in range(_NUM_TRIES):
        time.sleep(_PAUSE_S if attempt else 0)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = take_lock(folder / LOCK)
        except FileNotFoundError:  # the folder was removed meanwhile
            continue
        if descriptor is not None:
            return descriptor
    return None
