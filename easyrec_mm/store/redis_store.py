"""redis://[user:password@]host:port/db[?prefix=easyrec_mm]: vectors in a Redis server; rediss:// with TLS.

A generation is one Redis hash, `<prefix>:<number>`; the metadata are a string, `<prefix>:meta`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit, urlunsplit

import redis

from easyrec_mm.errors import StoreError
from easyrec_mm.store.base import (
    Generation,
    Meta,
    Store,
    Vectors,
    join_vectors,
    meta_to_dict,
    parse_meta,
    require_generation,
    without_password,
)

_TIMEOUT_S = 2.0
_AT_A_TIME = 1_000

T = TypeVar("T")


class RedisStore(Store):
    """See Store. If the server does not answer within two seconds, a call fails; the next call tries again."""

    def __init__(self, uri: str, writable: bool = False) -> None:
        super().__init__(without_password(uri))
        parts = urlsplit(uri)
        self._prefix = parse_qs(parts.query).get("prefix", ["easyrec_mm"])[0]
        self._client: Any = self._guarded(
            lambda: redis.Redis.from_url(
                urlunsplit(parts._replace(query="")),
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                health_check_interval=30,
            )
        )
        self._meta_key = f"{self._prefix}:meta"
        self._last_meta = self.meta()
        if not writable and not self._last_meta.generations:
            raise StoreError(
                f"{self.uri}: no vectors under the prefix '{self._prefix}'; write some with easyrec-mm embed"
            )

    def meta(self) -> Meta:
        return parse_meta(self._guarded(lambda: self._client.get(self._meta_key)), self.uri)

    def get_many(self, keys: Sequence[str], generation: Generation | None = None) -> Vectors:
        # One round trip gets the vectors of the generation that was current last time, and whether it is still current.
        while True:
            # A given generation may be newer than the metadata that were read last.
            candidate = generation or require_generation(self._last_meta, None, self.uri)
            text, values = self._guarded(partial(self._meta_and_values, candidate, keys))
            self._last_meta = parse_meta(text, self.uri)
            if require_generation(self._last_meta, generation, self.uri).number == candidate.number:
                return join_vectors(candidate, values, keys, self.uri)

    def close(self) -> None:
        self._client.close()

    def _meta_and_values(self, generation: Generation, keys: Sequence[str]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=True)
        pipeline.get(self._meta_key)
        if keys:
            pipeline.hmget(self._hash(generation), list(keys))
        text, *values = pipeline.execute()
        return [text, values[0] if values else []]

    def write_meta(self, meta: Meta) -> None:
        self._guarded(lambda: self._client.set(self._meta_key, json.dumps(meta_to_dict(meta))))
        self._last_meta = meta

    def _read(self, generation: Generation, keys: Sequence[str]) -> list[bytes | None]:
        if not keys:
            return []
        return list(self._guarded(lambda: self._client.hmget(self._hash(generation), list(keys))))

    def _write(self, generation: Generation, items: Sequence[tuple[str, bytes]]) -> None:
        if items:
            self._guarded(lambda: self._client.hset(self._hash(generation), mapping=dict(items)))

    def _scan(self, generation: Generation) -> Iterator[tuple[str, bytes]]:
        position = 0
        last_keys: set[bytes] = set()  # keys of the last page: Redis may return a key twice while the hash grows
        while True:
            position, page = self._guarded(
                partial(self._client.hscan, self._hash(generation), position, count=_AT_A_TIME)
            )
            for key, value in page.items():
                if key not in last_keys:
                    yield key.decode(), value
            last_keys = set(page)
            if not position:
                return

    def _delete(self, generation: Generation) -> None:
        self._guarded(lambda: self._client.unlink(self._hash(generation)))

    def _hash(self, generation: Generation) -> str:
        return f"{self._prefix}:{generation.number}"

    def _guarded(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except (redis.RedisError, OSError, ValueError) as error:
            raise StoreError(f"{self.uri}: {error}; check that the server runs and the address is right") from error
