"""Makes a delta of two exported rec models: rows of tables that differ, and files that differ."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from easyrec_mm.delta.description import (
    DATA,
    DELTA,
    ROWS,
    Delta,
    Part,
    TableDelta,
    read_release,
    write_description,
)
from easyrec_mm.delta.folders import new_folder
from easyrec_mm.delta.tables import TablePlace, changed_rows, place_in, rows_in_base, rows_of, runs_of, table_places
from easyrec_mm.manifest import (
    MANIFEST,
    TABLES_FILE,
    Manifest,
    describe_file,
    local_export,
    require_unchanged,
)

_ROWS_AT_A_TIME = 1 << 16
_READ_BYTES = 1 << 20
# A shorter sequence of lines is cheaper within data.gz.
_LEAST_COPY_BYTES = 128


class DeltaReport(NamedTuple):
    """The size of a delta.

    num_bytes            bytes of the delta
    num_result_bytes     bytes of the model that it makes
    num_changed          rows of tables in the delta
    num_rows             rows of all tables
    has_same_image_tower whether both models use the vectors of the same image tower
    """

    num_bytes: int
    num_result_bytes: int
    num_changed: int
    num_rows: int
    has_same_image_tower: bool


class _Models(NamedTuple):
    base: Path
    result: Path
    base_manifest: Manifest
    result_manifest: Manifest


def make_delta(base: str, result: str, output: str) -> DeltaReport:
    """Write the delta that makes the exported rec model `result` of the earlier one `base`.

    Args:
      base, result: folders of the models.
      output: the folder to write; a delta that it contains is replaced.

    Raises:
      ExportError: if a folder is not that of a whole model, or `output` contains something other than a delta.
    """
    base_folder, result_folder = local_export(base), local_export(result)
    base_release, base_manifest = read_release(base_folder)
    result_release, result_manifest = read_release(result_folder)
    require_unchanged(base_manifest, Path(base_folder), base, base_manifest.files)
    models = _Models(Path(base_folder), Path(result_folder), base_manifest, result_manifest)
    with new_folder(output, "--delta_dir", DELTA) as folder:
        tables = _write_tables(folder / ROWS, models)
        files = _write_files(folder / DATA, models, tables)
        contents = {name: describe_file(folder / name) for name in (ROWS, DATA)}
        delta = Delta(base_release, result_release, tuple(tables.values()), files, contents)
        write_description(folder, delta)
        num_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return DeltaReport(
        num_bytes,
        sum(part.length for parts in files.values() for part in parts),
        sum(table.changed for table in tables.values()),
        sum(table.rows for table in tables.values()),
        base_release.image_tower == result_release.image_tower,
    )


def _write_tables(path: Path, models: _Models) -> dict[str, TableDelta]:
    """Write the rows of all tables that the base does not have; return the tables by name."""
    places, base_places = table_places(models.result), table_places(models.base)
    tables = {}
    with path.open("wb") as file:
        for name, place in places.items():
            tables[name] = _write_table(file, name, place, base_places.get(name), models)
        _sync(file)
    return tables


def _write_table(
    file: IO[bytes], name: str, place: TablePlace, base_place: TablePlace | None, models: _Models
) -> TableDelta:
    rows, row_bytes = place.rows, place.row_bytes
    table = rows_of(models.result / TABLES_FILE, *place)
    sources, changed = np.full(rows, -1), np.arange(rows)
    if base_place is not None and base_place.row_bytes == row_bytes:
        sources = rows_in_base(name, rows, base_place.rows, models.base_manifest, models.result_manifest)
        changed = changed_rows(table, rows_of(models.base / TABLES_FILE, *base_place), sources)
    copies = runs_of(sources)
    file.write(copies.astype("<i8").tobytes())
    file.write(changed.astype("<i8").tobytes())
    for start in range(0, len(changed), _ROWS_AT_A_TIME):
        file.write(table[changed[start : start + _ROWS_AT_A_TIME]].tobytes())
    base_rows, base_offset = (base_place.rows, base_place.offset) if base_place and len(copies) else (0, 0)
    return TableDelta(name, rows, row_bytes, base_rows, base_offset, len(copies), len(changed))


def _write_files(path: Path, models: _Models, tables: dict[str, TableDelta]) -> dict[str, tuple[Part, ...]]:
    """Write what files of the result consist of besides copies and tables; return the parts of each file."""
    names = sorted(str(file.relative_to(models.result)) for file in models.result.rglob("*") if file.is_file())
    indices = {name: i for i, name in enumerate(tables)}
    files = {}
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as data:
        for name in names:
            before, now = models.base_manifest.files.get(name), models.result_manifest.files.get(name)
            if now is not None and now == before:
                parts = [Part("copy", now["bytes"])]
            elif name == MANIFEST:
                parts = list(_parts_of_lines(models.base / name, models.result / name))
            else:
                parts = list(_parts_between_tables(models.result / name, models.result, tables, indices))
            _write_data(data, models.result / name, parts)
            files[name] = tuple(parts)
        data.flush()
        _sync(raw)
    return files


def _parts_between_tables(
    path: Path, result: Path, tables: dict[str, TableDelta], indices: dict[str, int]
) -> Iterator[Part]:
    """Yield the parts of a file: the tables that it contains, and all other bytes as data."""
    places = table_places(result)
    size = path.stat().st_size
    at_offset = {}
    for name, place in places.items():
        num_bytes = place.rows * place.row_bytes
        is_worth_it = tables[name].changed < place.rows or path.name == TABLES_FILE
        if is_worth_it and num_bytes <= size:
            table = rows_of(result / TABLES_FILE, *place)
            offset = place.offset if path.name == TABLES_FILE else place_in(path, table)
            if offset is not None:
                at_offset[offset] = name, num_bytes
    end = 0
    for offset, (name, num_bytes) in sorted(at_offset.items()):
        if offset < end:  # two tables of the same bytes
            continue
        if offset > end:
            yield Part("data", offset - end)
        yield Part("table", num_bytes, indices[name])
        end = offset + num_bytes
    if size > end:
        yield Part("data", size - end)


def _parts_of_lines(base: Path, result: Path) -> Iterator[Part]:
    """Yield the parts of a text: sequences of lines that the base has, too, such as vocabularies, and all others."""
    base_lines, lines = base.read_bytes().splitlines(True), result.read_bytes().splitlines(True)
    offsets = [0, *accumulate(map(len, base_lines))]
    places: dict[bytes, int] = {}
    for number, line in enumerate(base_lines):
        places.setdefault(line, number)
    i, num_data = 0, 0
    while i < len(lines):
        first = last = places.get(lines[i], -1)
        length = 0
        while 0 <= last < len(base_lines) and i + length < len(lines) and lines[i + length] == base_lines[last]:
            length, last = length + 1, last + 1
        num_bytes = offsets[last] - offsets[first] if length else 0
        if num_bytes < _LEAST_COPY_BYTES:
            num_data += len(lines[i])
            i += 1
            continue
        if num_data:
            yield Part("data", num_data)
        yield Part("copy", num_bytes, offsets[first])
        i, num_data = i + length, 0
    if num_data:
        yield Part("data", num_data)


def _write_data(data: gzip.GzipFile, path: Path, parts: list[Part]) -> None:
    with path.open("rb") as file:
        for part in parts:
            if part.kind != "data":
                file.seek(part.length, os.SEEK_CUR)
                continue
            remaining = part.length
            while remaining:
                portion = file.read(min(remaining, _READ_BYTES))
                data.write(portion)
                remaining -= len(portion)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
