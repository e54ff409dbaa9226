"""postgresql://user@host:port/database[?table=image_vectors]: vectors in a table; Hologres speaks the same protocol.

Table `<table>`: generation, key, value (hash of the picture, time, vector); table `<table>_meta`: one row of JSON.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import psycopg
from psycopg import conninfo

from easyrec_mm.errors import StoreError
from easyrec_mm.store.base import Store, without_password
from easyrec_mm.store.generations import Generation, require_generation
from easyrec_mm.store.keys import digest, split_key, with_key
from easyrec_mm.store.records import Vectors, join_vectors

# Time limits of the connection; of look-ups, for which requests wait; and of other statements, which the server ends
# itself a little earlier.
_CONNECT_TIMEOUT_S, _LOOK_UP_TIMEOUT_S, _STATEMENT_TIMEOUT_S = 2, 2.0, 10
_AT_A_TIME = 5_000
# Begins the digest of a key that PostgreSQL cannot hold: one with NUL, a surrogate or more bytes than its index takes.
_ODD_KEY = "\x01"
_MAX_KEY_BYTES = 2_600

# What PostgreSQL says if another process creates a table at the same time: IF NOT EXISTS looks before it creates.
_CREATED_MEANWHILE = (
    psycopg.errors.UniqueViolation,
    psycopg.errors.DuplicateTable,
    psycopg.errors.DuplicateObject,
)
_NUM_CREATIONS, _PAUSE_S = 5, 0.1

T = TypeVar("T")


class _Connection(psycopg.Connection[Any]):
    """A connection whose statements end after a time also if the server does not answer, as when it is frozen."""

    limit_s = 0.0

    def wait(self, gen: Generator[Any, Any, T], interval: float = 0.1, timeout: float | None = None) -> T:
        return super().wait(gen, interval, self.limit_s if timeout is None else timeout)


class PostgresStore(Store):
    """See Store. If the server cannot be reached or does not answer, calls fail within seconds; the next call connects
    again.

    The URI may have the options of libpq, such as `sslmode`, `options` and `connect_timeout`.
    """

    def __init__(self, uri: str, writable: bool = False) -> None:
        super().__init__(without_password(uri))
        parts = urlsplit(uri)
        self._table = parse_qs(parts.query).get("table", ["image_vectors"])[0]
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,50}", self._table):
            raise StoreError(f"{self.uri}: table '{self._table}': use letters, digits and _")
        address, _, query = uri.partition("?")
        # Cut out as it is, because libpq does not read options as Python writes them.
        options = "&".join(option for option in query.split("&") if option.partition("=")[0] != "table")
        self._address = f"{address}?{options}" if options else address
        self._connection: _Connection | None = None
        if writable:
            self._guarded(self._create_tables)
        if not writable and not self.meta().generations:
            raise StoreError(f"{self.uri}: table '{self._table}' holds no vectors; write some with easyrec-mm embed")

    def get_many(self, keys: Sequence[str], generation: Generation | None = None) -> Vectors:
        def read(connection: psycopg.Connection[Any]) -> list[Any]:
            # A single statement sees one consistent state of the database.
            return connection.execute(
                f"SELECT content, NULL, NULL FROM {self._table}_meta"
                f" UNION ALL SELECT NULL, key, value FROM {self._table} WHERE key = ANY(%s)"
                f" AND generation = COALESCE(%s::integer, (SELECT current FROM {self._table}_meta))",
                [stored, generation and generation.number],
                binary=True,
            ).fetchall()

        stored = [_stored_key(key) for key in keys]
        rows = self._guarded(read, _LOOK_UP_TIMEOUT_S)
        text = next((content for content, _, _ in rows if content is not None), None)
        stored_generation = require_generation(self._parsed(text), generation, self.uri)
        values = {key: value for _, key, value in rows}
        return join_vectors(stored_generation, [_record(key, values.get(key)) for key in stored], keys, self.uri)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _meta_text(self) -> str | None:
        rows = self._guarded(
            lambda c: c.execute(f"SELECT content FROM {self._table}_meta").fetchall(), _LOOK_UP_TIMEOUT_S
        )
        return rows[0][0] if rows else None

    def _swap_meta(self, before: bytes | str | None, after: str) -> bool:
        current = self._parsed(after).current
        if before is None:
            statement = (
                f"INSERT INTO {self._table}_meta (one, current, content) VALUES (1, %s, %s) ON CONFLICT DO NOTHING"
            )
            values = [current, after]
        else:
            statement = f"UPDATE {self._table}_meta SET current = %s, content = %s WHERE content = %s"
            values = [current, after, before]
        return self._guarded(lambda c: c.execute(statement, values).rowcount == 1)

    def _create_tables(self, connection: psycopg.Connection[Any]) -> None:
        statements = [
            f"CREATE TABLE IF NOT EXISTS {self._table} (generation integer NOT NULL, key text NOT NULL,"
            " value bytea NOT NULL, PRIMARY KEY (generation, key))",
            f"CREATE TABLE IF NOT EXISTS {self._table}_meta"
            " (one integer PRIMARY KEY CHECK (one = 1), current integer NOT NULL, content text NOT NULL)",
        ]
        for statement in statements:
            for num_left in reversed(range(_NUM_CREATIONS)):
                try:
                    connection.execute(statement)
                    break
                except _CREATED_MEANWHILE:
                    if not num_left:
                        raise
                    time.sleep(_PAUSE_S)

    def _read(self, generation: Generation, keys: Sequence[str]) -> list[bytes | None]:
        stored = [_stored_key(key) for key in keys]
        rows = self._guarded(
            lambda c: c.execute(
                f"SELECT key, value FROM {self._table} WHERE generation = %s AND key = ANY(%s)",
                [generation.number, stored],
                binary=True,
            ).fetchall()
        )
        values = dict(rows)
        return [_record(key, values.get(key)) for key in stored]

    def _write(self, generation: Generation, items: Sequence[tuple[str, bytes]]) -> None:
        newest = {}  # a statement may touch a row only once
        for key, record in items:
            stored = _stored_key(key)
            newest[stored] = with_key(record, key) if stored.startswith(_ODD_KEY) else record
        self._guarded(
            lambda c: c.execute(
                f"INSERT INTO {self._table} (generation, key, value)"
                " SELECT %s, k, v FROM unnest(%s::text[], %s::bytea[]) AS t(k, v)"
                " ON CONFLICT (generation, key) DO UPDATE SET value = EXCLUDED.value",
                [generation.number, list(newest), list(newest.values())],
            )
        )

    def _scan(self, generation: Generation) -> Iterator[tuple[str, bytes]]:
        last: str | None = None
        while rows := self._guarded(lambda c: self._page(c, generation, last)):  # noqa: B023
            for stored, value in rows:
                yield split_key(value) if stored.startswith(_ODD_KEY) else (stored, value)
            last = rows[-1][0]

    def _page(self, connection: psycopg.Connection[Any], generation: Generation, after: str | None) -> list[Any]:
        return connection.execute(
            f"SELECT key, value FROM {self._table} WHERE generation = %s AND (%s::text IS NULL OR key > %s)"
            " ORDER BY key LIMIT %s",
            [generation.number, after, after, _AT_A_TIME],
            binary=True,
        ).fetchall()

    def _delete(self, number: int) -> None:
        # In portions, each of which keeps to the time limit.
        statement = (
            f"DELETE FROM {self._table} WHERE generation = %s AND key IN"
            f" (SELECT key FROM {self._table} WHERE generation = %s LIMIT {_AT_A_TIME})"
        )
        while self._guarded(lambda c: c.execute(statement, [number, number]).rowcount):
            pass

    def _guarded(
        self, function: Callable[[psycopg.Connection[Any]], T], limit_s: float = _STATEMENT_TIMEOUT_S + 1
    ) -> T:
        """Run statements, each within a time limit, and run them again on a new connection if the old one was lost."""
        had_connection = self._connection is not None
        try:
            try:
                return function(self._connected(limit_s))
            except (psycopg.OperationalError, psycopg.InterfaceError):
                was_lost = had_connection and self._connection is not None and self._connection.closed
                self._close()
                if not was_lost:  # a server that did not answer in time is not asked again
                    raise
                return function(self._connected(limit_s))
        except (psycopg.Error, OSError) as error:
            self._close()
            reason = str(error).strip().partition("\n")[0]
            raise StoreError(f"{self.uri}: {reason}; check that the server runs and the address is right") from error

    def _connected(self, limit_s: float) -> psycopg.Connection[Any]:
        if self._connection is None:
            given = conninfo.conninfo_to_dict(self._address)
            defaults: dict[str, Any] = {
                "connect_timeout": _CONNECT_TIMEOUT_S, "keepalives_idle": 5, "tcp_user_timeout": 5000,
            }  # fmt: skip
            defaults = {name: value for name, value in defaults.items() if name not in given}
            # The last one of a setting counts.
            options = f"-c statement_timeout={_STATEMENT_TIMEOUT_S}s {given.get('options', '')}"
            self._connection = _Connection.connect(self._address, autocommit=True, options=options, **defaults)
        self._connection.limit_s = limit_s
        return self._connection


def _stored_key(key: str) -> str:
    return _ODD_KEY + digest(key).hex() if _is_odd(key) else key


def _is_odd(key: str) -> bool:
    try:
        encoded = key.encode()
    except UnicodeEncodeError:  # it holds a surrogate
        return True
    return len(encoded) > _MAX_KEY_BYTES or b"\x00" in encoded or key.startswith(_ODD_KEY)


def _record(stored_key: str, value: bytes | None) -> bytes | None:
    return split_key(value)[1] if value is not None and stored_key.startswith(_ODD_KEY) else value
