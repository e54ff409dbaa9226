"""Reads the pictures that requests name, from the places that the operator allows and nowhere else.

A request is not trusted: a path may lead out of the folder of the pictures, to another server, or to a file without
end. A picture is read below image_root or from the allowed hosts, within limits of bytes and time.
"""

from __future__ import annotations

import asyncio
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

    async def read(self, path: str) -> bytes | None:
        """Return the content of a picture; None if it is not allowed, or cannot be read within the limits."""
        full = path if is_remote(path) else join(self._root, path)
        place = ""
        try:
            if scheme_of(full) in ("http", "https"):
                url = yarl.URL(full)
                place = _origin(url)
                return None if self._is_paused(place) else await asyncio.wait_for(self.fetch(url), self._timeout_s)
            if is_remote(full):
                place = place_name(full)
                if self._is_paused(place) or not self._is_allowed_path(full):
                    return None
            reading = asyncio.get_running_loop().run_in_executor(self._pool(place), self._read, full, place)
            content = await asyncio.wait_for(reading, self._timeout_s)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            self._pause_until[place] = time.monotonic() + _PAUSE_S
            return None
        except StorageError as error:
            if error.failure == Failure.PLACE:
                self._pause_until[place] = time.monotonic() + _PAUSE_S
            return None
        except (OSError, ValueError, asyncio.TimeoutError, aiohttp.ClientError):
            return None
        return content if content and len(content) <= MAX_PICTURE_BYTES else None

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

    async def fetch(self, url: yarl.URL) -> bytes | None:
        """Read a picture of a web server."""
        for _ in range(1 + _MAX_REDIRECTS):
            if not self._is_allowed_url(url):
                return None
            async with self._opened_session().get(url, allow_redirects=False) as response:
                if response.status in _REDIRECTS:
                    url = response.url.join(yarl.URL(response.headers.get("location", "")))
                    continue
                if response.status != 200 or (response.content_length or 0) > MAX_PICTURE_BYTES:
                    return None
                content = bytearray()
                async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                    content += chunk
                    if len(content) > MAX_PICTURE_BYTES:
                        return None
                return bytes(content) or None
        return None

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

    def _read(self, path: str, place: str) -> bytes | None:
        """Read a picture that is allowed, or one of this machine, but no more bytes than show that it is too large."""
        if place:
            return place_of(path).attempt(lambda storage: storage.start(path, MAX_PICTURE_BYTES + 1), self._timeout_s)
        if not self._root or is_remote(self._root):
            return None
        # Links are followed first, because they may lead out of the root, too.
        root, real = os.path.realpath(plain(self._root)), os.path.realpath(plain(path))
        if os.path.commonpath([root, real]) != root:
            return None
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
