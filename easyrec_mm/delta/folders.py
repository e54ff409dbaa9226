"""Folders that are written beside their places and put there when they are complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from easyrec_mm.errors import ExportError
from easyrec_mm.files.folders import UNFINISHED, Folder
from easyrec_mm.files.lock import locked
from easyrec_mm.files.replace_folder import replace_folder


@contextmanager
def new_folder(path: str, setting: str, last: str) -> Iterator[Path]:
    """Yield a new folder, which takes the place of `path` at the end; after an error it is removed.

    Args:
      path: the folder to write, local or remote.
      setting: the flag that names it.
      last: the file by which a complete folder is known, which is uploaded last.

    Raises:
      ExportError: if the folder contains files, but not `last`, or cannot be written.
      UserError: if another process writes there.
    """
    place = Folder(path)
    names = place.contents()
    if names is None:
        raise ExportError(f"{setting} {path}: is a file; choose a new folder")
    if names and last not in names and UNFINISHED not in names:
        raise ExportError(f"{setting} {path}: contains files, but no {last}; choose a new folder")
    beside = place.local.parent / f".{place.local.name}.tmp"
    try:
        with locked(str(beside), setting, path):
            try:
                shutil.rmtree(beside / "new", ignore_errors=True)
                (beside / "new").mkdir()
                yield beside / "new"
                replace_folder(beside / "new", place.local)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        if place.is_remote:
            place.replace(last=last)
    except OSError as error:
        raise ExportError(f"{error.filename or path}: cannot be written: {error.strerror or error}") from error
    finally:
        if place.is_remote:
            shutil.rmtree(place.local, ignore_errors=True)
