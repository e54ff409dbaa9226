"""Divides CSV files into blocks of whole rows, and parses the blocks.

Quoted values may contain separators and line ends (RFC 4180). Rows that cannot be read are counted, so that row numbers
are right. A quote that is not closed spoils its own row only, although the value that it begins would contain what
follows.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from easyrec_mm.errors import DataError
from easyrec_mm.files.arrow_csv import csv as pa_csv

BLOCK_BYTES = 1 << 23
_MAX_HEADER_BYTES = 1 << 20
# Characters of no meaning, which stand for the bytes that are not UTF-8 while rows are parsed.
_FIRST_MARK = 0x10F000
_MARKS = {0xDC00 + byte: _FIRST_MARK + byte for byte in range(0x80, 0x100)}
_BYTES = {mark: surrogate for surrogate, mark in _MARKS.items()}
_OPEN_QUOTE = "a quote is not closed"


class CsvRows(NamedTuple):
    """The rows of a block.

    table      the rows that have a value for each column: text columns (binary if the block is not UTF-8), null where
               a value is empty
    number     int64 [rows of the table]: the number of each row in the block, from 0
    malformed  (row number, problem) of all other rows
    """

    table: pa.Table
    number: NDArray[np.int64]
    malformed: list[tuple[int, str]]

    @property
    def num_rows(self) -> int:
        """Return the number of all rows, including malformed ones."""
        return len(self.number) + len(self.malformed)


def read_header(stream: IO[bytes], path: str, separator: str) -> tuple[list[str], int]:
    """Return the names of the columns, and the length of the header in bytes; no names if the file is empty.

    Raises:
      DataError: if the header is not UTF-8, or if a name is missing or occurs twice.
    """
    line = stream.readline(_MAX_HEADER_BYTES)
    try:
        text = line.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the header is not UTF-8: {error}; a CSV file begins with column names") from error
    names = next(csv.reader([text], delimiter=separator), []) if text.strip() else []
    for i, name in enumerate(names):
        if not name.strip():
            raise DataError(f"{path}: column {i} of the header has no name; give the columns' names in the first line")
        if name in names[:i]:
            raise DataError(f"{path}: two columns are named '{name}'; rename one")
    return names, len(line)


def blocks(stream: IO[bytes], num_bytes: int = -1, size: int = 0) -> Iterator[bytes]:
    """Yield pieces of a stream that end at the end of a row, until the stream or `num_bytes` end.

    A row must not be longer than `size`, BLOCK_BYTES by default.
    """
    size = size or BLOCK_BYTES
    block = b""
    while data := stream.read(size if num_bytes < 0 else min(size, num_bytes)):
        num_bytes -= len(data) if num_bytes >= 0 else 0
        # A block is cut only when more data follows it, because the last block ends where the stream ends.
        end = _last_row_end(block, size)
        if end:
            yield block[:end]
        block = block[end:] + data
    if block:
        yield block


def _last_row_end(block: bytes, size: int) -> int:
    """Return where the last whole row ends: at a line end outside of quotes."""
    end = block.rfind(b"\n") + 1
    num_quotes = _count(memoryview(block)[:end], b'"')
    line_end = end
    while line_end and num_quotes % 2:
        before = block.rfind(b"\n", 0, line_end - 1) + 1
        num_quotes -= block.count(b'"', before, line_end)
        line_end = before
        if len(block) - line_end > size:
            return end  # the quote encloses no value, as in 5"; then every line end is the end of a row
    return line_end


def parse(block: bytes, names: list[str], separator: str, columns: list[str] | None = None) -> CsvRows:
    """Parse the rows of a block.

    Args:
      block: whole rows, as `blocks` yields them.
      names: names of the columns.
      separator: the character between values.
      columns: the columns of the result; by default all.
    """
    is_text = _is_utf8(block)
    block = block if is_text else _mark(block)
    rows = _parse(block, names, separator, columns)
    if b'"' in block and rows.num_rows < _num_lines(block):
        # A value spans several lines: as it should, or because its quote is not closed.
        rows = _parse_without_open_quotes(block, names, separator, columns)
    return rows if is_text else CsvRows(_unmark(rows.table), rows.number, rows.malformed)


def _num_lines(block: bytes) -> int:
    """Return the number of lines, as `bytes.splitlines` finds them, which is slow."""
    return len(block.splitlines()) if b"\r" in block else _count(block, b"\n") + (not block.endswith(b"\n"))


def _count(block: bytes | memoryview, character: bytes) -> int:
    """Return how often a character occurs, in a quarter of the time that `bytes.count` takes."""
    return int(np.count_nonzero(np.frombuffer(block, np.uint8) == ord(character)))


def _is_utf8(block: bytes) -> bool:
    limits = pa.py_buffer(np.array([0, len(block)], np.int64))
    try:
        pa.Array.from_buffers(pa.large_binary(), 1, [None, limits, pa.py_buffer(block)]).cast(pa.large_string())
    except pa.ArrowInvalid:
        return False
    return True


def _mark(block: bytes) -> bytes:
    """Replace each byte that is not UTF-8 by a mark; pyarrow could not even report such a row."""
    return block.decode("utf-8", "surrogateescape").translate(_MARKS).encode()


def _unmark(table: pa.Table) -> pa.Table:
    """Return the values of a marked block as binary, with the original bytes."""

    def original(text: str | None) -> bytes | None:
        return None if text is None else text.translate(_BYTES).encode("utf-8", "surrogateescape")

    columns = [pa.array(map(original, column.to_pylist()), pa.binary()) for column in table.itercolumns()]
    return pa.Table.from_arrays(columns, names=table.column_names)


def _parse(block: bytes, names: list[str], separator: str, columns: list[str] | None) -> CsvRows:
    malformed: list[tuple[int, str]] = []

    def note(row: pa_csv.InvalidRow) -> str:
        malformed.append((row.number - 1, f"{row.actual_columns} values, not {row.expected_columns}"))
        return "skip"

    table = pa_csv.read_csv(
        pa.BufferReader(block),
        read_options=pa_csv.ReadOptions(column_names=names, use_threads=False, block_size=len(block) + 1),
        parse_options=pa_csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=note),
        convert_options=pa_csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            check_utf8=False,  # it is checked already
        ),
    )
    number = np.delete(np.arange(len(table) + len(malformed)), [row for row, _ in malformed])
    return CsvRows(table, number, malformed)


def _parse_without_open_quotes(block: bytes, names: list[str], separator: str, columns: list[str] | None) -> CsvRows:
    """Parse the rows of a block in which quotes may not be closed; the rows of such quotes are malformed."""
    kept: list[bytes] = []
    rows: list[int] = []  # numbers of the kept rows
    malformed: list[tuple[int, str]] = []
    for number, lines in enumerate(_rows_of(block.splitlines(keepends=True), len(names), separator.encode())):
        if lines:
            kept += lines
            rows.append(number)
        else:
            malformed.append((number, _OPEN_QUOTE))
    parsed = _parse(b"".join(kept), names, separator, columns)
    malformed += [(rows[row], problem) for row, problem in parsed.malformed]
    return CsvRows(parsed.table, np.array(rows, np.int64)[parsed.number], sorted(malformed))


def _rows_of(lines: list[bytes], num_columns: int, separator: bytes) -> Iterator[list[bytes]]:
    """Yield the lines of each row; no lines for a row with a quote that is not closed.

    A quote is not closed if no later quote closes it, or if the lines until then are no proper row and one of them is a
    proper row by itself.
    """
    value = rb"""(?:[^"%b\r\n]*|"(?:[^"]|"")*")""" % re.escape(separator)
    row = re.compile(rb"%b(?:%b%b){%d}[\r\n]*" % (value, re.escape(separator), value, num_columns - 1))
    start = 0
    while start < len(lines):
        end = start + 1
        is_open = _ends_open(lines[start], separator, is_open=False)
        while is_open and end < len(lines):
            is_open = _ends_open(lines[end], separator, is_open=True)
            end += 1
        is_proper = end == start + 1 or row.fullmatch(b"".join(lines[start:end]))
        if is_open or not (is_proper or not any(map(row.fullmatch, lines[start + 1 : end]))):
            yield []
            start += 1
            continue
        if lines[start].strip(b"\r\n"):  # empty lines are no rows
            yield lines[start:end]
        start = end


def _ends_open(line: bytes, separator: bytes, is_open: bool) -> bool:
    """Return whether a line ends within a quoted value.

    Args:
      line: a line.
      separator: the byte between values.
      is_open: whether the line begins within a quoted value.
    """
    position = 0
    while True:
        if not is_open and line.startswith(b'"', position):
            is_open, position = True, position + 1
        if is_open:
            position = line.find(b'"', position) + 1
            if not position:
                return True
            if line.startswith(b'"', position):  # two quotes stand for one
                position += 1
                continue
            is_open = False
        position = line.find(separator, position) + 1
        if not position:
            return False
