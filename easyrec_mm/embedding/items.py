"""Reads the items with pictures: keys, paths and categories from a list, a table, grouped samples or a folder."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from easyrec_mm.errors import DataError, did_you_mean
from easyrec_mm.files import StorageError, is_remote, place_of, plain
from easyrec_mm.files.opening import open_binary, opened_at
from easyrec_mm.formats.tfrecord import first_values, is_tfrecord
from easyrec_mm.schema import Schema

_PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")


class Item(NamedTuple):
    """An item: the key under which its vector is stored and looked up, the path of its picture, and the other inputs of
    the image model.

    path     text of the image field: several paths, with the schema's separator, if an item may have several pictures
    fields   texts of schema.image_fields()
    """

    key: str
    path: str
    fields: tuple[str, ...] = ()


def read_items(
    paths: str, schema: Schema, image_root: str = "", key_column: str = "", path_column: str = ""
) -> list[Item]:
    """Return the items in an input, each key once, in order.

    Args:
      paths: comma-separated files or globs: .txt with one path per line; .csv and .parquet with columns; grouped
        samples as training reads them, gzip or not; or pictures.
      schema: layout of grouped samples; its image field is the default column of the keys.
      image_root: folder to which the keys of pictures found by a glob are relative.
      key_column: column of the keys.
      path_column: column of the paths; by default that of the keys.

    Raises:
      DataError: if a file is missing, unreadable or lacks a column, or if a key has two categories.
    """
    key_column = key_column or schema.image.field
    found: dict[str, Item] = {}
    for path in _files(paths):
        for item in _items_of(path, schema, image_root, key_column, path_column or key_column):
            first = found.setdefault(item.key, item)
            if first.fields != item.fields:
                names, here, before = (", ".join(some) for some in (schema.image_fields(), item.fields, first.fields))
                raise DataError(
                    f"{path}: key '{item.key}' has {names} '{here}' here and '{before}' before; a key has one vector: "
                    "give a table with keys of items (--key_column), and serve with --key_field"
                )
    if not found:
        raise DataError(f"--input {paths}: names no picture; give files that list some")
    return list(found.values())


def _files(paths: str) -> list[str]:
    files: list[str] = []
    for part in filter(None, (part.strip() for part in paths.split(","))):
        if is_remote(part):
            some = [info.path for info in place_of(part).find(part) if not info.is_folder]
        else:
            some = sorted(name for name in glob.glob(plain(part), recursive=True) if not os.path.isdir(name))
        if not some:
            raise DataError(f"--input: '{part}' matches no file; check the path")
        files += some
    return files


def _items_of(path: str, schema: Schema, image_root: str, key_column: str, path_column: str) -> Iterator[Item]:
    ending = Path(path).suffix.lower()
    columns = (key_column, path_column, *schema.image_fields())
    try:
        if ending in _PICTURE_ENDINGS:
            _require_no_fields(path, schema)
            inside = _inside(path, image_root)
            yield Item(inside or path, os.path.abspath(path) if inside and not is_remote(path) else path)
        elif ending == ".parquet":
            yield from _items_of_rows(path, schema, _parquet_rows(path, columns))
        elif ending == ".csv":
            yield from _items_of_rows(path, schema, _csv_rows(path, columns))
        elif is_tfrecord(opened_at(path)):
            yield from _items_of_rows(path, schema, _example_rows(path, columns))
        else:
            yield from _line_items(path, schema)
    except StorageError:
        raise
    except (OSError, EOFError, UnicodeDecodeError, pa.ArrowException, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _inside(path: str, root: str) -> str:
    """Return a path relative to a folder; "" if it is not below the folder."""
    if is_remote(path) or is_remote(root):
        prefix = f"{root.rstrip('/')}/"
        return path[len(prefix) :] if root and path.startswith(prefix) else ""
    inner = os.path.relpath(path, root) if root else ".."
    return "" if inner.startswith("..") else inner


def _parquet_rows(path: str, columns: tuple[str, ...]) -> Iterator[tuple[object, ...]]:
    file = pq.ParquetFile(opened_at(path))
    _require_columns(path, file.schema_arrow.names, columns)
    for batch in file.iter_batches(columns=list(dict.fromkeys(columns))):
        values = batch.to_pydict()
        yield from zip(*(map(_first, values[name]) for name in columns), strict=True)


def _first(value: object) -> object:
    """Return the first value of a list; a value per group may be stored as a list with one value per sample."""
    return next(iter(value), None) if isinstance(value, list) else value


def _example_rows(path: str, columns: tuple[str, ...]) -> Iterator[tuple[object, ...]]:
    for number, values in enumerate(first_values(opened_at(path))):
        if not number:
            _require_columns(path, list(values), columns)
        row = (values.get(name) for name in columns)
        yield tuple(value.decode() if isinstance(value, bytes) else value for value in row)


def _csv_rows(path: str, columns: tuple[str, ...]) -> Iterator[tuple[object, ...]]:
    with open(opened_at(path), newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        _require_columns(path, list(rows.fieldnames or ()), columns)
        yield from (tuple(row[name] for name in columns) for row in rows)


def _items_of_rows(path: str, schema: Schema, rows: Iterable[tuple[object, ...]]) -> Iterator[Item]:
    """Yield the items of rows with key, path and fields; rows without a key or a path are left out."""
    for number, (key, picture, *values) in enumerate(rows, 1):
        if key not in (None, "") and picture not in (None, ""):
            fields = tuple("" if value is None else str(value) for value in values)
            _check_fields(f"{path}: row {number}", schema, fields)
            yield Item(str(key), str(picture), fields)


def _check_fields(place: str, schema: Schema, fields: tuple[str, ...]) -> None:
    for name, text in zip(schema.image_fields(), fields, strict=True):
        try:
            schema.field(name).value(text)
        except ValueError as error:
            raise DataError(
                f"{place}: {name}: '{text}' is not a valid {schema.field(name).dtype}; correct it"
            ) from error


def _require_columns(path: str, columns: list[str], needed: tuple[str, ...]) -> None:
    for name in needed:
        if name not in columns:
            raise DataError(
                f"{path}: no column '{name}'; {did_you_mean(name, columns)} Keys and paths are named with --key_column "
                "and --path_column."
            )


def _require_no_fields(path: str, schema: Schema) -> None:
    if schema.image_fields():
        names = "', '".join(schema.image_fields())
        raise DataError(
            f"{path}: the image model also takes '{names}'; give grouped samples, or CSV or Parquet with that column"
        )


def _line_items(path: str, schema: Schema) -> Iterator[Item]:
    """Yield the items of lines: a line with the columns of a group is a group; any other line is a path."""
    layout = schema.layout
    needed = max(layout.image_column, layout.size_column, layout.features_column)
    places = [layout.sample_fields.index(name) for name in schema.image_fields()]
    with open_binary(path) as lines:
        for number, raw in enumerate(lines, 1):
            line = raw.decode().rstrip("\r\n")
            columns = line.split(layout.column_separator) if layout.column_separator else [line]
            if needed < 0 or len(columns) <= needed:
                _require_no_fields(path, schema)
                columns = [line] * max(needed + 1, 1)
            image = columns[layout.image_column]
            if not image.strip():
                continue
            fields: tuple[str, ...] = ()
            if places:
                sample = columns[layout.features_column].split(layout.sample_separator)[0]
                values = sample.split(layout.value_separator) if layout.value_separator else list(sample)
                if len(values) != len(layout.sample_fields):
                    continue  # an invalid line, which training leaves out, too
                fields = tuple(values[place] for place in places)
                _check_fields(f"{path}: line {number}", schema, fields)
            yield Item(image, image, fields)
