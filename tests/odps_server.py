"""A stub of MaxCompute on loopback: as much of its REST interface and of its tunnel as PyODPS needs to read tables.

The real client talks to it, over HTTP and with the tunnel's framing and checksums; the service itself cannot be run.
"""

from __future__ import annotations

import json
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa

from easyrec_mm.formats import odps_tables

PROJECT, ACCESS_ID = "shop", "an-id"
_CHUNK_BYTES = 1 << 16
_ORIGIN = "<RequestId>1</RequestId><HostId>stub</HostId>"
_TYPES = {pa.string(): "string", pa.int64(): "bigint", pa.binary(): "binary", pa.float64(): "double"}


@dataclass
class StubTable:
    """Partitions, as "dt=1,hour=2" -> rows; a table without partitions has only ""."""

    partitions: dict[str, pa.Table]

    @property
    def columns(self) -> pa.Schema:
        return next(iter(self.partitions.values())).schema

    @property
    def levels(self) -> list[str]:
        return [level.split("=")[0] for level in next(iter(self.partitions)).split(",") if level]


@dataclass
class OdpsServer:
    """Serves tables of PROJECT to ACCESS_ID.

    requests     the ranges (table, partition, start, count) that were asked for
    refusals     how many requests for rows are still answered with 503
    meeting      where requests for rows wait for each other before they are answered
    """

    tables: dict[str, StubTable]
    requests: list[tuple[str, str, int, int]] = field(default_factory=list)
    refusals: int = 0
    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"stub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}/api"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def count_request(self, *request: str | int) -> bool:
        """Note a request for rows that begins; whether it is to be answered."""
        with self._lock:
            self.requests.append(request)  # type: ignore[arg-type]
            self.refusals -= 1
            return self.refusals < 0


def use(server, monkeypatch, **environment):
    """Point the environment at the server, and forget clients of another one."""
    values = {"ODPS_ACCESS_ID": ACCESS_ID, "ODPS_ACCESS_KEY": "a-key", "ODPS_ENDPOINT": server.endpoint, **environment}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    odps_tables.client_of.cache_clear()
    odps_tables.tunnel_of.cache_clear()


class _Handler(BaseHTTPRequestHandler):
    stub: OdpsServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        parts = url.path.strip("/").split("/")[1:]  # without "api"
        if f"ODPS {ACCESS_ID}:" not in self.headers.get("Authorization", ""):
            self._error(403, "Unauthorized", "the access id is not known")
        elif parts[:2] != ["projects", PROJECT]:
            self._error(404, "NoSuchObject", f"no project {parts[1:2]}")
        elif parts[2:] == ["tunnel"]:
            self._answer(f"127.0.0.1:{self.server.server_address[1]}/api".encode())
        elif len(parts) != 4 or parts[3] not in self.stub.tables:
            self._error(404, "ODPS-0130131", f"Table not found - {parts[-1]}")
        else:
            self._table(parts[3], self.stub.tables[parts[3]], query)

    def _table(self, name: str, table: StubTable, query: dict[str, str]) -> None:
        if "partitions" in query:
            self._answer(_partitions_xml(table, query.get("partition", "")))
        elif "downloads" in query or "downloadid" in query:
            partition = query.get("partition", "")
            if partition not in table.partitions:
                self._error(404, "NoSuchPartition", f"The specified partition does not exist: {partition}")
            elif "data" in query:
                self._rows(name, partition, table.partitions[partition], query)
            else:
                self._answer(_session_json(table, table.partitions[partition]))
        else:
            schema = {"name": name, "columns": _columns(table.columns), "partitionKeys": _levels(table)}
            text = f"<Schema><![CDATA[{json.dumps(schema)}]]></Schema>"
            self._answer(f'<Table format="Json"><Name>{name}</Name>{text}</Table>'.encode())

    def _rows(self, name: str, partition: str, rows: pa.Table, query: dict[str, str]) -> None:
        start, count = (int(number) for number in query["rowrange"].strip("()").split(","))
        requested_columns = query["columns"].split(",")
        if not self.stub.count_request(name, partition, start, count):
            self._error(503, "ServiceUnavailable", "busy")
            return
        self.stub.meeting.wait()
        requested_rows = rows.slice(start, count).select([c for c in rows.column_names if c in requested_columns])
        self._answer(_framed(requested_rows))

    def _error(self, status: int, code: str, message: str) -> None:
        self._answer(f"<Error><Code>{code}</Code><Message>{message}</Message>{_ORIGIN}</Error>".encode(), status)

    def _answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-odps-request-id", "1")
        self.end_headers()
        self.wfile.write(body)


def _columns(schema: pa.Schema) -> list[dict[str, object]]:
    return [{"name": column.name, "type": _TYPES[column.type], "isNullable": True} for column in schema]


def _levels(table: StubTable) -> list[dict[str, object]]:
    return [{"name": level, "type": "string"} for level in table.levels]


def _session_json(table: StubTable, rows: pa.Table) -> bytes:
    schema = {"columns": _columns(table.columns), "partitionKeys": _levels(table)}
    return json.dumps(
        {"DownloadID": "d1", "Status": "NORMAL", "RecordCount": len(rows), "Schema": schema, "Owner": "o"}
    ).encode()


def _partitions_xml(table: StubTable, prefix: str) -> bytes:
    prefix_levels = {level.replace("'", "") for level in prefix.split(",") if level}
    partitions = [spec.split(",") for spec in table.partitions if prefix_levels <= set(spec.split(","))]
    columns = (
        "".join('<Column Name="{}" Value="{}"/>'.format(*level.split("=")) for level in levels) for levels in partitions
    )
    items = "".join(f"<Partition>{partition_columns}</Partition>" for partition_columns in columns)
    return f"<Partitions><Marker/><MaxItems>1000</MaxItems>{items}</Partitions>".encode()


def _framed(rows: pa.Table) -> bytes:
    """Record batches as the tunnel sends them: chunks, a checksum behind each, and one over all behind the last."""
    from odps.tunnel.checksum import Checksum  # importing PyODPS takes seconds

    stream = b"".join(batch.serialize().to_pybytes() for batch in rows.to_batches(max_chunksize=1000))
    parts = [struct.pack("!I", _CHUNK_BYTES)]
    over_all = Checksum()
    for begin in range(0, len(stream), _CHUNK_BYTES):
        chunk = stream[begin : begin + _CHUNK_BYTES]
        over_all.update(chunk)
        is_whole = len(chunk) == _CHUNK_BYTES
        of_chunk = Checksum()
        of_chunk.update(chunk)
        parts += [chunk, struct.pack("!I", of_chunk.getvalue())] if is_whole else [chunk]
    return b"".join([*parts, struct.pack("!I", over_all.getvalue())])
