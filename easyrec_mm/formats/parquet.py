"""Grouped samples as Parquet: one row per group, with sample-level fields as lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from easyrec_mm.errors import DataError, first_line
from easyrec_mm.files.opening import opened_at
from easyrec_mm.formats.columns import ARROW_TYPES
from easyrec_mm.formats.grouped_table import (
    READ_GROUPS,
    GroupFields,
    Groups,
    GroupsPiece,
    joined,
    offsets,
    piece_of,
)
from easyrec_mm.formats.typed_groups import TypedGroups

# Number of groups per Parquet row group. Fixed, because it determines the bytes of a file.
ROW_GROUP = 1 << 14


class ParquetWriter:
    """A GroupWriter of Parquet files."""

    def __init__(self, path: str, fields: GroupFields) -> None:
        self._fields = fields
        self._schema = _schema(fields)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", compression_level=1)
        self._waiting: list[Groups] = []
        self._num_waiting = 0

    def write(self, groups: Groups) -> None:
        """See GroupWriter.write."""
        start = 0
        while start < len(groups.size):
            end = min(start + ROW_GROUP - self._num_waiting, len(groups.size))
            part = groups.slice(start, end, self._fields)
            start = end
            self._waiting.append(part)
            self._num_waiting += len(part.size)
            if self._num_waiting == ROW_GROUP:
                self._flush()

    def close(self) -> None:
        """See GroupWriter.close."""
        if self._waiting:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(_table(joined(self._waiting), self._fields, self._schema), row_group_size=ROW_GROUP)
        self._waiting, self._num_waiting = [], 0


def _schema(fields: GroupFields) -> pa.Schema:
    kinds = {name: ARROW_TYPES[kind] for name, kind in fields.kinds.items()}
    columns = [(name, kind if name in fields.per_group else pa.list_(kind)) for name, kind in kinds.items()]
    return pa.schema([*columns, (fields.size, pa.int64())])


def _table(groups: Groups, fields: GroupFields, schema: pa.Schema) -> pa.Table:
    of_lists = offsets(groups.size)
    columns = [
        column if name in fields.per_group else pa.ListArray.from_arrays(of_lists, column)
        for name, column in ((name, groups.columns[name]) for name in fields.kinds)
    ]
    return pa.Table.from_arrays([*columns, pa.array(groups.size)], schema=schema)


def is_parquet(path: str) -> bool:
    """Return whether a file of this machine begins like a Parquet file."""
    with open(path, "rb") as stream:
        return stream.read(4) == b"PAR1"


def read_tables(
    path: str, groups: TypedGroups, num_rows: int, open_at: Callable[[str], str] = opened_at
) -> Iterator[pa.Table]:
    """Yield the columns of a file that are read, `num_rows` rows at a time.

    Args:
      path: path of the file.
      groups: determines the columns.
      num_rows: number of rows per table.
      open_at: path -> path on this machine.

    Raises:
      DataError: if the file cannot be read or lacks a column.
    """
    try:
        with pq.ParquetFile(open_at(path)) as opened:
            columns = groups.present(path, opened.schema_arrow.names)
            for batch in opened.iter_batches(num_rows, columns=columns):
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {first_line(error)}") from error


def read_parquet(path: str, fields: GroupFields, groups: TypedGroups) -> Iterator[GroupsPiece]:
    """Yield the groups of a file.

    Args:
      path: path of the file.
      fields: fields of the groups.
      groups: the same fields as training reads them; it checks the values.

    Raises:
      DataError: if the file cannot be read, or a column is missing or of another type.
    """
    first = 1
    for table in read_tables(path, groups, READ_GROUPS):
        rows = groups.read(groups.prepare(path, table))
        yield piece_of(rows, fields, np.arange(first, first + len(table)))
        first += len(table)


def count_parquet(path: str, fields: GroupFields) -> tuple[int, int]:
    """Return the number of groups and samples of a ParquetWriter's file, from a sample-level column if it has one."""
    name = next((name for name in fields.kinds if name not in fields.per_group), fields.size)
    num_groups = num_samples = 0
    with pq.ParquetFile(path) as opened:
        for batch in opened.iter_batches(columns=[name]):
            column = batch.column(0)
            num_groups += len(column)
            num_samples += len(column.flatten()) if pa.types.is_list(column.type) else pc.sum(column).as_py()
    return num_groups, num_samples
