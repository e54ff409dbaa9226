"""Reads Parquet and CSV files as tables, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from easyrec_mm.errors import DataError, first_line
from easyrec_mm.formats.checks import Problem
from easyrec_mm.formats.data_files import DataFiles, needs_copy
from easyrec_mm.formats.parquet import read_tables
from easyrec_mm.formats.typed_groups import PROBLEM, ROW, TypedGroups

_GZIP_MAGIC = b"\x1f\x8b"
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
        """Yield the columns that are read, as text.

        Raises:
          DataError: if the file cannot be read or lacks a column.
        """
        invalid: dict[int, bytes] = {}
        first = row = 1 if self.names else 2
        try:
            for batch in self._open(file, invalid):
                # Invalid rows are left out, but count.
                rows: list[int] = []
                while len(rows) < len(batch):
                    if row not in invalid:
                        rows.append(row)
                    row += 1
                yield pa.Table.from_batches([batch]).append_column(ROW, pa.array(rows, pa.int64()))
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            place = f"{file}: cannot be read as CSV from row {max(row, first)} on"
            raise DataError(f"{place}: {first_line(error)}") from error
        if invalid:
            yield pa.table({ROW: list(invalid), PROBLEM: list(invalid.values())})

    def ahead(self, files: Sequence[str]) -> None:
        """Begin to copy the files that are read next."""
        self.files.fetch_ahead(files)

    def count(self, file: str) -> int:
        """Return the number of rows of a file."""
        return sum(len(table) for table in self.read(file))

    def _open(self, file: str, invalid: dict[int, bytes]) -> Iterator[pa.RecordBatch]:
        path = self.files.opened_at(file)
        with open(path, "rb") as stream:
            compression = "gzip" if stream.read(2) == _GZIP_MAGIC else None
        with pa.input_stream(path, compression=compression) as stream:
            names = list(self.names) or _header(stream, self.separator)
        columns = self.groups.present(file, names)

        def note(row: pa.csv.InvalidRow) -> str:
            problem = f"{row.actual_columns} values, not {row.expected_columns}"
            invalid[row.number] = Problem("row", problem).encode()
            return "skip"

        with pa.input_stream(path, compression=compression) as stream:
            read = pa.csv.ReadOptions(
                # With threads, invalid rows would not have row numbers.
                use_threads=False,
                block_size=_CSV_BLOCK_BYTES,
                column_names=names,
                skip_rows=0 if self.names else 1,
            )
            parse = pa.csv.ParseOptions(delimiter=self.separator, newlines_in_values=True, invalid_row_handler=note)
            convert = pa.csv.ConvertOptions(
                check_utf8=False,
                include_columns=columns,
                column_types={name: pa.string() for name in columns},
                strings_can_be_null=False,
            )
            yield from pa.csv.open_csv(stream, read, parse, convert)


def _header(stream: pa.NativeFile, separator: str) -> list[str]:
    """Return the column names in the first line."""
    line = stream.read(1 << 20).split(b"\n", 1)[0].rstrip(b"\r")
    if not line:
        return []
    options = pa.csv.ParseOptions(delimiter=separator)
    read = pa.csv.ReadOptions(autogenerate_column_names=True)
    table = pa.csv.read_csv(
        pa.BufferReader(line + b"\n"), read, options, pa.csv.ConvertOptions(strings_can_be_null=False)
    )
    return [str(column[0].as_py()) for column in table.columns]
