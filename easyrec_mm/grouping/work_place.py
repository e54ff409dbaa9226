"""The hidden folder in which `group` or `convert` works on an output, and which only one run at a time can have."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from easyrec_mm.files import is_remote
from easyrec_mm.files.lease import LEASE
from easyrec_mm.files.lock import LOCK, locked, take_lock

_ENDING = ".easyrec_mm"


@contextmanager
def work_place(output: str) -> Iterator[str]:
    """Yield an empty folder on the disk of an output, which is removed at the end.

    What killed runs have left for this output and its neighbours is removed. The folder of a remote output is among the
    temporary files of this machine, and other machines do not see its lock.

    Raises:
      UserError: if another run on this machine is writing to the output.
    """
    folder = _folder_of(output)
    with locked(str(folder), "--output", output):
        try:
            for path in folder.iterdir():
                if path.name not in (LOCK, LEASE):
                    shutil.rmtree(path)
            _remove_left(folder.parent)
            yield str(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _folder_of(output: str) -> Path:
    if is_remote(output):
        name = hashlib.sha256(output.rstrip("/").encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f".{os.getuid()}-{name}{_ENDING}"
    parent, name = os.path.split(os.path.abspath(output))
    return Path(parent) / f".{name}{_ENDING}"


def _remove_left(parent: Path) -> None:
    """Remove the folders of runs that ended without removing them."""
    for folder in parent.glob(f".*{_ENDING}"):
        try:
            descriptor = take_lock(folder / LOCK, create=False)
        except OSError:
            continue  # it is just being created, or belongs to another user, or there are no locks
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)
