"""Locks of folders, so that two runs never write into one."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from easyrec_mm.errors import UserError
from easyrec_mm.files.paths import is_remote, plain

LOCK = ".lock"


@contextmanager
def locked(path: str, setting: str) -> Iterator[None]:
    """Hold the lock of a folder, which is created if it does not exist; a run that is killed loses its lock.

    A folder on another machine is not locked. The file `.lock` of the folder names the process that holds the lock. It
    stays there, because removing it would let two runs hold locks of two files of the same name.

    Args:
      path: path of the folder.
      setting: name of its setting, for the message.

    Raises:
      UserError: if another process holds the lock; the message names it.
    """
    if is_remote(path):
        yield
        return
    folder = Path(plain(path))
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"{setting} '{folder}': is in use by {holder}; wait until it has ended, or choose another folder"
            ) from None
        except OSError:
            pass  # the file system has no locks, as some network file systems
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield
