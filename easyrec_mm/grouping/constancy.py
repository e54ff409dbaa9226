"""Which columns are the same for all rows of an item: found as rows come, in any order."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from easyrec_mm.stable_hash import Hashes, hash_column

_ROWS_AT_ONCE = 1 << 16


@dataclass
class ConstantColumns:
    """Columns that never differed within an item and picture, and how many rows had another before them."""

    names: set[str]
    num_compared: int = 0

    def merge(self, other: ConstantColumns) -> None:
        """Take in what was found in other items."""
        self.names &= other.names
        self.num_compared += other.num_compared


@dataclass
class _Column:
    seen: Hashes  # [runs]: of the first value that was seen, 0 before
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_constant: bool = True

    def add(self, hashes: Hashes, run: NDArray[np.int32]) -> None:
        hashes = hashes | np.uint64(1)
        with self.lock:
            if self.is_constant:
                is_new = self.seen[run] == 0
                self.seen[run[is_new]] = hashes[is_new]
                self.is_constant = bool(np.all(self.seen[run] == hashes))


def _hashes(values: pa.Array) -> Hashes:
    """Of each value; numbers are hashed as fast as they are told apart."""
    return hash_column(values.dictionary_encode() if pa.types.is_string(values.type) else values)


class Constancy:
    """Looks at rows of some runs (an item and picture each), also from several threads."""

    def __init__(self, names: list[str], num_rows: int, num_runs: int) -> None:
        self._columns = {name: _Column(np.zeros(num_runs, np.uint64)) for name in names}
        self._num_compared = num_rows - num_runs

    def add(self, rows: pa.Table, run: NDArray[np.int32]) -> None:
        """Take in rows; `run` [N] is the run of each."""
        # Some at a time: most columns show at once that they differ.
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            end = start + _ROWS_AT_ONCE
            for name, column in self._columns.items():
                if column.is_constant:
                    values = rows[name].slice(start, _ROWS_AT_ONCE).combine_chunks()
                    column.add(_hashes(values), run[start:end])

    def result(self) -> ConstantColumns:
        """What was found."""
        names = {name for name, column in self._columns.items() if column.is_constant}
        return ConstantColumns(names, self._num_compared)
