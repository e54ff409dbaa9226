"""The folder of this process for copies of files: removed when it ends, or, if it is killed, by the next process."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

_PREFIX = "easyrec_mm_files_"
_LOCK = ".lock"


def work_folder() -> str:
    """Return the path of the folder, which is in the folder for temporary files (TMPDIR)."""
    return _work_folder(os.getpid())


@lru_cache(maxsize=1)
def _work_folder(process: int) -> str:
    _remove_left()
    folder = tempfile.mkdtemp(prefix=_PREFIX)
    _lock(Path(folder))
    atexit.register(_remove_own, folder, process)
    return folder


def _lock(folder: Path) -> int | None:
    """Take the lock that the owner of a folder holds as long as it runs; return None if it is taken."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_left() -> None:
    """Remove the folders of processes that ended without removing them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid() or not (folder / _LOCK).exists():
                continue  # another user's folder, or one that is just being created
            descriptor = _lock(folder)
        except OSError:
            continue
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def _remove_own(folder: str, process: int) -> None:
    if os.getpid() == process:  # not in a forked child
        shutil.rmtree(folder, ignore_errors=True)
