"""Output folders and files that are written completely or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from easyrec_mm.errors import DataError
from easyrec_mm.files import is_remote, naming, place_of, put
from easyrec_mm.files.replace_folder import replace_folder
from easyrec_mm.files.work_folder import work_folder


@contextmanager
def new_folder(path: str, overwrite: bool, work: str) -> Iterator[str]:
    """Yield a folder to write to, which becomes `path` at the end.

    A remote folder is emptied, written in place, and emptied again after an error.

    Args:
      path: the output folder, which may exist if it is empty.
      overwrite: whether it may have contents; these are removed once the new folder is complete.
      work: the folder of work_place for this output.

    Raises:
      DataError: if the output folder exists and may not be replaced.
    """
    check_output(path, overwrite)
    if is_remote(path):
        with _new_remote_folder(path):
            yield path
        return
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
        with naming(path):
            yield path
        return
    with tempfile.TemporaryDirectory(dir=work_folder()) as folder:
        here = os.path.join(folder, "file")
        with naming(path):
            yield here
        put(Path(folder) / "file", path)


def check_output(path: str, overwrite: bool) -> None:
    """Check that the output folder may be written, and that patterns can name its files; see new_folder."""
    special = re.search(r"[,*?\[\]{}\\]|^\s|\s$", path)
    if special:
        raise DataError(
            f"--output: '{path}' has {special[0]!r} in it, which has a meaning in the lists and patterns of paths of a "
            "config; name another folder"
        )
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
