"""Tables of MaxCompute (ODPS), read through PyODPS and its tunnel, in slices of rows that workers fetch in parallel.

A table is read in its state at the start of its download session, even if it is written to meanwhile. PyODPS retries
requests that the service refuses temporarily, and checks the received data by CRC.
"""

from __future__ import annotations

import configparser
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from easyrec_mm.errors import DataError, did_you_mean, install_extra
from easyrec_mm.files import FileInfo
from easyrec_mm.files.daemon_pool import DaemonPool
from easyrec_mm.formats.typed_groups import ROW

# Groups per slice, some MiB: enough to be worth the round trip of a request, and a table has many slices to shuffle.
SLICE_ROWS = 4096
# Name of the column with the lines.
LINE = "easyrec_mm:line"
# Number of slices that are fetched in parallel.
NUM_WORKERS = 4
# Time after which a download session is renewed; the service ends it after 24 hours.
SESSION_SECONDS = 12 * 3600
_CONNECT_SECONDS = 10
_PATH = re.compile(r"odps://(?P<project>[^/]+)/tables/(?P<table>[^/]+)(?P<partition>(?:/[^/=]+=[^/]+)*)/?")


class Slice(NamedTuple):
    """Consecutive rows of a table.

    place      path of the table or of its partition
    start      index of the first row, from 0
    num_rows   number of rows
    """

    place: str
    start: int
    num_rows: int

    def __str__(self) -> str:
        return f"{self.place}[{self.start + 1}-{self.start + self.num_rows}]"


@dataclass
class _Partition:
    """A table, or a partition of it, and the session that reads it."""

    place: str
    tunnel: Any
    table: Any
    spec: str | None
    count: int = 0
    _session: Any = None
    _began: float = field(default=0.0)

    def session(self) -> Any:
        """Return a download session that has not ended.

        Raises:
          DataError: if a new session has another number of rows.
        """
        if self._session is None or time.monotonic() - self._began > SESSION_SECONDS:
            session = self.tunnel.create_download_session(self.table, partition_spec=self.spec, async_mode=True)
            if self._session is not None and session.count != self.count:
                raise DataError(
                    f"{self.place}: has {session.count} rows now, but had {self.count} when reading began; "
                    "start again, with a table that nobody writes to"
                )
            self._session, self._began, self.count = session, time.monotonic(), session.count
        return self._session


class OdpsTables:
    """Reads the rows of tables as lines; Files and a TableReader whose files are slices.

    A line contains the columns as texts, with a separator between them; a null becomes an empty text.

    Args:
      path: paths, separated by commas: odps://project/tables/name, optionally followed by the partition or the first of
        its levels: odps://project/tables/name/dt=20261121.
      setting: the config path of `path`, for messages.
      columns: names of the columns to read.
      separator: separator between the columns of a line; no column may contain it.

    Raises:
      DataError: if PyODPS or credentials are missing, or a table cannot be opened or lacks a column.
    """

    counts_at_once = True

    def __init__(self, path: str, setting: str, columns: Sequence[str], separator: str) -> None:
        self._columns = list(columns)
        self._separator = separator.encode()
        self._partitions: dict[str, _Partition] = {}
        for part in filter(None, (part.strip() for part in path.split(","))):
            for partition in self._find(part, setting):
                self._partitions.setdefault(partition.place, partition)
        if not self._partitions:
            raise DataError(
                f"{setting}: is not set; give the tables to read, as odps://project/tables/name/dt=20261121"
            )
        self.slices = {
            str(table_slice): table_slice
            for place, partition in self._partitions.items()
            for table_slice in _slices(place, partition.count)
        }
        self._pool = DaemonPool(NUM_WORKERS, "odps")
        self._fetched: dict[str, Future[pa.Table]] = {}
        self._lock = threading.Lock()

    @property
    def infos(self) -> list[FileInfo]:
        """Return the slices, with their numbers of rows as sizes."""
        return [FileInfo(name, table_slice.num_rows, "") for name, table_slice in self.slices.items()]

    def is_up_to_date(self) -> bool:
        """Return False, because tables are opened anew."""
        return False

    def require_unchanged(self) -> None:
        """Do nothing, because a download session reads the table in one state."""

    def ahead(self, files: Sequence[str]) -> None:
        """Begin to fetch the slices with these names, which are read next."""
        with self._lock:
            for name in files:
                if name not in self._fetched:
                    self._fetched[name] = self._pool.submit(self._fetch, self.slices[name])

    def read(self, file: str) -> Iterator[pa.Table]:
        """Yield the rows of a slice, in columns LINE (binary) and ROW.

        Raises:
          DataError: if the rows cannot be fetched.
        """
        with self._lock:
            future = self._fetched.pop(file, None) or self._pool.submit(self._fetch, self.slices[file])
        yield future.result()

    def count(self, file: str) -> int:
        """Return the number of rows of a slice."""
        return self.slices[file].num_rows

    def _find(self, path: str, setting: str) -> Iterator[_Partition]:
        """Yield the partitions that a path names."""
        match = _PATH.fullmatch(path)
        if not match:
            raise DataError(
                f"{setting}: '{path}' is not a MaxCompute table; give odps://project/tables/name, or with a partition: "
                "odps://project/tables/name/dt=20261121"
            )
        project, name = match["project"], match["table"]
        chosen_levels = dict(level.split("=", 1) for level in match["partition"].split("/") if level)
        client, tunnel = client_of(project), tunnel_of(project)
        with _reasons(path):
            table = client.get_table(name, project=project)
            table.reload()
            self._require_columns(path, [column.name for column in table.table_schema.simple_columns])
            levels = [level.name for level in table.table_schema.partitions]
            if unknown := next((level for level in chosen_levels if level not in levels), None):
                raise DataError(f"{setting}: '{path}': {_no_level(unknown, levels)}")
            specs: list[str | None] = [None]
            if levels:
                level_values = (
                    partition.partition_spec.kv for partition in table.iterate_partitions(_spec(chosen_levels))
                )
                specs = [_spec(values) for values in sorted((dict(values) for values in level_values), key=_levels)]
            if not specs:
                raise DataError(f"{setting}: '{path}' has no partition; check the path")
            for spec in specs:
                levels_path = "".join(f"/{level}" for level in (spec or "").split(",") if level)
                partition = _Partition(f"odps://{project}/tables/{name}{levels_path}", tunnel, table, spec)
                partition.session()
                yield partition

    def _require_columns(self, path: str, names: list[str]) -> None:
        for name in self._columns:
            if name not in names:
                raise DataError(f"{path}: no column '{name}' (data_config.selected_cols); {did_you_mean(name, names)}")

    def _fetch(self, table_slice: Slice) -> pa.Table:
        with _reasons(str(table_slice)):
            session = self._partitions[table_slice.place].session()
            with session.open_arrow_reader(table_slice.start, table_slice.num_rows, columns=self._columns) as reader:
                table = pa.Table.from_batches(list(reader))
        if len(table) != table_slice.num_rows:
            raise DataError(
                f"{table_slice}: the table returned {len(table)} rows instead of {table_slice.num_rows}; try again"
            )
        columns = [_texts(table[name]) for name in self._columns]
        rows = np.arange(table_slice.start + 1, table_slice.start + 1 + table_slice.num_rows)
        return pa.table({LINE: pc.binary_join_element_wise(*columns, self._separator), ROW: rows})


@contextmanager
def _reasons(place: str) -> Iterator[None]:
    """Turn the exceptions of PyODPS into a DataError that names the place."""
    import requests
    from odps.errors import BaseODPSError

    try:
        yield
    except (BaseODPSError, requests.RequestException, OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{place}: cannot be read: {reason}") from error


def _slices(place: str, count: int) -> Iterator[Slice]:
    for start in range(0, count, SLICE_ROWS):
        yield Slice(place, start, min(SLICE_ROWS, count - start))


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return values as they are written in lines of text; a null as an empty text."""
    if not pa.types.is_binary(column.type):
        column = column.cast(pa.string()).cast(pa.binary())
    return pc.fill_null(column, b"")


def _spec(levels: dict[str, str]) -> str | None:
    return ",".join(f"{name}={value}" for name, value in levels.items()) or None


def _levels(levels: dict[str, str]) -> tuple[str, ...]:
    return tuple(levels.values())


def _no_level(name: str, levels: list[str]) -> str:
    return f"no partition level '{name}'; {did_you_mean(name, levels)}" if levels else "the table has no partitions"


@lru_cache(8)
def client_of(project: str) -> Any:
    """Return a client with the credentials of this machine.

    Raises:
      DataError: if no credentials are set, or PyODPS is not installed.
    """
    try:
        from odps import ODPS, options
        from odps.accounts import from_environments
    except ImportError as error:
        raise DataError(f"reading MaxCompute: {error}; {install_extra('odps')}") from error
    options.connect_timeout = _CONNECT_SECONDS
    options.retry_times = 2
    ini = _read_ini()
    access_id = os.environ.get("ODPS_ACCESS_ID") or ini.get("access_id")
    account = None if access_id else from_environments()
    if not (access_id or account):
        raise DataError(
            f"odps://{project}: no credentials of MaxCompute; set ODPS_ACCESS_ID, ODPS_ACCESS_KEY and ODPS_ENDPOINT, "
            "or ODPS_CONFIG_FILE_PATH to a file that has access_id, access_key and end_point"
        )
    return ODPS(
        access_id,
        os.environ.get("ODPS_ACCESS_KEY") or ini.get("access_key"),
        account=account,
        project=project,
        endpoint=os.environ.get("ODPS_ENDPOINT") or ini.get("end_point"),
        tunnel_endpoint=os.environ.get("ODPS_TUNNEL_ENDPOINT") or ini.get("tunnel_endpoint"),
    )


@lru_cache(8)
def tunnel_of(project: str) -> Any:
    """Return what downloads the rows of a project's tables; see client_of."""
    from odps.tunnel import TableTunnel

    return TableTunnel(client_of(project))


def _read_ini() -> dict[str, str]:
    """Read the settings file of the PAI and EasyRec tools, which consists of lines `name=value`."""
    path = os.environ.get("ODPS_CONFIG_FILE_PATH")
    if not path:
        return {}
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(path, encoding="utf-8-sig") as file:
            parser.read_string("[odps]\n" + file.read())
    except (OSError, configparser.Error) as error:
        raise DataError(f"ODPS_CONFIG_FILE_PATH: {path}: cannot be read: {error}") from error
    return dict(parser["odps"])
