"""Tells by a short text whether the contents of an input's files have changed."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence

from easyrec_mm.files import FileInfo, is_remote, plain
from easyrec_mm.files.waiting import reading, waiting

# Bytes at the start, in the middle and at the end of a file that stand for its content.
_CONTENT_BYTES = 4096


def contents_of(infos: Sequence[FileInfo], setting: str, files: Iterable[int] | None = None) -> dict[int, str]:
    """Return index of a file -> a text that other contents of equal size change.

    Args:
      infos: all files.
      setting: the setting that names them, for messages.
      files: indices of the files that are read; by default all.
    """
    with waiting(lambda: f"the contents of {setting}"):
        return {file: _content_of(infos[file]) for file in (range(len(infos)) if files is None else files)}


def described(infos: Sequence[FileInfo], contents: Mapping[int, str]) -> list[str]:
    """Return path, size and what stands for the content of each file, in their order."""
    return [
        f"{info.path} of {info.size} bytes, version {contents.get(file) or 'unknown'}"
        for file, info in enumerate(infos)
    ]


def _content_of(info: FileInfo) -> str:
    """Return the version of a remote file, a checksum of parts of a local one."""
    if is_remote(info.path):
        return info.version
    checksum = 0
    try:
        with reading(info.path), open(plain(info.path), "rb") as file:
            for position in (0, info.size // 2, info.size - _CONTENT_BYTES):
                file.seek(max(0, position))
                checksum = zlib.crc32(file.read(_CONTENT_BYTES), checksum)
    except OSError:
        return ""  # the error is told when the file is read
    return str(checksum)
