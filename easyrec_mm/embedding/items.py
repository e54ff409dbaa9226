"""Reads the items with pictures: keys, paths and categories from a list, a table, grouped samples or a folder."""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from easyrec_mm.data.bad_records import BadRecord
from easyrec_mm.data.packed_pictures import PackedPictures, tar_beside
from easyrec_mm.data.plain_pictures import FIRST_BYTES, format_of
from easyrec_mm.errors import DataError, did_you_mean
from easyrec_mm.features.field import Field
from easyrec_mm.files import StorageError, is_remote, place_of, plain
from easyrec_mm.files.data_names import PICTURES_ENDING, is_meant, is_picture, is_sound
from easyrec_mm.files.local_copies import local_copies
from easyrec_mm.files.opening import open_binary, opened_at
from easyrec_mm.formats.checks import Problem, column_place, shown
from easyrec_mm.formats.grouped_table import READ_GROUPS, numbered
from easyrec_mm.formats.parquet import is_parquet, read_tables
from easyrec_mm.formats.rtp import NUM_PROBE_LINES, most_columns, read_lines, text_lines
from easyrec_mm.formats.tfrecord import feature_names, is_tfrecord, read_examples, records
from easyrec_mm.formats.typed_groups import TypedGroups, TypedRows, text_groups
from easyrec_mm.schema import Schema

_TAR = ".tar"
# By these endings, and those of pictures, files are told apart; without any of them, by the first bytes.
_LIST_ENDINGS = {".csv", ".gz", ".parquet", ".tfrecord", ".tsv", ".txt"}


class Item(NamedTuple):
    """An item: the key under which its vector is stored and looked up, the path of its picture, and the other inputs of
    the image model.

    path     text of the image field: several paths, with the schema's separator, if an item may have several pictures
    fields   texts of schema.image_fields()
    tar      path of the tar in which the pictures are; "" if they are files
    """

    key: str
    path: str
    fields: tuple[str, ...] = ()
    tar: str = ""


class Items(NamedTuple):
    """The items in an input, each key once, in order; and what is left out: bad groups, paths that are not UTF-8."""

    items: list[Item]
    refused: list[BadRecord]


def read_items(paths: str, schema: Schema, image_root: str = "", key_column: str = "", path_column: str = "") -> Items:
    """Return the items in an input.

    Args:
      paths: comma-separated files, folders or globs: .txt with one path per line; .csv and .parquet with columns;
        grouped samples as training reads them, gzip or not; or pictures, beside which other files are bad pictures.
        Tars hold pictures under their keys; if one is beside a file of paths (tar_beside), it has that file's pictures.
      schema: layout of grouped samples; its image field is the default column of the keys.
      image_root: folder to which the keys of pictures found by a glob are relative.
      key_column: column of the keys.
      path_column: column of the paths; by default that of the keys.

    Raises:
      DataError: if a file is missing, unreadable or lacks a column, or if a key has two categories.
    """
    key_column = key_column or schema.image.field
    if not key_column:
        raise DataError("--key_column: is missing; items without pictures have no path that could be their key")
    columns = _Columns(key_column, path_column or key_column, schema)
    by_key: dict[str, Item] = {}
    refused: list[BadRecord] = []
    for path, item in _all_items(paths, columns, image_root):
        if isinstance(item, BadRecord):
            refused.append(item)
            continue
        first = by_key.setdefault(item.key, item)
        if first.fields != item.fields:
            names, here, before = (", ".join(values) for values in (schema.image_fields(), item.fields, first.fields))
            raise DataError(
                f"{path}: key '{item.key}' has {names} '{here}' here and '{before}' before; a key has one vector: "
                "give a table with keys of items (--key_column), and serve with --key_field"
            )
    if not by_key:
        reason = f"; the first group is refused: {refused[0]}" if refused else "; give files that list some"
        raise DataError(f"--input {paths}: names no picture{reason}")
    return Items(list(by_key.values()), refused)


class _Columns:
    """The columns of keys, paths and other inputs of the image model, and what reads them from groups.

    A row of a table of items is read as a group of one sample, by the rules that training has for groups.
    """

    def __init__(self, key: str, path: str, schema: Schema) -> None:
        self.schema = schema
        self.key, self.path = key, path
        # Whether an item without a path is left out: it may have other contents instead.
        self.needs_path = not schema.contents or (schema.uses_image and not schema.has_no_image_vector)
        self.names = tuple(dict.fromkeys((key, path, *schema.image_fields())))
        field_names = {field.name for field in schema.fields}
        texts = tuple(Field(name, "string", "", True) for name in (key, path) if name not in field_names)
        of_item = replace(
            schema,
            fields=schema.fields + texts,
            image=replace(schema.image, field=path),
            group_fields=tuple({*schema.group_fields, *self.names} - {path}),
        )
        self.groups = TypedGroups(of_item, (), tuple(name for name in self.names if name != path), is_exact=True)

    def items(self, path: str, rows: TypedRows, first_row: int, image: str) -> Iterator[Item | BadRecord]:
        """Yield the item of each group that has a key and a path, and the groups that are refused.

        Args:
          path: path of the file.
          rows: the groups.
          first_row: row of the first group in the file.
          image: name of the column from which `rows.image_path` comes.
        """
        for row, group in enumerate(text_groups(rows), first_row):
            if isinstance(group, Problem):
                yield BadRecord("group", path, row, *group)
                continue
            values = {name: texts[0] for name, texts in group.values.items()} | {image: group.image.decode()}
            if values[self.key] and (values[self.path] or not self.needs_path):
                fields = tuple(values[name] for name in self.schema.image_fields())
                yield Item(values[self.key], values[self.path], fields)


def _all_items(paths: str, columns: _Columns, image_root: str) -> Iterator[tuple[str, Item | BadRecord]]:
    """Yield each item, or what is wrong with it, and the file that names it or is its picture."""
    parts = _parts(paths)
    packed = PackedPictures(local_copies())
    tars = {tar_beside(path) for files in parts for path in files if not path.endswith(_TAR)}
    for files in parts:
        others = [path for path in files if not path.endswith(_TAR)]
        are_pictures = bool(others) and _are_pictures(others)
        for path in files:
            if path.endswith(_TAR):
                # The pictures in the tar of another file are read when the file names them.
                items = iter(()) if path in tars else _tar_items(path, columns, packed.names(path))
            elif are_pictures:
                items = _picture_item(path, columns, image_root)
            else:
                tar = _tar_of(path, files)
                items = (i._replace(tar=tar) if isinstance(i, Item) else i for i in _items_of(path, columns))
            yield from ((path, item) for item in items)


def _tar_of(path: str, files: Sequence[str]) -> str:
    """Return the tar that holds the pictures of a file of paths; "" if that tar does not exist."""
    tar = tar_beside(path)
    return tar if tar in files or (not is_remote(tar) and os.path.exists(plain(tar))) else ""


def _tar_items(path: str, columns: _Columns, names: Iterable[bytes]) -> Iterator[Item | BadRecord]:
    _require_no_fields(path, columns.schema)
    for row, name in enumerate(names, 1):
        try:
            key = name.decode()
        except UnicodeDecodeError:
            yield BadRecord("picture", path, row, "name", f"{shown(name)} is not UTF-8, as keys must be")
            continue
        yield Item(key, key, tar=path)


def _parts(paths: str) -> list[list[str]]:
    """Return the files of each part of a comma-separated list: a file, a folder with all below it, or a glob."""
    names = [paths] if os.path.exists(plain(paths)) else [part.strip() for part in paths.split(",")]
    parts = [_files(name) for name in names if name]
    for name, files in zip(filter(None, names), parts, strict=True):
        if not files:
            raise DataError(f"--input: '{name}' matches no file; check the path")
    return parts


def _files(name: str) -> list[str]:
    if is_remote(name):
        place, infos = place_of(name), place_of(name).find(name)
        if [info.is_folder for info in infos] == [True]:
            infos = sorted(place.below(infos[0].path), key=lambda info: info.path)
            infos = [info for info in infos if _is_meant(info.path, "*")]
        return [info.path for info in infos if not info.is_folder and _is_meant(info.path, name)]
    path = plain(name)
    if os.path.isdir(path):
        return sorted(str(file) for file in Path(path).rglob("*") if file.is_file() and _is_meant(str(file), "*"))
    if os.path.exists(path):
        return [path]
    matches = glob.glob(path, recursive=True)
    return sorted(match for match in matches if not os.path.isdir(match) and _is_meant(match, path))


def _is_meant(path: str, pattern: str) -> bool:
    """Return whether a pattern means a file: data, and other than for training, tars of pictures."""
    return path.endswith(PICTURES_ENDING) or is_meant(path, pattern)


def _are_pictures(files: Sequence[str]) -> bool:
    """Return whether these files are pictures or sounds, with perhaps others among them, which are bad ones then."""
    if any(is_picture(path) or is_sound(path) for path in files):
        return True
    if _LIST_ENDINGS & {Path(path).suffix.lower() for path in files}:
        return False
    with open_binary(files[0]) as stream:
        return format_of(stream.read(FIRST_BYTES)) != ""


def _picture_item(path: str, columns: _Columns, image_root: str) -> Iterator[Item | BadRecord]:
    _require_no_fields(path, columns.schema)
    inside = _inside(path, image_root)
    try:
        path.encode()
    except UnicodeEncodeError:
        yield BadRecord(
            "picture", os.fsencode(path).decode(errors="replace"), 1, "path", "is not UTF-8, as keys must be"
        )
        return
    yield Item(inside or path, os.path.abspath(path) if inside and not is_remote(path) else path)


def _items_of(path: str, columns: _Columns) -> Iterator[Item | BadRecord]:
    ending = Path(path).suffix.lower()
    try:
        if ending == ".csv":
            yield from _csv_items(path, columns)
        elif ending == ".parquet" or is_parquet(opened_at(path)):
            yield from _parquet_items(path, columns)
        elif is_tfrecord(opened_at(path)):
            yield from _tfrecord_items(path, columns)
        else:
            yield from _line_items(path, columns)
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


def _parquet_items(path: str, columns: _Columns) -> Iterator[Item | BadRecord]:
    _require_columns(path, pq.read_schema(opened_at(path)).names, columns)
    first = 1
    for table in read_tables(path, columns.groups, READ_GROUPS):
        yield from columns.items(path, columns.groups.read(columns.groups.prepare(path, table)), first, columns.path)
        first += len(table)


def _tfrecord_items(path: str, columns: _Columns) -> Iterator[Item | BadRecord]:
    with open_binary(path) as stream:
        for rows, portion in numbered(records(stream, path)):
            if rows[0] == 1:
                _require_columns(path, feature_names(path, portion[0]), columns)
            yield from columns.items(path, read_examples(portion, columns.groups), int(rows[0]), columns.path)


# Characters of a field of a CSV file: far more than a text needs, and so few that a quote without its end is noticed.
_MOST_OF_A_FIELD = 1 << 24
# A byte that is not UTF-8, as "surrogateescape" decodes it.
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


def _csv_items(path: str, columns: _Columns) -> Iterator[Item | BadRecord]:
    csv.field_size_limit(_MOST_OF_A_FIELD)
    with open(opened_at(path), newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        _require_columns(path, list(rows.fieldnames or ()), columns)
        for number, row in enumerate(rows, 1):
            if row[columns.key] and (row[columns.path] or not columns.needs_path):
                fields = tuple(row[name] or "" for name in columns.schema.image_fields())
                wrong = next((name for name in columns.names if _ESCAPED_BYTE.search(row[name] or "")), None)
                if wrong is not None:
                    content = row[wrong].encode("utf-8", "surrogateescape")
                    what = "keys" if wrong in (columns.key, columns.path) else "texts"
                    problem = f"{shown(content)} is not UTF-8, as {what} must be"
                    yield BadRecord("picture", path, number, column_place(wrong), problem)
                    continue
                _check_fields(f"{path}: row {number}", columns.schema, fields)
                yield Item(row[columns.key], row[columns.path], fields)


def _check_fields(place: str, schema: Schema, fields: tuple[str, ...]) -> None:
    for name, text in zip(schema.image_fields(), fields, strict=True):
        try:
            schema.field(name).value(text)
        except ValueError as error:
            raise DataError(
                f"{place}: {name}: '{text}' is not a valid {schema.field(name).dtype}; correct it"
            ) from error


def _require_columns(path: str, names: list[str], columns: _Columns) -> None:
    for name in columns.names:
        if name not in names:
            raise DataError(
                f"{path}: no column '{name}'; {did_you_mean(name, names)} (--key_column and "
                "--path_column name those of the keys and of the paths)"
            )


def _require_no_fields(path: str, schema: Schema) -> None:
    if schema.image_fields():
        names = "', '".join(schema.image_fields())
        raise DataError(
            f"{path}: the image model also takes '{names}'; give grouped samples, or CSV or Parquet with that column"
        )


def _line_items(path: str, columns: _Columns) -> Iterator[Item | BadRecord]:
    """Yield the items of lines: of groups if most of the first lines have their columns; otherwise a line is a path."""
    schema, layout = columns.schema, columns.schema.layout
    needed = max(layout.image_column, layout.size_column, layout.features_column)
    with open_binary(path) as stream:
        lines = text_lines(stream)
        probe = list(islice(lines, NUM_PROBE_LINES))
        num_columns = most_columns(probe, layout)
        lines = chain(probe, lines)
        if needed < 0 or num_columns <= needed:
            _require_no_fields(path, schema)
            yield from (_line_item(path, number, line) for number, line in enumerate(lines, 1) if line.strip())
            return
        _require_columns(path, [*layout.sample_fields, schema.image.field], columns)
        for rows, portion in numbered(lines):
            groups = read_lines(portion, num_columns, columns.groups)
            yield from columns.items(path, groups, int(rows[0]), schema.image.field)


def _line_item(path: str, number: int, line: bytes) -> Item | BadRecord:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return BadRecord("picture", path, number, "line", f"{shown(line)} is not UTF-8, as keys must be")
    return Item(text, text)
