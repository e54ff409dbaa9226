"""Opens files of this machine that a user names."""

from __future__ import annotations

import os
import stat


def open_regular(path: str, flags: int) -> int:
    """Open a regular file without waiting, as the opener of `open`; a pipe or a device might block or never end.

    Raises:
      OSError: if the file cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "is not a regular file")
    return descriptor
