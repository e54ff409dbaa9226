"""Opening files of this machine that a user names."""

from __future__ import annotations

import os
import stat


def open_regular(path: str, flags: int) -> int:
    """An opener for `open` that does not wait, and opens only what has an end: a pipe or a device would stall or flood.

    Raises:
      OSError: if it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "is not a regular file")
    return descriptor
