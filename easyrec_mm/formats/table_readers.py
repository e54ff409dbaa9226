"""Reads Parquet and CSV files as tables, some rows at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from easyrec_mm.errors import DataError, first_line
from easyrec_mm.files.opening import open_binary
from easyrec_mm.formats.checks import Problem
from easyrec_mm.formats.csv_blocks import blocks, parse, read_header
from easyrec_mm.formats.data_files import DataFiles, needs_copy
from easyrec_mm.formats.parquet import read_tables
from easyrec_mm.formats.typed_groups import PROBLEM, ROW, TypedGroups

_CSV_BLOCK_BYTES = 1 << 21


@dataclass(frozen=True)
class ParquetReader:
    """Reads Parquet files, `num_rows` rows at a time."""

    files: DataFiles
    groups: TypedGroups
    num_rows: int

    @property
    def counts_at_once(self) -> bool:
        """See Source.counts_at_once; false for files that are copied before they are opened."""
        return not any(map(needs_copy, self.files.names))

    def read(self, file: str) -> Iterator[pa.Table]:
        """Yield the columns that are read.

        Raises:
          DataError: if the file cannot be read or lacks a column.
        """
        return read_tables(file, self.groups, self.num_rows, self.files.opened_at)

    def ahead(self, files: Sequence[str]) -> None:
        """Begin to copy the files that are read next."""
        self.files.fetch_ahead(files)

    def count(self, file: str) -> int:
        """Return the number of rows of a file."""
        try:
            return int(pq.read_metadata(self.files.opened_at(file)).num_rows)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file}: cannot be read as Parquet: {first_line(error)}") from error


@dataclass(frozen=True)
class CsvReader:
    """Reads CSV files, with or without gzip, with quotes as in RFC 4180.

    A row with too many or too few values is reported as a problem of that row; a header line counts as row 1.

    Args:
      files: the files.
      groups: determines the columns that are read.
      separator: the character between values.
      names: names of the columns, in order; empty if the first line contains them.
    """

    files: DataFiles
    groups: TypedGroups
    separator: str
    names: Sequence[str] = ()
    counts_at_once: ClassVar[bool] = False

    def read(self, file: str) -> Iterator[pa.Table]:
        """Yield the columns that are read, as text, and before them what is wrong with rows that cannot be read.

        Raises:
          DataError: if the file cannot be read or lacks a column.
        """
        row = 1 if self.names else 2
        try:
            with open_binary(self.files.opened_at(file)) as stream:
                names = list(self.names) or read_header(stream, file, self.separator)[0]
                columns = self.groups.present(file, names)
                for block in blocks(stream, size=_CSV_BLOCK_BYTES):
                    rows = parse(block, names, self.separator, columns)
                    if rows.malformed:
                        numbers, reasons = zip(*rows.malformed, strict=True)
                        problems = [Problem("row", reason).encode() for reason in reasons]
                        yield pa.table({ROW: np.array(numbers) + row, PROBLEM: problems})
                    yield rows.table.append_column(ROW, pa.array(rows.number + row))
                    row += rows.num_rows
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            raise DataError(f"{file}: cannot be read as CSV from row {row} on: {first_line(error)}") from error

    def ahead(self, files: Sequence[str]) -> None:
        """Begin to copy the files that are read next."""
        self.files.fetch_ahead(files)

    def count(self, file: str) -> int:
        """Return the number of rows of a file."""
        return sum(len(table) for table in self.read(file))
