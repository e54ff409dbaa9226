"""Stores the rows of an evaluation: appended batch by batch, then read in any order, from memory or from disk.

This module limits the use of memory: readers get one chunk at a time. Beyond `max_memory` bytes, rows go to Parquet
files in a temporary folder, and DuckDB sorts them there within the same limit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Array = npt.NDArray[Any]
Columns = dict[str, Array]

DEFAULT_MEMORY = 1 << 30
# DuckDB cannot sort with less memory.
_LEAST_SORT_MEMORY = 64 << 20
# Sorting needs memory for sorted copies and their permutation, in addition to the rows.
_COPIES = 4
_FILE_ROWS = 1 << 16


class Rows:
    """Numeric columns of equal length. In an order, the name "-x" means column x in descending order.

    Args:
      max_memory: bytes that the rows may take, including sorting.
    """

    def __init__(self, max_memory: int = DEFAULT_MEMORY) -> None:
        self._max_memory = max_memory
        self._batches: list[Columns] = []
        self._num_bytes = 0
        self._num_rows = 0
        self._names: tuple[str, ...] = ()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._num_files = 0
        # The last requested order, because many readers request the same one.
        self._sorted: tuple[tuple[str, ...], Columns | str] | None = None

    def __enter__(self) -> Rows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self._num_rows

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns; () before rows are appended."""
        return self._names

    @property
    def is_on_disk(self) -> bool:
        """Whether the rows exceeded the memory limit."""
        return self._folder is not None

    def append(self, columns: Mapping[str, Array]) -> None:
        """Append rows: name -> numbers `[N]`, with the same names and dtypes in each call.

        Raises:
          ValueError: if lengths differ.
        """
        batch = {name: np.array(values) for name, values in columns.items()}  # the caller may reuse its arrays
        lengths = {len(values) for values in batch.values()}
        if len(lengths) != 1 or any(values.ndim != 1 for values in batch.values()):
            raise ValueError(f"columns of shapes { {name: v.shape for name, v in batch.items()} }; give [N] each")
        self._sorted = None
        self._names = tuple(batch)
        self._batches.append(batch)
        self._num_rows += lengths.pop()
        self._num_bytes += sum(values.nbytes for values in batch.values())
        if self._num_bytes * _COPIES > self._max_memory:
            self._spill()

    def chunks(
        self, names: Sequence[str], num_rows: int, order: Sequence[str] = (), run_column: str | None = None
    ) -> Iterator[Columns]:
        """Yield the rows in chunks.

        Args:
          names: columns to read.
          num_rows: rows per chunk.
          order: columns to sort by; by default rows are read as they were appended.
          run_column: the first column of the order, if rows with equal values in it must stay in one chunk of any size.
        """
        if not self._num_rows:
            return
        parts = self._parts(
            list(dict.fromkeys([*names, *([run_column] if run_column else [])])), num_rows, tuple(order)
        )
        if run_column is None:
            yield from parts
            return
        held: list[Columns] = []
        for part in parts:
            values = part[run_column]
            last = int(np.searchsorted(values, values[-1]))  # first row of the last value, which may continue
            if last == 0 and held and held[-1][run_column][-1] == values[0]:
                held.append(part)
                continue
            # Everything before `last` is complete, including a first run that continues the held rows.
            held.append(_slice(part, 0, last))
            yield from _joined(held)
            held = [_slice(part, last, len(values))]
        yield from _joined(held)

    def column(self, name: str) -> Array:
        """Return a whole column in memory."""
        return np.concatenate([chunk[name] for chunk in self.chunks([name], _FILE_ROWS)] or [np.zeros(0, np.float32)])

    def close(self) -> None:
        """Drop the rows, and remove their files from disk."""
        self._batches, self._sorted = [], None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _parts(self, names: list[str], num_rows: int, order: tuple[str, ...]) -> Iterator[Columns]:
        if self.is_on_disk:
            if self._batches:
                self._spill()
            yield from _read(self._sorted_file(order) if order else self._files(), names, num_rows)
            return
        columns = self._in_memory(order)
        for start in range(0, self._num_rows, num_rows):
            yield {name: columns[name][start : start + num_rows] for name in names}

    def _in_memory(self, order: tuple[str, ...]) -> Columns:
        if len(self._batches) > 1:
            self._batches = [{n: np.concatenate([b[n] for b in self._batches]) for n in self._batches[0]}]
        columns = self._batches[0]
        if not order:
            return columns
        if self._sorted is None or self._sorted[0] != order or isinstance(self._sorted[1], str):
            keys = [-columns[name[1:]] if name.startswith("-") else columns[name] for name in reversed(order)]
            places = np.lexsort(keys)
            self._sorted = (order, {name: values[places] for name, values in columns.items()})
        of_order = self._sorted[1]
        return of_order if isinstance(of_order, dict) else columns

    def _spill(self) -> None:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="easyrec_mm_eval_")
        table = pa.concat_tables([pa.table(batch) for batch in self._batches])
        pq.write_table(table, Path(self._folder.name) / f"rows-{self._num_files:06d}.parquet", compression="lz4")
        self._num_files += 1
        self._batches, self._num_bytes = [], 0

    def _files(self) -> list[str]:
        folder = Path(self._folder.name if self._folder else "")
        return [str(folder / f"rows-{number:06d}.parquet") for number in range(self._num_files)]

    def _sorted_file(self, order: tuple[str, ...]) -> list[str]:
        if self._sorted is None or self._sorted[0] != order:
            import duckdb

            folder = Path(self._folder.name if self._folder else "")
            path = folder / "sorted.parquet"
            path.unlink(missing_ok=True)
            by = ", ".join(f'"{name[1:]}" DESC' if name.startswith("-") else f'"{name}"' for name in order)
            memory = max(self._max_memory, _LEAST_SORT_MEMORY)
            settings: dict[str, str | bool | int | float | list[str]] = {
                "memory_limit": f"{memory >> 20}MiB",
                "temp_directory": str(folder / "sorting"),
                "threads": 2,
            }
            with duckdb.connect(config=settings) as connection:
                connection.execute(
                    f"COPY (SELECT * FROM read_parquet(?) ORDER BY {by}) TO '{_quoted(path)}' "
                    f"(FORMAT parquet, COMPRESSION lz4, ROW_GROUP_SIZE {_FILE_ROWS})",
                    [self._files()],
                )
            self._sorted = (order, str(path))
        return [str(self._sorted[1])]


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _read(paths: list[str], names: list[str], num_rows: int) -> Iterator[Columns]:
    """Yield chunks of `num_rows` rows from files; the last chunk of each file may be smaller."""
    for path in paths:
        # Reading ahead would keep the whole file in memory.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=num_rows, columns=names):
                yield {name: batch.column(name).to_numpy(zero_copy_only=False) for name in names}


def _slice(columns: Columns, start: int, end: int) -> Columns:
    return {name: values[start:end] for name, values in columns.items()}


def _joined(parts: list[Columns]) -> Iterator[Columns]:
    parts = [part for part in parts if len(next(iter(part.values())))]
    if parts:
        yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
