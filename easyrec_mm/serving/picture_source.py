"""Reads the pictures that requests name, from the places that the operator allows and nowhere else.

A request is not trusted: a path may lead out of the folder of the pictures, to another server, or to a file without
end. A picture is read below image_root or from the allowed hosts, within limits of bytes and time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import aiohttp
import yarl

from easyrec_mm.errors import UserError
from easyrec_mm.files import Failure, StorageError, is_remote, join, place_name, place_of, plain, scheme_of
from easyrec_mm.files.regular_files import open_regular

MAX_PICTURE_BYTES = 16 << 20
# A place that cannot be reached is left alone for this long.
_PAUSE_S = 5.0
_READS_OF_A_PLACE, _CHUNK_BYTES, _MAX_REDIRECTS = 16, 1 << 16, 3
_REDIRECTS = (301, 302, 303, 307, 308)
_NOT_ALLOWED = "is neither below --image_root nor of --image_hosts"
_TOO_LARGE = f"has more than {MAX_PICTURE_BYTES} bytes"
_SHOWN_LENGTH = 300
_LOG = logging.getLogger("easyrec_mm.serving")


class _UnusablePictureError(ValueError):
    """A picture is not read; the text completes "the picture ..."."""


class PictureSource:
    """Reads pictures; its methods are called in one event loop.

    Args:
      image_root: folder, bucket or server in which relative paths start; nothing beside it is read.
      hosts: further places that may be read, such as "https://images.example.com" or "s3://bucket".
      timeout_s: seconds until reading a picture is given up.

    Raises:
      UserError: if a place is not a scheme and a host.
    """

    def __init__(self, image_root: str, hosts: Sequence[str], timeout_s: float) -> None:
        self._root = image_root
        self._hosts = {_host(place) for place in hosts}
        self._timeout_s = timeout_s
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._pause_until: dict[str, float] = {}
        self._session: aiohttp.ClientSession | None = None
        self._num_untold, self._tell_from = 0, 0.0

    async def read(self, path: str) -> bytes | None:
        """Return the content of a picture; None if it is not allowed, or cannot be read within the limits."""
        full = path if is_remote(path) else join(self._root, path)
        is_url = scheme_of(full) in ("http", "https")
        place = ""
        try:
            place = _origin(yarl.URL(full)) if is_url else place_name(full) if is_remote(full) else ""
            if self._is_paused(place):
                return None
            reading = self.fetch(yarl.URL(full)) if is_url else self._read_in_thread(full, place)
            content = await asyncio.wait_for(reading, self._timeout_s)
            if not content:
                raise _UnusablePictureError("is empty")
            if len(content) > MAX_PICTURE_BYTES:
                raise _UnusablePictureError(_TOO_LARGE)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._pause(place)
            reason = f"cannot be read: {error}"
        except StorageError as error:
            if error.failure == Failure.PLACE:
                self._pause(place)
            reason = f"cannot be read: {error}"
        except asyncio.TimeoutError:
            reason = f"was not read within {self._timeout_s:g} s"
        except _UnusablePictureError as error:
            reason = str(error)
        except (OSError, ValueError, aiohttp.ClientError) as error:
            reason = f"cannot be read: {error}"
        else:
            return content
        self._tell(path, reason)
        return None

    def _tell(self, path: str, reason: str) -> None:
        """Log why a picture is not read, but not more than a line a second, as clients choose the pictures."""
        self._num_untold += 1
        if time.monotonic() >= self._tell_from:
            others = f"; {self._num_untold - 1} more were left out since the last line" if self._num_untold > 1 else ""
            _LOG.warning("a request's picture '%s' is left out: it %s%s", path[:_SHOWN_LENGTH], reason, others)
            self._num_untold, self._tell_from = 0, time.monotonic() + 1

    def _pause(self, place: str) -> None:
        self._pause_until[place] = time.monotonic() + _PAUSE_S

    def _is_paused(self, place: str) -> bool:
        return time.monotonic() < self._pause_until.get(place, 0.0)

    def _pool(self, place: str) -> ThreadPoolExecutor:
        """Return the threads for a place, so that one that does not answer holds up no other."""
        if place not in self._pools:
            self._pools[place] = ThreadPoolExecutor(_READS_OF_A_PLACE, f"pictures of {place or 'this machine'}")
        return self._pools[place]

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def fetch(self, url: yarl.URL) -> bytes:
        """Read a picture of a web server.

        Raises:
          ValueError: if it is not allowed or there is none; further errors are those of aiohttp.
        """
        for _ in range(1 + _MAX_REDIRECTS):
            if not self._is_allowed_url(url):
                raise _UnusablePictureError(_NOT_ALLOWED)
            async with self._opened_session().get(url, allow_redirects=False) as response:
                if response.status in _REDIRECTS:
                    url = response.url.join(yarl.URL(response.headers.get("location", "")))
                    continue
                if response.status != 200:
                    raise _UnusablePictureError(f"cannot be read: status {response.status}")
                if (response.content_length or 0) > MAX_PICTURE_BYTES:
                    raise _UnusablePictureError(_TOO_LARGE)
                content = bytearray()
                async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                    content += chunk
                    if len(content) > MAX_PICTURE_BYTES:
                        raise _UnusablePictureError(_TOO_LARGE)
                return bytes(content)
        raise _UnusablePictureError(f"cannot be read: more than {_MAX_REDIRECTS} redirections")

    async def _read_in_thread(self, path: str, place: str) -> bytes:
        if place and not self._is_allowed_path(path):
            raise _UnusablePictureError(_NOT_ALLOWED)
        return await asyncio.get_running_loop().run_in_executor(self._pool(place), self._read, path, place)

    def _opened_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Compressed answers would have to be limited twice.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, limit_per_host=_READS_OF_A_PLACE),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=self._timeout_s / 2),
                headers={"accept-encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session

    def _is_allowed_url(self, url: yarl.URL) -> bool:
        if url.scheme not in ("http", "https") or not url.host or _leads_up(url.path):
            return False
        if _origin(url) in self._hosts:
            return True
        if scheme_of(self._root) not in ("http", "https"):
            return False
        root = yarl.URL(self._root)
        return _origin(url) == _origin(root) and url.path.startswith(f"{root.path.rstrip('/')}/")

    def _is_allowed_path(self, path: str) -> bool:
        """Return whether a path in a bucket or another place may be read."""
        is_below_root = is_remote(self._root) and path.startswith(f"{self._root.rstrip('/')}/")
        return not _leads_up(path) and (is_below_root or place_name(path) in self._hosts)

    def _read(self, path: str, place: str) -> bytes:
        """Read a picture that is allowed, or one of this machine, but no more bytes than show that it is too large."""
        if place:
            return place_of(path).attempt(lambda storage: storage.start(path, MAX_PICTURE_BYTES + 1), self._timeout_s)
        if not self._root or is_remote(self._root):
            raise _UnusablePictureError(_NOT_ALLOWED)
        # Links are followed first, because they may lead out of the root, too.
        root, real = os.path.realpath(plain(self._root)), os.path.realpath(plain(path))
        if os.path.commonpath([root, real]) != root:
            raise _UnusablePictureError(_NOT_ALLOWED)
        with open(real, "rb", opener=open_regular) as file:
            return file.read(MAX_PICTURE_BYTES + 1)


def _host(place: str) -> str:
    """Return the name of an allowed place as it is compared."""
    advice = "give a scheme and a host or bucket, as in https://images.example.com or s3://bucket"
    scheme, name = scheme_of(place), place.partition("://")[2].rstrip("/")
    if not scheme or not name or "/" in name or "@" in name:
        raise UserError(f"--image_hosts {place}: {advice}")
    if scheme not in ("http", "https"):
        return place_name(place)
    try:
        return _origin(yarl.URL(place))
    except ValueError as error:
        raise UserError(f"--image_hosts {place}: {error}; {advice}") from error


def _origin(url: yarl.URL) -> str:
    return f"{url.scheme}://{(url.host or '').lower()}:{url.port}"


def _leads_up(path: str) -> bool:
    return ".." in unquote(unquote(path)).replace("\\", "/").split("/")
