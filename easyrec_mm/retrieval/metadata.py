"""Columns of a table about the items of a store, by their keys."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easyrec_mm.errors import DataError, did_you_mean
from easyrec_mm.files import StorageError, read
from easyrec_mm.files.arrow_csv import csv

DEFAULT_KEY = "key"
_LEAST_BLOCK_BYTES, _MOST_BLOCK_BYTES = 1 << 20, (1 << 31) - 1


class Metadata:
    """A table with a row per item.

    Args:
      table: the table; it may lack items and have others.
      key: its column of keys, as in the store: texts, or whole numbers.
      name: name of the table, for messages.

    Raises:
      DataError: if there is no such column, or a key is missing or occurs twice.
    """

    def __init__(self, table: pa.Table, key: str, name: str) -> None:
        self.name, self._key = name, key
        if key not in table.column_names:
            raise DataError(
                f"{name}: no column '{key}'; {did_you_mean(key, table.column_names)} (--metadata_key names the "
                "column with the keys of the store)"
            )
        if twice := {column for column in table.column_names if table.column_names.count(column) > 1}:
            raise DataError(f"{name}: two columns are named '{min(twice)}'; rename one of them")
        self._table = pa.table({column: _plain(table[column]) for column in table.column_names})
        self._row_of = self._rows_by_key()

    @property
    def schema(self) -> pa.Schema:
        """Return the names and types of the columns."""
        return self._table.schema

    @property
    def columns(self) -> list[str]:
        """Return the names of the columns that are shown: all but that of the keys and those with lists of values."""
        return [f.name for f in self.schema if f.name != self._key and not pa.types.is_nested(f.type)]

    def rows(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each item; -1 for one that the table lacks."""
        return np.fromiter((self._row_of.get(key, -1) for key in keys), np.int64, len(keys))

    def table(self, keys: Sequence[str]) -> pa.Table:
        """Return the rows of some items in their order, with null for an item that the table lacks."""
        rows = self.rows(keys)
        return self._table.take(pa.array(rows, mask=rows < 0))

    def values(self, keys: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return the values of some columns for some items; None where one is missing."""
        values: list[dict[str, Any]] = self.table(keys).select(list(columns)).to_pylist()
        return values

    def require(self, column: str, flag: str) -> None:
        """Check that there is a column.

        Raises:
          DataError: if not.
        """
        if column not in self.schema.names:
            raise DataError(f"{flag}: {self.name} has no column '{column}'; {did_you_mean(column, self.schema.names)}")

    def _rows_by_key(self) -> dict[str, int]:
        column = self._table[self._key]
        if not (pa.types.is_integer(column.type) or is_text(column.type)):
            raise DataError(
                f"{self.name}: column '{self._key}' is of type {column.type}; keys are texts or whole numbers"
            )
        row_of: dict[str, int] = {}
        for row, key in enumerate(column.to_pylist()):
            if key is None or key == "":
                raise DataError(f"{self.name}: row {row + 1}: '{self._key}' is missing; give each item its key")
            first = row_of.setdefault(str(key), row)
            if first != row:
                raise DataError(
                    f"{self.name}: rows {first + 1} and {row + 1} have the key '{key}'; leave one row per item"
                )
        return row_of


def read_metadata(path: str, key: str = "") -> Metadata:
    """Read a table from Parquet, or from CSV with a header.

    Raises:
      DataError: if it cannot be read, or its keys are not valid.
    """
    key = key or DEFAULT_KEY
    try:
        content = read(path)
        if content[:4] == b"PAR1":
            table = pq.read_table(io.BytesIO(content))
        else:
            # One block, so that the type of a column follows from all of its values. Keys such as 007 are texts.
            size = min(max(len(content) + 1, _LEAST_BLOCK_BYTES), _MOST_BLOCK_BYTES)
            table = csv.read_csv(
                io.BytesIO(content),
                csv.ReadOptions(block_size=size),
                csv.ParseOptions(newlines_in_values=True),
                csv.ConvertOptions(column_types={key: pa.string()}),
            )
    except (OSError, StorageError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {error}; give Parquet, or CSV with a header") from error
    return Metadata(table, key, path)


def is_text(kind: pa.DataType) -> bool:
    """Return whether values of a type are texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column with its values themselves in place of categories, and null in place of NaN."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_large_string(column.type):
        column = column.cast(pa.string())
    if pa.types.is_floating(column.type) and not pa.types.is_float16(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return column
