"""Finds the columns that have the same value in all rows of an item; rows may come in any order."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easyrec_mm.stable_hash import Hashes, hash_column

_ROWS_AT_ONCE = 1 << 16


@dataclass
class ConstantColumns:
    """Columns with one value per item and picture, and how many rows were compared with an earlier row."""

    names: set[str]
    num_compared: int = 0

    def merge(self, other: ConstantColumns) -> None:
        """Add the result of other items."""
        self.names &= other.names
        self.num_compared += other.num_compared


def constant_in(table: pa.Table, item: str) -> ConstantColumns:
    """Return the columns of a table that have one value per value of the column `item`."""
    counted = [(name, "count_distinct", pc.CountOptions(mode="all")) for name in table.column_names if name != item]
    numbers = table.group_by(item).aggregate(counted)
    names = {name for name, *_ in counted if pc.max(numbers[f"{name}_count_distinct"]).as_py() == 1}
    return ConstantColumns({item, *names}, len(table) - len(numbers))


@dataclass
class _Column:
    first_hashes: Hashes  # [runs]: hash of the first value seen in each run; 0 before that
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_constant: bool = True

    def add(self, hashes: Hashes, run: NDArray[np.int32]) -> None:
        hashes = hashes | np.uint64(1)
        with self.lock:
            if self.is_constant:
                is_new = self.first_hashes[run] == 0
                self.first_hashes[run[is_new]] = hashes[is_new]
                self.is_constant = bool(np.all(self.first_hashes[run] == hashes))


def _hashes(values: pa.Array) -> Hashes:
    """Return the hash of each value; finding distinct values first makes this faster for texts, but not for numbers."""
    return hash_column(values.dictionary_encode() if pa.types.is_string(values.type) else values)


class Constancy:
    """Compares the rows of each run (one item and picture); several threads may add rows."""

    def __init__(self, names: list[str], num_rows: int, num_runs: int) -> None:
        self._columns = {name: _Column(np.zeros(num_runs, np.uint64)) for name in names}
        self._num_compared = num_rows - num_runs

    def add(self, rows: pa.Table, run: NDArray[np.int32]) -> None:
        """Add rows; `run` [N] is the run of each row."""
        # In portions, because most columns turn out not to be constant within the first one.
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            end = start + _ROWS_AT_ONCE
            for name, column in self._columns.items():
                if column.is_constant:
                    values = rows[name].slice(start, _ROWS_AT_ONCE).combine_chunks()
                    column.add(_hashes(values), run[start:end])

    def result(self) -> ConstantColumns:
        """Return the columns that are constant so far."""
        names = {name for name, column in self._columns.items() if column.is_constant}
        return ConstantColumns(names, self._num_compared)
