"""Files of a flat log, CSV and Parquet: divides them into splits, and reads rows piece by piece.

Several processes can read the splits of a file; each split knows the number of its first row. Rows are numbered from 1,
and in a CSV file from 2, because the header counts as a row; empty lines do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from easyrec_mm.errors import DataError
from easyrec_mm.features.field import Kind
from easyrec_mm.files.opening import is_gzip, open_binary, opened_at, size_of
from easyrec_mm.formats import csv_blocks
from easyrec_mm.formats.columns import (
    ORDER,
    ROW_BITS,
    kind_of,
)

# Rows of Parquet that are read at a time; bytes of a CSV split, and rows of a Parquet split.
READ_ROWS = 1 << 16
SPLIT_BYTES, SPLIT_ROWS = 1 << 26, 1 << 18
# Bytes of CSV and rows of Parquet that are read to look at the first rows.
_FIRST_BYTES, _FIRST_ROWS = 1 << 18, 1 << 10
_PARQUET_MAGIC = b"PAR1"
# Column of the row labels of pandas, which are no data of the log.
_PANDAS_INDEX = re.compile("__index_level_[0-9]+__")


@dataclass(frozen=True)
class Split:
    """Some rows of a file: bytes or row groups from `start` to `end`, exclusive (-1: to the end of the file).

    first_row   number of the first row; that of the file before the rows of a CSV file are counted
    num_rows    number of rows; 0 in a CSV file before they are counted
    names       all columns of a CSV file, in the order of the file
    """

    file: int
    path: str
    format: Literal["csv", "parquet"]
    start: int
    end: int
    first_row: int = 1
    num_rows: int = 0
    names: tuple[str, ...] = ()


class FilePlan(NamedTuple):
    """The columns of a file, with their kinds if the file specifies them, and its splits.

    numbers  columns of a Parquet file whose values decide their kind: floats, decimals and uint64
    """

    columns: dict[str, Kind | None]
    splits: list[Split]
    numbers: frozenset[str] = frozenset()


class Piece(NamedTuple):
    """Some rows of a split: a table of the requested columns, with the types of the file, and of ORDER.

    malformed  (row, problem) of each row that cannot be read
    num_rows   number of all rows, including malformed ones
    """

    table: pa.Table
    malformed: list[tuple[int, str]]
    num_rows: int


def plan_file(file: int, path: str, separator: str) -> FilePlan:
    """Find the columns of a file, and divide it into splits.

    Raises:
      DataError: if the file cannot be read.
    """
    try:
        with open(opened_at(path), "rb") as stream:
            magic = stream.read(4)
        return _plan_parquet(file, path) if magic == _PARQUET_MAGIC else _plan_csv(file, path, separator)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: Exception) -> DataError:
    """Return the error for a file that is truncated, damaged or has vanished."""
    return DataError(f"{path}: cannot be read: {error}; write it again, or leave it out")


def _plan_parquet(file: int, path: str) -> FilePlan:
    with pq.ParquetFile(opened_at(path)) as opened:
        columns: dict[str, Kind | None] = {}
        for field in opened.schema_arrow:
            if _PANDAS_INDEX.fullmatch(field.name):
                continue
            try:
                columns[field.name] = kind_of(field.type)
            except ValueError as error:
                raise DataError(
                    f"{path}: column '{field.name}' {error}; leave it out by naming the others in --columns"
                ) from error
        splits: list[Split] = []
        row, num_rows = 1, 0
        start = 0
        for i in range(opened.metadata.num_row_groups):
            num_rows += opened.metadata.row_group(i).num_rows
            if num_rows >= SPLIT_ROWS or i + 1 == opened.metadata.num_row_groups:
                splits.append(Split(file, path, "parquet", start, i + 1, row, num_rows))
                start, row, num_rows = i + 1, row + num_rows, 0
        numbers = frozenset(field.name for field in opened.schema_arrow if _is_open(field.type))
        return FilePlan(columns, splits, numbers)


def _is_open(kind: pa.DataType) -> bool:
    """Return whether columns of a type may hold ids as well as measurements."""
    return bool(pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_uint64(kind))


def _plan_csv(file: int, path: str, separator: str) -> FilePlan:
    with open_binary(path) as stream:
        header, start = csv_blocks.read_header(stream, path, separator)
        names = tuple(header)
        split = partial(Split, file, path, "csv", first_row=2, names=names)
        if is_gzip(path) or size_of(path) <= start + SPLIT_BYTES:
            return FilePlan(dict.fromkeys(names), [split(start=start, end=-1)] if names else [])
        splits = []
        end = start
        for block in csv_blocks.blocks(stream):
            end += len(block)
            if end - start >= SPLIT_BYTES:
                splits.append(split(start=start, end=end))
                start = end
        if end > start:
            splits.append(split(start=start, end=end))
        return FilePlan(dict.fromkeys(names), splits)


def pieces(split: Split, columns: list[str], separator: str) -> Iterator[Piece]:
    """Read the rows of a split.

    Args:
      split: the split to read.
      columns: the columns to read, all of which the file has.
      separator: separator of the values in a CSV file.

    Raises:
      DataError: if the file is truncated, damaged or has vanished.
    """
    read = _csv_pieces(split, columns, separator) if split.format == "csv" else _parquet_pieces(split, columns)
    try:
        yield from read
    except (OSError, EOFError, pa.ArrowException) as error:
        raise unreadable(split.path, error) from error


def _parquet_pieces(split: Split, columns: list[str]) -> Iterator[Piece]:
    with pq.ParquetFile(opened_at(split.path)) as opened:
        row = split.first_row
        for batch in opened.iter_batches(READ_ROWS, row_groups=range(split.start, split.end), columns=columns):
            order = _order(split.file, row + np.arange(len(batch)))
            table = pa.Table.from_batches([batch]).select(columns).append_column(ORDER, order)
            yield Piece(table, [], len(batch))
            row += len(batch)
        if row - split.first_row != split.num_rows:
            raise OSError(
                f"the file has changed: {row - split.first_row} rows from row {split.first_row} on, but "
                f"{split.num_rows} when they were counted"
            )


def _csv_pieces(split: Split, columns: list[str], separator: str) -> Iterator[Piece]:
    row = split.first_row
    for rows in csv_rows(split, separator):
        malformed = [(row + number, problem) for number, problem in rows.malformed]
        table = rows.table.select(columns).append_column(ORDER, _order(split.file, row + rows.number))
        yield Piece(table, malformed, rows.num_rows)
        row += rows.num_rows
    if split.num_rows and row - split.first_row != split.num_rows:
        raise OSError(
            f"the file has changed: {row - split.first_row} rows from row {split.first_row} on, but "
            f"{split.num_rows} when they were counted"
        )


def first_rows(split: Split, columns: list[str], separator: str) -> pa.Table:
    """Return some columns of the first rows of a split, with the types of the file.

    Raises:
      DataError: if the file is truncated, damaged or has vanished.
    """
    try:
        if split.format == "csv":
            rows = next(csv_rows(split, separator, _FIRST_BYTES), None)
            return rows.table.select(columns) if rows else pa.table({})
        with pq.ParquetFile(opened_at(split.path)) as opened:
            groups = range(split.start, split.end)
            batches = opened.iter_batches(_FIRST_ROWS, row_groups=groups, columns=columns)
            first = next(batches, None)
            return pa.table({}) if first is None else pa.Table.from_batches([first])
    except (OSError, EOFError, pa.ArrowException) as error:
        raise unreadable(split.path, error) from error


def csv_rows(split: Split, separator: str, block_bytes: int = 0) -> Iterator[csv_blocks.CsvRows]:
    """Read the rows of a CSV split as texts, in blocks of a size, by default that of csv_blocks."""
    with open_binary(split.path) as stream:
        stream.seek(split.start)
        num_bytes = split.end - split.start if split.end >= 0 else -1
        for block in csv_blocks.blocks(stream, num_bytes, block_bytes):
            yield csv_blocks.parse(block, list(split.names), separator)


def _order(file: int, rows: np.ndarray) -> pa.Array:
    return pa.array(np.int64(file << ROW_BITS) | rows.astype(np.int64))
