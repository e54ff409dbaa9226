"""The store lmdb://path: a folder on disk, which many processes can read without a server while one process writes."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import lmdb

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
)

# Maximum size of the file: it reserves addresses, not memory or disk.
_MAP_BYTES = 1 << 40
_MAX_READERS = 1024
# Prefix of the keys of a generation; no generation has the number 0, so that the metadata come before all keys.
_PREFIX = struct.Struct(">I")
_META_KEY = _PREFIX.pack(0) + b"easyrec_mm"
# LMDB takes keys of at most 511 bytes. A longer key is replaced by this byte, with which no UTF-8 text starts, and a
# hash; the whole key and its length are then stored after the record.
_MAX_KEY_BYTES = 511 - _PREFIX.size
_LONG_KEY = b"\xff"
_KEY_LENGTH = struct.Struct("<I")
_AT_A_TIME = 1_000

T = TypeVar("T")
# lmdb.Transaction, whose type hints also allow buffers, although we always get bytes.
Transaction: TypeAlias = Any


@dataclass
class _Opened:
    """An open environment (LMDB allows one per path and process), and the number of stores that use it."""

    environment: lmdb.Environment
    writable: bool
    num_users: int = 0


_opened: dict[str, _Opened] = {}


class LmdbStore(Store):
    """See Store. A process that has a path open for reading cannot open it for writing at the same time."""

    def __init__(self, uri: str, writable: bool = False) -> None:
        super().__init__(uri)
        path = uri.partition("://")[2]
        if not path:
            raise StoreError(f"--store {uri}: give a path, as in lmdb://vectors")
        if "://" in path:
            raise StoreError(
                f"--store {uri}: LMDB reads and writes files of this machine; give a path of it, or redis:// or "
                "postgresql:// for a store that several machines use"
            )
        if not writable and not (Path(path) / "data.mdb").exists():
            raise StoreError(f"--store {uri}: no store there; write one with easyrec-mm embed")

        self._last_meta: tuple[bytes | None, Meta] = (None, Meta(0, {}))
        self._path = os.path.realpath(path)
        if self._path not in _opened:
            _opened[self._path] = self._guarded(lambda: _open(self._path, writable))
        opened = _opened[self._path]
        if writable and not opened.writable:
            raise StoreError(f"--store {uri}: this process reads it already; close that store before writing")
        opened.num_users += 1
        self._environment: lmdb.Environment | None = opened.environment

    def meta(self) -> Meta:
        return self._within(self._read_meta)

    def get_many(self, keys: Sequence[str], generation: Generation | None = None) -> Vectors:
        def read(transaction: Transaction) -> Vectors:
            stored_generation = require_generation(self._read_meta(transaction), generation, self.uri)
            return join_vectors(stored_generation, _values(transaction, stored_generation, keys), keys, self.uri)

        return self._within(read)

    def close(self) -> None:
        if self._environment is not None:
            self._environment = None
            opened = _opened[self._path]
            opened.num_users -= 1
            if not opened.num_users:
                _opened.pop(self._path).environment.close()

    def _read_meta(self, transaction: Transaction) -> Meta:
        value = transaction.get(_META_KEY)
        if value is not None and value == self._last_meta[0]:
            return self._last_meta[1]
        if value is None and not transaction.cursor().first():
            return Meta(0, {})
        self._last_meta = (value, parse_meta(value or b"", self.uri))
        return self._last_meta[1]

    def write_meta(self, meta: Meta) -> None:
        content = json.dumps(meta_to_dict(meta)).encode()
        self._within(lambda transaction: transaction.put(_META_KEY, content), write=True)

    def _read(self, generation: Generation, keys: Sequence[str]) -> list[bytes | None]:
        return self._within(lambda transaction: _values(transaction, generation, keys))

    def _write(self, generation: Generation, items: Sequence[tuple[str, bytes]]) -> None:
        def write(transaction: Transaction) -> None:
            for key, record in items:
                stored = _stored_key(generation, key)
                transaction.put(stored, _with_key(record, key) if _is_long(stored) else record)

        self._within(write, write=True)

    def _scan(self, generation: Generation) -> Iterator[tuple[str, bytes]]:
        # A single transaction would keep the old pages of all records that are replaced meanwhile.
        start = _PREFIX.pack(generation.number)
        while page := self._page(generation, start):
            for stored, value in page:
                key, record = _split(stored, value)
                yield key.decode(), record
            start = page[-1][0] + b"\x00"

    def _page(self, generation: Generation, start: bytes) -> list[tuple[bytes, bytes]]:
        """Return at most _AT_A_TIME stored keys and values of a generation, beginning with a stored key."""

        def read(transaction: Transaction) -> list[tuple[bytes, bytes]]:
            items: list[tuple[bytes, bytes]] = []
            with transaction.cursor() as cursor:
                has_item = cursor.set_range(start)
                while has_item and len(items) < _AT_A_TIME and cursor.key().startswith(_PREFIX.pack(generation.number)):
                    items.append(cursor.item())
                    has_item = cursor.next()
            return items

        return self._within(read)

    def _delete(self, generation: Generation) -> None:
        # Deletes in several transactions, because a transaction keeps its changes in memory.
        def delete(transaction: Transaction, page: list[tuple[bytes, bytes]]) -> None:
            for stored, _ in page:
                transaction.delete(stored)

        while page := self._page(generation, _PREFIX.pack(generation.number)):
            self._within(lambda transaction, page=page: delete(transaction, page), write=True)  # type: ignore[misc]

    def _within(self, function: Callable[[Transaction], T], write: bool = False) -> T:
        """Run a function in a transaction and return its result."""

        def run() -> T:
            if self._environment is None:
                raise OSError("the store is closed")
            with self._environment.begin(write=write) as transaction:
                return function(transaction)

        return self._guarded(run)

    def _guarded(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"{self.uri}: {error}; check the path, its permissions and the free space") from error


def _open(path: str, writable: bool) -> _Opened:
    Path(path).mkdir(parents=True, exist_ok=True)
    environment = lmdb.open(
        path, map_size=_MAP_BYTES, max_readers=_MAX_READERS, readonly=not writable, create=writable, readahead=False
    )
    return _Opened(environment, writable)


def _values(transaction: Transaction, generation: Generation, keys: Sequence[str]) -> list[bytes | None]:
    """Return the encoded records of keys, None for a missing key."""
    prefix = _PREFIX.pack(generation.number)
    stored = [prefix + key.encode() for key in keys]
    if has_long := max(map(len, stored), default=0) > _MAX_KEY_BYTES + _PREFIX.size:
        stored = [_stored_key(generation, key) for key in keys]
    values = [transaction.get(key) for key in stored]  # a cursor's getmulti takes a third longer
    if has_long:
        values = [value and _split(key, value)[1] for key, value in zip(stored, values, strict=True)]
    return values


def _stored_key(generation: Generation, key: str) -> bytes:
    encoded = key.encode()
    if len(encoded) > _MAX_KEY_BYTES:
        encoded = _LONG_KEY + hashlib.blake2b(encoded, digest_size=32).digest()
    return _PREFIX.pack(generation.number) + encoded


def _is_long(stored: bytes) -> bool:
    return stored.startswith(_LONG_KEY, _PREFIX.size)


def _with_key(record: bytes, key: str) -> bytes:
    """Return the value to store for a long key: the record, the key and the key's length."""
    encoded = key.encode()
    return record + encoded + _KEY_LENGTH.pack(len(encoded))


def _split(stored: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Split a stored key and value into (key, record)."""
    if not _is_long(stored):
        return stored[_PREFIX.size :], value
    (length,) = _KEY_LENGTH.unpack(value[-_KEY_LENGTH.size :])
    end = len(value) - _KEY_LENGTH.size
    return value[end - length : end], value[: end - length]
