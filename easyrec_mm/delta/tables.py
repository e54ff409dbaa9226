"""Finds the embedding tables in the files of an exported rec model."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from easyrec_mm.errors import ExportError
from easyrec_mm.features.table_rows import UnlikeRowsError, rows_before, tables_of
from easyrec_mm.manifest import REC_ONNX, Manifest

Bytes = NDArray[np.uint8]
_ROWS_AT_A_TIME = 1 << 16
_PROBE_BYTES = 4096
# Equal beginnings are rare: tables begin with random numbers.
_MOST_TRIALS = 64


class TablePlace(NamedTuple):
    """Where a table lies in rec.tables; `offset` in bytes."""

    offset: int
    rows: int
    row_bytes: int


def table_places(folder: Path) -> dict[str, TablePlace]:
    """Return the tables of rec.tables by name.

    Raises:
      ExportError: if rec.onnx cannot be read.
    """
    try:
        model = onnx.load(str(folder / REC_ONNX), load_external_data=False)
    except Exception as error:  # protobuf has its own exceptions
        raise ExportError(f"{folder / REC_ONNX}: cannot be read: {error}") from error
    places = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            values = {entry.key: entry.value for entry in tensor.external_data}
            rows = tensor.dims[0]
            places[tensor.name] = TablePlace(int(values["offset"]), rows, int(values["length"]) // rows)
    return dict(sorted(places.items(), key=lambda item: item[1].offset))


def rows_of(path: Path, offset: int, rows: int, row_bytes: int) -> Bytes:
    """Map a table in a file into memory: uint8 `[rows, row_bytes]`."""
    return np.memmap(path, np.uint8, "r", offset, (rows, row_bytes))


def place_in(path: Path, table: Bytes) -> int | None:
    """Return where a file contains the bytes of a table; None if it does not, as far as could be seen."""
    rows, row_bytes = table.shape
    size = path.stat().st_size
    if size < rows * row_bytes:
        return None
    # Constant rows would be found everywhere.
    first = next((row for row in range(rows) if table[row].tobytes() != table[0, :1].tobytes() * row_bytes), 0)
    probe = table[first : first + max(1, _PROBE_BYTES // row_bytes)].tobytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = content.find(probe, first * row_bytes)
        for _ in range(_MOST_TRIALS):
            if found < 0 or found - first * row_bytes + rows * row_bytes > size:
                return None
            offset: int = found - first * row_bytes
            if _is_equal(rows_of(path, offset, rows, row_bytes), table):
                return offset
            found = content.find(probe, found + 1)
    return None


def _is_equal(first: Bytes, second: Bytes) -> bool:
    starts = range(0, len(first), _ROWS_AT_A_TIME)
    return all(np.array_equal(first[i : i + _ROWS_AT_A_TIME], second[i : i + _ROWS_AT_A_TIME]) for i in starts)


def rows_in_base(name: str, rows: int, base_rows: int, base: Manifest, result: Manifest) -> NDArray[np.int64]:
    """Return for each row of a table of the result the row of the base that stands for the same; -1 for none."""
    table = name.removeprefix("embedding/")
    before, now = tables_of(base.schema.features).get(table), tables_of(result.schema.features).get(table)
    if before is None or now is None:  # a table of numbers
        numbers = np.arange(rows)
        return np.where(numbers < base_rows, numbers, -1)
    try:
        return rows_before(before, now)
    except UnlikeRowsError:
        return np.full(rows, -1)


def changed_rows(table: Bytes, base: Bytes, sources: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of a table that differ from their rows in the base, or have none."""
    changed = []
    for start in range(0, len(table), _ROWS_AT_A_TIME):
        rows = sources[start : start + _ROWS_AT_A_TIME]
        differs = rows < 0
        known = np.flatnonzero(~differs)
        differs[known] = np.any(table[start + known] != base[rows[known]], axis=1)
        changed.append(start + np.flatnonzero(differs))
    return np.concatenate(changed)


def runs_of(sources: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64 `[N, 3]`: first row, first row in the base and length of each sequence of rows that the base has."""
    starts = np.append(0, 1 + np.flatnonzero((np.diff(sources) != 1) | (sources[:-1] < 0)))
    runs = np.stack([starts, sources[starts], np.diff(np.append(starts, len(sources)))], axis=1)
    return np.asarray(runs[runs[:, 1] >= 0], np.int64)
