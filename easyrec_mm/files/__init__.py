"""Files wherever they lie: on this machine, in a bucket, behind a web server, in HDFS.

A path with a scheme (s3://bucket/folder/file) belongs to a `Place`, which TensorFlow reaches where it knows the scheme,
else obstore (s3, gs) or fsspec (all others). What needs files of this machine works on copies: of single files
(local_copies.py) or of whole folders (folders.py).
"""

from __future__ import annotations

import os
from pathlib import Path

from easyrec_mm.files.paths import is_remote, join, place_name, plain, scheme_of
from easyrec_mm.files.place import Place, place_of
from easyrec_mm.files.storage import Content, Failure, FileInfo, StorageError
from easyrec_mm.files.work_folder import work_folder

__all__ = [
    "Content",
    "Failure",
    "FileInfo",
    "Place",
    "StorageError",
    "is_remote",
    "join",
    "place_name",
    "place_of",
    "plain",
    "put",
    "read",
    "scheme_of",
    "written_at",
]


def read(path: str) -> bytes:
    """A file's content, wherever it lies.

    Raises:
      OSError, StorageError: if it cannot be read.
    """
    if not is_remote(path):
        return Path(plain(path)).read_bytes()
    content = place_of(path).read(path)
    return content.data if content else b""


def put(local: Path, path: str) -> None:
    """Move a file of this machine to where it belongs, in one step.

    Raises:
      OSError, StorageError: if it cannot be written there.
    """
    if is_remote(path):
        place_of(path).upload(local, path)
        local.unlink()
    else:
        os.replace(local, plain(path))


def put_text(path: Path, text: str) -> None:
    """Write a file of this machine that appears when it is complete.

    Raises:
      OSError: if it cannot be written.
    """
    temporary = written_at(str(path))
    temporary.write_text(text, encoding="utf-8")
    put(temporary, str(path))


def written_at(path: str) -> Path:
    """Where to write a file before it is `put` in its place: beside it, or here if that is another machine."""
    if is_remote(path):
        return Path(work_folder()) / f"put-{abs(hash(path))}"
    return Path(f"{plain(path)}.tmp-{os.getpid()}")
