"""Caches the contents of small remote files, such as pictures, on this machine's disk beyond a run.

Whether a cached content is still that of its file is checked once per run, by a request that returns the content only
if it has changed; from then on the run uses the cached content without a request.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from contextlib import suppress
from typing import NamedTuple

from easyrec_mm.files.disk_cache import DiskCache
from easyrec_mm.files.place import Place

# CRC-32 of everything that follows, and the length of the version; then come the version and the content.
_HEAD = struct.Struct("<IH")
# Entries that were checked after this time are used without a request.
RUN_BEGUN_NS = time.time_ns()


class _Entry(NamedTuple):
    version: str
    data: bytes
    changed_ns: int


class ContentCache:
    """Reads files through a DiskCache."""

    def __init__(self, cache: DiskCache) -> None:
        self._cache = cache

    def read(self, place: Place, path: str, max_bytes: int) -> bytes:
        """Return the content of a file, or the first `max_bytes` bytes of a larger one, which is not cached.

        Raises:
          StorageError: if the file cannot be read; the cached content of a file that no longer exists is not used.
        """
        entry = self._entry(path)
        if entry is not None and entry.changed_ns >= RUN_BEGUN_NS:
            self._touch(path, entry.changed_ns)
            return entry.data
        content = place.read(path, entry.version if entry else "", max_bytes)
        if content is None:
            if entry is None:
                raise ValueError(f"{path}: no content though none was known")
            self._touch(path, time.time_ns())
            return entry.data
        if len(content.data) >= max_bytes:
            return content.data
        version = content.version.encode()
        body = struct.pack("<H", len(version)) + version + content.data
        self._cache.add_if_possible(path, struct.pack("<I", zlib.crc32(body)) + body)
        return content.data

    def _entry(self, path: str) -> _Entry | None:
        try:
            with open(self._cache.place(path), "rb") as file:
                changed_ns = os.fstat(file.fileno()).st_mtime_ns
                raw = file.read()
        except OSError:
            return None
        if len(raw) < _HEAD.size:
            return None
        checksum, length = _HEAD.unpack_from(raw)
        if checksum != zlib.crc32(memoryview(raw)[4:]):
            return None  # damaged, as after a power failure
        end = _HEAD.size + length
        return _Entry(raw[_HEAD.size : end].decode(), raw[end:], changed_ns)

    def _touch(self, path: str, changed_ns: int) -> None:
        """Note that an entry is used now, and when it was last known to be current."""
        with suppress(OSError):  # removed meanwhile
            os.utime(self._cache.place(path), ns=(time.time_ns(), changed_ns))
