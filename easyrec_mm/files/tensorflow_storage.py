"""Places that tensorflow-io adds to TensorFlow, where a user has installed it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from easyrec_mm.errors import tensorflow_reason
from easyrec_mm.files.paths import inside, join
from easyrec_mm.files.storage import Content, Failure, FileInfo, StorageError, put_by_upload
from easyrec_mm.tensorflow_import import import_tensorflow

_READ_BYTES = 16 << 20


@cache
def knows(scheme: str) -> bool:
    """Return whether tensorflow-io is installed and reads files of this scheme."""
    has_tensorflow_io = importlib.util.find_spec("tensorflow_io") is not None
    return has_tensorflow_io and scheme in import_tensorflow().io.gfile.get_registered_schemes()


class TensorFlowStorage:
    """A place of one of TensorFlow's file systems; a Storage."""

    def __init__(self) -> None:
        self._gfile: Any = import_tensorflow().io.gfile

    def find(self, pattern: str) -> list[FileInfo]:
        """See Storage.find."""
        with _translated(pattern):
            return [self._info(path) for path in sorted(self._gfile.glob(pattern))]

    def below(self, folder: str) -> list[FileInfo]:
        """See Storage.below."""
        with _translated(folder):
            if not self._gfile.isdir(folder):
                return []
            walked = self._gfile.walk(folder)
            return [self._info(join(inner, name)) for inner, _, names in walked for name in names]

    def stat(self, path: str) -> FileInfo:
        """See Storage.stat."""
        with _translated(path):
            return self._info(path)

    def read(self, path: str, known_version: str | None = None, max_bytes: int | None = None) -> Content | None:
        """See Storage.read."""
        version = "" if known_version is None else self.stat(path).version
        if version and version == known_version:
            return None
        with _translated(path), self._gfile.GFile(path, "rb") as file:
            return Content(bytes(file.read() if max_bytes is None else file.read(max_bytes)), version)

    def start(self, path: str, size: int) -> bytes:
        """See Storage.start."""
        with _translated(path), self._gfile.GFile(path, "rb") as file:
            return bytes(file.read(size))

    def download(self, info: FileInfo, local: Path) -> None:
        """See Storage.download."""
        with _translated(info.path), self._gfile.GFile(info.path, "rb") as source, local.open("wb") as target:
            while data := source.read(_READ_BYTES):
                target.write(data)
        if self.stat(info.path) != info:
            raise StorageError(info.path, "has changed while it was read", Failure.CHANGED)

    def upload(self, local: Path, path: str) -> None:
        """See Storage.upload."""
        with _translated(path):
            if "/" in inside(path):  # some file systems do not treat a bucket as a folder
                self._gfile.makedirs(path.rpartition("/")[0])
            self._gfile.copy(str(local), path, overwrite=True)

    def put(self, path: str, data: bytes, version: str) -> bool:
        """See Storage.put; versions are not compared."""
        return put_by_upload(self, path, data)

    def remove(self, path: str) -> None:
        """See Storage.remove."""
        with _translated(path), suppress(import_tensorflow().errors.NotFoundError):
            self._gfile.remove(path)

    def _info(self, path: str) -> FileInfo:
        status = self._gfile.stat(path)
        if status.is_directory:
            return FileInfo(path, 0, "", is_folder=True)
        version = f"{status.length}-{status.mtime_nsec}"
        return FileInfo(path, int(status.length), version)


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """Raise TensorFlow's errors as StorageErrors."""
    errors = import_tensorflow().errors
    failures = {
        errors.NotFoundError: Failure.MISSING,
        errors.PermissionDeniedError: Failure.DENIED,
        errors.UnauthenticatedError: Failure.PLACE,
        errors.InvalidArgumentError: Failure.REFUSED,
        errors.FailedPreconditionError: Failure.REFUSED,
        errors.UnimplementedError: Failure.REFUSED,
        errors.OutOfRangeError: Failure.REFUSED,
    }
    try:
        path.encode()  # TensorFlow accepts only UTF-8
        yield
    except UnicodeEncodeError as error:
        raise StorageError(path, "the path is not UTF-8", Failure.REFUSED) from error
    except errors.OpError as error:
        failure = failures.get(type(error), Failure.PASSING)
        reason = tensorflow_reason(error.message) or type(error).__name__
        raise StorageError(path, "no such file" if failure == Failure.MISSING else reason, failure) from error
