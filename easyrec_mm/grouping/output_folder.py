"""Output folders and files that are written completely or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from easyrec_mm.errors import DataError
from easyrec_mm.files import is_remote, place_of, put
from easyrec_mm.files.replace_folder import replace_folder
from easyrec_mm.files.work_folder import work_folder


@contextmanager
def new_folder(path: str, overwrite: bool) -> Iterator[str]:
    """Yield a folder to write to, which becomes `path` at the end, and is removed after an error.

    A remote folder is emptied, written in place, and emptied again after an error.

    Args:
      path: the output folder, which may exist if it is empty.
      overwrite: whether it may have contents; these are removed once the new folder is complete.

    Raises:
      DataError: if the output folder exists and may not be replaced.
    """
    check_output(path, overwrite)
    if is_remote(path):
        with _new_remote_folder(path):
            yield path
        return
    parent, name = os.path.split(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=parent) as work:
        new = os.path.join(work, "new")
        os.mkdir(new)
        yield new
        replace_folder(Path(new), Path(path))


@contextmanager
def _new_remote_folder(path: str) -> Iterator[None]:
    _empty(path)
    try:
        yield
    except BaseException:
        _empty(path)
        raise


def _empty(path: str) -> None:
    place = place_of(path)
    for info in place.below(path):
        place.remove(info.path)


@contextmanager
def written(path: str) -> Iterator[str]:
    """Yield a local path at which to write a file; if `path` is remote, the complete file is then moved there."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(dir=work_folder()) as folder:
        yield os.path.join(folder, "file")
        put(Path(folder) / "file", path)


def check_output(path: str, overwrite: bool) -> None:
    """Check that the output folder may be written; see new_folder."""
    if is_remote(path):
        if place_of(path).below(path) and not overwrite:
            raise DataError(f"--output: {path} is not empty; name another folder, or replace it with --overwrite")
        return
    if os.path.exists(path) and not os.path.isdir(path):
        raise DataError(f"--output: {path} is a file; name a folder")
    here = os.path.abspath(path)
    if os.path.commonpath([here, os.getcwd()]) == here:
        raise DataError(f"--output: {path} contains the current folder; choose another folder")
    if os.path.isdir(path) and os.listdir(path) and not overwrite:
        raise DataError(f"--output: {path} is not empty; name another folder, or replace it with --overwrite")


@contextmanager
def scratch_folder(output: str) -> Iterator[str]:
    """Yield a temporary folder, on the disk of `output` if that is local; it is removed at the end."""
    parent, name = os.path.split(os.path.join(work_folder(), "out") if is_remote(output) else os.path.abspath(output))
    os.makedirs(parent, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=f".{name}.rows.", dir=parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
