"""redis://[user:password@]host:port/db[?prefix=easyrec_mm]: vectors in a Redis server; rediss:// with TLS.

A generation is one Redis hash, `<prefix>:<number>`; the metadata are a string, `<prefix>:meta`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from easyrec_mm.errors import StoreError
from easyrec_mm.store.base import Store, without_password
from easyrec_mm.store.generations import Generation, require_generation
from easyrec_mm.store.keys import key_bytes, key_of
from easyrec_mm.store.records import Vectors, join_vectors

_TIMEOUT_S = 2.0
_AT_A_TIME = 1_000

T = TypeVar("T")


class RedisStore(Store):
    """See Store. If the server does not answer within two seconds, a call fails; the next call tries again.

    The URI may have the options of redis-py's `from_url`, such as `db` and `socket_timeout`.
    """

    def __init__(self, uri: str, writable: bool = False) -> None:
        super().__init__(without_password(uri))
        parts = urlsplit(uri)
        self._prefix = parse_qs(parts.query).get("prefix", ["easyrec_mm"])[0]
        # Cut out as it is, because other options may not be the same after parsing and writing.
        options = "&".join(option for option in parts.query.split("&") if option.partition("=")[0] != "prefix")
        self._client: Any = self._guarded(
            lambda: redis.Redis.from_url(
                urlunsplit(parts._replace(query=options)),
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                health_check_interval=30,
                # Once more on a new connection, if the server has closed the old one; not if it does not answer.
                retry=Retry(NoBackoff(), 1, (redis.ConnectionError,)),
            )
        )
        self._meta_key = f"{self._prefix}:meta"
        if not self.meta().generations and not writable:
            raise StoreError(
                f"{self.uri}: no vectors under the prefix '{self._prefix}'; write some with easyrec-mm embed"
            )

    def get_many(self, keys: Sequence[str], generation: Generation | None = None) -> Vectors:
        # One round trip gets the vectors of the generation that was current last time, and whether it is still current.
        while True:
            # A given generation may be newer than the metadata that were read last.
            candidate = generation or self._last_meta[1].current_generation
            candidate = candidate or require_generation(self.meta(), None, self.uri)
            text, values = self._guarded(partial(self._meta_and_values, candidate, keys))
            if require_generation(self._parsed(text), generation, self.uri).number == candidate.number:
                return join_vectors(candidate, values, keys, self.uri)

    def _close(self) -> None:
        self._client.close()

    def _meta_and_values(self, generation: Generation, keys: Sequence[str]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=True)
        pipeline.get(self._meta_key)
        if keys:
            pipeline.hmget(self._hash(generation.number), [key_bytes(key) for key in keys])
        text, *values = pipeline.execute()
        return [text, values[0] if values else []]

    def _meta_text(self) -> bytes | None:
        text: bytes | None = self._guarded(lambda: self._client.get(self._meta_key))
        return text

    def _swap_meta(self, before: bytes | str | None, after: str) -> bool:
        def swap() -> bool:
            with self._client.pipeline() as pipeline:
                pipeline.watch(self._meta_key)
                if pipeline.get(self._meta_key) != before:
                    return False
                pipeline.multi()
                pipeline.set(self._meta_key, after)
                try:
                    pipeline.execute()
                except redis.WatchError:
                    return False
                return True

        return self._guarded(swap)

    def _read(self, generation: Generation, keys: Sequence[str]) -> list[bytes | None]:
        if not keys:
            return []
        return list(
            self._guarded(lambda: self._client.hmget(self._hash(generation.number), [key_bytes(key) for key in keys]))
        )

    def _write(self, generation: Generation, items: Sequence[tuple[str, bytes]]) -> None:
        if items:
            records = {key_bytes(key): record for key, record in items}
            self._guarded(lambda: self._client.hset(self._hash(generation.number), mapping=records))

    def _scan(self, generation: Generation) -> Iterator[tuple[str, bytes]]:
        position = 0
        last_keys: set[bytes] = set()  # keys of the last page: Redis may return a key twice while the hash grows
        while True:
            position, page = self._guarded(
                partial(self._client.hscan, self._hash(generation.number), position, count=_AT_A_TIME)
            )
            for key, value in page.items():
                if key not in last_keys:
                    yield key_of(key), value
            last_keys = set(page)
            if not position:
                return

    def _delete(self, number: int) -> None:
        self._guarded(lambda: self._client.unlink(self._hash(number)))

    def _hash(self, number: int) -> str:
        return f"{self._prefix}:{number}"

    def _guarded(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except (redis.RedisError, OSError, ValueError) as error:
            raise StoreError(f"{self.uri}: {error}; check that the server runs and the address is right") from error
