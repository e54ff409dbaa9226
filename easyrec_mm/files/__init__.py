"""Access to files on this machine, in buckets, behind web servers and in HDFS.

A path with a scheme (s3://bucket/folder/file) belongs to a `Place`. TensorFlow accesses it if it knows the scheme, else
obstore (s3, oss, gs) or fsspec (all others). Code that needs files of this machine works on copies of single files
(local_copies.py) or of whole folders (folders.py).
"""

from __future__ import annotations

import os
from pathlib import Path

from easyrec_mm.files.paths import is_remote, join, naming, place_name, plain, scheme_of
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
    "naming",
    "place_name",
    "place_of",
    "plain",
    "put",
    "put_text",
    "read",
    "scheme_of",
    "written_at",
]


def read(path: str) -> bytes:
    """Return the content of a file, local or remote.

    Raises:
      OSError, StorageError: if the file cannot be read.
    """
    if not is_remote(path):
        return Path(plain(path)).read_bytes()
    content = place_of(path).read(path)
    return content.data if content else b""


def put(local: Path, path: str) -> None:
    """Move a local file to its destination, local or remote, in one step.

    Raises:
      OSError, StorageError: if the destination cannot be written.
    """
    if is_remote(path):
        place_of(path).upload(local, path)
        local.unlink()
    else:
        os.replace(local, plain(path))


def put_text(path: str | Path, text: str) -> None:
    """Write a file, local or remote, that appears only when it is complete.

    Raises:
      OSError, StorageError: if it cannot be written; the error names the path.
    """
    temporary = written_at(str(path))
    with naming(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            put(temporary, str(path))
        finally:
            temporary.unlink(missing_ok=True)


def written_at(path: str) -> Path:
    """Return where to write a file before it is `put` in its place: beside it, or on this machine if it is remote."""
    if is_remote(path):
        return Path(work_folder()) / f"put-{abs(hash(path))}"
    return Path(f"{plain(path)}.tmp-{os.getpid()}")
