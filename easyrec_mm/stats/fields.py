"""What the fields of samples hold: counts, limits, frequent values, and a sample of rows that tells the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from easyrec_mm.formats.columns import ORDER, ROW_BITS, Kind
from easyrec_mm.grouping.column_stats import ColumnStats, RowSample
from easyrec_mm.stats.samples import Fields, Samples

# Samples that tell quantiles and correlations: errors of about 0.005 in a correlation near 0.
SAMPLE_ROWS = 1 << 15
# Values that are counted of fields with very many.
_TOP_CAPACITY = 1 << 12


@dataclass
class TopValues:
    """The most frequent of very many values, in bounded memory.

    A value's count is too low by at most `error` (Misra and Gries, 1982, in the form that takes in many at once:
    Agarwal et al., Mergeable summaries, 2012).
    """

    capacity: int = _TOP_CAPACITY
    counts: dict[Any, int] = field(default_factory=dict)
    error: int = 0

    def add(self, values: pa.Array) -> None:
        """Take in values `[N]`; nulls do not count."""
        found = pc.value_counts(values.drop_null())
        for value, count in zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True):
            self.counts[value] = self.counts.get(value, 0) + count
        if len(self.counts) > 2 * self.capacity:
            limit = sorted(self.counts.values(), reverse=True)[self.capacity]
            self.counts = {value: count - limit for value, count in self.counts.items() if count > limit}
            self.error += limit

    def most_common(self, number: int) -> list[tuple[Any, int]]:
        """(value, count) of the most frequent, the most frequent first."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], str(item[0])))[:number]


@dataclass
class Values:
    """What a column of values holds: limits, distinct ones, the most frequent."""

    column: ColumnStats
    top: TopValues = field(default_factory=TopValues)

    @staticmethod
    def of(kind: Kind) -> Values:
        """Of no values."""
        return Values(ColumnStats(kind))

    def add(self, values: pa.Array) -> None:
        """Take in values `[N]`, null where one is missing."""
        self.column.add(values)
        self.top.add(values)


@dataclass
class FieldStats:
    """What a field holds.

    values     of the field as it stands
    total      sum of numbers, and of their squares
    num_zeros  numbers that are 0
    parts      of a text that holds several values: those
    """

    kind: Kind
    values: Values
    total: float = 0.0
    total_squares: float = 0.0
    num_zeros: int = 0
    parts: Values | None = None

    @property
    def is_number(self) -> bool:
        """Whether it has a mean."""
        return self.kind != "string"

    @property
    def mean(self) -> float:
        """Of the values that are not missing; NaN without any."""
        number = self.values.column.num_values
        return self.total / number if number else float("nan")

    @property
    def deviation(self) -> float:
        """Standard deviation; NaN without values."""
        number = self.values.column.num_values
        return max(self.total_squares / number - self.mean**2, 0.0) ** 0.5 if number else float("nan")

    def add(self, column: pa.Array, separator: str) -> None:
        """Take in values `[S]`."""
        if self.kind == "string":
            column = pc.if_else(pc.equal(column, ""), None, column)  # the same as missing
        self.values.add(column)
        if self.is_number:
            numbers = column.drop_null().cast(pa.float64()).to_numpy(zero_copy_only=False)
            self.total += float(numbers.sum())
            self.total_squares += float(np.square(numbers).sum())
            self.num_zeros += int(np.count_nonzero(numbers == 0))
        elif separator:
            parts = pc.split_pattern(column.drop_null(), separator).flatten()
            self.parts = self.parts or Values.of("string")
            self.parts.add(parts.filter(pc.not_equal(parts, "")))


@dataclass
class SampleStats:
    """What the fields of all samples hold.

    sizes   group size -> groups
    sample  of SAMPLE_ROWS rows, with all fields
    """

    fields: Fields
    of_field: dict[str, FieldStats] = field(init=False)
    sizes: dict[int, int] = field(default_factory=dict)
    sample: RowSample = field(default_factory=lambda: RowSample(SAMPLE_ROWS))

    def __post_init__(self) -> None:
        self.of_field = {name: FieldStats(kind, Values.of(kind)) for name, kind in self.fields.kinds.items()}

    @property
    def num_groups(self) -> int:
        """Groups taken in."""
        return sum(self.sizes.values())

    @property
    def num_samples(self) -> int:
        """Samples taken in."""
        return sum(size * number for size, number in self.sizes.items())

    def add(self, samples: Samples) -> None:
        """Take in samples."""
        first = self.num_samples
        for size, number in zip(*np.unique(samples.size, return_counts=True), strict=True):
            self.sizes[int(size)] = self.sizes.get(int(size), 0) + int(number)
        for name, column in samples.columns.items():
            self.of_field[name].add(column, self.fields.separators.get(name, ""))
        order = np.arange(first, self.num_samples) & ((1 << ROW_BITS) - 1)
        self.sample.add(pa.table({**samples.columns, ORDER: order}))
