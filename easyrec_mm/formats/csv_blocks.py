"""Divides CSV files into blocks of whole rows, and parses the blocks.

Quoted values may contain separators and line ends. Rows that cannot be read are counted, so that row numbers are right.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from easyrec_mm.errors import DataError

BLOCK_BYTES = 1 << 23
_MAX_HEADER_BYTES = 1 << 20
# Replaces a byte that is not UTF-8 while rows are parsed; it is not a Unicode character.
_MARK = "\ufdd0"
_MARKS = dict.fromkeys(range(0xDC80, 0xDD00), _MARK)


class CsvRows(NamedTuple):
    """The rows of a block.

    table      the rows that have a value for each column: text columns (binary if a value is not UTF-8), null where a
               value is empty
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
    num_quotes = block.count(b'"', 0, end)
    line_end = end
    while line_end and num_quotes % 2:
        before = block.rfind(b"\n", 0, line_end - 1) + 1
        num_quotes -= block.count(b'"', before, line_end)
        line_end = before
        if len(block) - line_end > size:
            return end  # the quote encloses no value, as in 5"; then every line end is the end of a row
    return line_end


def parse(block: bytes, names: list[str], separator: str) -> CsvRows:
    """Parse the rows of a block."""
    is_text = _is_utf8(block)
    block = block if is_text else _mark(block)
    parts: list[CsvRows] = []
    while block:
        part, block = _parse_until_open_quote(block, names, separator)
        parts.append(part)
    first = np.cumsum([0, *(part.num_rows for part in parts)])[:-1].tolist()
    table = pa.concat_tables(part.table for part in parts)
    return CsvRows(
        table if is_text else _unmark(table),
        np.concatenate([part.number + start for part, start in zip(parts, first, strict=True)]),
        [(row + start, problem) for part, start in zip(parts, first, strict=True) for row, problem in part.malformed],
    )


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
    """Return the values of a marked block as binary, with a byte that is not UTF-8 in place of each mark."""
    columns = [
        pc.replace_substring(column.cast(pa.binary()), _MARK.encode(), b"\xff") for column in table.itercolumns()
    ]
    return pa.Table.from_arrays(columns, names=table.column_names)


def _parse_until_open_quote(block: bytes, names: list[str], separator: str) -> tuple[CsvRows, bytes]:
    """Parse up to a row with an unclosed quote, whose value would contain the rest; return rows and remaining lines."""
    invalid: list[pa_csv.InvalidRow] = []

    def note(row: pa_csv.InvalidRow) -> str:
        invalid.append(row)
        return "skip"

    table = _parse(block, names, separator, note)
    malformed = [(row.number - 1, f"{row.actual_columns} values, not {row.expected_columns}") for row in invalid]
    number = np.delete(np.arange(table.num_rows + len(malformed)), [row for row, _ in malformed])
    rows = CsvRows(table, number, malformed)
    last = rows.num_rows - 1
    if malformed and malformed[-1][0] == last:
        start = _open_malformed(block, invalid[-1].text)
    elif len(number):
        start = _open_value(block, table[names[-1]][-1].as_py() or "", separator)
        if start >= 0:
            rows = CsvRows(table.slice(0, len(table) - 1), number[:-1], malformed)
    else:
        start = -1
    if start < 0:
        return rows, b""
    malformed[:] = [entry for entry in malformed if entry[0] != last] + [(last, "a quote is not closed")]
    return rows, block[block.find(b"\n", start) + 1 :]


def _open_malformed(block: bytes, text: str) -> int:
    """Return where the last row begins if it is malformed because an unclosed quote spans several lines; else -1."""
    data = text.rstrip("\r\n").encode()
    if b"\n" not in data or data.count(b'"') % 2 == 0:
        return -1
    return len(block.rstrip(b"\r\n")) - len(data)


def _open_value(block: bytes, value: str, separator: str) -> int:
    """Return where the last row begins if its last value has an unclosed quote and spans several lines; else -1."""
    data = value.encode()
    # Only a value without a closing quote ends like the block, because it includes the line end of the row.
    tail = separator.encode() + b'"' + data.replace(b'"', b'""')
    if b"\n" not in data or not block.endswith(tail):
        return -1
    return block.rfind(b"\n", 0, len(block) - len(tail)) + 1


def _parse(block: bytes, names: list[str], separator: str, note: object) -> pa.Table:
    return pa_csv.read_csv(
        pa.BufferReader(block),
        read_options=pa_csv.ReadOptions(column_names=names, use_threads=False, block_size=len(block) + 1),
        parse_options=pa_csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=note),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
        ),
    )
