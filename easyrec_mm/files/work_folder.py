"""The folder of this process for copies of files: removed when it ends, or, if it is killed, by the next process."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from easyrec_mm.files.lock import LOCK, take_lock

_PREFIX = "easyrec_mm_files_"


def work_folder() -> str:
    """Return the path of the folder, which is in the folder for temporary files (TMPDIR)."""
    return _work_folder(os.getpid())


@lru_cache(maxsize=1)
def _work_folder(process: int) -> str:
    _remove_left()
    folder = tempfile.mkdtemp(prefix=_PREFIX)
    with suppress(OSError):  # a file system without locks
        take_lock(Path(folder) / LOCK)
    atexit.register(_remove_own, folder, process)
    return folder


def _remove_left() -> None:
    """Remove the folders of processes that ended without removing them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            descriptor = take_lock(folder / LOCK, create=False)
        except OSError:
            continue  # one that is just being created
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def _remove_own(folder: str, process: int) -> None:
    if os.getpid() == process:  # not in a forked child
        shutil.rmtree(folder, ignore_errors=True)
