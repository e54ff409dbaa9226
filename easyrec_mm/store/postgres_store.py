"""postgresql://user@host:port/database[?table=image_vectors]: vectors in a table; Hologres speaks the same protocol.

Table `<table>`: generation, key, value (hash of the picture, time, vector); table `<table>_meta`: one row of JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import psycopg

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

_CONNECT_TIMEOUT_S = 2
_STATEMENT_TIMEOUT_MS = 10_000
_SCANNED_AT_A_TIME = 5_000

T = TypeVar("T")


class PostgresStore(Store):
    """See Store. If the server cannot be reached, calls fail within seconds; the next call connects again."""

    def __init__(self, uri: str, writable: bool = False) -> None:
        super().__init__(without_password(uri))
        parts = urlsplit(uri)
        options = dict(parse_qsl(parts.query))
        self._table = options.pop("table", "image_vectors")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,50}", self._table):
            raise StoreError(f"{self.uri}: table '{self._table}': use letters, digits and _")
        self._address = urlunsplit(parts._replace(scheme="postgresql", query=urlencode(options)))
        self._connection: psycopg.Connection[Any] | None = None
        if writable:
            self._guarded(self._create_tables)
        if not writable and not self.meta().generations:
            raise StoreError(f"{self.uri}: table '{self._table}' holds no vectors; write some with easyrec-mm embed")

    def meta(self) -> Meta:
        rows = self._guarded(lambda c: c.execute(f"SELECT content FROM {self._table}_meta").fetchall())
        return parse_meta(rows[0][0] if rows else None, self.uri)

    def get_many(self, keys: Sequence[str], generation: Generation | None = None) -> Vectors:
        def read(connection: psycopg.Connection[Any]) -> list[Any]:
            # A single statement sees one consistent state of the database.
            return connection.execute(
                f"SELECT m.content, v.key, v.value FROM {self._table}_meta m LEFT JOIN {self._table} v"
                " ON v.generation = COALESCE(%s::integer, m.current) AND v.key = ANY(%s)",
                [generation and generation.number, list(keys)],
                binary=True,
            ).fetchall()

        rows = self._guarded(read)
        stored_generation = require_generation(parse_meta(rows[0][0] if rows else None, self.uri), generation, self.uri)
        values = {key: value for _, key, value in rows}
        return join_vectors(stored_generation, [values.get(key) for key in keys], keys, self.uri)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _create_tables(self, connection: psycopg.Connection[Any]) -> None:
        with connection.transaction():
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {self._table} (generation integer NOT NULL, key text NOT NULL,"
                " value bytea NOT NULL, PRIMARY KEY (generation, key))"
            )
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {self._table}_meta"
                " (one integer PRIMARY KEY CHECK (one = 1), current integer NOT NULL, content text NOT NULL)"
            )

    def write_meta(self, meta: Meta) -> None:
        self._guarded(
            lambda c: c.execute(
                f"INSERT INTO {self._table}_meta (one, current, content) VALUES (1, %s, %s)"
                " ON CONFLICT (one) DO UPDATE SET current = EXCLUDED.current, content = EXCLUDED.content",
                [meta.current, json.dumps(meta_to_dict(meta))],
            )
        )

    def _read(self, generation: Generation, keys: Sequence[str]) -> list[bytes | None]:
        rows = self._guarded(
            lambda c: c.execute(
                f"SELECT key, value FROM {self._table} WHERE generation = %s AND key = ANY(%s)",
                [generation.number, list(keys)],
                binary=True,
            ).fetchall()
        )
        values = dict(rows)
        return [values.get(key) for key in keys]

    def _write(self, generation: Generation, items: Sequence[tuple[str, bytes]]) -> None:
        newest = dict(items)  # a statement may touch a row only once
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
            yield from rows
            last = rows[-1][0]

    def _page(self, connection: psycopg.Connection[Any], generation: Generation, after: str | None) -> list[Any]:
        return connection.execute(
            f"SELECT key, value FROM {self._table} WHERE generation = %s AND (%s::text IS NULL OR key > %s)"
            " ORDER BY key LIMIT %s",
            [generation.number, after, after, _SCANNED_AT_A_TIME],
            binary=True,
        ).fetchall()

    def _delete(self, generation: Generation) -> None:
        self._guarded(lambda c: c.execute(f"DELETE FROM {self._table} WHERE generation = %s", [generation.number]))

    def _guarded(self, function: Callable[[psycopg.Connection[Any]], T]) -> T:
        """Run statements, and run them again on a new connection if the old one was lost."""
        had_connection = self._connection is not None
        try:
            try:
                return function(self._connected())
            except (psycopg.OperationalError, psycopg.InterfaceError):
                self.close()
                if not had_connection:
                    raise
                return function(self._connected())
        except (psycopg.Error, OSError) as error:
            self.close()
            reason = str(error).strip().partition("\n")[0]
            raise StoreError(f"{self.uri}: {reason}; check that the server runs and the address is right") from error

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            self._connection = psycopg.connect(
                self._address,
                autocommit=True,
                connect_timeout=_CONNECT_TIMEOUT_S,
                options=f"-c statement_timeout={_STATEMENT_TIMEOUT_MS}",
                keepalives_idle=5,
                tcp_user_timeout=5000,
            )
        return self._connection
