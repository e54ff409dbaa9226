"""The hidden folder in which `group` or `convert` works on an output, and which only one run at a time can have."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from easyrec_mm.errors import DataError
from easyrec_mm.files import is_remote, plain
from easyrec_mm.files.locks import take_lock

_ENDING, _LOCK = ".easyrec_mm", "lock"
# A run that looks for folders to remove holds their locks for a moment.
_NUM_TRIES, _PAUSE_S = 10, 0.05
# Errors of file systems without locks.
_NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)


@contextmanager
def work_place(output: str) -> Iterator[str]:
    """Yield an empty folder on the disk of an output, which is removed at the end.

    What killed runs have left for this output and its neighbours is removed. The folder of a remote output is among the
    temporary files of this machine, and other machines do not see its lock.

    Raises:
      DataError: if another run on this machine is writing to the output.
    """
    folder = _folder_of(output)
    descriptor = _lock(folder, output)
    try:
        for name in os.listdir(folder):
            if name != _LOCK:
                _remove(folder / name)
        _remove_left(folder.parent)
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _folder_of(output: str) -> Path:
    if is_remote(output):
        name = hashlib.sha256(output.rstrip("/").encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f".{os.getuid()}-{name}{_ENDING}"
    parent, name = os.path.split(os.path.abspath(plain(output)))
    return Path(parent) / f".{name}{_ENDING}"


def _lock(folder: Path, output: str) -> int | None:
    """Create the folder and take its lock; None if the file system has no locks."""
    for attempt in range(_NUM_TRIES):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = take_lock(folder / _LOCK)
        except FileNotFoundError:  # the folder was removed meanwhile
            continue
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            raise
        if descriptor is not None:
            return descriptor
        if attempt + 1 < _NUM_TRIES:
            time.sleep(_PAUSE_S)
    raise DataError(f"--output: another run is writing to {output}; wait until it has ended, or name another folder")


def _remove_left(parent: Path) -> None:
    """Remove the folders of runs that ended without removing them."""
    for folder in parent.glob(f".*{_ENDING}"):
        try:
            descriptor = take_lock(folder / _LOCK, create=False)
        except OSError:
            continue  # it is just being created, or belongs to another user
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
