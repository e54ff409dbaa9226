"""Places of any scheme that fsspec knows: http and https, hdfs, memory and other installed file systems."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from easyrec_mm.files.paths import place_name, scheme_of
from easyrec_mm.files.storage import Content, Failure, FileInfo, StorageError, put_by_upload

# Names that file systems use for the version of a file.
_VERSION_KEYS = (
    "ETag", "etag", "LastModified", "last_modified", "Last-Modified", "mtime", "modified", "modificationTime",
    "updated", "created", "checksum",
)  # fmt: skip
_HTTP = ("http", "https")
_PASSING_STATUS = (408, 429)
_KNOWN = "use s3, oss, gs, hdfs, http or https"


class FsspecStorage:
    """A place of an fsspec file system; a Storage."""

    def __init__(self, path: str) -> None:
        import fsspec

        scheme = scheme_of(path)
        place = self._place = place_name(path)
        try:
            # Without the cache of earlier listings, because files may be added and removed at any time.
            self._files: Any = fsspec.filesystem(scheme, **_options(path), use_listings_cache=False)
        except ValueError as error:
            reason = f"no file system has the scheme '{scheme}://'; {_KNOWN}"
            raise StorageError(place, reason, Failure.PLACE) from error
        except ImportError as error:
            raise StorageError(place, str(error), Failure.PLACE) from error
        except Exception as error:  # each file system has its own exceptions
            raise StorageError(place, f"cannot be reached: {_text(error)}", Failure.PLACE) from error
        # The file system's name of the place, with which its paths begin.
        self._root = str(self._files._strip_protocol(place)).rstrip("/")

    def find(self, pattern: str) -> list[FileInfo]:
        """See Storage.find."""
        with self._translated(pattern):
            is_pattern = "*" in pattern or (not pattern.startswith("http") and any(c in pattern for c in "?["))
            if is_pattern:
                infos = self._files.glob(pattern, detail=True)
                return sorted(self._info(info) for info in infos.values())
            try:
                return [self._info(self._files.info(pattern), pattern)]
            except FileNotFoundError:
                return []

    def below(self, folder: str) -> list[FileInfo]:
        """See Storage.below."""
        with self._translated(folder):
            return [self._info(info) for info in self._files.find(folder, detail=True).values()]

    def stat(self, path: str) -> FileInfo:
        """See Storage.stat."""
        with self._translated(path):
            return self._info(self._files.info(path), path)

    def read(self, path: str, known_version: str | None = None, max_bytes: int | None = None) -> Content | None:
        """See Storage.read."""
        version = "" if known_version is None else self.stat(path).version
        if version and version == known_version:
            return None
        with self._translated(path):
            content = self._files.cat_file(path) if max_bytes is None else self._first_bytes(path, max_bytes)
            return Content(bytes(content), version)

    def start(self, path: str, size: int) -> bytes:
        """See Storage.start."""
        with self._translated(path):
            return self._first_bytes(path, size)

    def _first_bytes(self, path: str, size: int) -> bytes:
        # A file of a web server is read as a stream, by a single request: that needs a size to be given, of any value.
        options = {"block_size": 0, "size": 1} if scheme_of(path) in _HTTP else {"block_size": 1 << 16}
        content = bytearray()
        with self._files.open(path, "rb", **options) as file:
            while len(content) < size and (data := file.read(size - len(content))):
                content += data
        return bytes(content)

    def download(self, info: FileInfo, local: Path) -> None:
        """See Storage.download."""
        with self._translated(info.path):
            self._files.get_file(info.path, str(local))
        now = self.stat(info.path)
        if (now.size, now.version) != (info.size, info.version):
            raise StorageError(info.path, "has changed while it was read", Failure.CHANGED)

    def upload(self, local: Path, path: str) -> None:
        """See Storage.upload."""
        if scheme_of(path) in _HTTP:
            raise StorageError(path, "files cannot be written to a web server; choose another place", Failure.REFUSED)
        temporary = f"{path}.tmp" if scheme_of(path) in ("hdfs", "webhdfs") else ""
        with self._translated(path):
            self._files.makedirs(self._files._parent(path), exist_ok=True)
            self._files.put_file(str(local), temporary or path)
            if temporary:
                if self._files.exists(path):
                    self._files.rm_file(path)
                self._files.mv(temporary, path)

    def put(self, path: str, data: bytes, version: str) -> bool:
        """See Storage.put; versions are not compared."""
        return put_by_upload(self, path, data)

    def remove(self, path: str) -> None:
        """See Storage.remove."""
        with self._translated(path), suppress(FileNotFoundError):
            self._files.rm_file(path)

    def _info(self, info: dict[str, Any], path: str = "") -> FileInfo:
        version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
        path = path or f"{self._place}{str(info['name']).removeprefix(self._root)}"
        return FileInfo(path, int(info.get("size") or 0), version, info.get("type") == "directory")

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        """Raise the file system's errors as StorageErrors."""
        try:
            yield
        except StorageError:
            raise
        except FileNotFoundError as error:
            raise StorageError(path, "no such file", Failure.MISSING) from error
        except PermissionError as error:
            raise StorageError(path, f"access is denied ({_text(error)})", Failure.DENIED) from error
        except (NotImplementedError, ValueError, IsADirectoryError, NotADirectoryError) as error:
            raise StorageError(path, f"is not supported there: {_text(error)}", Failure.REFUSED) from error
        except Exception as error:  # each file system has its own exceptions
            raise StorageError(path, _text(error), _failure(error)) from error


def _options(path: str) -> dict[str, Any]:
    """Return the options of a file system: the address of HDFS, or the time limits of HTTP."""
    import fsspec.utils

    scheme = scheme_of(path)
    if scheme in ("hdfs", "webhdfs"):
        address = fsspec.utils.infer_storage_options(path)
        names = {"host": "host", "port": "port", "username": "user"}
        return {option: address[name] for name, option in names.items() if address.get(name)}
    if scheme in _HTTP:
        import aiohttp

        return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, connect=10, sock_read=60)}}
    return {}


def _failure(error: Exception) -> Failure:
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int) and 400 <= status < 500 and status not in _PASSING_STATUS:
        return Failure.DENIED if status in (401, 403) else Failure.REFUSED
    return Failure.PASSING


def _text(error: Exception) -> str:
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)) and not str(error):
        return "no answer in time"
    return " ".join(str(error).split())[:300] or type(error).__name__
