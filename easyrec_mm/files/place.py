"""Places as the rest of the project uses them: requests are retried with growing pauses, and end in limited time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import TypeVar

from easyrec_mm.files import tensorflow_storage
from easyrec_mm.files.daemon_pool import DaemonPool
from easyrec_mm.files.fsspec_storage import FsspecStorage
from easyrec_mm.files.object_storage import STORES, ObjectStorage
from easyrec_mm.files.paths import place_name, scheme_of
from easyrec_mm.files.storage import Content, Failure, FileInfo, Storage, StorageError
from easyrec_mm.files.waiting import reading

# Limits for retries: the first for a place that has never answered, the second for a place that has. A first request
# that does not return at all is given up a little later.
FIRST_TRY_S, TRY_S = 8.0, 120.0
FIRST_WAIT_S = 15.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 8.0
# A place that cannot be used at all is not asked again for this long.
_LEFT_ALONE_S = 20.0

T = TypeVar("T")


class Place:
    """A bucket or server, reached by obstore or fsspec, or by TensorFlow with tensorflow-io where that is installed.

    A request with a passing failure is retried after a pause, whose length doubles up to a limit. All methods are those
    of Storage, may be called from any thread, and raise only StorageError.
    """

    def __init__(self, path: str) -> None:
        self.name = place_name(path)
        self._path = path
        self._storage: Storage | None = None
        self._lock = threading.Lock()
        # Time of the last answer; 0.0 if the place has never answered.
        self.answered_s = 0.0
        # Why the place cannot be used at all, and until when it is not asked again.
        self._failure: tuple[StorageError, float] | None = None

    def find(self, pattern: str) -> list[FileInfo]:
        """See Storage.find."""
        return self._call(pattern, lambda storage: storage.find(pattern))

    def below(self, folder: str) -> list[FileInfo]:
        """See Storage.below."""
        return self._call(folder, lambda storage: storage.below(folder))

    def stat(self, path: str) -> FileInfo:
        """See Storage.stat."""
        return self._call(path, lambda storage: storage.stat(path))

    def read(self, path: str, known_version: str | None = None, max_bytes: int | None = None) -> Content | None:
        """See Storage.read."""
        return self._call(path, lambda storage: storage.read(path, known_version, max_bytes))

    def start(self, path: str, size: int) -> bytes:
        """See Storage.start."""
        return self._call(path, lambda storage: storage.start(path, size))

    def download(self, info: FileInfo, local: Path) -> None:
        """See Storage.download."""
        self._call(info.path, lambda storage: storage.download(info, local))

    def upload(self, local: Path, path: str) -> None:
        """See Storage.upload."""
        self._call(path, lambda storage: storage.upload(local, path))

    def put(self, path: str, data: bytes, version: str) -> bool:
        """See Storage.put; after a failure, the answer may be that to another attempt that was not the first."""
        return self._call(path, lambda storage: storage.put(path, data, version))

    def remove(self, path: str) -> None:
        """See Storage.remove."""
        self._call(path, lambda storage: storage.remove(path))

    def _call(self, path: str, request: Callable[[Storage], T]) -> T:
        """Return the result of a request about a path."""
        with reading(path):
            return self._answer(request)

    def _answer(self, request: Callable[[Storage], T]) -> T:
        if self._failure is not None and time.monotonic() < self._failure[1]:
            last_error = self._failure[0]
            raise StorageError(last_error.path, last_error.reason, last_error.failure)
        try:
            if self.answered_s:
                return self.attempt(request, TRY_S)
            return _in_time(lambda: self.attempt(request, FIRST_TRY_S), self.name)
        except StorageError as error:
            if error.failure == Failure.PLACE:
                self._failure = error, time.monotonic() + _LEFT_ALONE_S
            raise

    def attempt(self, request: Callable[[Storage], T], limit_s: float) -> T:
        """Return the result of a request, which is repeated after passing errors until `limit_s` seconds are over."""
        begun = time.monotonic()
        pause = _FIRST_PAUSE_S
        while True:
            try:
                result = request(self.reached())
            except StorageError as error:
                if error.failure == Failure.MISSING:
                    self.answered_s = time.monotonic()
                if error.failure != Failure.PASSING:
                    raise
                now = time.monotonic()
                if now + pause - begun > limit_s:
                    if self.answered_s > begun:
                        raise  # other requests are answered
                    raise StorageError(
                        self.name,
                        f"no answer for {now - begun:.0f} s: {error.reason}; check the network and the endpoint",
                        Failure.PLACE,
                    ) from error
            else:
                self.answered_s = time.monotonic()
                return result
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def reached(self) -> Storage:
        """Return what reads and writes the files here, opened at first use."""
        with self._lock:
            if self._storage is None:
                self._storage = open_storage(self._path)
            return self._storage


def open_storage(path: str) -> Storage:
    """Return what reads and writes the files of a path's place."""
    scheme = scheme_of(path)
    if tensorflow_storage.knows(scheme):
        return tensorflow_storage.TensorFlowStorage()
    return ObjectStorage(path) if scheme in STORES else FsspecStorage(path)


def _in_time(action: Callable[[], T], name: str) -> T:
    """Return or raise what `action` returns or raises; raise a StorageError if it does neither in time."""
    pool = DaemonPool(1, f"first request to {name}")
    future = pool.submit(action)
    pool.close()
    if not wait([future], FIRST_WAIT_S).done:
        reason = f"no answer within {FIRST_WAIT_S:.0f} s; check the network, the endpoint and the credentials"
        raise StorageError(name, reason, Failure.PLACE)
    return future.result()


_places: dict[str, Place] = {}
_places_lock = threading.Lock()


def place_of(path: str) -> Place:
    """Return the Place of a path with a scheme; all paths of a place share it."""
    name = place_name(path)
    with _places_lock:
        if name not in _places:
            _places[name] = Place(path)
        return _places[name]
