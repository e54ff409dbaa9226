"""A folder that is written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from easyrec_mm.errors import DataError


@contextmanager
def new_folder(path: str, overwrite: bool) -> Iterator[str]:
    """A folder to write to; it becomes `path` when all went well, and vanishes otherwise.

    Args:
      path: may exist if it is empty.
      overwrite: whether it may hold something; that goes once there is something new.

    Raises:
      DataError: if it exists and may not be replaced.
    """
    check_output(path, overwrite)
    parent, name = os.path.split(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=parent) as work:
        new = os.path.join(work, "new")
        os.mkdir(new)
        yield new
        if os.path.isdir(path):
            os.rename(path, os.path.join(work, "old"))
        os.rename(new, path)


def check_output(path: str, overwrite: bool) -> None:
    """See new_folder."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise DataError(f"--output: {path} is a file; name a folder")
    here = os.path.abspath(path)
    if os.path.commonpath([here, os.getcwd()]) == here:
        raise DataError(f"--output: {path} holds the current folder; name a folder of its own")
    if os.path.isdir(path) and os.listdir(path) and not overwrite:
        raise DataError(f"--output: {path} is not empty; name another folder, or replace it with --overwrite")


@contextmanager
def scratch_folder(beside: str) -> Iterator[str]:
    """A folder for what is needed meanwhile, on the disk on which `beside` will be."""
    parent, name = os.path.split(os.path.abspath(beside))
    os.makedirs(parent, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=f".{name}.rows.", dir=parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
