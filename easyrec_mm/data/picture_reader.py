"""Reads the contents of pictures from this machine, from tars, or from remote places, with many reads at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from functools import lru_cache

from easyrec_mm.data.packed_pictures import PackedPictures, is_packed
from easyrec_mm.errors import DataError
from easyrec_mm.files import Failure, FileInfo, StorageError, is_remote, join, place_of, plain
from easyrec_mm.files.content_cache import ContentCache
from easyrec_mm.files.daemon_pool import DaemonPool
from easyrec_mm.files.disk_cache import DiskCache
from easyrec_mm.files.local_copies import local_copies
from easyrec_mm.files.picture_files import most_bytes, too_large
from easyrec_mm.files.regular_files import open_regular
from easyrec_mm.files.waiting import reading
from easyrec_mm.protos.data_pb2 import DatasetConfig

# Number of remote pictures that the whole process reads at a time.
NUM_READS = 72
# If this many pictures fail before any picture could be read, the cause is not the pictures themselves.
_NUM_REFUSED = 8


def picture_reader(
    data: DatasetConfig, image_root: str = "", tars: Mapping[str, FileInfo] | None = None
) -> PictureReader:
    """Return a reader of the pictures of a data section.

    Args:
      data: the section.
      image_root: folder to use in place of its image_root.
      tars: the tars of packed pictures as they were found; see PackedPictures.

    Raises:
      DataError: if image_cache_dir cannot be written.
    """
    # Without packed_images, a path may still name a picture in a tar, as those of a pre-training's table do.
    packed = PackedPictures(local_copies(data.file_cache_dir, data.file_cache_gib), tars)
    cache = content_cache(data.image_cache_dir, data.image_cache_gib)
    return PictureReader(image_root or data.image_root, cache, packed, data.packed_images)


class PictureReader:
    """Reads pictures by path.

    Args:
      root: folder that relative paths start from; "" for the current folder.
      cache: cache of remote pictures.
      packed: reads the pictures whose paths are results of packed_pictures.path_in.
      needs_tars: whether a tar that cannot be read is an error, not a property of the pictures in it.
    """

    def __init__(
        self,
        root: str = "",
        cache: ContentCache | None = None,
        packed: PackedPictures | None = None,
        needs_tars: bool = True,
    ) -> None:
        self._root, self._needs_tars = root, needs_tars
        self._cache = cache
        self._packed = packed
        self._lock = threading.Lock()
        # Remote path -> its content, and how many requests for it have not been taken yet.
        self._begun: dict[str, tuple[Future[bytes], int]] = {}
        self._num_refused = 0
        self._has_read = False

    def begin(self, paths: Iterable[bytes], max_pixels: int) -> None:
        """Begin to read the remote pictures among these; `read` then takes their contents, with the same limit."""
        max_bytes = most_bytes(max_pixels)
        for path_bytes in paths:
            path = self._full_path(path_bytes)
            if is_remote(path):
                with self._lock:
                    future, count = self._begun.get(path) or (_pool().submit(self._read_remote, path, max_bytes), 0)
                    self._begun[path] = future, count + 1

    def forget(self) -> None:
        """Cancel what was begun and not taken."""
        with self._lock:
            for future, _ in self._begun.values():
                future.cancel()
            self._begun.clear()

    def read(self, paths: list[bytes], max_pixels: int) -> tuple[list[bytes], dict[int, str]]:
        """Return the contents of pictures, b"" for a picture that cannot be read, and row -> the reason.

        Args:
          paths: paths of the files.
          max_pixels: greatest number of pixels of a picture; files of more bytes than that can need are not read.

        Raises:
          DataError: if no remote picture at all can be read, as with wrong credentials, or a tar cannot be read.
        """
        max_bytes = most_bytes(max_pixels)
        remote = {
            row: self._take(path, max_bytes)
            for row, own_path in enumerate(paths)
            if is_remote(path := self._full_path(own_path))
        }
        data: list[bytes] = []
        problems: dict[int, str] = {}
        for row, own_path in enumerate(paths):
            try:
                content = remote[row].result() if row in remote else self._read_here(own_path, max_bytes)
                _require_small(len(content), max_bytes)
                data.append(content)
            except StorageError as error:
                self._require_hope(error)
                data.append(b"")
                problems[row] = f"cannot be read: {error.reason}"
            except (OSError, ValueError) as error:  # ValueError: no file can have that path, or it is too large
                reason = error.strerror if isinstance(error, OSError) else str(error)
                data.append(b"")
                problems[row] = f"cannot be read: {reason or type(error).__name__}"
            else:
                if not data[-1]:
                    problems[row] = "is empty (0 bytes)"
        return data, problems

    def _full_path(self, path_bytes: bytes) -> str:
        if self._packed is not None and is_packed(path_bytes):
            return ""
        path = os.fsdecode(path_bytes)
        return join(self._root, path) if path else ""

    def _take(self, path: str, max_bytes: int) -> Future[bytes]:
        with self._lock:
            future, count = self._begun.pop(path, (None, 0))
            if future is None:
                return _pool().submit(self._read_remote, path, max_bytes)
            if count > 1:
                self._begun[path] = future, count - 1
            return future

    def _read_remote(self, path: str, max_bytes: int) -> bytes:
        place = place_of(path)
        if self._cache is not None:
            data = self._cache.read(place, path, max_bytes + 1)
        else:
            content = place.read(path, max_bytes=max_bytes + 1)
            data = content.data if content else b""
        self._has_read = True
        return data

    def _require_hope(self, error: StorageError) -> None:
        """Raise an error that is not caused by a single picture.

        A path that cannot be read, for example because its place does not exist, is a bad picture like others. But with
        wrong credentials, or a place that has become unavailable, all pictures would be bad.
        """
        if error.failure == Failure.PLACE and place_of(error.path).answered_s:
            raise error
        if self._has_read or error.failure not in (Failure.PLACE, Failure.DENIED):
            return
        with self._lock:
            self._num_refused += 1
        if self._num_refused >= _NUM_REFUSED:
            raise DataError(f"{error}; none of {self._num_refused} pictures can be read") from error

    def _read_here(self, path_bytes: bytes, max_bytes: int) -> bytes:
        if self._packed is not None and is_packed(path_bytes):
            try:
                with reading(os.fsdecode(path_bytes)):
                    return self._packed.read(path_bytes, max_bytes + 1)
            except DataError as error:
                if self._needs_tars:
                    raise
                raise OSError(0, str(error)) from error
        path = self._full_path(path_bytes)
        if not path:
            raise FileNotFoundError(0, "the path is empty")
        with reading(path), open(plain(path), "rb", opener=open_regular) as file:
            _require_small(os.fstat(file.fileno()).st_size, max_bytes)
            return file.read()


def _require_small(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise ValueError(too_large(max_bytes))


@lru_cache
def content_cache(folder: str, max_gib: float) -> ContentCache | None:
    """Return the single ContentCache of a folder in this process; None without a folder.

    Raises:
      DataError: if the folder cannot be written.
    """
    return ContentCache(DiskCache(folder, int(max_gib * 2**30), "data_config.image_cache_dir")) if folder else None


@lru_cache
def _pool() -> DaemonPool:
    return DaemonPool(NUM_READS, "remote pictures")
