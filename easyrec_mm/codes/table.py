"""A table of codes, to be joined to a log: key, code_1, code_2, ..., semantic_id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from easyrec_mm.codes.codebooks import Codes
from easyrec_mm.codes.report import semantic_id
from easyrec_mm.errors import UserError
from easyrec_mm.files.arrow_csv import csv as pa_csv
from easyrec_mm.files.written_file import written_file
from easyrec_mm.store.codes import Shape
from easyrec_mm.store.keys import is_text


@dataclass
class CodesTable:
    """A table that is being written; `left_out` are the keys that no table can hold."""

    schema: pa.Schema
    writer: pq.ParquetWriter | pa_csv.CSVWriter
    left_out: list[str] = field(default_factory=list)

    def write(self, keys: Sequence[str], codes: Codes) -> None:
        """Append the codes `[N, L]` of keys."""
        rows = [row for row, key in enumerate(keys) if is_text(key)]
        self.left_out += [key for key in keys if not is_text(key)]
        codes = codes[rows]
        columns = [pa.array([keys[row] for row in rows], pa.string()), *(pa.array(column) for column in codes.T)]
        columns.append(pa.array([semantic_id(row) for row in codes.tolist()], pa.string()))
        self.writer.write_table(pa.table(columns, self.schema))


def require_table_name(output: str) -> None:
    """Require that the ending of a file is that of a format.

    Raises:
      UserError: if it is not.
    """
    if not output.endswith((".parquet", ".csv")):
        raise UserError(f"--output {output}: is neither .parquet nor .csv; write one of these")


@contextmanager
def codes_table(output: str, shape: Shape) -> Iterator[CodesTable]:
    """Yield a table, which appears at the end.

    Raises:
      UserError: if it cannot be written.
    """
    names = [f"code_{level}" for level in range(1, shape.levels + 1)]
    schema = pa.schema({"key": pa.string(), **dict.fromkeys(names, pa.int32()), "semantic_id": pa.string()})
    with written_file(output) as path:
        writer = pq.ParquetWriter(path, schema) if output.endswith(".parquet") else pa_csv.CSVWriter(path, schema)
        with writer:
            yield CodesTable(schema, writer)
