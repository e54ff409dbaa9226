"""Makes the later rec model of an earlier one and a delta; the result is the exported model, byte by byte."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.delta.description import (
    COPY_BYTES,
    DATA,
    ID_BYTES,
    ROWS,
    Delta,
    Release,
    TableDelta,
    read_delta,
    read_release,
)
from easyrec_mm.delta.folders import new_folder
from easyrec_mm.delta.tables import rows_of
from easyrec_mm.errors import ExportError
from easyrec_mm.files.folders import Folder
from easyrec_mm.manifest import MANIFEST, TABLES_FILE, local_export, require_unchanged

_ROWS_AT_A_TIME = 1 << 16
_READ_BYTES = 1 << 20


def apply_delta(delta: str, base: str, output: str) -> Delta:
    """Write the exported rec model that a delta makes of an earlier one; return the description of the delta.

    Args:
      delta: folder of the delta.
      base: folder of the model that the delta was made from.
      output: the folder to write; an export that it contains is replaced.

    Raises:
      ExportError: if the delta is damaged, `base` is another model or damaged, or `output` contains something other
        than an export.
    """
    place = Folder(delta)
    if place.is_remote:
        place.look()
        place.fetch()
    description = read_delta(place.local, delta)
    base_folder = local_export(base)
    release, manifest = read_release(base_folder)
    if release.fingerprint != description.base.fingerprint:
        raise ExportError(
            f"--base {base}: is release {release}, but {delta} was made from {description.base}; give the folder of "
            "that release, or copy the whole export"
        )
    require_unchanged(manifest, Path(base_folder), base, manifest.files)
    with new_folder(output, "--output_dir", MANIFEST) as folder:
        try:
            _write(description, place.local, Path(base_folder), folder)
            _require(description.result, folder)
        except (EOFError, ValueError, IndexError, gzip.BadGzipFile, ExportError) as error:
            raise ExportError(
                f"{delta}: is damaged, it does not make release {description.result}; copy the delta again"
            ) from error
    return description


def _require(release: Release, folder: Path) -> None:
    """Check that a folder holds a release.

    Raises:
      ExportError: if it does not.
    """
    made, manifest = read_release(str(folder))
    if made != release:
        raise ExportError(f"{folder}: is release {made}, not {release}")
    require_unchanged(manifest, folder, str(folder), manifest.files)


class _Rows(NamedTuple):
    """The rows of a table in a delta: `copies` and `changed` as in description.py, `values` [changed, row_bytes]."""

    copies: NDArray[np.int64]
    changed: NDArray[np.int64]
    values: NDArray[np.uint8]


def _write(delta: Delta, place: Path, base: Path, folder: Path) -> None:
    rows = _read_rows(place / ROWS, delta.tables)
    with gzip.open(place / DATA, "rb") as data:
        for name, parts in delta.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w+b") as file:
                if num_bytes := sum(part.length for part in parts):
                    # A disk that is full would end a process that writes to mapped memory.
                    os.posix_fallocate(file.fileno(), 0, num_bytes)
                offset = 0
                for part in parts:
                    file.seek(offset)
                    if part.kind == "table":
                        table = delta.tables[part.place]
                        written = np.memmap(file, np.uint8, "r+", offset, (table.rows, table.row_bytes))
                        _write_rows(written, table, rows[part.place], base / TABLES_FILE)
                        written.flush()
                    elif part.kind == "data":
                        _copy(data, file, part.length)
                    else:
                        with (base / name).open("rb") as source:
                            source.seek(part.place)
                            _copy(source, file, part.length)
                    offset += part.length


def _copy(source: IO[bytes] | gzip.GzipFile, target: IO[bytes], length: int) -> None:
    while length:
        portion = source.read(min(length, _READ_BYTES))
        if not portion:
            raise EOFError("a file is too short")
        target.write(portion)
        length -= len(portion)


def _read_rows(path: Path, tables: tuple[TableDelta, ...]) -> list[_Rows]:
    content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    rows, offset = [], 0

    def take(num_bytes: int) -> NDArray[np.uint8]:
        nonlocal offset
        taken = content[offset : offset + num_bytes]
        offset += num_bytes
        return taken

    for table in tables:
        copies = np.frombuffer(take(table.copies * COPY_BYTES).tobytes(), "<i8").reshape(-1, 3)
        changed = np.frombuffer(take(table.changed * ID_BYTES).tobytes(), "<i8")
        values = take(table.changed * table.row_bytes).reshape(table.changed, table.row_bytes)
        rows.append(_Rows(copies, changed, values))
    return rows


def _write_rows(written: NDArray[np.uint8], table: TableDelta, rows: _Rows, base_tables: Path) -> None:
    if len(rows.copies):
        base = rows_of(base_tables, table.base_offset, table.base_rows, table.row_bytes)
        for start, source, length in rows.copies.tolist():
            written[start : start + length] = base[source : source + length]
    for first in range(0, len(rows.changed), _ROWS_AT_A_TIME):
        chosen = slice(first, first + _ROWS_AT_A_TIME)
        written[rows.changed[chosen]] = rows.values[chosen]
