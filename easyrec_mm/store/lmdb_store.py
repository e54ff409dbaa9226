"""The store lmdb://path: a folder on disk, which many processes can read without a server while one process writes."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import lmdb

from easyrec_mm.errors import StoreError
from easyrec_mm.store.base import Store
from easyrec_mm.store.generations import Generation, Meta, Tasks, VectorDtype, parse_meta, require_generation
from easyrec_mm.store.keys import digest, key_bytes, key_of, split_key, with_key
from easyrec_mm.store.lmdb_environment import Environment, Transaction, UnreadableError, identity_of
from easyrec_mm.store.records import Vectors, join_vectors

# Prefix of the keys of a generation; no generation has the number 0, so that the metadata come before all keys.
_PREFIX = struct.Struct(">I")
_META_KEY = _PREFIX.pack(0) + b"easyrec_mm"
# LMDB takes keys of at most 511 bytes. A longer key is replaced by this byte, with which no UTF-8 text starts, and a
# digest; see keys.py.
_MAX_KEY_BYTES = 511 - _PREFIX.size
_LONG_KEY = b"\xff"
_AT_A_TIME = 1_000

T = TypeVar("T")

# By (path, identity): LMDB allows one environment per file and process.
_opened: dict[tuple[object, ...], Environment] = {}


class LmdbStore(Store):
    """See Store. A process that has a path open for reading cannot open it for writing at the same time.

    Readers have leases by shared locks on a file for each generation in the folder, which end with the process.
    """

    def __init__(self, uri: str, writable: bool = False) -> None:
        super().__init__(uri)
        self._environment: Environment | None = None
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
        self._path = os.path.realpath(path)
        # Of the generations that are kept, by number.
        self._locks: dict[int, int] = {}
        self._environment = self._guarded(lambda: _opened_at(self._path, writable))
        if writable and not self._environment.writable:
            raise StoreError(f"--store {uri}: this process reads it already; close that store before writing")
        self._environment.num_users += 1
        # In leases, so that a copy of the file tells that it was made while there was a writer.
        self._file_number = str(self._environment.identity[1])
        self._name = f"{self._name} {self._file_number}"

    @property
    def identity(self) -> tuple[int, ...]:
        return self._environment.identity if self._environment else ()

    def reopened(self) -> Store | None:
        is_other = self.identity and identity_of(self._path) not in ((), self.identity)
        return LmdbStore(self.uri) if is_other else None

    def get_many(self, keys: Sequence[str], generation: Generation | None = None) -> Vectors:
        def read(transaction: Transaction) -> Vectors:
            meta = self._parsed(_meta_text(transaction))
            stored_generation = require_generation(meta, generation, self.uri)
            return join_vectors(stored_generation, _values(transaction, stored_generation, keys), keys, self.uri)

        return self._within(read)

    def begin(self, fingerprint: str, width: int, dtype: VectorDtype, tasks: Tasks | None = None) -> Generation:
        generation = super().begin(fingerprint, width, dtype, tasks)
        # For readers that may not make files here.
        self._guarded(lambda: os.close(self._open_lock(generation.number)))
        return generation

    def keep(self, generation: Generation) -> bool:
        if generation.number in self._locks or generation.number in self._renewed_s:
            return True
        try:
            file = self._open_lock(generation.number)
        except OSError:  # as on a file system that is read-only
            return False
        fcntl.flock(file, fcntl.LOCK_SH)
        self._locks[generation.number] = file
        return self.meta().has(generation)

    def let_go(self, numbers: Collection[int]) -> None:
        super().let_go(numbers)
        for number in set(numbers).intersection(self._locks):
            os.close(self._locks.pop(number))

    def _users_of(self, meta: Meta, number: int) -> str:
        user = super()._users_of(meta, number)
        if user:
            return user
        file = self._guarded(lambda: self._open_lock(number))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "is being read"
        finally:
            os.close(file)
        return ""

    def _parsed(self, text: bytes | str | None) -> Meta:
        if text != self._last_meta[0]:
            self._require_consistent(parse_meta(text, self.uri))
        return super()._parsed(text)

    def _require_consistent(self, meta: Meta) -> None:
        # Pages of a copy that was made beside a writer may be of different times, at which LMDB ends the process.
        writers = [writer for use in meta.uses.values() for writer in use.writers]
        if any(writer.rpartition(" ")[2] != self._file_number for writer in writers):
            raise StoreError(
                f"{self.uri}: is a copy of a store that was being written; copy it again when that is complete, or "
                "write it anew"
            )

    def _close(self) -> None:
        self.let_go(tuple(self._locks))
        environment, self._environment = self._environment, None
        if environment is not None:
            environment.num_users -= 1
            if not environment.num_users:
                for key in [key for key, opened in _opened.items() if opened is environment]:
                    del _opened[key]
                environment.close()

    def _meta_text(self) -> bytes | None:
        return self._within(_meta_text)

    def _swap_meta(self, before: bytes | str | None, after: str) -> bool:
        def swap(transaction: Transaction) -> bool:
            return _meta_text(transaction) == before and transaction.put(_META_KEY, after.encode())

        return self._within(swap, write=True)

    def _lock_file(self, number: int) -> str:
        return f"{self._path}/generation-{number}.lock"

    def _open_lock(self, number: int) -> int:
        return os.open(self._lock_file(number), os.O_RDONLY | os.O_CREAT, 0o666)

    def _read(self, generation: Generation, keys: Sequence[str]) -> list[bytes | None]:
        return self._within(lambda transaction: _values(transaction, generation, keys))

    def _write(self, generation: Generation, items: Sequence[tuple[str, bytes]]) -> None:
        def write(transaction: Transaction) -> None:
            for key, record in items:
                stored = _stored_key(generation, key)
                transaction.put(stored, with_key(record, key) if _is_long(stored) else record)

        self._within(write, write=True)

    def _scan(self, generation: Generation) -> Iterator[tuple[str, bytes]]:
        # A single transaction would keep the old pages of all records that are replaced meanwhile.
        start = _PREFIX.pack(generation.number)
        while page := self._page(generation.number, start):
            for stored, value in page:
                yield split_key(value) if _is_long(stored) else (key_of(stored[_PREFIX.size :]), value)
            start = page[-1][0] + b"\x00"

    def _page(self, number: int, start: bytes) -> list[tuple[bytes, bytes]]:
        """Return at most _AT_A_TIME stored keys and values of a generation, beginning with a stored key."""

        def read(transaction: Transaction) -> list[tuple[bytes, bytes]]:
            items: list[tuple[bytes, bytes]] = []
            with transaction.cursor() as cursor:
                has_item = cursor.set_range(start)
                while has_item and len(items) < _AT_A_TIME and cursor.key().startswith(_PREFIX.pack(number)):
                    items.append(cursor.item())
                    has_item = cursor.next()
            return items

        return self._within(read)

    def _delete(self, number: int) -> None:
        # Deletes in several transactions, because a transaction keeps its changes in memory.
        def delete(transaction: Transaction, page: list[tuple[bytes, bytes]]) -> None:
            for stored, _ in page:
                transaction.delete(stored)

        while page := self._page(number, _PREFIX.pack(number)):
            self._within(lambda transaction, page=page: delete(transaction, page), write=True)  # type: ignore[misc]
        Path(self._lock_file(number)).unlink(missing_ok=True)

    def _within(self, function: Callable[[Transaction], T], write: bool = False) -> T:
        """Run a function in a transaction and return its result."""

        def run() -> T:
            if self._environment is None:
                raise OSError("the store is closed")
            return self._environment.run(function, write)

        return self._guarded(run)

    def _guarded(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except UnreadableError as error:
            raise StoreError(f"{self.uri}: {error}") from error
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"{self.uri}: {error}; check the path, its permissions and the free space") from error


def _opened_at(path: str, writable: bool) -> Environment:
    if writable:
        Path(path).mkdir(parents=True, exist_ok=True)
    key = (path, identity_of(path))
    if key not in _opened:
        environment = Environment(path, writable)
        key = (path, environment.identity)
        _opened[key] = environment
    return _opened[key]


def _meta_text(transaction: Transaction) -> bytes | None:
    """Return the metadata as text; None if nothing has been stored yet."""
    value: bytes | None = transaction.get(_META_KEY)
    return b"" if value is None and transaction.cursor().first() else value


def _values(transaction: Transaction, generation: Generation, keys: Sequence[str]) -> list[bytes | None]:
    """Return the encoded records of keys, None for a missing key."""
    prefix = _PREFIX.pack(generation.number)
    try:
        stored = [prefix + key.encode() for key in keys]
    except UnicodeEncodeError:  # of a surrogate
        stored = [prefix + key_bytes(key) for key in keys]
    if has_long := max(map(len, stored), default=0) > _MAX_KEY_BYTES + _PREFIX.size:
        stored = [_stored_key(generation, key) for key in keys]
    values = [transaction.get(key) for key in stored]  # a cursor's getmulti takes a third longer
    if has_long:
        values = [
            value and split_key(value)[1] if _is_long(key) else value for key, value in zip(stored, values, strict=True)
        ]
    return values


def _stored_key(generation: Generation, key: str) -> bytes:
    encoded = key_bytes(key)
    if len(encoded) > _MAX_KEY_BYTES:
        encoded = _LONG_KEY + digest(key)
    return _PREFIX.pack(generation.number) + encoded


def _is_long(stored: bytes) -> bool:
    return stored.startswith(_LONG_KEY, _PREFIX.size)
