"""Rows of an evaluation: appended batch by batch, then read in any order, in memory or, beyond a limit, on disk.

Owns memory: whoever reads gets one chunk at a time. Beyond `max_memory` bytes, rows go to Parquet files in a temporary
folder and DuckDB sorts them there, with the same limit.
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
# DuckDB cannot sort with less.
_LEAST_SORT_MEMORY = 64 << 20
# Sorted copies and their permutation stand beside the rows.
_COPIES = 4
_FILE_ROWS = 1 << 16


class Rows:
    """Columns of numbers of equal length. A column named "-x" in an order is column x, descending.

    Args:
      max_memory: bytes that they may take, sorting included.
    """

    def __init__(self, max_memory: int = DEFAULT_MEMORY) -> None:
        self._max_memory = max_memory
        self._batches: list[Columns] = []
        self._num_bytes = 0
        self._num_rows = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._num_files = 0
        # The last order that was asked for, since many readers want the same.
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
    def is_on_disk(self) -> bool:
        """Whether the rows went beyond the memory."""
        return self._folder is not None

    def append(self, columns: Mapping[str, Array]) -> None:
        """Add rows: name -> numbers `[N]`, the same names and dtypes each time.

        Raises:
          ValueError: if lengths differ.
        """
        batch = {name: np.array(values) for name, values in columns.items()}  # the caller may use its own again
        lengths = {len(values) for values in batch.values()}
        if len(lengths) != 1 or any(values.ndim != 1 for values in batch.values()):
            raise ValueError(f"columns of shapes { {name: v.shape for name, v in batch.items()} }; give [N] each")
        self._sorted = None
        self._batches.append(batch)
        self._num_rows += lengths.pop()
        self._num_bytes += sum(values.nbytes for values in batch.values())
        if self._num_bytes * _COPIES > self._max_memory:
            self._spill()

    def chunks(
        self, names: Sequence[str], num_rows: int, order: Sequence[str] = (), whole: str | None = None
    ) -> Iterator[Columns]:
        """The rows, some at a time.

        Args:
          names: columns to read.
          num_rows: rows of a chunk.
          order: columns to sort by; as they were appended by default.
          whole: a column, first of the order, of which equal values stay in one chunk, however large.
        """
        if not self._num_rows:
            return
        parts = self._parts(list(dict.fromkeys([*names, *([whole] if whole else [])])), num_rows, tuple(order))
        if whole is None:
            yield from parts
            return
        held: list[Columns] = []
        for part in parts:
            values = part[whole]
            last = int(np.searchsorted(values, values[-1]))  # first row of the last value, which may go on
            if last == 0 and held and held[-1][whole][-1] == values[0]:
                held.append(part)
                continue
            # A first run that continues what is held is complete here; so is everything before `last`.
            held.append(_slice(part, 0, last))
            yield from _joined(held)
            held = [_slice(part, last, len(values))]
        yield from _joined(held)

    def column(self, name: str) -> Array:
        """A whole column, in memory."""
        return np.concatenate([chunk[name] for chunk in self.chunks([name], _FILE_ROWS)] or [np.zeros(0, np.float32)])

    def close(self) -> None:
        """Remove what is on disk."""
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
    """Chunks of `num_rows` rows of files, but for the last one of each."""
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
