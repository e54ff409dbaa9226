"""Which pictures there are: keys and paths from a list, a table, grouped samples or a folder."""

from __future__ import annotations

import csv
import glob
import gzip
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from easyrec_mm.errors import DataError, did_you_mean
from easyrec_mm.schema import Schema

_PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")


class Item(NamedTuple):
    """A picture: the key under which its vector is stored and looked up, and where the file is."""

    key: str
    path: str


def read_items(
    paths: str, schema: Schema, image_root: str = "", key_column: str = "", path_column: str = ""
) -> list[Item]:
    """The pictures that an input names, each key once, in order.

    Args:
      paths: files, separated by commas, each may be a glob: .txt with a path a line; .csv and .parquet with columns;
        grouped samples as training reads them, gzip or not; or pictures themselves.
      schema: how grouped samples are laid out; its image field is the default column.
      image_root: folder from which keys of pictures that a glob finds are told.
      key_column: column of the keys.
      path_column: column of the paths; the keys' by default.

    Raises:
      DataError: if a file is missing, unreadable or lacks a column.
    """
    key_column = key_column or schema.image.field
    found: dict[str, str] = {}
    for path in _files(paths):
        for key, file in _items_of(path, schema, image_root, key_column, path_column or key_column):
            found.setdefault(key, file)
    if not found:
        raise DataError(f"--input {paths}: names no picture; give files that list some")
    return [Item(key, path) for key, path in found.items()]


def _files(paths: str) -> list[str]:
    files: list[str] = []
    for part in filter(None, (part.strip() for part in paths.split(","))):
        some = sorted(name for name in glob.glob(part, recursive=True) if not os.path.isdir(name))
        if not some:
            raise DataError(f"--input: '{part}' matches no file; check the path")
        files += some
    return files


def _items_of(
    path: str, schema: Schema, image_root: str, key_column: str, path_column: str
) -> Iterator[tuple[str, str]]:
    ending = Path(path).suffix.lower()
    try:
        if ending in _PICTURE_ENDINGS:
            inside = image_root and not os.path.relpath(path, image_root).startswith("..")
            key = os.path.relpath(path, image_root) if inside else path
            yield key, os.path.abspath(path) if inside else path
        elif ending == ".parquet":
            yield from _parquet_items(path, key_column, path_column)
        elif ending == ".csv":
            yield from _csv_items(path, key_column, path_column)
        else:
            yield from _line_items(path, schema)
    except (OSError, EOFError, UnicodeDecodeError, pa.ArrowException, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _parquet_items(path: str, key_column: str, path_column: str) -> Iterator[tuple[str, str]]:
    file = pq.ParquetFile(path)
    _require_columns(path, file.schema_arrow.names, (key_column, path_column))
    for batch in file.iter_batches(columns=list({key_column, path_column})):
        columns = batch.to_pydict()
        yield from _pairs(zip(columns[key_column], columns[path_column], strict=True))


def _csv_items(path: str, key_column: str, path_column: str) -> Iterator[tuple[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        _require_columns(path, list(rows.fieldnames or ()), (key_column, path_column))
        yield from _pairs((row[key_column], row[path_column]) for row in rows)


def _pairs(values: Iterable[tuple[object, object]]) -> Iterator[tuple[str, str]]:
    return ((str(key), str(path)) for key, path in values if key not in (None, "") and path not in (None, ""))


def _require_columns(path: str, columns: list[str], needed: tuple[str, ...]) -> None:
    for name in needed:
        if name not in columns:
            raise DataError(
                f"{path}: no column '{name}'; {did_you_mean(name, columns)} Name it with --key_column or --path_column."
            )


def _line_items(path: str, schema: Schema) -> Iterator[tuple[str, str]]:
    """Lines of grouped samples, or of paths, told by whether every one has the columns of a group."""
    layout = schema.layout
    needed = max(layout.image_column, layout.size_column, layout.features_column)
    with open(path, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if is_gzip else open(path, "rb") as lines:
        for raw in lines:
            line = raw.decode().rstrip("\r\n")
            columns = line.split(layout.column_separator) if layout.column_separator else [line]
            image = columns[layout.image_column] if len(columns) > needed else line
            if image.strip():
                yield image, image
