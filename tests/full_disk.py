"""A disk that is full, for tests of what is written."""

from __future__ import annotations

import resource
from contextlib import contextmanager


@contextmanager
def files_limited_to(size: int):
    """No file of this process can become larger, as on a full disk. Python ignores the signal."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
