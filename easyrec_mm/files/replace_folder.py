"""Puts a folder in the place of another one."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

# Of Linux's renameat2: paths are relative to the current folder, and the two files take each other's place.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def replace_folder(new: Path, target: Path) -> None:
    """Move the folder `new` to `target`, both on one disk, and remove the folder that was there.

    Whoever looks at `target`, or finds it after a kill, sees the whole old folder or the whole new one. Only where the
    system cannot exchange two folders is there a moment without a folder.

    Raises:
      OSError: if a folder cannot be moved.
    """
    if not target.exists():
        os.rename(new, target)
    elif exchange(new, target):
        shutil.rmtree(new)
    else:
        old = new.parent / f".{target.name}.old-{os.getpid()}"
        os.rename(target, old)
        os.rename(new, target)
        shutil.rmtree(old)


def exchange(first: Path, second: Path) -> bool:
    """Let two folders take each other's place; return False if the system or the file system cannot do it.

    Raises:
      OSError: if it fails for another reason.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code), str(second))
