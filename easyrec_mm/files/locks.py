"""Locks by files: held by a process for as long as it runs, and free again however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def take_lock(path: Path, create: bool = True) -> int | None:
    """Take the lock of a file; return the descriptor that holds it until it is closed, or None if it is taken.

    Args:
      path: the file.
      create: whether it is created if it does not exist.

    Raises:
      OSError: if the file cannot be opened, or its file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held the lock before may have removed the file.
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
