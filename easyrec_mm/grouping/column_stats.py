"""Statistics of the columns of a log, in bounded memory, and independent of the pieces and order in which it is read.

Counts, limits and missing values are exact. Distinct values are exact up to MAX_COUNTED and estimated beyond, with an
error of about 1 % (HyperLogLog, Flajolet et al., 2007). A sample of rows, those whose values have the smallest hashes,
shows what numbers and texts look like.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easyrec_mm.features.field import Kind
from easyrec_mm.stable_hash import Hashes, combine, hash_column

# Maximum number of distinct values of a column for which each value is counted.
MAX_COUNTED = 1000
_REGISTER_BITS = 14
_NUM_REGISTERS = 1 << _REGISTER_BITS


@dataclass
class ColumnStats:
    """The statistics of one column.

    counts     value -> number of rows, without nulls; None if more than MAX_COUNTED values are distinct
    registers  uint8 [2^14], the HyperLogLog sketch of the distinct values
    """

    kind: Kind
    num_rows: int = 0
    num_missing: int = 0
    num_bytes: int = 0  # of texts
    least: Any = None
    greatest: Any = None
    counts: dict[Any, int] | None = field(default_factory=dict)
    registers: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(_NUM_REGISTERS, np.uint8))

    @property
    def num_values(self) -> int:
        """Return the number of rows that have a value."""
        return self.num_rows - self.num_missing

    @property
    def num_distinct(self) -> int:
        """Return the number of distinct values: exact while they are counted, else an estimate."""
        return len(self.counts) if self.counts is not None else _estimate(self.registers)

    def add(self, values: pa.Array) -> Hashes:
        """Add values `[N]`; return their hashes, which the statistics need anyway.

        Floats have the hashes of their values with 32 bits, so that 0.1 is the same in every format.
        """
        self.num_rows += len(values)
        self.num_missing += values.null_count
        if self.counts is None and not pa.types.is_string(values.type):
            # For many distinct numbers, hashing every row is as fast as finding the distinct ones first.
            of_rows = _hashes(values)
            self._note(
                values.drop_null(),
                of_rows[values.is_valid().to_numpy(zero_copy_only=False)] if values.null_count else of_rows,
            )
            return of_rows
        encoded = values.dictionary_encode()
        distinct = encoded.dictionary
        hashes = _hashes(distinct)
        if pa.types.is_string(values.type):
            self.num_bytes += pc.sum(pc.binary_length(values)).as_py() or 0
        self._note(distinct, hashes)
        self._count(encoded)
        codes = pc.fill_null(encoded.indices, len(distinct)).to_numpy(zero_copy_only=False)
        of_codes: Hashes = np.concatenate([hashes, hash_column(pa.nulls(1, values.type))])[codes]
        return of_codes

    def merge(self, other: ColumnStats) -> None:
        """Add the statistics of other rows of the same column."""
        self.num_rows += other.num_rows
        self.num_missing += other.num_missing
        self.num_bytes += other.num_bytes
        if other.least is not None:
            self._widen(other.least, other.greatest)
        np.maximum(self.registers, other.registers, out=self.registers)
        self._count_values(other.counts)

    def _note(self, values: pa.Array, hashes: Hashes) -> None:
        """Update the limits and the sketch with values; each distinct value must occur at least once."""
        if len(values):
            limits = pc.min_max(values).as_py()
            self._widen(limits["min"], limits["max"])
            _raise_registers(self.registers, hashes)

    def _widen(self, least: Any, greatest: Any) -> None:
        self.least = least if self.least is None else min(self.least, least)
        self.greatest = greatest if self.greatest is None else max(self.greatest, greatest)

    def _count(self, encoded: pa.DictionaryArray) -> None:
        if self.counts is None:
            return
        if len(encoded.dictionary) > MAX_COUNTED:
            self.counts = None
            return
        codes = encoded.indices.drop_null().to_numpy(zero_copy_only=False)
        rows = np.bincount(codes, minlength=len(encoded.dictionary))
        self._count_values(dict(zip(encoded.dictionary.to_pylist(), rows.tolist(), strict=True)))

    def _count_values(self, counts: dict[Any, int] | None) -> None:
        if self.counts is None or counts is None:
            self.counts = None
            return
        for value, rows in counts.items():
            self.counts[value] = self.counts.get(value, 0) + rows
        if len(self.counts) > MAX_COUNTED:
            self.counts = None


def _hashes(values: pa.Array) -> Hashes:
    return hash_column(values.cast(pa.float32(), safe=False) if pa.types.is_float64(values.type) else values)


def _raise_registers(registers: NDArray[np.uint8], hashes: Hashes) -> None:
    """Update the registers, each of which keeps the longest run of leading zeros seen, plus one."""
    index = (hashes >> np.uint64(64 - _REGISTER_BITS)).astype(np.int64)
    low_bits = (hashes << np.uint64(_REGISTER_BITS)) >> np.uint64(12)  # its upper 50 bits, which float64 holds exactly
    _, exponent = np.frexp(low_bits.astype(np.float64))  # low_bits < 2^exponent
    np.maximum.at(registers, index, (53 - exponent).astype(np.uint8))


def _estimate(registers: NDArray[np.uint8]) -> int:
    size = float(_NUM_REGISTERS)
    estimate = 0.7213 / (1 + 1.079 / size) * size**2 / float(np.sum(2.0 ** -registers.astype(np.float64)))
    num_zeros = int(np.count_nonzero(registers == 0))
    if estimate <= 2.5 * size and num_zeros:
        estimate = size * float(np.log(size / num_zeros))
    return round(estimate)


@dataclass
class RowSample:
    """A sample of at most `size` rows, which depends on the values of all rows, but not on their order.

    The rows with the smallest hashes are kept. Rows with one hash are kept once, and counted.

    distinct  the kept rows, sorted by hash
    hashes    their hashes
    counts    int64, how often each occurs
    """

    size: int
    distinct: pa.Table | None = None
    hashes: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, table: pa.Table, hashes: Hashes) -> None:
        """Add rows with these hashes."""
        if len(self.hashes) >= self.size:
            is_small = hashes <= self.hashes[-1]
            table, hashes = table.filter(pa.array(is_small)), hashes[is_small]
        if len(table):
            self._join(table, hashes, np.ones(len(table), np.int64))

    def merge(self, other: RowSample) -> None:
        """Add the sample of other rows."""
        if other.distinct is not None:
            self._join(other.distinct, other.hashes, other.counts)

    def _join(self, table: pa.Table, hashes: Hashes, counts: NDArray[np.int64]) -> None:
        if self.distinct is not None:
            table = pa.concat_tables([self.distinct, table])
            hashes, counts = np.concatenate([self.hashes, hashes]), np.concatenate([self.counts, counts])
        order = np.argsort(hashes)
        hashes, counts = hashes[order], counts[order]
        is_repeated = hashes[1:] == hashes[:-1]
        if is_repeated.any():
            starts = np.flatnonzero(np.concatenate([[True], ~is_repeated]))
            order, hashes, counts = order[starts], hashes[starts], np.add.reduceat(counts, starts)
        self.distinct = table.take(pa.array(order[: self.size])).combine_chunks()
        self.hashes, self.counts = hashes[: self.size], counts[: self.size]

    def rows(self) -> pa.Table | None:
        """Return at most `size` rows in random order, each as often as its share of all rows; None without any."""
        total = int(self.counts.sum())
        if self.distinct is None or total == len(self.counts):
            return self.distinct
        ends = np.cumsum(self.counts)
        drawn = min(self.size, total)
        copies = ends * drawn // total - (ends - self.counts) * drawn // total
        row = np.repeat(np.arange(len(copies)), copies)
        # The copies of a row are mixed with the other rows.
        number = np.arange(len(row)) - np.repeat(np.cumsum(copies) - copies, copies)
        order = np.argsort(combine(self.hashes[row], number.astype(np.uint64)), kind="stable")
        return self.distinct.take(pa.array(row[order])).combine_chunks()


@dataclass
class LogStats:
    """The statistics of each column of a log, and a sample of its rows.

    times  columns that do not decide which rows are in the sample, because formats write times differently
    """

    columns: dict[str, ColumnStats]
    sample: RowSample
    times: frozenset[str] = frozenset()

    @staticmethod
    def of(kinds: dict[str, Kind], sample_size: int, times: frozenset[str] = frozenset()) -> LogStats:
        """Return the statistics of no rows."""
        columns = {name: ColumnStats(kind) for name, kind in kinds.items()}
        return LogStats(columns, RowSample(sample_size), times)

    def empty(self) -> LogStats:
        """Return the statistics of no rows of the same columns."""
        return LogStats.of({name: column.kind for name, column in self.columns.items()}, self.sample.size, self.times)

    @property
    def num_rows(self) -> int:
        """Return the number of rows added."""
        return next(iter(self.columns.values())).num_rows

    def add(self, table: pa.Table) -> Hashes:
        """Add rows with these columns; return the hash of each row's values."""
        hashes = np.zeros(len(table), np.uint64)
        for name, stats in self.columns.items():
            if name not in self.times:
                hashes = combine(hashes, stats.add(table[name].combine_chunks()))
        self.sample.add(table.select(list(self.columns)), hashes)
        for name, stats in self.columns.items():
            if name in self.times:
                hashes = combine(hashes, stats.add(table[name].combine_chunks()))
        return hashes

    def merge(self, other: LogStats) -> None:
        """Add the statistics of other rows."""
        for name, stats in self.columns.items():
            stats.merge(other.columns[name])
        self.sample.merge(other.sample)
